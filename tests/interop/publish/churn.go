package main

import (
	"context"
	"slices"
	"syscall"
	"time"
)

// churned is the result for one rate of changes.
type churned struct {
	rate, changes, lost int
	overtaken           int
	all                 spread
	scopes              map[string]spread
	drained             time.Duration // after the last change
	cpu                 time.Duration
	peak                int64
	differ              difference
}

// churns measures the time of a change from the API server to etcd's watchers, at each rate.
func churns(sides []*side) error {
	err := each(sides, func(s *side) error {
		s.publisher.Stop(syscall.SIGTERM)
		limit := *churnQPS
		if s.kind == ours {
			limit = *ourQPS
		}
		if err := s.program(limit); err != nil {
			return err
		}
		if _, err := s.launch(*patience); err != nil {
			return err
		}
		s.mirror.settled(*patience)
		time.Sleep(2 * time.Second)
		return nil
	})
	if err != nil {
		return err
	}
	for _, rate := range rateList() {
		before := map[*side]time.Duration{}
		for _, s := range sides {
			s.mirror.begin()
			before[s] = s.publisher.CPU()
		}
		ctx, cancel := context.WithTimeout(context.Background(), *length)
		changes := sides[0].world.churn(ctx, rate)
		cancel()
		if err := each(sides, func(s *side) error {
			c := churned{rate: rate, changes: changes}
			c.drained = s.drain()
			c.cpu = s.publisher.CPU() - before[s]
			c.peak = s.publisher.Memory().Peak
			c.differ = s.mirror.compare()
			_, delays, left := s.mirror.now()
			c.lost, c.overtaken = left, s.mirror.replace
			c.spread(delays)
			progress("%s: %d changes/s: p50 %s ms, p99 %s ms, %d never seen", s.name, rate, ms(c.all.p50), ms(c.all.p99), c.lost)
			s.figures.churned = append(s.figures.churned, c)
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}

// spread renders the distribution of delays.
type spread struct {
	count          int
	p50, p99, most time.Duration
}

func (c *churned) spread(delays []delay) {
	by := map[string][]time.Duration{}
	for _, d := range delays {
		by[""] = append(by[""], d.took)
		by[d.scope] = append(by[d.scope], d.took)
	}
	c.scopes = map[string]spread{}
	for scope, all := range by {
		slices.Sort(all)
		c.scopes[scope] = spread{len(all), all[len(all)/2], all[len(all)*99/100], all[len(all)-1]}
	}
	c.all = c.scopes[""]
	delete(c.scopes, "")
}

// drain waits until etcd's watchers have seen every change.
func (s *side) drain() time.Duration {
	began := time.Now()
	for time.Since(began) < *patience {
		if s.mirror.left() == 0 {
			break
		}
		s.mirror.collapse()
		time.Sleep(10 * time.Millisecond)
	}
	return time.Since(began)
}
