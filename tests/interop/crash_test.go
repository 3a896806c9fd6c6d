package interop

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// The crash test: round after round, a server is killed while clients write and watch, loses unsynced changes of its
// files, and starts again on the same data. Everything that an answer or a watch has shown must still be there, and
// watches must continue without a gap.
var (
	crashRounds = flag.Int("rounds", 6, "number of kills")
	crashSeed   = flag.Uint64("crash.seed", 0, "seed; 0 takes the time")
	crashEngine = flag.String("crash.engine", "log", "--data-engine")
	crashMode   = flag.String("crash.mode", "sync", "--durability")
	crashArgs   = flag.String("crash.args", "", "more arguments for the server")
	crashPeer   = flag.Bool("crash.peer", false, "run etcd instead of Isthmus, to test the test")
	crashFaults = flag.Bool("crash.faults", true, "undo unsynced writes in about every other round")
	crashStrict = flag.Bool("crash.strict", true, "treat names as durable only after a sync of their directory")
	crashFull   = flag.Bool("crash.full", false, "fill the disk before some of the kills")
)

type crash struct {
	t        *testing.T
	seed     uint64
	round    int
	rng      *rand.Rand
	m        *crashServer
	c        *clientv3.Client
	h        *history
	l        *ledger
	ws       *watchers
	cluster  uint64
	member   uint64
	faulty   bool
	lost     bool // unsynced changes were undone before this start
	killed   atomic.Bool
	full     bool
	restarts []time.Duration

	kills, losses, anew, writes, events, errors int
	total                                       lost
}

func TestCrash(t *testing.T) {
	seed := *crashSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano()) % 1_000_000
	}
	// The client library logs every failed call.
	t.Setenv("ETCD_CLIENT_DEBUG", "fatal")
	root := t.TempDir()
	r := &crash{t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 2)), m: newCrashServer(t, root), h: newHistory(1, nil), l: newLedger()}
	r.c = r.m.quickClient(t)
	r.ws = &watchers{c: r.m.quickClient(t)}
	defer r.ws.close()
	for r.round = 0; r.round <= *crashRounds; r.round++ {
		if err := r.oneRound(); err != nil {
			r.m.kill()
			aside := filepath.Join(os.TempDir(), fmt.Sprintf("crash-%d-%d", seed, r.round))
			_ = os.RemoveAll(aside)
			if err := os.CopyFS(aside, os.DirFS(root)); err != nil {
				t.Logf("copying the data: %v", err)
			}
			t.Fatalf("-crash.seed %d, round %d (faults: %v, lost before: %v): %v\n%s\nthe data is in %s\nlast lines of %s:\n%s",
				seed, r.round, r.faulty, r.lost, err, r.summary(), aside, r.m.Name, r.m.Tail(20))
		}
		if r.round%10 == 0 && r.round > 0 && r.round < *crashRounds {
			fmt.Println(r.summary())
		}
	}
	r.round--
	fmt.Println(r.summary())
}

func (r *crash) summary() string {
	slices.Sort(r.restarts)
	var median, most time.Duration
	if n := len(r.restarts); n > 0 {
		median, most = r.restarts[n/2].Round(time.Millisecond), r.restarts[n-1].Round(time.Millisecond)
	}
	return fmt.Sprintf("crash seed %d: %d rounds, %d kills, %d losses (%v), %d writes acknowledged, %d events compared, "+
		"revision %d, answers after %v (at most %v), begun anew %d times, %d errors",
		r.seed, r.round, r.kills, r.losses, r.total, r.writes, r.events, r.h.head(), median, most, r.anew, r.errors)
}

// oneRound starts the server, checks the data, and kills the server under writes. The last round ends with
// the check.
func (r *crash) oneRound() error {
	// A kill during the start must be as safe as any other.
	if r.round > 0 && r.rng.IntN(8) == 0 {
		if err := r.start(); err != nil {
			return err
		}
		time.Sleep(time.Duration(r.rng.IntN(150)) * time.Millisecond)
		if err := r.kill(); err != nil {
			return err
		}
	}
	began := time.Now()
	if err := r.start(); err != nil {
		return err
	}
	head, took, err := r.m.answers(began)
	if err != nil {
		return err
	}
	if r.round > 0 {
		r.restarts = append(r.restarts, took)
	}
	c, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	switch {
	case r.round == 0:
		r.cluster, r.member = head.ClusterId, head.MemberId
		r.ws.open(2)
	case head.ClusterId != r.cluster && *crashMode != "sync" && r.lost:
		r.cluster, r.member = head.ClusterId, head.MemberId
		if err := r.beginAnew(c); err != nil {
			return err
		}
	case head.ClusterId != r.cluster || head.MemberId != r.member:
		return fmt.Errorf("cluster %x member %x has become %x %x", r.cluster, r.member, head.ClusterId, head.MemberId)
	}
	r.lost = false
	if err := r.check(c); err != nil {
		return err
	}
	if r.round == *crashRounds {
		return nil
	}
	return r.write()
}

func (r *crash) start() error {
	r.faulty = *crashFaults && r.rng.IntN(2) == 0
	r.killed.Store(false)
	return r.m.launch(r.faulty)
}

// kill ends the process and undoes some unsynced changes.
func (r *crash) kill() error {
	if r.m.Ended() && !r.full {
		return fmt.Errorf("%s has ended by itself: %v", r.m.Name, r.m.State())
	}
	r.killed.Store(true)
	r.m.kill()
	r.kills++
	_ = os.Remove(r.m.full())
	r.full = false
	if !r.faulty {
		return nil
	}
	l := newLoss(r.rng, r.m.tree(), r.m.side(), r.m.strict)
	if err := r.m.lose(l); err != nil {
		return fmt.Errorf("the loss: %w", err)
	}
	r.losses++
	r.lost = true
	r.total.add(l.lost)
	return nil
}

func (r *crash) check(ctx context.Context) error {
	r.l.saw(r.ws.seen())
	k := &checker{c: r.c, h: r.h, l: r.l, rng: r.rng}
	if err := k.check(ctx); err != nil {
		return err
	}
	r.events += k.events
	// Each watch gets an event to wait for.
	if r.round%5 == 0 {
		r.ws.addFromPast(r.rng, r.h)
	}
	for _, prefix := range watched {
		e, err := r.mark(ctx, prefix+"mark")
		if err != nil {
			return err
		}
		if e.rev != r.h.head()+1 {
			return fmt.Errorf("{%v} follows revision %d", e, r.h.head())
		}
		if err := r.h.append([]event{e}); err != nil {
			return err
		}
	}
	n, err := r.ws.compare(r.h)
	r.events += n
	return err
}

func (r *crash) mark(ctx context.Context, key string) (event, error) {
	if _, err := r.c.Put(ctx, key, fmt.Sprint(serial.Add(1))); err != nil {
		return event{}, err
	}
	g, err := r.c.Get(ctx, key)
	if err != nil {
		return event{}, err
	}
	r.l.saw(g.Header.Revision)
	return kvEvent(g.Kvs[0]), nil
}

// beginAnew replaces the history and the ledger: a new cluster id says that the data may have lost something.
func (r *crash) beginAnew(ctx context.Context) error {
	r.anew++
	now, err := r.c.Get(ctx, "", clientv3.WithPrefix())
	if err != nil {
		return err
	}
	base := map[string]event{}
	for _, kv := range now.Kvs {
		base[string(kv.Key)] = kvEvent(kv)
	}
	r.h = newHistory(now.Header.Revision, base)
	l := newLedger()
	l.writes = r.l.writes
	r.l = l
	leases, err := r.c.Leases(ctx)
	if err != nil {
		return err
	}
	for _, lease := range leases.Leases {
		l.leases[int64(lease.ID)] = acked
	}
	users, err := r.c.UserList(ctx)
	if err != nil {
		return err
	}
	for _, name := range users.Users {
		l.users[name] = acked
	}
	roles, err := r.c.RoleList(ctx)
	if err != nil {
		return err
	}
	for _, name := range roles.Roles {
		l.roles[name] = acked
	}
	r.ws.open(now.Header.Revision + 1)
	return nil
}

// write runs clients for a random time and then kills the server.
func (r *crash) write() error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var wg sync.WaitGroup
	run := func(work func() error) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if err := work(); err != nil && !r.killed.Load() {
				r.l.mu.Lock()
				r.errors++
				r.l.mu.Unlock()
				r.l.fail("a client failed before the kill: %v", err)
			}
		}()
	}
	for id := range authors {
		a := newAuthor(ctx, r.c, r.l, rand.New(rand.NewPCG(r.rng.Uint64(), 3)), id, r.h.now)
		run(a.write)
	}
	lives := time.Duration(50+r.rng.IntN(1450)) * time.Millisecond
	rareAfter := time.Duration(r.rng.Int64N(int64(lives)))
	rng := rand.New(rand.NewPCG(r.rng.Uint64(), 4))
	floor, head := r.h.floor, r.h.head()
	run(func() error {
		select {
		case <-time.After(rareAfter):
			return r.l.rareOperation(ctx, r.c, rng, floor, head)
		case <-ctx.Done():
			return nil
		}
	})
	time.Sleep(lives)
	if *crashFull && r.faulty && r.rng.IntN(3) == 0 {
		// With a full disk any answer is valid, and the server may even exit.
		r.full = true
		r.killed.Store(true)
		if err := os.WriteFile(r.m.full(), nil, 0o600); err != nil {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
	if err := r.kill(); err != nil {
		return err
	}
	cancel()
	wg.Wait()
	r.writes = r.l.writes
	return nil
}
