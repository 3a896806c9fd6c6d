package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"isthmus.dev/interop/peer"
)

// maxKeys is the mirror's limit of keys per kind and cluster in this step, which one cluster exceeds.
const maxKeys = 5000

// chaos adds misbehaving clusters to good clusters, and measures the cost for the good clusters.
func chaos(dir string, ca *authority) error {
	*more = strings.TrimSpace(*more + fmt.Sprint(" --clustermesh-max-keys=", maxKeys))
	r, end, err := goodOnes(dir, ca)
	defer func() { end() }()
	if err != nil {
		return err
	}
	bad := badOnes(r, dir, ca)
	defer bad.stop()
	length := time.Duration(*seconds) * time.Second
	if err := bad.start(ca); err != nil {
		return err
	}
	for _, s := range bad.all {
		if err := r.add(s); err != nil {
			return err
		}
	}
	time.Sleep(4 * time.Second)
	churn(r, "with 3 bad", length)
	verify(r, "with 3 bad", 10*time.Second)
	bad.judge(r, "with 3 bad")
	// Keys above the limit, written while the mirror watches.
	if err := bad.flood(maxKeys + 1000); err != nil {
		progress("flood: %v", err)
	}
	if err := r.arrives("of the cluster with a flood of services, an address", bad.hostile); err != nil {
		return err
	}
	churn(r, "and a flood", length/2)
	verify(r, "and a flood", 10*time.Second)
	bad.judge(r, "and a flood")
	if err := bad.fromTheStart(r); err != nil {
		return err
	}
	complain(r)
	return nil
}

// goodOnes starts a mirror of 18 good clusters, and measures them without bad clusters.
func goodOnes(dir string, ca *authority) (*rig, func(), error) {
	r, end, err := setup(dir, ca, 18, false)
	if err != nil {
		return r, end, err
	}
	began := time.Now()
	if err := r.launch(); err != nil {
		return r, end, err
	}
	if _, _, err := r.filled(began, time.Minute); err != nil {
		return r, end, err
	}
	churn(r, "18 alone", time.Duration(*seconds)*time.Second)
	return r, end, nil
}

// fromTheStart restarts the mirror while the bad clusters are running.
func (b *badness) fromTheStart(r *rig) error {
	before := peer.Load()
	r.mirror.Stop(syscall.SIGKILL)
	r.watcher.begin()
	began := time.Now()
	if err := r.launch(); err != nil {
		return err
	}
	_, err := r.ready(3 * time.Minute)
	if err != nil {
		finding("restart with bad ones: %v", err)
	}
	took := time.Since(began)
	time.Sleep(3 * time.Second)
	now := r.watcher.now()
	peer.Table([][]string{
		{"restart with bad ones", "load", "ready s", "events of good ones", "RSS MiB"},
		{r.shape, fmt.Sprintf("%.1f-%.1f", before, peer.Load()), inSeconds(took), fmt.Sprint(now.puts + now.same + now.gone), inMiB(r.mirror.Memory().RSS)},
	})
	if now.puts+now.same+now.gone > 0 {
		finding("restart with bad ones: events of good ones: %s", strings.Join(now.examples, "; "))
	}
	verify(r, "restart with bad ones", 10*time.Second)
	b.judge(r, "restart with bad ones")
	return nil
}

// badness is the set of the three bad clusters.
type badness struct {
	hostile, flapping, endlessly *source
	all                          []*source
	fake                         *endless
	end                          context.CancelFunc
	flaps                        atomic.Int64
	done                         chan struct{}
}

func badOnes(r *rig, dir string, ca *authority) *badness {
	of := func(id int) *source {
		s := newSource(dir+"/sources", ca, id, false)
		s.good = false
		r.watcherLater(s)
		return s
	}
	b := &badness{hostile: of(19), flapping: of(20), endlessly: of(21), done: make(chan struct{})}
	b.all = []*source{b.hostile, b.flapping, b.endlessly}
	// The server's own limits must not prevent oversized writes.
	b.hostile.more = []string{"--max-request-bytes=8388608"}
	return b
}

// watcherLater adds a source to the watcher, whether or not the source is running.
func (r *rig) watcherLater(s *source) {
	r.sources = append(r.sources, s)
	if r.watcher != nil {
		r.watcher.mu.Lock()
		r.watcher.sources[s.name] = s
		r.watcher.mu.Unlock()
	}
}

func (b *badness) start(ca *authority) (err error) {
	h := b.hostile
	h.model()
	if err := h.start(); err != nil {
		return err
	}
	if err := h.fill(); err != nil {
		return err
	}
	b.harm()
	if b.fake, err = pretend(ca, b.endlessly.address, b.endlessly.name, b.endlessly.id, 1, nil); err != nil {
		return err
	}
	var ctx context.Context
	ctx, b.end = context.WithCancel(context.Background())
	go b.flap(ctx)
	return nil
}

// harm writes keys that must not be mirrored.
func (b *badness) harm() {
	h, nodes := b.hostile, "cilium/state/nodes/v1/"+b.hostile.name+"/"
	for _, key := range []string{
		nodes + "../c001/evil", nodes + "../../../../../cilium/cluster-config/c001", nodes + "a//b", nodes + "/", nodes, nodes + ".", nodes + "..", nodes + "a/./b", nodes + "x/",
		ipPrefix, ipPrefix + "../../../../synced/c001/x", ipPrefix + "/10.0.0.1", ipPrefix + "10.0.0.1/", identityPrefix + "../../c001/id/1", identityPrefix,
		nodes + strings.Repeat("n", 5000), nodes + "nul\x00byte", nodes + "\xff\xfe", nodes + "line\nbreak",
		"cilium/state/services/v1/" + h.name + "/../../../cluster-config/c002",
	} {
		b.put(key, "evil")
	}
	for n, size := range []int{1<<20 - 100, 1<<20 + 1, 1_500_000, 2 << 20, 4 << 20} {
		b.put(fmt.Sprint("cilium/state/services/v1/", h.name, "/ns/large-", n), strings.Repeat("x", size))
	}
}

func (b *badness) put(key, value string) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if _, err := b.hostile.client.Put(ctx, key, value); err != nil {
		progress("the hostile source does not take %q (%d bytes): %v", key[:min(60, len(key))], len(value), err)
	}
}

func (b *badness) flood(n int) error {
	all := map[string]string{}
	for i := range n {
		all[fmt.Sprintf("cilium/state/services/v1/%s/ns/flood-%d", b.hostile.name, i)] = "flood"
	}
	return b.hostile.puts(all)
}

// flap kills the source every second, and starts it again, with its data or without.
func (b *badness) flap(ctx context.Context) {
	defer close(b.done)
	s := b.flapping
	for n := 0; ctx.Err() == nil; n++ {
		if err := s.start(); err != nil {
			progress("flapping: %v", err)
			return
		}
		if s.model(); n%2 == 0 {
			_ = s.fill()
		}
		b.flaps.Add(1)
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
		s.kill()
	}
}

func (b *badness) stop() {
	if b.end != nil {
		b.end()
		<-b.done
	}
	if b.fake != nil {
		b.fake.server.Stop()
	}
	if b.hostile.etcd != nil {
		b.hostile.kill()
	}
}

// judge checks the mirrored keys of the bad clusters.
func (b *badness) judge(r *rig, title string) {
	cached, err := peer.Read(r.client, "cilium/")
	if err != nil {
		finding("%s: cannot read: %v", title, err)
		return
	}
	here, odd := map[string]int{}, []string{}
	for key, value := range cached {
		if value == "evil" || strings.Contains(key, "evil") {
			if !strings.HasPrefix(key, "cilium/cache/") || clusterOf(key) != b.hostile.name || strings.Contains(key, "..") {
				finding("%s: a key of the hostile source is out of its place: %q", title, key[:min(len(key), 120)])
			} else {
				odd = append(odd, fmt.Sprintf("%q", key[:min(len(key), 80)]))
			}
		}
		if strings.HasPrefix(key, "cilium/cache/") {
			here[clusterOf(key)]++
		}
		if len(value) > 1<<20 {
			finding("%s: a value of %d bytes is here: %s", title, len(value), key)
		}
	}
	info, _ := os.Stat(r.mirror.Log)
	progress("%s: here of the hostile %d keys, of the flapping %d (%d restarts), of the endless %d (%d pages); mirror RSS %s MiB, its log %d KiB; store %d keys",
		title, here[b.hostile.name], here[b.flapping.name], b.flaps.Load(), here[b.endlessly.name], b.fake.pages.Load(), inMiB(r.mirror.Memory().RSS), info.Size()>>10, len(cached))
	progress("  odd keys that are mirrored in their place: %s", strings.Join(odd, " "))
	all, _ := r.status()
	for _, s := range all {
		if s.Name >= b.hostile.name {
			progress("  %s: ready %v, %d failures, %.300s", s.Name, s.Ready, s.Failures, s.Status)
		}
	}
}

// millions adds two clusters to good clusters: one claims to have ten million keys, and the other has as many without
// announcing them.
func millions(dir string, ca *authority) error {
	r, end, err := goodOnes(dir, ca)
	defer func() { end() }()
	if err != nil {
		return err
	}
	length := time.Duration(*seconds) * time.Second
	alone := r.mirror.Memory().RSS
	var fakes []*endless
	for id, says := range map[int]int64{19: 10_000_000, 20: 0} {
		s := newSource(dir+"/sources", ca, id, false)
		s.good = false
		r.watcherLater(s)
		fake, err := pretend(ca, s.address, s.name, s.id, 256, nil)
		if err != nil {
			return err
		}
		defer fake.server.Stop()
		fake.says, fake.pause = says, 0
		fakes = append(fakes, fake)
		if err := r.add(s); err != nil {
			return err
		}
	}
	churn(r, "with twice ten million", length)
	for began := time.Now(); time.Since(began) < 2*time.Minute; time.Sleep(100 * time.Millisecond) {
		all, err := r.status()
		if err != nil {
			return err
		}
		refused := 0
		for _, s := range all {
			if strings.Contains(s.Status, "more than the") {
				refused++
			}
		}
		if refused == len(fakes) {
			break
		}
	}
	all, _ := r.status()
	for _, s := range all {
		if s.Name >= "c019" {
			progress("  %s: ready %v, %.300s", s.Name, s.Ready, s.Status)
			if !strings.Contains(s.Status, "more than the") {
				finding("millions: %s is not reported", s.Name)
			}
		}
	}
	for _, fake := range fakes {
		progress("  %s was asked for %d pages", fake.cluster, fake.pages.Load())
	}
	progress("  memory of the mirror %s MiB before, %s MiB with them, at most %s MiB", inMiB(alone), inMiB(r.mirror.Memory().RSS), inMiB(r.mirror.Memory().Peak))
	churn(r, "after they are refused", length)
	verify(r, "millions", 10*time.Second)
	complain(r)
	return nil
}
