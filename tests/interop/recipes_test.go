package interop

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	epb "go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	lpb "go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
)

// The recipes of clientv3, on which Cilium and Kubernetes build, work on Isthmus: mutex, session, election, STM. Answers of
// the Lock and Election services are compared with etcd's.

func TestMutexAndSession(t *testing.T) {
	s := ours(t)
	c := s.client(t)
	defer c.Close()
	inTurn(t, 8, func(int) *clientv3.Client { return c }, func(*clientv3.Client) {})
	left := try(c.Get(ctx(t), "/lock", clientv3.WithPrefix())).or(t)
	if len(left.Kvs) != 0 {
		t.Fatalf("the mutex left keys behind: %v", left.Kvs)
	}
}

// inTurn lets workers take a lock five times each, and do their work while they hold it. The lock must have one holder at a time.
func inTurn(t testing.TB, workers int, client func(worker int) *clientv3.Client, work func(*clientv3.Client)) {
	t.Helper()
	held, most := 0, 0
	var mu sync.Mutex
	var wg sync.WaitGroup
	for worker := range workers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			c := client(worker)
			session, err := concurrency.NewSession(c, concurrency.WithTTL(10))
			if err != nil {
				t.Error(err)
				return
			}
			defer session.Close()
			lock := concurrency.NewMutex(session, "/lock")
			for range 5 {
				if err := lock.Lock(ctx(t)); err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				held++
				most = max(most, held)
				mu.Unlock()
				work(c)
				mu.Lock()
				held--
				mu.Unlock()
				if err := lock.Unlock(ctx(t)); err != nil {
					t.Error(err)
				}
			}
		}()
	}
	wg.Wait()
	if most != 1 {
		t.Fatalf("%d clients held the lock at once", most)
	}
}

func TestElection(t *testing.T) {
	s := ours(t)
	c := s.client(t)
	defer c.Close()
	session := func() *concurrency.Session {
		return try(concurrency.NewSession(c, concurrency.WithTTL(5))).or(t)
	}
	one, two := session(), session()
	defer two.Close()
	first, second := concurrency.NewElection(one, "/election"), concurrency.NewElection(two, "/election")
	if err := first.Campaign(ctx(t), "one"); err != nil {
		t.Fatal(err)
	}
	watching, cancel := context.WithCancel(ctx(t))
	defer cancel()
	seen := second.Observe(watching)
	if r := <-seen; string(r.Kvs[0].Value) != "one" {
		t.Fatalf("leader %q", r.Kvs[0].Value)
	}
	elected := make(chan error, 1)
	go func() { elected <- second.Campaign(ctx(t), "two") }()
	select {
	case err := <-elected:
		t.Fatalf("two clients are leader at once (%v)", err)
	case <-time.After(200 * time.Millisecond):
	}
	if err := first.Proclaim(ctx(t), "one again"); err != nil {
		t.Fatal(err)
	}
	if r := <-seen; string(r.Kvs[0].Value) != "one again" {
		t.Fatalf("leader %q", r.Kvs[0].Value)
	}
	// The first leader stops without resigning: the end of its lease ends its leadership.
	one.Orphan()
	try(c.Revoke(ctx(t), one.Lease())).or(t)
	if err := <-elected; err != nil {
		t.Fatal(err)
	}
	if r := <-seen; string(r.Kvs[0].Value) != "two" {
		t.Fatalf("leader %q", r.Kvs[0].Value)
	}
}

func TestSTM(t *testing.T) {
	s := ours(t)
	c := s.client(t)
	defer c.Close()
	const accounts, transfers = 5, 40
	for i := range accounts {
		try(c.Put(ctx(t), fmt.Sprint("acct/", i), "100")).or(t)
	}
	for _, level := range []concurrency.Isolation{concurrency.SerializableSnapshot, concurrency.Serializable, concurrency.RepeatableReads} {
		var wg sync.WaitGroup
		for n := range transfers {
			wg.Add(1)
			go func() {
				defer wg.Done()
				from, to := fmt.Sprint("acct/", n%accounts), fmt.Sprint("acct/", (n*3+1)%accounts)
				_, err := concurrency.NewSTM(c, func(stm concurrency.STM) error {
					if from == to {
						return nil
					}
					var a, b int
					fmt.Sscan(stm.Get(from), &a)
					fmt.Sscan(stm.Get(to), &b)
					stm.Put(from, fmt.Sprint(a-1))
					stm.Put(to, fmt.Sprint(b+1))
					return nil
				}, concurrency.WithIsolation(level))
				if err != nil {
					t.Error(err)
				}
			}()
		}
		wg.Wait()
		sum := 0
		for _, kv := range try(c.Get(ctx(t), "acct/", clientv3.WithPrefix())).or(t).Kvs {
			var n int
			fmt.Sscan(string(kv.Value), &n)
			sum += n
		}
		if sum != accounts*100 {
			t.Fatalf("isolation %v: %d in all", level, sum)
		}
	}
}

// The Lock and Election services, which clients of other languages use.

func TestLockService(t *testing.T) {
	s := ours(t)
	lock := lpb.NewLockClient(s.dial(t))
	c := s.client(t)
	defer c.Close()
	grant := func() int64 { return int64(try(c.Grant(ctx(t), 60)).or(t).ID) }
	one, two := grant(), grant()
	first := try(lock.Lock(ctx(t), &lpb.LockRequest{Name: []byte("l"), Lease: one})).or(t)
	if want := fmt.Sprintf("l/%x", one); string(first.Key) != want {
		t.Fatalf("key %q, not %q", first.Key, want)
	}
	again := try(lock.Lock(ctx(t), &lpb.LockRequest{Name: []byte("l"), Lease: one})).or(t)
	if string(again.Key) != string(first.Key) {
		t.Fatalf("the same lease locked twice: %q", again.Key)
	}
	// A waiter that gives up leaves no key behind.
	short, cancel := context.WithTimeout(ctx(t), 200*time.Millisecond)
	defer cancel()
	if _, err := lock.Lock(short, &lpb.LockRequest{Name: []byte("l"), Lease: two}); err == nil {
		t.Fatal("locked twice")
	}
	eventually(t, "the waiter's key is gone", func() bool {
		return try(c.Get(ctx(t), "l/", clientv3.WithPrefix())).or(t).Count == 1
	})
	locked := make(chan error, 1)
	go func() {
		_, err := lock.Lock(ctx(t), &lpb.LockRequest{Name: []byte("l"), Lease: two})
		locked <- err
	}()
	eventually(t, "the waiter waits", func() bool {
		return try(c.Get(ctx(t), "l/", clientv3.WithPrefix())).or(t).Count == 2
	})
	try(lock.Unlock(ctx(t), &lpb.UnlockRequest{Key: first.Key})).or(t)
	if err := <-locked; err != nil {
		t.Fatal(err)
	}
}

func TestElectionService(t *testing.T) {
	// Both servers answer equally.
	for _, s := range []*server{theirs(t), ours(t)} {
		t.Run(s.Name, func(t *testing.T) {
			election := epb.NewElectionClient(s.dial(t))
			c := s.client(t)
			defer c.Close()
			_, err := election.Leader(ctx(t), &epb.LeaderRequest{Name: []byte("e")})
			if err == nil || err.Error() != "rpc error: code = Unknown desc = election: no leader" {
				t.Fatalf("no leader: %v", err)
			}
			lease := int64(try(c.Grant(ctx(t), 60)).or(t).ID)
			won := try(election.Campaign(ctx(t), &epb.CampaignRequest{Name: []byte("e"), Lease: lease, Value: []byte("v")})).or(t)
			leader := try(election.Leader(ctx(t), &epb.LeaderRequest{Name: []byte("e")})).or(t)
			if string(leader.Kv.Value) != "v" || string(leader.Kv.Key) != string(won.Leader.Key) || leader.Kv.CreateRevision != won.Leader.Rev {
				t.Fatalf("leader %v of %v", leader, won)
			}
			observed := try(election.Observe(ctx(t), &epb.LeaderRequest{Name: []byte("e")})).or(t)
			if r := try(observed.Recv()).or(t); string(r.Kv.Value) != "v" {
				t.Fatalf("observed %v", r)
			}
			try(election.Proclaim(ctx(t), &epb.ProclaimRequest{Leader: won.Leader, Value: []byte("w")})).or(t)
			if r := try(observed.Recv()).or(t); string(r.Kv.Value) != "w" {
				t.Fatalf("observed %v", r)
			}
			try(election.Resign(ctx(t), &epb.ResignRequest{Leader: won.Leader})).or(t)
			_, err = election.Proclaim(ctx(t), &epb.ProclaimRequest{Leader: won.Leader, Value: []byte("x")})
			if err == nil || err.Error() != "rpc error: code = Unknown desc = election: not leader" {
				t.Fatalf("there is a leader after the resignation: %v", err)
			}
			_, err = election.Resign(ctx(t), &epb.ResignRequest{})
			if err == nil || err.Error() != `rpc error: code = Unknown desc = "leader" field must be provided` {
				t.Fatalf("no leader named: %v", err)
			}
		})
	}
}
