package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"isthmus.dev/interop/peer"
)

// writer changes, adds and removes keys all the time, except while it is held.
type writer struct {
	r      *rig
	held   sync.RWMutex // each write holds it as a reader
	end    context.CancelFunc
	wg     sync.WaitGroup
	writes [3]int
}

func write0(r *rig) *writer {
	ctx, cancel := context.WithCancel(context.Background())
	w := &writer{r: r, end: cancel}
	for i, s := range r.sources {
		w.wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), uint64(time.Now().UnixNano())))
			// A key that was added is removed once and never added again: every other deletion is wrong.
			var added []string
			for n := 0; ctx.Err() == nil; n++ {
				w.held.RLock()
				// A delete whose answer was lost may have been applied.
				added = w.one(context.WithoutCancel(ctx), s, n, rng, added)
				w.held.RUnlock()
				pause := time.Second * time.Duration(len(r.sources)) / time.Duration(*rate)
				time.Sleep(time.Duration(float64(pause) * (0.5 + rng.Float64())))
			}
		})
	}
	return w
}

func (w *writer) one(ctx context.Context, s *source, n int, rng *rand.Rand, added []string) []string {
	switch {
	case n%5 == 3:
		v := int(version.Add(1))
		key := fmt.Sprintf("%s10.%d.200.%d", ipPrefix, s.id%250, v)
		_, _ = s.put(ctx, key, ipValue(s.name, s.id, v, v))
		return append(added, key)
	case n%5 == 4 && len(added) > 10:
		at := rng.IntN(len(added))
		_ = s.remove(ctx, added[at])
		return slices.Delete(added, at, at+1)
	default:
		_ = change(ctx, w.r, s, rng.IntN(s.ips))
		return added
	}
}

func (w *writer) stop() {
	w.end()
	w.wg.Wait()
}

// killing kills sources and the mirror under writes.
func killing(dir string, ca *authority) error {
	r, end, err := mirrored(dir, ca)
	defer func() { end() }()
	if err != nil {
		return err
	}
	r.watcher.begin()
	before := peer.Load()
	w := write0(r)
	defer w.stop()
	took := map[string][]time.Duration{}
	for n := range *kills {
		victim, d, err := w.kill(n)
		if err != nil {
			return err
		}
		took[victim] = append(took[victim], d)
	}
	w.stop()
	verify(r, "kills", 10*time.Second)
	now := r.watcher.now()
	rows := [][]string{{"kills", "load", "n", "equal after s: median", "max"}}
	for victim, all := range took {
		slices.Sort(all)
		rows = append(rows, []string{victim, fmt.Sprintf("%.1f-%.1f", before, peer.Load()), fmt.Sprint(len(all)), inSeconds(all[len(all)/2]), inSeconds(all[len(all)-1])})
	}
	peer.Table(rows)
	fmt.Printf("changed %d, written again %d, deleted %d, of these wrongly %d; history lost %d times\n", now.puts, now.same, now.gone, now.wronged, now.lost)
	if now.wronged > 0 {
		finding("kills: %d deletes of keys that the source has: %s", now.wronged, strings.Join(now.examples, "; "))
	}
	if now.same > 0 {
		progress("kills: written again: %s", strings.Join(now.examples, "; "))
	}
	complain(r)
	return nil
}

// kill kills a source or the mirror, starts it again, and waits until the mirror equals the sources.
func (w *writer) kill(n int) (victim string, took time.Duration, err error) {
	r := w.r
	s := r.sources[rand.IntN(len(r.sources))]
	time.Sleep(time.Duration(200+rand.IntN(800)) * time.Millisecond)
	back := s.start
	if n%2 == 0 {
		victim = "source"
		s.kill()
	} else {
		victim, back = "mirror", r.launch
		r.mirror.Stop(9)
	}
	time.Sleep(time.Duration(rand.IntN(1000)) * time.Millisecond)
	if err := back(); err != nil {
		return victim, 0, err
	}
	began := time.Now()
	w.held.Lock()
	defer w.held.Unlock()
	held := since(began)
	limit := 20 * time.Second
	if victim == "mirror" && r.shape != "serve" {
		// The leader lock of the killed mirror has to expire first.
		limit += 30 * time.Second
	}
	var wrong []string
	for time.Since(began) < limit {
		if wrong = r.watcher.differs(1); len(wrong) == 0 {
			took = time.Since(began)
			progress("kill %d of %s %s: equal after %v (writes went on for %v)", n+1, victim, s.name, took.Round(time.Millisecond), held)
			return victim, took, nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	wrong = r.watcher.differs(0)
	finding("kill %d of %s %s: after %v the mirror is not as its sources: %d differences, %s", n+1, victim, s.name, since(began), len(wrong), strings.Join(wrong[:min(5, len(wrong))], "; "))
	for _, s := range r.sources {
		w.blame(s)
	}
	return victim, time.Since(began), nil
}

// blame says whether the source rather than the mirror is wrong.
func (w *writer) blame(s *source) {
	there, err := s.contents()
	if err != nil {
		progress("%s cannot be read: %v", s.name, err)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, value := range s.want {
		if there[key] != value {
			finding("the source %s itself lost %s", s.name, key)
			return
		}
	}
}
