package interop

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// State other than keys survives a restart: leases, users, alarms, identity. The tests run on Isthmus, or with
// -restart.only=etcd on etcd.

func surviving() string {
	if *restartOnly == "etcd" {
		return "etcd"
	}
	return "isthmus"
}

// overRestart runs a test for each way to end a process. The test gets a client of a new server, and calls `again` for a
// client after the restart.
func overRestart(t *testing.T, test func(t *testing.T, k *kept, c *clientv3.Client, again func(clientv3.Config) *clientv3.Client), args ...string) {
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		t.Run(sig.String(), func(t *testing.T) {
			t.Setenv("ETCD_CLIENT_DEBUG", "fatal")
			k := keep(t, surviving(), t.TempDir(), args...)
			k.up(t)
			c := k.client(t)
			defer c.Close()
			test(t, k, c, func(config clientv3.Config) *clientv3.Client {
				c.Close()
				k.down(t, sig)
				k.up(t)
				return k.clientWith(t, config)
			})
		})
	}
}

func (k *kept) clientWith(t testing.TB, config clientv3.Config) *clientv3.Client {
	t.Helper()
	config.Endpoints = []string{k.address}
	c := try(clientv3.New(config)).or(t)
	t.Cleanup(func() { c.Close() })
	return c
}

func TestRestartKeepsLeases(t *testing.T) {
	overRestart(t, func(t *testing.T, k *kept, c *clientv3.Client, again func(clientv3.Config) *clientv3.Client) {
		grant := func(ttl int64) clientv3.LeaseID {
			return try(c.Grant(ctx(t), ttl)).or(t).ID
		}
		long, revoked, short := grant(60), grant(60), grant(4)
		for key, lease := range map[string]clientv3.LeaseID{"long": long, "long/2": long, "revoked": revoked, "short": short} {
			try(c.Put(ctx(t), key, "v", clientv3.WithLease(lease))).or(t)
		}
		// A key that was detached from its lease stays detached.
		try(c.Put(ctx(t), "moved", "v", clientv3.WithLease(long))).or(t)
		try(c.Put(ctx(t), "moved", "v")).or(t)
		try(c.Revoke(ctx(t), revoked)).or(t)
		eventually(t, "the short lease has ended", func() bool {
			return try(c.Get(ctx(t), "short")).or(t).Count == 0
		})
		later := grant(3)
		try(c.Put(ctx(t), "later", "v", clientv3.WithLease(later))).or(t)

		c = again(clientv3.Config{})
		ttl := try(c.TimeToLive(ctx(t), long, clientv3.WithAttachedKeys())).or(t)
		if ttl.GrantedTTL != 60 || ttl.TTL < 57 || ttl.TTL > 61 || fmt.Sprintf("%s", ttl.Keys) != "[long long/2]" {
			t.Errorf("the long lease: granted %d, left %d, keys %s", ttl.GrantedTTL, ttl.TTL, ttl.Keys)
		}
		for _, gone := range []clientv3.LeaseID{revoked, short} {
			if ttl := try(c.TimeToLive(ctx(t), gone)).or(t); ttl.TTL != -1 {
				t.Errorf("a lease is back, for %d seconds", ttl.TTL)
			}
		}
		if n := len(try(c.Leases(ctx(t))).or(t).Leases); n != 2 {
			t.Errorf("%d leases", n)
		}
		found := map[string]int64{}
		for _, kv := range try(c.Get(ctx(t), "", clientv3.WithPrefix())).or(t).Kvs {
			found[string(kv.Key)] = kv.Lease
		}
		want := map[string]int64{"long": int64(long), "long/2": int64(long), "moved": 0, "later": int64(later)}
		if fmt.Sprint(found) != fmt.Sprint(want) {
			t.Errorf("keys %v, not %v", found, want)
		}
		// After the restart leases expire, and can be kept alive and revoked.
		eventually(t, "the later lease has ended", func() bool {
			return try(c.Get(ctx(t), "later")).or(t).Count == 0
		})
		try(c.KeepAliveOnce(ctx(t), long)).or(t)
		try(c.Revoke(ctx(t), long)).or(t)
		if left := try(c.Get(ctx(t), "", clientv3.WithPrefix())).or(t); left.Count != 1 {
			t.Errorf("%d keys left", left.Count)
		}
	})
}

func TestRestartKeepsAuth(t *testing.T) {
	overRestart(t, func(t *testing.T, k *kept, c *clientv3.Client, again func(clientv3.Config) *clientv3.Client) {
		for name, password := range map[string]string{"root": "r00t", "ann": "pw", "gone": "pw"} {
			try(c.UserAdd(ctx(t), name, password)).or(t)
		}
		for _, role := range []string{"root", "writer", "gone"} {
			try(c.RoleAdd(ctx(t), role)).or(t)
		}
		try(c.RoleGrantPermission(ctx(t), "writer", "a/", "a0", clientv3.PermissionType(clientv3.PermReadWrite))).or(t)
		try(c.UserGrantRole(ctx(t), "root", "root")).or(t)
		try(c.UserGrantRole(ctx(t), "ann", "writer")).or(t)
		try(c.UserChangePassword(ctx(t), "ann", "new")).or(t)
		try(c.UserDelete(ctx(t), "gone")).or(t)
		try(c.RoleDelete(ctx(t), "gone")).or(t)
		try(c.Put(ctx(t), "b", "v")).or(t)
		status := try(c.AuthStatus(ctx(t))).or(t)
		try(c.AuthEnable(ctx(t))).or(t)

		root := again(clientv3.Config{Username: "root", Password: "r00t"})
		after := try(root.AuthStatus(ctx(t))).or(t)
		if !after.Enabled || after.AuthRevision != status.AuthRevision {
			t.Errorf("authentication: %v at revision %d, was at %d", after.Enabled, after.AuthRevision, status.AuthRevision)
		}
		users := try(root.UserList(ctx(t))).or(t).Users
		roles := try(root.RoleList(ctx(t))).or(t).Roles
		if fmt.Sprint(users, roles) != "[ann root] [root writer]" {
			t.Errorf("users %v, roles %v", users, roles)
		}
		ann := k.clientWith(t, clientv3.Config{Username: "ann", Password: "new"})
		try(ann.Put(ctx(t), "a/1", "v")).or(t)
		if _, err := ann.Get(ctx(t), "b"); err == nil || !strings.Contains(err.Error(), "permission denied") {
			t.Errorf("ann reads b: %v", err)
		}
		if _, err := k.clientWith(t, clientv3.Config{}).Get(ctx(t), "b"); err == nil || !strings.Contains(err.Error(), "user name is empty") {
			t.Errorf("nobody reads b: %v", err)
		}
		if _, err := clientv3.New(clientv3.Config{Endpoints: []string{k.address}, Username: "ann", Password: "pw"}); err == nil || !strings.Contains(err.Error(), "authentication failed") {
			t.Errorf("the old password: %v", err)
		}
		try(root.AuthDisable(ctx(t))).or(t)
		try(k.clientWith(t, clientv3.Config{}).Get(ctx(t), "b")).or(t)
	}, "--bcrypt-cost=4")
}

func TestRestartKeepsAlarms(t *testing.T) {
	overRestart(t, func(t *testing.T, k *kept, c *clientv3.Client, again func(clientv3.Config) *clientv3.Client) {
		var err error
		for i, began := 0, time.Now(); err == nil && time.Since(began) < patience; i++ {
			_, err = c.Put(ctx(t), fmt.Sprint("k", i%10), strings.Repeat("v", 100_000))
		}
		if err == nil || !strings.Contains(err.Error(), "database space exceeded") {
			t.Fatalf("over the quota: %v", err)
		}
		before := try(c.AlarmList(ctx(t))).or(t).Alarms
		c = again(clientv3.Config{})
		after := try(c.AlarmList(ctx(t))).or(t).Alarms
		if len(after) != 1 || after[0].Alarm != etcdserverpb.AlarmType_NOSPACE || after[0].MemberID != before[0].MemberID {
			t.Fatalf("alarms %v, were %v", after, before)
		}
		if _, err := c.Put(ctx(t), "k", "v"); err == nil || !strings.Contains(err.Error(), "database space exceeded") {
			t.Errorf("a put in spite of the alarm: %v", err)
		}
		// A disarmed alarm stays disarmed.
		now := try(c.Delete(ctx(t), "k", clientv3.WithPrefix())).or(t).Header.Revision
		try(c.Compact(ctx(t), now, clientv3.WithCompactPhysical())).or(t)
		try(c.Defragment(ctx(t), k.address)).or(t)
		try(c.AlarmDisarm(ctx(t), &clientv3.AlarmMember{})).or(t)
		k.down(t, syscall.SIGKILL)
		k.up(t)
		c = k.clientWith(t, clientv3.Config{})
		if alarms := try(c.AlarmList(ctx(t))).or(t).Alarms; len(alarms) != 0 {
			t.Errorf("alarms %v", alarms)
		}
		try(c.Put(ctx(t), "k", "v")).or(t)
		if _, err := c.Get(ctx(t), "k", clientv3.WithRev(now-1)); err == nil || !strings.Contains(err.Error(), "has been compacted") {
			t.Errorf("before the compaction: %v", err)
		}
	}, "--quota-backend-bytes=2000000")
}

// The data directory determines the cluster id, and only one process at a time can use it.
func TestRestartOfAnother(t *testing.T) {
	dir := t.TempDir()
	one := keep(t, surviving(), dir)
	first, _ := one.up(t)
	// etcd derives the cluster id from its peers' addresses.
	other, _ := keep(t, surviving(), t.TempDir()).up(t)
	if other.ClusterId == first.ClusterId || first.ClusterId == 0 {
		t.Errorf("clusters %x and %x", first.ClusterId, other.ClusterId)
	}
	if one.Name == "etcd" {
		return // etcd waits for the directory instead of failing.
	}
	intruder := keep(t, surviving(), dir)
	late, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(late, intruder.Bin, intruder.Args...)
	out, err := cmd.CombinedOutput()
	if late.Err() != nil {
		t.Fatalf("a second process runs on the same directory:\n%s", out)
	}
	if err == nil || !strings.Contains(string(out), dir) {
		t.Errorf("a second process: %v\n%s", err, out)
	}
	// The first process is not affected.
	c := one.client(t)
	defer c.Close()
	try(c.Put(ctx(t), "k", "v")).or(t)
	one.down(t, syscall.SIGTERM)
	again, _ := one.up(t)
	if again.ClusterId != first.ClusterId || again.MemberId != first.MemberId || again.Revision != 2 {
		t.Errorf("%v has become %v", first, again)
	}
}
