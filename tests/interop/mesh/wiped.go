package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"isthmus.dev/interop/peer"
)

// wiped replaces sources by other servers at the same address.
func wiped(dir string, ca *authority) error {
	r, end, err := mirrored(dir, ca)
	defer func() { end() }()
	if err != nil {
		return err
	}
	verify(r, "before", 5*time.Second)
	for n, c := range []struct {
		title string
		f     func(*rig, *source) error
	}{
		{"wiped, filled again with the same", wipe(false)},
		{"wiped, filled with something else", wipe(true)},
		{"a replica with the same data", replica(0)},
		{"a replica with other data", replica(50)},
		{"back from a list that did not end", interrupted},
		{"an older state of the same store", restored},
	} {
		if err := r.takeover(c.title, r.sources[n%len(r.sources)], c.f); err != nil {
			return fmt.Errorf("%s: %w", c.title, err)
		}
	}
	complain(r)
	return nil
}

// takeover does something to a source, and waits until the mirror equals it.
func (r *rig) takeover(title string, s *source, f func(*rig, *source) error) error {
	// The mirror reconnects at once only after a connection that worked for a while.
	time.Sleep(2 * time.Second)
	r.watcher.begin()
	before := peer.Load()
	if err := f(r, s); err != nil {
		return err
	}
	began := time.Now()
	var wrong []string
	for time.Since(began) < 40*time.Second {
		if wrong = r.watcher.differs(1); len(wrong) == 0 {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	took := time.Since(began)
	if len(wrong) > 0 {
		wrong = r.watcher.differs(0)
		finding("%s: after %v %d differences: %s", title, since(began), len(wrong), strings.Join(wrong[:min(4, len(wrong))], "; "))
	}
	// A change made now must arrive, too.
	if err := r.arrives(title, s); err != nil {
		return err
	}
	time.Sleep(time.Second)
	verify(r, title, 2*time.Second)
	now := r.watcher.now()
	peer.Table([][]string{
		{title, "load", "equal after s", "changed", "written again", "deleted", "wrongly"},
		{r.shape, fmt.Sprintf("%.1f-%.1f", before, peer.Load()), inSeconds(took), fmt.Sprint(now.puts), fmt.Sprint(now.same), fmt.Sprint(now.gone), fmt.Sprint(now.wronged)},
	})
	if now.wronged+now.same > 0 {
		finding("%s: %d wrong deletes, %d redundant writes: %s", title, now.wronged, now.same, strings.Join(now.examples, "; "))
	}
	return nil
}

// arrives changes a key and waits until the change is mirrored.
func (r *rig) arrives(title string, s *source) error {
	key, value := ipKey(s.id, 1), ipValue(s.name, s.id, 1, int(version.Add(1)))
	if _, err := s.put(context.Background(), key, value); err != nil {
		return err
	}
	at, _ := here(s.name, key)
	for began := time.Now(); time.Since(began) < 10*time.Second; time.Sleep(20 * time.Millisecond) {
		r.watcher.mu.Lock()
		arrived := r.watcher.keys[at] == value
		r.watcher.mu.Unlock()
		if arrived {
			return nil
		}
	}
	finding("%s: a change did not arrive in 10 s", title)
	return nil
}

// wipe replaces the source by a new store without its data.
func wipe(other bool) func(*rig, *source) error {
	return func(_ *rig, s *source) error {
		s.kill()
		if err := os.RemoveAll(s.data()); err != nil {
			return err
		}
		if other {
			s.differ(50)
		}
		if err := s.start(); err != nil {
			return err
		}
		return s.fill()
	}
}

// differ changes and removes some keys of the model before the server is filled.
func (s *source) differ(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range n {
		s.want[ipKey(s.id, 2*i)] = ipValue(s.name, s.id, 2*i, int(version.Add(1)))
		delete(s.want, ipKey(s.id, 2*i+101))
	}
}

// replica lets another server with its own revisions take over the address.
func replica(other int) func(*rig, *source) error {
	return func(_ *rig, s *source) error {
		twin := &source{name: s.name, id: s.id, address: peer.FreePort(), dir: filepath.Join(s.dir, "twin"), ca: s.ca, durable: true, ips: s.ips, good: true}
		s.mu.Lock()
		twin.want = map[string]string{}
		for key, value := range s.want {
			twin.want[key] = value
		}
		s.mu.Unlock()
		twin.differ(other)
		if err := twin.start(); err != nil {
			return err
		}
		defer twin.client.Close()
		// Its revisions are ahead of those of the first server.
		for range 3 {
			if err := twin.fill(); err != nil {
				return err
			}
		}
		twin.kill()
		s.mu.Lock()
		s.want = twin.want
		s.mu.Unlock()
		s.kill()
		s.dir = twin.dir
		return s.start()
	}
}

// interrupted lets a server answer whose list never ends and which has other keys, before the first server returns.
func interrupted(_ *rig, s *source) error {
	s.kill()
	e, err := pretend(s.ca, s.address, s.name, s.id, 20, s.want)
	if err != nil {
		return err
	}
	for began := time.Now(); e.pages.Load() < 10 && time.Since(began) < 30*time.Second; {
		time.Sleep(20 * time.Millisecond)
	}
	progress("the list that does not end had %d pages", e.pages.Load())
	e.server.Stop()
	return s.start()
}

// restored returns the source to an earlier state: the same store, which assigns known revisions again.
func restored(_ *rig, s *source) error {
	old := s.data() + ".old"
	s.kill()
	if err := os.CopyFS(old, os.DirFS(s.data())); err != nil {
		return err
	}
	if err := s.start(); err != nil {
		return err
	}
	s.mu.Lock()
	then := map[string]string{}
	for key, value := range s.want {
		then[key] = value
	}
	s.mu.Unlock()
	for n := range 300 {
		if _, err := s.put(context.Background(), ipKey(s.id, n), ipValue(s.name, s.id, n, int(version.Add(1)))); err != nil {
			return err
		}
	}
	time.Sleep(2 * time.Second)
	s.kill()
	if err := os.RemoveAll(s.data()); err != nil {
		return err
	}
	if err := os.Rename(old, s.data()); err != nil {
		return err
	}
	s.mu.Lock()
	s.want = then
	s.mu.Unlock()
	return s.start()
}
