package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"isthmus.dev/interop/peer"
)

const mib = 1 << 20

// live is the size of the keys and values that clients keep on the server.
func live() int64 { return int64(*fill) * int64(len(keyOf(0))+*value) }

// filled has the memory, disk and time that a server needs for its keys.
type filled struct {
	rate                 float64
	rss, anonymous, disk int64
	again                int64 // RSS after a restart, in bytes
	ended, killed        time.Duration
	churned              *state
}

// state is a server during the phase in which its keys are overwritten.
type state struct {
	at       time.Duration
	disk     int64
	rss      int64
	rate     float64
	revision int64
	killed   time.Duration // from a start to the first answer, after it was killed
}

func fillAll(all []variant, dir string) {
	fmt.Printf("%d keys, %.1f MiB of keys and values\n", *fill, float64(live())/mib)
	header := []string{"filled", "puts/s", "RSS MiB", "of etcd", "not file's", "disk MiB", "of etcd", "of live", "restart ms", "after kill ms", "of etcd", "RSS then"}
	rows := [][]string{header}
	churned := [][]string{{"churned", "puts/s", "of etcd", "RSS MiB", "of etcd", "disk MiB", "of etcd", "of live", "after kill ms", "of etcd"}}
	var theirs *filled
	var failures []string
	for i, v := range all {
		f, err := fillOne(v, filepath.Join(dir, fmt.Sprint(i)))
		if err != nil {
			failures = append(failures, fmt.Sprintf("%s: %v", v.name, err))
			progress("%s", failures[len(failures)-1])
		}
		if f == nil {
			rows = append(rows, []string{v.name, "failed"})
			continue
		}
		if v.bin == *etcd {
			theirs = f
		}
		of := func(get func(*filled) float64) string {
			if theirs == nil {
				return "-"
			}
			return fmt.Sprintf("%.2f", get(f)/get(theirs))
		}
		row := []string{
			v.name, fmt.Sprintf("%.0f", f.rate),
			inMiB(f.rss), of(func(f *filled) float64 { return float64(f.rss) }), inMiB(f.anonymous),
		}
		if !v.volatile {
			row = append(row,
				inMiB(f.disk), of(func(f *filled) float64 { return float64(f.disk) }), ofLive(f.disk),
				ms(f.ended), ms(f.killed), of(func(f *filled) float64 { return float64(f.killed) }), inMiB(f.again))
		}
		rows = append(rows, row)
		if s := f.churned; s != nil {
			of := func(get func(*state) float64) string {
				if theirs == nil || theirs.churned == nil {
					return "-"
				}
				return fmt.Sprintf("%.2f", get(s)/get(theirs.churned))
			}
			row := []string{
				v.name,
				fmt.Sprintf("%.0f", s.rate), of(func(s *state) float64 { return s.rate }),
				inMiB(s.rss), of(func(s *state) float64 { return float64(s.rss) }),
			}
			if !v.volatile {
				row = append(row, inMiB(s.disk), of(func(s *state) float64 { return float64(s.disk) }), ofLive(s.disk),
					ms(s.killed), of(func(s *state) float64 { return float64(s.killed) }))
			}
			churned = append(churned, row)
		}
	}
	peer.Table(rows)
	if len(churned) > 1 {
		peer.Table(churned)
	}
	for _, failure := range failures {
		fmt.Println(failure)
	}
}

func inMiB(n int64) string { return fmt.Sprintf("%.1f", float64(n)/mib) }

func ofLive(n int64) string { return fmt.Sprintf("%.2f", float64(n)/float64(live())) }

func fillOne(v variant, dir string) (*filled, error) {
	p, err := begin(v, dir)
	if err != nil {
		return nil, err
	}
	defer p.remove()
	kv, done, err := p.connect(*clients)
	if err != nil {
		return nil, err
	}
	var next atomic.Int64
	began := time.Now()
	err = work(context.Background(), kv, *inflight, func(*rand.Rand) []byte {
		if n := next.Add(1) - 1; n < int64(*fill) {
			return keyOf(int(n))
		}
		return nil
	}, func(int, time.Time, time.Time) {})
	done()
	if err != nil {
		return nil, err
	}
	f := &filled{rate: float64(*fill) / time.Since(began).Seconds()}
	// The server gets time to end its background work.
	time.Sleep(2 * time.Second)
	m := p.Memory()
	f.rss, f.anonymous = m.RSS, m.Anonymous
	f.disk = p.disk()
	progress("%s: filled, %.0f puts/s", v.name, f.rate)
	if !v.volatile {
		for _, down := range []struct {
			sig  syscall.Signal
			took *time.Duration
		}{{syscall.SIGTERM, &f.ended}, {syscall.SIGKILL, &f.killed}} {
			if err := restart(p, down.sig); err != nil {
				return nil, err
			}
			*down.took = p.answered
		}
		time.Sleep(2 * time.Second)
		f.again = p.Memory().RSS
	}
	if *churn > 0 {
		fresh, done, err := p.connect(*clients)
		if err != nil {
			return f, err
		}
		defer done()
		if f.churned, err = overwrite(p, fresh); err != nil {
			return f, err
		}
		if !v.volatile {
			if err := restart(p, syscall.SIGKILL); err != nil {
				return f, err
			}
			f.churned.killed = p.answered
		}
	}
	return f, nil
}

// restart starts the server again, and checks that no key is lost.
func restart(p *process, sig syscall.Signal) error {
	p.Stop(sig)
	if err := p.start(); err != nil {
		return err
	}
	kv, done, err := p.connect(1)
	if err != nil {
		return err
	}
	defer done()
	r, err := kv[0].Range(context.Background(), &pb.RangeRequest{Key: keyOf(0), RangeEnd: keyOf(*fill), CountOnly: true})
	if err == nil && r.Count != int64(*fill) {
		err = fmt.Errorf("%d keys after a restart, not %d", r.Count, *fill)
	}
	return err
}

// overwrite puts random keys again. Every ten seconds it compacts to the revision of ten seconds before, and every minute
// it prints the figures.
func overwrite(p *process, kv []pb.KVClient) (*state, error) {
	ctx, cancel := context.WithTimeout(context.Background(), *churn)
	defer cancel()
	var puts atomic.Int64
	ended := make(chan error, 1)
	go func() {
		ended <- work(ctx, kv, *inflight, randomKey(*fill), func(int, time.Time, time.Time) { puts.Add(1) })
	}()
	const pause = 10 * time.Second
	tick := time.NewTicker(pause)
	defer tick.Stop()
	began, said := time.Now(), time.Now()
	var revision, counted int64
	now := func() *state {
		s := &state{at: time.Since(began).Round(time.Second), disk: p.disk(), revision: revision}
		s.rss = p.Memory().RSS
		s.rate = float64(puts.Load()-counted) / time.Since(said).Seconds()
		counted, said = puts.Load(), time.Now()
		return s
	}
	tell := func(s *state) {
		progress("%s: after %v disk %s MiB, %s of live, RSS %s MiB, %.0f puts/s, compacted to %d",
			p.name, s.at, inMiB(s.disk), ofLive(s.disk), inMiB(s.rss), s.rate, s.revision)
	}
	for {
		select {
		case err := <-ended:
			s := now()
			if err != nil {
				return nil, fmt.Errorf("after %v and %d puts: %w", s.at, puts.Load(), err)
			}
			// The result is the rate over the whole time.
			s.rate = float64(puts.Load()) / time.Since(began).Seconds()
			tell(s)
			return s, nil
		case <-tick.C:
			r, err := kv[0].Range(context.Background(), &pb.RangeRequest{Key: keyOf(0), CountOnly: true})
			if err == nil && revision > 0 {
				_, err = kv[0].Compact(context.Background(), &pb.CompactionRequest{Revision: revision})
			}
			if err != nil {
				cancel()
				<-ended
				return nil, fmt.Errorf("compaction: %w", err)
			}
			revision = r.Header.Revision
			if time.Since(said) > time.Minute-pause/2 {
				tell(now())
			}
		}
	}
}
