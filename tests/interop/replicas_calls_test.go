package interop

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	epb "go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	lpb "go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
)

// What a replica passes on to a real etcd: leases, locks, elections, members, and calls of users.

// clientsOf returns a client of each replica.
func clientsOf(t testing.TB, replicas []*replica) (clients []*clientv3.Client) {
	for _, r := range replicas {
		c := r.client(t)
		t.Cleanup(func() { c.Close() })
		clients = append(clients, c)
	}
	return clients
}

// TestReplicasRecipes holds locks and elections of clients that use different replicas.
func TestReplicasRecipes(t *testing.T) {
	m := cluster(t, 1)
	clients := clientsOf(t, replicasOf(t, 2, m.addresses()))
	inTurn(t, 6, func(worker int) *clientv3.Client { return clients[worker%2] }, func(c *clientv3.Client) {
		// Whoever holds the lock sees what the holder before has written, wherever that was.
		n := len(try(c.Get(ctx(t), "/count")).or(t).Kvs)
		if n > 0 {
			fmt.Sscan(string(try(c.Get(ctx(t), "/count")).or(t).Kvs[0].Value), &n)
		}
		try(c.Put(ctx(t), "/count", fmt.Sprint(n+1))).or(t)
	})
	if count := string(try(clients[0].Get(ctx(t), "/count")).or(t).Kvs[0].Value); count != "30" {
		t.Fatalf("%s of 30 increments are there", count)
	}

	// The services of locks and elections, which wait upstream.
	locks := []lpb.LockClient{lpb.NewLockClient(clients[0].ActiveConnection()), lpb.NewLockClient(clients[1].ActiveConnection())}
	first := try(locks[0].Lock(ctx(t), &lpb.LockRequest{Name: []byte("l")})).or(t)
	second := make(chan error, 1)
	go func() {
		_, err := locks[1].Lock(ctx(t), &lpb.LockRequest{Name: []byte("l")})
		second <- err
	}()
	select {
	case err := <-second:
		t.Fatalf("a lock was given twice: %v", err)
	case <-time.After(8 * time.Second): // longer than any other request
	}
	try(locks[1].Unlock(ctx(t), &lpb.UnlockRequest{Key: first.Key})).or(t)
	if err := <-second; err != nil {
		t.Fatal(err)
	}
	elections := []epb.ElectionClient{epb.NewElectionClient(clients[0].ActiveConnection()), epb.NewElectionClient(clients[1].ActiveConnection())}
	observed := try(elections[1].Observe(ctx(t), &epb.LeaderRequest{Name: []byte("e")})).or(t)
	leader := try(elections[0].Campaign(ctx(t), &epb.CampaignRequest{Name: []byte("e"), Value: []byte("one")})).or(t)
	if got := try(observed.Recv()).or(t); string(got.Kv.Value) != "one" {
		t.Fatalf("the leader is %s", got.Kv.Value)
	}
	try(elections[1].Proclaim(ctx(t), &epb.ProclaimRequest{Leader: leader.Leader, Value: []byte("two")})).or(t)
	if got := try(observed.Recv()).or(t); string(got.Kv.Value) != "two" {
		t.Fatalf("the leader is %s", got.Kv.Value)
	}
}

// TestReplicasLeases keeps many leases alive through a replica, over few streams of the etcd, and moves a client to another
// replica when its own dies.
func TestReplicasLeases(t *testing.T) {
	m := cluster(t, 1)
	replicas := replicasOf(t, 2, m.addresses())
	c := replicas[0].client(t)
	defer c.Close()
	streams := `grpc_server_started_total{grpc_method="LeaseKeepAlive",grpc_service="etcdserverpb.Lease",grpc_type="bidi_stream"}`
	before := figure(t, m.kept[0].server, streams)
	var clients []*clientv3.Client
	for i := range 40 {
		own := replicas[0].client(t)
		defer own.Close()
		clients = append(clients, own)
		lease := try(own.Grant(ctx(t), 3)).or(t)
		try(own.Put(ctx(t), fmt.Sprint("leased/", i), "", clientv3.WithLease(lease.ID))).or(t)
		try(own.KeepAlive(context.Background(), lease.ID)).or(t)
	}
	time.Sleep(7 * time.Second)
	if n := try(c.Get(ctx(t), "leased/", clientv3.WithPrefix())).or(t).Count; n != 40 {
		t.Fatalf("%d of 40 leases live", n)
	}
	if n := figure(t, m.kept[0].server, streams) - before; n < 1 || n > 8 {
		t.Errorf("the etcd has %v streams of renewals for 40 clients", n)
	}
	for _, own := range clients {
		own.Close()
	}
	eventually(t, "leases end upstream, and their keys here", func() bool {
		return try(c.Get(ctx(t), "leased/", clientv3.WithPrefix())).or(t).Count == 0
	})

	moved, err := clientv3.New(clientv3.Config{Endpoints: []string{replicas[0].address, replicas[1].address}, DialTimeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer moved.Close()
	session := try(concurrency.NewSession(moved, concurrency.WithTTL(6))).or(t)
	replicas[0].Stop(syscall.SIGKILL)
	select {
	case <-session.Done():
		t.Fatal("the lease ended with a replica")
	case <-time.After(9 * time.Second):
	}
}

// TestReplicasKeepTheirClients asks for the endpoints as Go's client does: it stays with the replica.
func TestReplicasKeepTheirClients(t *testing.T) {
	m := cluster(t, 3)
	r := replicasOf(t, 1, m.addresses())[0]
	c := r.client(t)
	defer c.Close()
	if err := c.Sync(ctx(t)); err != nil {
		t.Fatal(err)
	}
	for _, endpoint := range c.Endpoints() {
		if endpoint != "http://"+r.address {
			t.Errorf("the client goes to %s", endpoint)
		}
	}
	members := try(c.MemberList(ctx(t))).or(t)
	status := try(c.Status(ctx(t), r.address)).or(t)
	if len(members.Members) != 3 {
		t.Errorf("%d members", len(members.Members))
	}
	for _, member := range members.Members {
		if member.ID == status.Header.MemberId {
			t.Error("the replica has the id of a member")
		}
	}
	if status.Leader == 0 || status.RaftTerm == 0 || status.Header.ClusterId != members.Header.ClusterId {
		t.Errorf("status %v", status)
	}
	if _, err := c.MoveLeader(ctx(t), members.Members[0].ID); !errors.Is(err, rpctypes.ErrNotLeader) {
		t.Errorf("MoveLeader: %v", err)
	}
	try(c.Defragment(ctx(t), r.address)).or(t)
	// The etcd is gone: a write was surely not sent, and a client with other replicas would repeat it there.
	for _, k := range m.kept {
		k.Stop(syscall.SIGKILL)
	}
	if _, err := c.Get(ctx(t), "a", clientv3.WithSerializable()); err != nil {
		t.Errorf("a serializable read: %v", err)
	}
}

// signedTokens is the flag of an etcd and of its replicas for tokens that they sign with a new secret.
func signedTokens(t *testing.T) string {
	t.Helper()
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("a secret that the etcd and its replicas share"), 0o600); err != nil {
		t.Fatal(err)
	}
	return "--auth-token=jwt,sign-method=HS256,priv-key=" + secret + ",ttl=5m"
}

// TestReplicasUsers lets users log in at a replica of an etcd with authentication, for each kind of token.
func TestReplicasUsers(t *testing.T) {
	jwt := signedTokens(t)
	for _, mode := range []struct {
		name          string
		etcd, replica []string
		client        string
		within        time.Duration
	}{
		{"simple tokens", nil, nil, "username: root\npassword: root\n", 12 * time.Second},
		{"signed tokens and no key", []string{jwt}, nil, "username: root\npassword: root\n", 12 * time.Second},
		{"signed tokens and the key", []string{jwt}, []string{jwt}, "", 0},
	} {
		t.Run(mode.name, func(t *testing.T) {
			m := cluster(t, 1, mode.etcd...)
			users(t, m.kept[0].client(t))
			r := replicaBy(t, "replica", fmt.Sprintf("endpoints: [\"http://%s\"]\n%s", m.kept[0].address, mode.client), mode.replica...)
			root, kim := as(t, r.server, "root"), as(t, r.server, "kim")
			allowed := func(key string) error {
				_, err := kim.Put(ctx(t), key, "")
				if err == nil {
					_, err = kim.Get(ctx(t), key)
				}
				return err
			}
			if err := allowed("k1"); err != nil {
				t.Fatal(err)
			}
			if err := allowed("z"); !errors.Is(err, rpctypes.ErrPermissionDenied) {
				t.Fatalf("another key: %v", err)
			}
			if _, err := kim.Get(ctx(t), "z"); !errors.Is(err, rpctypes.ErrPermissionDenied) {
				t.Fatalf("another key: %v", err)
			}
			nobody := r.client(t)
			defer nobody.Close()
			if _, err := nobody.Put(ctx(t), "k1", ""); !errors.Is(err, rpctypes.ErrUserEmpty) {
				t.Fatalf("nobody: %v", err)
			}
			// Through the replica, a change is in force with its answer.
			try(root.UserRevokeRole(ctx(t), "kim", "k")).or(t)
			if err := allowed("k1"); !errors.Is(err, rpctypes.ErrPermissionDenied) {
				t.Fatalf("without the role: %v", err)
			}
			try(root.UserGrantRole(ctx(t), "kim", "k")).or(t)
			if err := allowed("k1"); err != nil {
				t.Fatal(err)
			}
			// At the etcd, it is in force here within the promised time.
			direct := as(t, m.kept[0].server, "root")
			try(direct.UserRevokeRole(ctx(t), "kim", "k")).or(t)
			begun := time.Now()
			for {
				_, err := kim.Get(ctx(t), "k1")
				if errors.Is(err, rpctypes.ErrPermissionDenied) {
					break
				}
				if time.Since(begun) > mode.within {
					t.Fatalf("a read is still allowed after %v: %v", time.Since(begun), err)
				}
				time.Sleep(50 * time.Millisecond)
			}
			t.Logf("%s: a read was denied %v after the change at the etcd", mode.name, time.Since(begun).Round(time.Millisecond))
		})
	}
}

// users creates the users root and kim, who may use the keys from k on, and enables authentication.
func users(t testing.TB, c *clientv3.Client) {
	t.Helper()
	defer c.Close()
	try(c.UserAdd(ctx(t), "root", "root")).or(t)
	try(c.UserGrantRole(ctx(t), "root", "root")).or(t)
	try(c.UserAdd(ctx(t), "kim", "kim")).or(t)
	try(c.RoleAdd(ctx(t), "k")).or(t)
	try(c.RoleGrantPermission(ctx(t), "k", "k", "l", clientv3.PermissionType(clientv3.PermReadWrite))).or(t)
	try(c.UserGrantRole(ctx(t), "kim", "k")).or(t)
	try(c.AuthEnable(ctx(t))).or(t)
}

// as is a client that logs in with its name as password, once the server answers.
func as(t testing.TB, s *server, user string) (c *clientv3.Client) {
	t.Helper()
	eventually(t, s.Name+" lets "+user+" log in", func() bool {
		var err error
		c, err = clientv3.New(clientv3.Config{Endpoints: []string{s.address}, Username: user, Password: user, DialTimeout: 2 * time.Second})
		return err == nil
	})
	t.Cleanup(func() { c.Close() })
	return c
}
