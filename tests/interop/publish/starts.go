package main

import (
	"context"
	"fmt"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"isthmus.dev/interop/peer"
)

// started has the times of a start.
type started struct {
	ready           time.Duration // until /readyz succeeded
	first, complete time.Duration // until the first and the last event of etcd
	keys            int64         // number of keys in etcd when ready
	load            float64       // of the machine then
	cpuReady, cpu   time.Duration // until ready, and until all was quiet
	cpuQuiet        time.Duration // while nothing happened
	etcdCPU         time.Duration // of etcd, until ready
	peak            int64
	seen            seen
	differ          difference
}

// figures are all measurements of a side.
type figures struct {
	name          string
	kind          publisherKind
	objects       int
	cold, again   []started
	changed       []started
	expected      int // events that the changes require
	rest, settled []peer.Memory
	restAgain     []peer.Memory
	churned       []churned
	dark          []dark
	asked         string // requests to the API server
}

const changesWhileDown = 500

// starts measures a start with an empty etcd, a start after a kill, and a start after a kill and changes meanwhile.
func starts(sides []*side) error {
	if err := each(sides, (*side).cold); err != nil || !*restarts {
		return err
	}
	err := each(sides, func(s *side) error {
		s.publisher.Stop(syscall.SIGKILL)
		r, err := s.timed()
		if err != nil {
			return err
		}
		s.figures.again = append(s.figures.again, r)
		s.figures.restAgain = append(s.figures.restAgain, s.publisher.Memory())
		s.publisher.Stop(syscall.SIGKILL)
		return nil
	})
	if err != nil {
		return err
	}
	for range changesWhileDown {
		sides[0].world.mutate()
	}
	return each(sides, func(s *side) error {
		d := s.mirror.compare()
		s.figures.expected = d.missing + d.stale + d.wrong
		r, err := s.timed()
		if err != nil {
			return err
		}
		s.figures.changed = append(s.figures.changed, r)
		return s.sweep()
	})
}

func (s *side) cold() error {
	if err := s.program(*qps); err != nil {
		return err
	}
	r, err := s.timed()
	if err != nil {
		return err
	}
	f := s.figures
	f.cold = append(f.cold, r)
	f.asked = fmt.Sprintf("%d lists, %d streams, %d watches", s.api.lists.Load(), s.api.streams.Load(), s.api.watches.Load())
	f.rest = append(f.rest, s.publisher.Memory())
	// A garbage collector returns some memory at once, and the rest over time.
	s.collect()
	time.Sleep(*quiet)
	s.collect()
	time.Sleep(2 * time.Second)
	f.settled = append(f.settled, s.publisher.Memory())
	return nil
}

// timed starts the publisher and waits until it is quiet.
func (s *side) timed() (r started, err error) {
	s.mirror.begin()
	before := s.etcd.CPU()
	began := time.Now()
	if r.ready, err = s.launch(*patience); err != nil {
		return r, err
	}
	r.cpuReady, r.etcdCPU, r.load = s.publisher.CPU(), s.etcd.CPU()-before, peer.Load()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	count, err := s.client.Get(ctx, state, clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return r, err
	}
	r.keys = count.Count
	progress("%s: ready after %v with %d keys", s.name, r.ready.Round(time.Millisecond), r.keys)
	// The wait for a publisher that never publishes the expected keys ends after the quiet time.
	_, r.differ = s.mirror.settled(*quiet)
	busy := s.publisher.CPU()
	time.Sleep(*quiet)
	r.cpuQuiet = s.publisher.CPU() - busy
	r.cpu, r.peak = s.publisher.CPU(), s.publisher.Memory().Peak
	r.seen, _, _ = s.mirror.now()
	if !r.seen.last.IsZero() {
		r.first, r.complete = r.seen.first.Sub(began), r.seen.last.Sub(began)
	}
	keys, err := s.contents()
	if err != nil {
		return r, err
	}
	r.differ = compare(keys, s.world.wanted())
	if !r.differ.none() {
		progress("%s: %d keys missing, %d stale, %d wrong; %.2000s", s.name, r.differ.missing, r.differ.stale, r.differ.wrong, r.differ.example)
	}
	return r, nil
}

// sweep deletes stale keys that a publisher has left, so that later steps begin clean.
func (s *side) sweep() error {
	wanted := s.world.wanted()
	keys, err := s.contents()
	if err != nil {
		return err
	}
	for key := range keys {
		if _, there := wanted[key]; there || scopeOf(key) == "other" {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		_, err := s.client.Delete(ctx, key)
		cancel()
		if err != nil {
			return err
		}
	}
	return nil
}
