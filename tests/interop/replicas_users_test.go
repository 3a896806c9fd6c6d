package interop

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// userOf is a client of a user at one replica, which uses keys of its own while members and replicas are killed and stopped.
type userOf struct {
	name   string
	c      *clientv3.Client
	prefix string
	// The last number whose put was answered, and the puts that were.
	last, answered int64
	denied         int64
}

// TestReplicasUsersUnderFaults lets users with passwords read and write at replicas of an etcd with authentication while its members and
// the replicas are killed and stopped: a right that somebody has is never denied, one that nobody has is never granted, no answered
// put is lost, and a right that is taken away through a replica counts with the answer.
func TestReplicasUsersUnderFaults(t *testing.T) {
	// The client would log every denial.
	t.Setenv("ETCD_CLIENT_DEBUG", "fatal")
	jwt := signedTokens(t)
	for _, mode := range []struct {
		name          string
		etcd, replica []string
		client        string
	}{
		{"simple tokens", nil, nil, "username: root\npassword: root\n"},
		{"signed tokens and the key", []string{jwt}, []string{jwt}, ""},
	} {
		t.Run(mode.name, func(t *testing.T) {
			m := cluster(t, 3, mode.etcd...)
			users(t, m.kept[0].client(t))
			all := m.kept
			var at []*userOf
			for i := range 2 {
				r := replicaBy(t, fmt.Sprint("replica", i), upstreamFile(m.addresses())+mode.client, mode.replica...)
				all = append(all, r.kept)
				for n := range 2 {
					u := &userOf{name: fmt.Sprintf("kim %d at replica %d", n, i), prefix: fmt.Sprintf("k/%d/%d/", i, n), c: as(t, r.server, "kim")}
					at = append(at, u)
				}
			}
			var stop atomic.Bool
			var running sync.WaitGroup
			for _, u := range at {
				running.Go(func() { u.work(t, &stop) })
			}
			figures := hurt(t, all, time.Now().Add(time.Duration(*hopSeconds)*2*time.Second))
			// Everybody gets on once the faults are over.
			before := make([]int64, len(at))
			for i, u := range at {
				before[i] = atomic.LoadInt64(&u.answered)
			}
			for i, u := range at {
				eventually(t, u.name+" writes again", func() bool { return atomic.LoadInt64(&u.answered) > before[i]+3 })
			}
			stop.Store(true)
			running.Wait()
			root := as(t, m.kept[0].server, "root")
			for _, u := range at {
				got := try(root.Get(ctx(t), u.prefix+"x")).or(t)
				var found int64
				if len(got.Kvs) == 1 {
					fmt.Sscan(string(got.Kvs[0].Value), &found)
				}
				if found < u.last {
					t.Errorf("%s: the put of %d was answered, and the etcd has %d", u.name, u.last, found)
				}
				t.Logf("%s: %d puts, %d denials of what it may not do", u.name, u.answered, u.denied)
			}
			through := as(t, all[3].server, "root")
			try(through.UserRevokeRole(ctx(t), "kim", "k")).or(t)
			if _, err := at[0].c.Get(ctx(t), at[0].prefix+"x"); !errors.Is(err, rpctypes.ErrPermissionDenied) {
				t.Errorf("a read without the role: %v", err)
			}
			t.Log(figures)
		})
	}
}

// work puts and reads until the end, one call after the other.
func (u *userOf) work(t *testing.T, stop *atomic.Bool) {
	for n := int64(1); !stop.Load(); n++ {
		c, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		_, err := u.c.Put(c, u.prefix+"x", fmt.Sprint(n))
		if err == nil {
			u.last = n
			atomic.AddInt64(&u.answered, 1)
			var read *clientv3.GetResponse
			if read, err = u.c.Get(c, u.prefix+"x"); err == nil {
				var found int64
				if len(read.Kvs) == 1 {
					fmt.Sscan(string(read.Kvs[0].Value), &found)
				}
				if found < n {
					t.Errorf("%s: a read after the put of %d shows %d", u.name, n, found)
				}
			}
		}
		if errors.Is(err, rpctypes.ErrPermissionDenied) {
			t.Errorf("%s may not use its own keys: %v", u.name, err)
		}
		for what, call := range map[string]func() error{
			"read a key of others":  func() error { _, err := u.c.Get(c, "z"); return err },
			"write a key of others": func() error { _, err := u.c.Put(c, "z", ""); return err },
			"list users":            func() error { _, err := u.c.UserList(c); return err },
		} {
			switch err := call(); {
			case err == nil:
				t.Errorf("%s may %s", u.name, what)
			case errors.Is(err, rpctypes.ErrPermissionDenied):
				u.denied++
			}
		}
		cancel()
		time.Sleep(10 * time.Millisecond)
	}
}

// hurt kills and stops processes, never two at a time, until a time.
func hurt(t *testing.T, all []*kept, end time.Time) map[string]int {
	figures := map[string]int{}
	rng := rand.New(rand.NewPCG(*hopSeed, 17))
	for time.Now().Before(end) {
		time.Sleep(time.Duration(200+rng.IntN(500)) * time.Millisecond)
		k := all[rng.IntN(len(all))]
		if rng.IntN(3) == 0 {
			_ = k.Signal(syscall.SIGSTOP)
			time.Sleep(time.Duration(200+rng.IntN(1500)) * time.Millisecond)
			_ = k.Signal(syscall.SIGCONT)
			figures["pauses"]++
			continue
		}
		k.Stop(syscall.SIGKILL)
		time.Sleep(time.Duration(rng.IntN(500)) * time.Millisecond)
		if err := k.Start(); err != nil {
			t.Fatal(err)
		}
		as(t, k.server, "kim").Close()
		figures["kills"]++
	}
	return figures
}
