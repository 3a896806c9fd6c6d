package main

import (
	"context"
	"fmt"
	"syscall"
	"time"
)

// dark is the result of one outage.
type dark struct {
	what     string
	changes  int
	during   seen // events until the end of the outage
	wronged  int  // deleted keys that should exist
	back     time.Duration
	ready    time.Duration // after the end of the outage; 0 if the publisher stayed ready
	differ   difference
	timeline *timeline
	pending  int // keys that had to change during the outage
}

// failure is one kind of outage.
type failure struct {
	of, what string
	begin    func(*side) error
	end      func(*side) error
}

var failures = []failure{
	{
		of: "kubernetes", what: "API server refuses",
		begin: func(s *side) error { s.gate.refuse(); return nil },
		end:   func(s *side) error { return s.gate.listen() },
	}, {
		of: "kubernetes", what: "API server hangs",
		begin: func(s *side) error { s.gate.hang(); return nil },
		end:   func(s *side) error { s.gate.heal(); return nil },
	}, {
		of: "kubernetes", what: "API server loses connections",
		begin: func(s *side) error { s.gate.hang(); return nil },
		end:   func(s *side) error { s.gate.lose(); return nil },
	}, {
		of: "etcd", what: "etcd stopped",
		begin: func(s *side) error { return s.etcd.Signal(syscall.SIGSTOP) },
		end:   func(s *side) error { return s.etcd.Signal(syscall.SIGCONT) },
	}, {
		of: "etcd", what: "etcd killed",
		begin: func(s *side) error { s.etcd.Stop(syscall.SIGKILL); return nil },
		end:   func(s *side) error { return s.etcd.Start() },
	},
}

// outages runs outages of API servers and etcds while objects change.
func outages(sides []*side) error {
	if err := each(sides, func(s *side) error {
		s.publisher.Stop(syscall.SIGTERM)
		if err := s.program(*qps); err != nil {
			return err
		}
		_, err := s.launch(*patience)
		return err
	}); err != nil {
		return err
	}
	for _, f := range failures {
		if *outage != "both" && *outage != f.of {
			continue
		}
		if err := f.run(sides); err != nil {
			return fmt.Errorf("%s: %w", f.what, err)
		}
	}
	return nil
}

func (f failure) run(sides []*side) error {
	for _, s := range sides {
		if took, d := s.mirror.settled(*patience); !d.none() {
			progress("%s: not settled after %v: %.300s", s.name, took, d.example)
		}
	}
	time.Sleep(3 * time.Second)
	lines := make([]*timeline, len(sides))
	for i, s := range sides {
		s.mirror.begin()
		lines[i] = s.watchTimeline()
	}
	time.Sleep(3 * time.Second)
	for i, s := range sides {
		progress("%s: %s", s.name, f.what)
		lines[i].mark()
		if err := f.begin(s); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), *away)
	changes := sides[0].world.churn(ctx, *meanwhile)
	cancel()
	return each(sides, func(s *side) error {
		d := dark{what: f.what, changes: changes, timeline: lines[s.index]}
		d.during, _, d.pending = s.mirror.now()
		if err := f.end(s); err != nil {
			return err
		}
		began := time.Now()
		for {
			if code, _ := s.ready(); code == 200 || time.Since(began) > *patience {
				break
			}
			d.ready = time.Since(began)
			time.Sleep(50 * time.Millisecond)
		}
		_, _ = s.mirror.settled(*patience)
		d.back = time.Since(began)
		// Late effects, such as leases that expire after all, need a while to show.
		time.Sleep(10 * time.Second)
		d.timeline.stop()
		d.wronged = s.mirror.wronged()
		keys, err := s.contents()
		if err != nil {
			return err
		}
		d.differ = compare(keys, s.world.wanted())
		progress("%s: %s: as it should be %v after it was back", s.name, f.what, d.back.Round(time.Millisecond))
		s.figures.dark = append(s.figures.dark, d)
		return nil
	})
}
