package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"syscall"
	"time"

	"isthmus.dev/interop/peer"
)

// faults are the faults of a mesh of replicas.
type faults struct {
	network *peer.Network
	sides   []*side
	stop    chan struct{}
	mu      sync.Mutex
	counts  map[string]int
}

func (f *faults) count(what string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.counts[what]++
}

// supervise starts a process again when it has ended by itself: a replica ends when it loses the lock of a writer.
func (f *faults) supervise(p *pod) {
	for {
		select {
		case <-f.stop:
			return
		case <-time.After(500 * time.Millisecond):
		}
		p.mu.Lock()
		if p.Ended() {
			progress("%s ended: %.200s", p.Name, p.Complaint())
			f.count("ended by themselves")
			p.restarts++
			if err := p.Start(); err != nil {
				finding("%s: %v", p.Name, err)
			}
		}
		p.mu.Unlock()
	}
}

// processes kills, stops and ends processes, one at a time.
func (f *faults) processes(rng *rand.Rand, end time.Time) {
	for time.Now().Before(end) {
		time.Sleep(time.Duration(500+rng.IntN(2500)) * time.Millisecond)
		s := f.sides[rng.IntN(len(f.sides))]
		p, kind := s.replicas[rng.IntN(3)], "replica"
		if rng.IntN(3) == 0 {
			p, kind = s.members[rng.IntN(3)], "member"
		}
		p.mu.Lock()
		switch rng.IntN(4) {
		case 0:
			away := time.Duration(500+rng.IntN(4000)) * time.Millisecond
			if rng.IntN(6) == 0 {
				// Longer than a lock lasts.
				away = 28 * time.Second
			}
			_ = p.Signal(syscall.SIGSTOP)
			time.Sleep(away)
			_ = p.Signal(syscall.SIGCONT)
			f.count("pauses of a " + kind)
		case 1:
			p.restart(syscall.SIGTERM, rng)
			f.count("ends of a " + kind)
		default:
			p.restart(syscall.SIGKILL, rng)
			f.count("kills of a " + kind)
		}
		p.mu.Unlock()
	}
}

// restart ends the process and starts it again after a while.
func (p *pod) restart(sig syscall.Signal, rng *rand.Rand) {
	p.Stop(sig)
	time.Sleep(time.Duration(rng.IntN(2000)) * time.Millisecond)
	p.restarts++
	if err := p.Start(); err != nil {
		finding("%s: %v", p.Name, err)
	}
}

// links cuts hosts off from each other.
func (f *faults) links(rng *rand.Rand, end time.Time) {
	for time.Now().Before(end) {
		time.Sleep(time.Duration(500+rng.IntN(1500)) * time.Millisecond)
		i := rng.IntN(2)
		members, replicas, remote := hostsOf(f.sides[i].members), hostsOf(f.sides[i].replicas), hostsOf(f.sides[1-i].replicas)
		m, r := members[rng.IntN(3)], replicas[rng.IntN(3)]
		kind, one, others := "", r, members
		switch rng.IntN(5) {
		case 0:
			kind = "of a replica from its members"
		case 1:
			kind, others = "of a replica from the other cluster", remote
		case 2:
			kind, one = "of a member from the members", m
		case 3:
			kind, one, others = "of a member from everybody", m, slices.Concat(members, replicas)
		case 4:
			kind, others = "of a replica from everybody", slices.Concat(members, replicas, remote)
		}
		length := time.Duration(500+rng.IntN(6000)) * time.Millisecond
		if rng.IntN(8) == 0 {
			length = 30 * time.Second
		}
		way := rng.IntN(3)
		change := func(set func(from, to *peer.Host) error) {
			for _, other := range others {
				if other == one {
					continue
				}
				for i, pair := range [][2]*peer.Host{{one, other}, {other, one}} {
					if way == i {
						continue
					}
					if err := set(pair[0], pair[1]); err != nil {
						finding("a cut: %v", err)
					}
				}
			}
		}
		change(f.network.Cut)
		time.Sleep(length)
		change(f.network.Heal)
		f.count(fmt.Sprintf("cuts %s, %s", kind, []string{"inwards", "outwards", "both ways"}[way]))
	}
}

func hostsOf(pods []*pod) (hosts []*peer.Host) {
	for _, p := range pods {
		hosts = append(hosts, p.host)
	}
	return hosts
}
