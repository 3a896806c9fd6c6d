package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"isthmus.dev/interop/peer"
)

// usual measures the usual events of a mirror: a first start, changes, and a restart.
// Changes are measured at each of the rates.
func usual(dir string, ca *authority, todo []string, rates []int) error {
	defer func(given int) { *rate = given }(*rate)
	r, end, err := setup(dir, ca, *clusters, false)
	defer func() { end() }()
	if err != nil {
		return err
	}
	if err := cold(r); err != nil {
		return err
	}
	if slices.Contains(todo, "churn") {
		for _, *rate = range rates {
			title := fmt.Sprintf("churn at %d/s", *rate)
			churn(r, title, time.Duration(*seconds)*time.Second)
			verify(r, title, 10*time.Second)
		}
	}
	if slices.Contains(todo, "restart") {
		if err := restart(r); err != nil {
			return err
		}
	}
	complain(r)
	return nil
}

// spent has the CPU times of the mirror, its store, and all sources.
func (r *rig) spent() (mirror, store, sources time.Duration) {
	for _, s := range r.sources {
		sources += s.etcd.CPU()
	}
	return r.mirror.CPU(), r.local.CPU(), sources
}

// filled waits until all good sources are mirrored, and returns how long canaries and keys took.
func (r *rig) filled(began time.Time, limit time.Duration) (canaries, keys time.Duration, err error) {
	want, good := 0, 0
	for _, s := range r.sources {
		if s.good {
			s.mu.Lock()
			good++
			want += len(s.want)
			s.mu.Unlock()
		}
	}
	said := time.Now()
	for {
		marks, count := r.watcher.progress()
		if keys == 0 && count >= want {
			keys = time.Since(began)
		}
		if canaries == 0 && marks >= good*len(words) {
			canaries = r.watcher.now().last.Sub(began)
			if keys == 0 {
				finding("all canaries are here, but only %d of %d keys", count, want)
			}
		}
		if canaries > 0 && keys > 0 {
			return canaries, keys, nil
		}
		if r.mirror.Ended() {
			return 0, 0, fmt.Errorf("the mirror ended: %s", r.mirror.Complaint())
		}
		if time.Since(began) > limit {
			return 0, 0, fmt.Errorf("after %v there are %d canaries of %d, %d keys of %d", since(began), marks, good*len(words), count, want)
		}
		if time.Since(said) > 10*time.Second {
			progress("%d canaries, %d keys, load %.1f; the mirror ran %v, its threads waited %v for a CPU", marks, count, peer.Load(), r.mirror.CPU(), r.mirror.Starved().Round(time.Millisecond))
			said = time.Now()
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func cold(r *rig) error {
	store := r.local.CPU()
	sources := time.Duration(0)
	for _, s := range r.sources {
		sources += s.etcd.CPU()
	}
	began, before := time.Now(), peer.Load()
	if err := r.launch(); err != nil {
		return err
	}
	canaries, keys, err := r.filled(began, 8*time.Minute)
	if err != nil {
		return err
	}
	mirror, store2, sources2 := r.spent()
	starved := r.mirror.Starved()
	ready, err := r.ready(time.Minute)
	if err != nil {
		finding("after all canaries are here: %v", err)
	}
	done := r.mirror.Memory()
	time.Sleep(8 * time.Second)
	rest, of := r.mirror.Memory(), r.local.Memory()
	peer.Table([][]string{
		{"cold", "load", "canaries s", "keys s", "ready after", "mirror CPU s", "starved s", "store CPU s", "sources CPU s", "peak MiB", "then MiB", "at rest MiB", "not file's", "store MiB"},
		{r.shape, fmt.Sprintf("%.1f-%.1f", before, peer.Load()), inSeconds(canaries), inSeconds(keys), inSeconds(ready), inSeconds(mirror), inSeconds(starved), inSeconds(store2 - store),
			inSeconds(sources2 - sources), inMiB(rest.Peak), inMiB(done.RSS), inMiB(rest.RSS), inMiB(rest.Anonymous), inMiB(of.RSS)},
	})
	verify(r, "cold", time.Second)
	return nil
}

// ratesOf returns the rates that a list names: without one, that of -rate.
func ratesOf(list string) (rates []int, err error) {
	if list == "" {
		return []int{*rate}, nil
	}
	for text := range strings.SplitSeq(list, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(text))
		if err != nil || n <= 0 {
			return nil, fmt.Errorf("-rates contains %q, which is no number of writes per second", text)
		}
		rates = append(rates, n)
	}
	return rates, nil
}

// churn writes to all good sources at the rate, and measures the latency of the mirror.
func churn(r *rig, title string, length time.Duration) {
	l := r.watcher.latency
	l.begin()
	r.watcher.begin()
	mirror, store, sources := r.spent()
	failures, before, starved := r.failures(), peer.Load(), r.mirror.Starved()
	writing := time.Now()
	done, late := writes(r, length)
	began := time.Now()
	for _, left := l.result(); left > 0 && time.Since(began) < 20*time.Second; _, left = l.result() {
		time.Sleep(50 * time.Millisecond)
	}
	took, left := l.result()
	whole := time.Since(writing)
	mirror2, store2, sources2 := r.spent()
	starved = r.mirror.Starved() - starved
	now := r.watcher.now()
	if left > 0 {
		finding("%s: %d of %d changes did not arrive", title, left, done)
	}
	if now.wronged+now.strange > 0 {
		finding("%s: %d wrong deletes, %d unknown keys: %s", title, now.wronged, now.strange, strings.Join(now.examples, "; "))
	}
	lost := r.failures() - failures
	if lost > 0 {
		finding("%s: %d connections were lost", title, lost)
	}
	if len(took) == 0 {
		return
	}
	at := func(of int) string { return ms(took[min(len(took)-1, len(took)*of/1000)]) }
	share := func(of time.Duration) string { return fmt.Sprintf("%.1f", 100*of.Seconds()/whole.Seconds()) }
	peer.Table([][]string{
		{title, "load", "writes", "per second", "late", "p50 ms", "p99 ms", "p99.9 ms", "max ms", "lost", "reconnects", "mirror CPU %", "its threads starved %", "store CPU %", "sources CPU %", "RSS MiB"},
		{r.shape, fmt.Sprintf("%.1f-%.1f", before, peer.Load()), fmt.Sprint(done), fmt.Sprintf("%.0f", float64(done)/began.Sub(writing).Seconds()), fmt.Sprint(late), at(500), at(990), at(999), at(1000), fmt.Sprint(left), fmt.Sprint(lost),
			share(mirror2 - mirror), share(starved), share(store2 - store), share(sources2 - sources), inMiB(r.mirror.Memory().RSS)},
	})
}

var version atomic.Int64

// change writes a new value to a key of the source.
func change(ctx context.Context, r *rig, s *source, n int) error {
	v := int(version.Add(1))
	key, value := ipKey(s.id, n%s.ips), ipValue(s.name, s.id, n%s.ips, v)
	switch n % 20 {
	case 0:
		key, value = nodeKey(s.name, n/20%*nodesPer), nodeValue(s.name, s.id, n/20%*nodesPer, v)
	case 1:
		key, value = identityKey(s.id, n/20%*identitiesPer), identityValue(s.name, n/20%*identitiesPer, v)
	}
	r.watcher.latency.expect(value)
	at, err := s.put(ctx, key, value)
	if err == nil {
		r.watcher.latency.sent(value, at)
	}
	return err
}

// writes makes changes one after the other, so that changes of one key stay in order.
func writes(r *rig, length time.Duration) (done, late int) {
	good := slices.DeleteFunc(slices.Clone(r.sources), func(s *source) bool { return !s.good })
	turns := make(chan struct{}, 64)
	var wg sync.WaitGroup
	total := int(length.Seconds() * float64(*rate))
	pause := time.Second / time.Duration(*rate)
	began := time.Now()
	for n := range total {
		if wait := time.Until(began.Add(time.Duration(n) * pause)); wait > 0 {
			time.Sleep(wait)
		} else if wait < -50*time.Millisecond {
			late++
		}
		turns <- struct{}{}
		wg.Go(func() {
			defer func() { <-turns }()
			_ = change(context.Background(), r, good[n%len(good)], n/len(good))
		})
	}
	wg.Wait()
	return total, late
}

// restart kills the mirror and starts it again over unchanged sources.
func restart(r *rig) error {
	before := peer.Load()
	r.mirror.Stop(syscall.SIGKILL)
	time.Sleep(time.Second)
	r.watcher.begin()
	began := time.Now()
	if err := r.launch(); err != nil {
		return err
	}
	if _, err := r.ready(3 * time.Minute); err != nil {
		finding("restart: %v", err)
	}
	took, cpu, starved := time.Since(began), r.mirror.CPU(), r.mirror.Starved()
	for came := -1; came != r.watcher.events(); time.Sleep(5 * time.Second) {
		// Cilium's kvstoremesh continues to write long after it reports ready.
		came = r.watcher.events()
	}
	now, m := r.watcher.now(), r.mirror.Memory()
	peer.Table([][]string{
		{"restart", "load", "ready s", "CPU s", "starved s", "events", "of them same", "deletes", "canaries", "peak MiB", "at rest MiB"},
		{r.shape, fmt.Sprintf("%.1f-%.1f", before, peer.Load()), inSeconds(took), inSeconds(cpu), inSeconds(starved), fmt.Sprint(now.puts + now.same + now.gone), fmt.Sprint(now.same),
			fmt.Sprint(now.gone), fmt.Sprint(now.marks), inMiB(m.Peak), inMiB(m.RSS)},
	})
	if r.shape != "original" && now.puts+now.same+now.gone+now.lost > 0 {
		finding("restart: %d events below cilium/cache/ though nothing changed: %s", now.puts+now.same+now.gone, strings.Join(now.examples, "; "))
	}
	verify(r, "restart", time.Second)
	return nil
}

func (w *watcher) events() int {
	s := w.now()
	return s.puts + s.same + s.gone + s.marks
}

// verify reads the local store and compares it with the models of the sources.
func verify(r *rig, title string, limit time.Duration) {
	began := time.Now()
	for {
		wrong, keys, err := compare(r)
		if err == nil && len(wrong) == 0 {
			progress("%s: the mirror is right, %d keys", title, keys)
			return
		}
		if time.Since(began) > limit {
			finding("%s: %d differences after %v (%v): %s", title, len(wrong), since(began), err, strings.Join(wrong[:min(len(wrong), 5)], "; "))
			return
		}
		time.Sleep(500 * time.Millisecond)
	}
}

func compare(r *rig) (wrong []string, keys int, err error) {
	cached, err := peer.Read(r.client, "cilium/cache/")
	if err != nil {
		return nil, 0, err
	}
	wrong = differences(cached, r.watcher.sources, 0)
	marks, err := peer.Read(r.client, "cilium/synced/")
	if err != nil {
		return nil, 0, err
	}
	configs, err := peer.Read(r.client, "cilium/cluster-config/")
	if err != nil {
		return nil, 0, err
	}
	for _, s := range r.sources {
		if !s.good {
			continue
		}
		for _, word := range words {
			if _, there := marks[canaryHere(s.name, word)]; !there {
				wrong = append(wrong, "missing "+canaryHere(s.name, word))
			}
		}
		var got, want any
		_ = json.Unmarshal([]byte(configs["cilium/cluster-config/"+s.name]), &got)
		text := strings.Replace(configOf(s.id, *most), `"syncedCanaries":true`, `"syncedCanaries":true,"cached":true`, 1)
		_ = json.Unmarshal([]byte(text), &want)
		if fmt.Sprint(got) != fmt.Sprint(want) {
			wrong = append(wrong, fmt.Sprintf("configuration of %s: %v", s.name, got))
		}
	}
	return wrong, len(cached), nil
}

// complain prints the warnings and errors of the mirror.
func complain(r *rig) {
	bad, lines := r.mirror.Complaints()
	fmt.Printf("\nlog of the mirror: %d lines, %d complaints\n", lines, len(bad))
	for _, line := range bad[:min(len(bad), 5)] {
		fmt.Println("  " + line[:min(len(line), 400)])
	}
}
