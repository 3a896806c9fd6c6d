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

// What is not a key survives a restart as well. These are for ours, and with -restart.only=etcd for etcd.

func surviving() string {
	if *restartOnly == "etcd" {
		return "etcd"
	}
	return "isthmus"
}

// overRestart runs a test for each way to go down; the test gets a client of a new server, calls `again`
// for one after the restart.
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
	c := must[*clientv3.Client](t)(clientv3.New(config))
	t.Cleanup(func() { c.Close() })
	return c
}

func TestRestartKeepsLeases(t *testing.T) {
	overRestart(t, func(t *testing.T, k *kept, c *clientv3.Client, again func(clientv3.Config) *clientv3.Client) {
		grant := func(ttl int64) clientv3.LeaseID {
			return must[*clientv3.LeaseGrantResponse](t)(c.Grant(ctx(t), ttl)).ID
		}
		long, revoked, short := grant(60), grant(60), grant(3)
		for key, lease := range map[string]clientv3.LeaseID{"long": long, "long/2": long, "revoked": revoked, "short": short} {
			must[*clientv3.PutResponse](t)(c.Put(ctx(t), key, "v", clientv3.WithLease(lease)))
		}
		// A key that has left its lease does not go back.
		must[*clientv3.PutResponse](t)(c.Put(ctx(t), "moved", "v", clientv3.WithLease(long)))
		must[*clientv3.PutResponse](t)(c.Put(ctx(t), "moved", "v"))
		must[*clientv3.LeaseRevokeResponse](t)(c.Revoke(ctx(t), revoked))
		time.Sleep(4 * time.Second)
		eventually(t, "the short lease has ended", func() bool {
			return must[*clientv3.GetResponse](t)(c.Get(ctx(t), "short")).Count == 0
		})
		later := grant(3)
		must[*clientv3.PutResponse](t)(c.Put(ctx(t), "later", "v", clientv3.WithLease(later)))

		c = again(clientv3.Config{})
		ttl := must[*clientv3.LeaseTimeToLiveResponse](t)(c.TimeToLive(ctx(t), long, clientv3.WithAttachedKeys()))
		if ttl.GrantedTTL != 60 || ttl.TTL < 57 || ttl.TTL > 61 || fmt.Sprintf("%s", ttl.Keys) != "[long long/2]" {
			t.Errorf("the long lease: granted %d, left %d, keys %s", ttl.GrantedTTL, ttl.TTL, ttl.Keys)
		}
		for _, gone := range []clientv3.LeaseID{revoked, short} {
			if ttl := must[*clientv3.LeaseTimeToLiveResponse](t)(c.TimeToLive(ctx(t), gone)); ttl.TTL != -1 {
				t.Errorf("a lease is back, for %d seconds", ttl.TTL)
			}
		}
		if n := len(must[*clientv3.LeaseLeasesResponse](t)(c.Leases(ctx(t))).Leases); n != 2 {
			t.Errorf("%d leases", n)
		}
		found := map[string]int64{}
		for _, kv := range must[*clientv3.GetResponse](t)(c.Get(ctx(t), "", clientv3.WithPrefix())).Kvs {
			found[string(kv.Key)] = kv.Lease
		}
		want := map[string]int64{"long": int64(long), "long/2": int64(long), "moved": 0, "later": int64(later)}
		if fmt.Sprint(found) != fmt.Sprint(want) {
			t.Errorf("keys %v, not %v", found, want)
		}
		// Leases go on ending, and being kept and revoked.
		eventually(t, "the later lease has ended", func() bool {
			return must[*clientv3.GetResponse](t)(c.Get(ctx(t), "later")).Count == 0
		})
		must[*clientv3.LeaseKeepAliveResponse](t)(c.KeepAliveOnce(ctx(t), long))
		must[*clientv3.LeaseRevokeResponse](t)(c.Revoke(ctx(t), long))
		if left := must[*clientv3.GetResponse](t)(c.Get(ctx(t), "", clientv3.WithPrefix())); left.Count != 1 {
			t.Errorf("%d keys left", left.Count)
		}
	})
}

func TestRestartKeepsAuth(t *testing.T) {
	overRestart(t, func(t *testing.T, k *kept, c *clientv3.Client, again func(clientv3.Config) *clientv3.Client) {
		for name, password := range map[string]string{"root": "r00t", "ann": "pw", "gone": "pw"} {
			must[*clientv3.AuthUserAddResponse](t)(c.UserAdd(ctx(t), name, password))
		}
		for _, role := range []string{"root", "writer", "gone"} {
			must[*clientv3.AuthRoleAddResponse](t)(c.RoleAdd(ctx(t), role))
		}
		must[*clientv3.AuthRoleGrantPermissionResponse](t)(c.RoleGrantPermission(ctx(t), "writer", "a/", "a0", clientv3.PermissionType(clientv3.PermReadWrite)))
		must[*clientv3.AuthUserGrantRoleResponse](t)(c.UserGrantRole(ctx(t), "root", "root"))
		must[*clientv3.AuthUserGrantRoleResponse](t)(c.UserGrantRole(ctx(t), "ann", "writer"))
		must[*clientv3.AuthUserChangePasswordResponse](t)(c.UserChangePassword(ctx(t), "ann", "new"))
		must[*clientv3.AuthUserDeleteResponse](t)(c.UserDelete(ctx(t), "gone"))
		must[*clientv3.AuthRoleDeleteResponse](t)(c.RoleDelete(ctx(t), "gone"))
		must[*clientv3.PutResponse](t)(c.Put(ctx(t), "b", "v"))
		status := must[*clientv3.AuthStatusResponse](t)(c.AuthStatus(ctx(t)))
		must[*clientv3.AuthEnableResponse](t)(c.AuthEnable(ctx(t)))

		root := again(clientv3.Config{Username: "root", Password: "r00t"})
		after := must[*clientv3.AuthStatusResponse](t)(root.AuthStatus(ctx(t)))
		if !after.Enabled || after.AuthRevision != status.AuthRevision {
			t.Errorf("authentication: %v at revision %d, was at %d", after.Enabled, after.AuthRevision, status.AuthRevision)
		}
		users := must[*clientv3.AuthUserListResponse](t)(root.UserList(ctx(t))).Users
		roles := must[*clientv3.AuthRoleListResponse](t)(root.RoleList(ctx(t))).Roles
		if fmt.Sprint(users, roles) != "[ann root] [root writer]" {
			t.Errorf("users %v, roles %v", users, roles)
		}
		ann := k.clientWith(t, clientv3.Config{Username: "ann", Password: "new"})
		must[*clientv3.PutResponse](t)(ann.Put(ctx(t), "a/1", "v"))
		if _, err := ann.Get(ctx(t), "b"); err == nil || !strings.Contains(err.Error(), "permission denied") {
			t.Errorf("ann reads b: %v", err)
		}
		if _, err := k.clientWith(t, clientv3.Config{}).Get(ctx(t), "b"); err == nil || !strings.Contains(err.Error(), "user name is empty") {
			t.Errorf("nobody reads b: %v", err)
		}
		if _, err := clientv3.New(clientv3.Config{Endpoints: []string{k.address}, Username: "ann", Password: "pw"}); err == nil || !strings.Contains(err.Error(), "authentication failed") {
			t.Errorf("the old password: %v", err)
		}
		must[*clientv3.AuthDisableResponse](t)(root.AuthDisable(ctx(t)))
		must[*clientv3.GetResponse](t)(k.clientWith(t, clientv3.Config{}).Get(ctx(t), "b"))
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
		before := must[*clientv3.AlarmResponse](t)(c.AlarmList(ctx(t))).Alarms
		c = again(clientv3.Config{})
		after := must[*clientv3.AlarmResponse](t)(c.AlarmList(ctx(t))).Alarms
		if len(after) != 1 || after[0].Alarm != etcdserverpb.AlarmType_NOSPACE || after[0].MemberID != before[0].MemberID {
			t.Fatalf("alarms %v, were %v", after, before)
		}
		if _, err := c.Put(ctx(t), "k", "v"); err == nil || !strings.Contains(err.Error(), "database space exceeded") {
			t.Errorf("a put in spite of the alarm: %v", err)
		}
		// What is disarmed stays so.
		now := must[*clientv3.DeleteResponse](t)(c.Delete(ctx(t), "k", clientv3.WithPrefix())).Header.Revision
		must[*clientv3.CompactResponse](t)(c.Compact(ctx(t), now, clientv3.WithCompactPhysical()))
		must[*clientv3.DefragmentResponse](t)(c.Defragment(ctx(t), k.address))
		must[*clientv3.AlarmResponse](t)(c.AlarmDisarm(ctx(t), &clientv3.AlarmMember{}))
		k.down(t, syscall.SIGKILL)
		k.up(t)
		c = k.clientWith(t, clientv3.Config{})
		if alarms := must[*clientv3.AlarmResponse](t)(c.AlarmList(ctx(t))).Alarms; len(alarms) != 0 {
			t.Errorf("alarms %v", alarms)
		}
		must[*clientv3.PutResponse](t)(c.Put(ctx(t), "k", "v"))
		if _, err := c.Get(ctx(t), "k", clientv3.WithRev(now-1)); err == nil || !strings.Contains(err.Error(), "has been compacted") {
			t.Errorf("before the compaction: %v", err)
		}
	}, "--quota-backend-bytes=2000000")
}

// A directory makes the cluster, and one process has it.
func TestRestartOfAnother(t *testing.T) {
	dir := t.TempDir()
	one := keep(t, surviving(), dir)
	first, _ := one.up(t)
	// etcd derives the id of a cluster from its peers' addresses.
	other, _ := keep(t, surviving(), t.TempDir()).up(t)
	if other.ClusterId == first.ClusterId || first.ClusterId == 0 {
		t.Errorf("clusters %x and %x", first.ClusterId, other.ClusterId)
	}
	if one.name == "etcd" {
		return // It waits for the directory instead.
	}
	intruder := keep(t, surviving(), dir)
	late, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(late, intruder.bin, intruder.args...)
	out, err := cmd.CombinedOutput()
	if late.Err() != nil {
		t.Fatalf("a second process runs on the same directory:\n%s", out)
	}
	if err == nil || !strings.Contains(string(out), dir) {
		t.Errorf("a second process: %v\n%s", err, out)
	}
	// The first does not notice.
	c := one.client(t)
	defer c.Close()
	must[*clientv3.PutResponse](t)(c.Put(ctx(t), "k", "v"))
	one.down(t, syscall.SIGTERM)
	again, _ := one.up(t)
	if again.ClusterId != first.ClusterId || again.MemberId != first.MemberId || again.Revision != 2 {
		t.Errorf("%v has become %v", first, again)
	}
}
