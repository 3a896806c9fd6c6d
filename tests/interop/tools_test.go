package interop

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"isthmus.dev/interop/peer"
)

// A snapshot of Isthmus can be restored into etcd and a snapshot of etcd into Isthmus, with equal contents; etcdutl reads
// both.
func TestSnapshotRestoresIntoEtcdAndBack(t *testing.T) {
	for _, from := range []func(testing.TB, ...string) *server{ours, theirs} {
		s := from(t)
		t.Run("of "+s.Name, func(t *testing.T) { moveSnapshot(t, s) })
	}
}

func moveSnapshot(t *testing.T, s *server) {
	c := s.client(t)
	defer c.Close()
	for i := range 2000 {
		try(c.Put(ctx(t), fmt.Sprintf("k/%05d", i%700), strings.Repeat("v", i%400))).or(t)
	}
	try(c.Put(ctx(t), "large", strings.Repeat("x", 1<<20))).or(t)
	try(c.Delete(ctx(t), "k/001", clientv3.WithPrefix())).or(t)
	lease := try(c.Grant(ctx(t), 3000)).or(t)
	try(c.Put(ctx(t), "leased", "v", clientv3.WithLease(lease.ID))).or(t)
	try(c.Compact(ctx(t), 900, clientv3.WithCompactPhysical())).or(t)
	try(c.UserAdd(ctx(t), "ann", "pw")).or(t)
	try(c.RoleAdd(ctx(t), "reader")).or(t)
	try(c.UserGrantRole(ctx(t), "ann", "reader")).or(t)
	before := try(c.HashKV(ctx(t), s.address, 0)).or(t)
	// Isthmus marks its snapshots as those of 3.6, which etcd 3.6 and 3.7 both start from.
	storageVersion := "3.6.0"
	if s.Name == "etcd" {
		storageVersion = try(c.Status(ctx(t), s.address)).or(t).StorageVersion
	}

	dir := t.TempDir()
	file := filepath.Join(dir, "snapshot.db")
	run(t, "etcdctl", "--endpoints="+s.address, "snapshot", "save", file)
	text := run(t, "etcdutl", "snapshot", "status", file, "-w", "json")
	var status struct {
		Revision int64
		TotalKey int
		Version  string
	}
	if err := json.Unmarshal([]byte(text), &status); err != nil {
		t.Fatal(err)
	}
	if status.Revision != before.Header.Revision || status.TotalKey != 602 || status.Version != storageVersion {
		t.Fatalf("status %+v, at revision %d", status, before.Header.Revision)
	}
	if same := tool(t, "snapshot", "status", file, "-w", "json"); same != text {
		t.Fatalf("status %s, etcdutl says %s", same, text)
	}
	peerURL := "http://" + peer.FreePort()
	theirData, ourData := filepath.Join(dir, "theirs"), filepath.Join(dir, "ours")
	run(t, "etcdutl", "snapshot", "restore", file, "--data-dir="+theirData,
		"--initial-cluster=default="+peerURL, "--initial-advertise-peer-urls="+peerURL)
	tool(t, "snapshot", "restore", file, "--data-dir="+ourData)
	for _, restored := range []*server{
		start(t, "restored etcd", peerBin(t, "etcd"), []string{
			"--data-dir=" + theirData, "--listen-peer-urls=" + peerURL, "--initial-advertise-peer-urls=" + peerURL,
			"--initial-cluster=default=" + peerURL,
		}),
		ours(t, "--data-dir="+ourData),
	} {
		holdsTheSame(t, restored, before, lease.ID)
	}
}

func holdsTheSame(t *testing.T, restored *server, before *clientv3.HashKVResponse, lease clientv3.LeaseID) {
	t.Helper()
	r := restored.client(t)
	defer r.Close()
	after := try(r.HashKV(ctx(t), restored.address, 0)).or(t)
	if after.Hash != before.Hash || after.Header.Revision != before.Header.Revision {
		t.Fatalf("%s: hash %x at %d, was %x at %d", restored.Name, after.Hash, after.Header.Revision, before.Hash, before.Header.Revision)
	}
	ttl := try(r.TimeToLive(ctx(t), lease, clientv3.WithAttachedKeys())).or(t)
	if ttl.GrantedTTL != 3000 || len(ttl.Keys) != 1 {
		t.Fatalf("%s: lease %+v", restored.Name, ttl)
	}
	user := try(r.UserGet(ctx(t), "ann")).or(t)
	if fmt.Sprint(user.Roles) != "[reader]" {
		t.Fatalf("%s: user %+v", restored.Name, user)
	}
	old := try(r.Get(ctx(t), "k/00400", clientv3.WithRev(1200))).or(t)
	if len(old.Kvs) != 1 || old.Kvs[0].ModRevision >= 1200 {
		t.Fatalf("%s: history %+v", restored.Name, old.Kvs)
	}
}

// tool runs a tool of Isthmus and returns its output.
func tool(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.Command(os.Getenv("ISTHMUS_BIN"), args...).Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
	return string(out)
}

var ids = regexp.MustCompile(`"(cluster_id|member_id|leader|ID|raftIndex|raftAppliedIndex|dbSize|dbSizeInUse)":"\d+"`)

// The JSON gateway and the health checks answer with the same texts and codes as etcd.
func TestGatewayAnswersAlike(t *testing.T) {
	type exchange struct{ path, body string }
	var texts [2][]string
	for i, s := range []*server{theirs(t), ours(t)} {
		for _, x := range []exchange{
			{"/v3/kv/put", `{"key":"Zm9v","value":"YmFy"}`},
			{"/v3/kv/put", `{"key":"Zm9v","value":"YmF6","prevKv":true}`},
			{"/v3/kv/range", `{"key":"Zm9v","range_end":"AA==","sort_order":"DESCEND","limit":"5"}`},
			{"/v3/kv/range", `{"key":""}`},
			{"/v3/kv/range", `{"key":"Zm9v","revision":"99"}`},
			{"/v3beta/kv/range", `{"key":"Zm9v"}`},
			{"/v3/kv/txn", `{"compare":[{"target":"VERSION","key":"Zm9v","version":"2"}],"success":[{"requestDeleteRange":{"key":"Zm9v"}}]}`},
			{"/v3/kv/deleterange", `{"key":"Zm9v","prev_kv":true}`},
			{"/v3/kv/compaction", `{"revision":"77"}`},
			{"/v3/lease/grant", `{"ID":"7","TTL":"600"}`},
			{"/v3/lease/timetolive", `{"ID":"8"}`},
			{"/v3/kv/lease/revoke", `{"ID":"7"}`},
			{"/v3/kv/lease/revoke", `{"ID":"7"}`},
			{"/v3/lease/keepalive", `{"ID":"9"}`},
			{"/v3/maintenance/status", `{}`},
			{"/v3/maintenance/hashkv", `{}`},
			{"/v3/maintenance/alarm", `{"action":"GET"}`},
			{"/v3/maintenance/downgrade", `{"action":"VALIDATE","version":"3.6"}`},
			{"/v3/maintenance/downgrade", `{"action":"VALIDATE","version":"3.6.4"}`},
			{"/v3/maintenance/downgrade", `{"action":"VALIDATE","version":"3.7"}`},
			{"/v3/maintenance/downgrade", `{"action":"ENABLE","version":"3.5"}`},
			{"/v3/maintenance/downgrade", `{"action":"ENABLE","version":"new"}`},
			{"/v3/maintenance/downgrade", `{"action":"CANCEL"}`},
			{"/v3/auth/user/add", `{"name":"ann","password":"x"}`},
			{"/v3/auth/user/get", `{"name":"ann"}`},
			{"/v3/auth/user/get", `{"name":"nobody"}`},
			{"/v3/auth/role/add", `{"name":"r"}`},
			{"/v3/auth/role/grant", `{"name":"r","perm":{"key":"Zm9v","range_end":"Zm9w","permType":"READWRITE"}}`},
			{"/v3/auth/role/get", `{"role":"r"}`},
			{"/v3/auth/enable", `{}`},
			{"/v3/auth/status", ``},
			{"/v3/election/leader", `{"name":"bm9uZQ=="}`},
			{"/v3/nonsense", `{}`},
			{"/health", ""},
			{"/health?serializable=true&exclude=NOSPACE", ""},
			{"/livez?verbose", ""},
			{"/livez/serializable_read", ""},
			{"/readyz/data_corruption?verbose", ""},
			{"/readyz?exclude=linearizable_read&exclude=data_corruption&exclude=non_learner&verbose", ""},
			{"/version", ""},
			{"/nonsense", ""},
		} {
			var r *http.Response
			var err error
			if strings.HasPrefix(x.path, "/v3") {
				r, err = http.Post("http://"+s.address+x.path, "application/json", strings.NewReader(x.body))
			} else {
				r, err = http.Get("http://" + s.address + x.path)
			}
			if err != nil {
				t.Fatal(err)
			}
			body := try(io.ReadAll(r.Body)).or(t)
			r.Body.Close()
			text := ids.ReplaceAllString(string(body), `"$1":"N"`)
			texts[i] = append(texts[i], fmt.Sprintf("%s %s\n  %d %s %s", x.path, x.body, r.StatusCode, r.Header.Get("Content-Type"), plain(text)))
		}
	}
	for i := range texts[0] {
		if texts[0][i] != texts[1][i] {
			t.Errorf("etcd: %s\nours: %s", texts[0][i], texts[1][i])
		}
	}
}

// plain removes the blanks that protojson adds at random.
func plain(text string) string {
	var v any
	if json.Unmarshal([]byte(text), &v) != nil {
		return text
	}
	out, _ := json.Marshal(v)
	return string(out)
}

func TestGatewayWatches(t *testing.T) {
	s := ours(t)
	c := s.client(t)
	defer c.Close()
	r, err := http.Post("http://"+s.address+"/v3/watch", "application/json", strings.NewReader(`{"create_request":{"key":"Zm9v"}}`))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	documents := json.NewDecoder(r.Body)
	next := func() map[string]any {
		var v struct{ Result map[string]any }
		if err := documents.Decode(&v); err != nil {
			t.Fatal(err)
		}
		return v.Result
	}
	if created := next(); created["created"] != true {
		t.Fatalf("%v", created)
	}
	try(c.Put(ctx(t), "foo", "bar")).or(t)
	event := next()["events"].([]any)[0].(map[string]any)["kv"].(map[string]any)
	if event["key"] != "Zm9v" || event["value"] != "YmFy" {
		t.Fatalf("%v", event)
	}
}

// Writes beyond the quota are refused until space is free and the alarm is disarmed.
func TestQuotaAndAlarm(t *testing.T) {
	for _, s := range []*server{theirs(t, "--quota-backend-bytes=2000000"), ours(t, "--quota-backend-bytes=2000000")} {
		t.Run(s.Name, func(t *testing.T) {
			c := s.client(t)
			defer c.Close()
			var err error
			// etcd's file grows only when etcd commits, which may be some hundred puts later.
			for i, started := 0, time.Now(); err == nil && time.Since(started) < patience; i++ {
				_, err = c.Put(ctx(t), fmt.Sprint("k", i%10), strings.Repeat("v", 100_000))
			}
			if err == nil || !strings.Contains(err.Error(), "etcdserver: mvcc: database space exceeded") {
				t.Fatalf("over the quota: %v", err)
			}
			alarms := try(c.AlarmList(ctx(t))).or(t)
			if len(alarms.Alarms) != 1 || alarms.Alarms[0].Alarm.String() != "NOSPACE" {
				t.Fatalf("alarms %v", alarms)
			}
			health := try(http.Get("http://" + s.address + "/health")).or(t)
			body := try(io.ReadAll(health.Body)).or(t)
			health.Body.Close()
			if health.StatusCode != 503 || string(body) != "{\"health\":\"false\",\"reason\":\"ALARM NOSPACE\"}\n" {
				t.Fatalf("%d %q", health.StatusCode, body)
			}
			// Operations that free space are allowed; the alarm stays until it is disarmed.
			now := try(c.Get(ctx(t), "k0")).or(t).Header.Revision
			try(c.Delete(ctx(t), "k", clientv3.WithPrefix())).or(t)
			try(c.Compact(ctx(t), now+1, clientv3.WithCompactPhysical())).or(t)
			try(c.Defragment(ctx(t), s.address)).or(t)
			if _, err := c.Put(ctx(t), "k", "v"); err == nil {
				t.Fatal("the alarm went by itself")
			}
			try(c.AlarmDisarm(ctx(t), &clientv3.AlarmMember{})).or(t)
			try(c.Put(ctx(t), "k", "v")).or(t)
		})
	}
}
