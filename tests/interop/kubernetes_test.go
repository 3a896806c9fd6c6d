package interop

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"isthmus.dev/interop/peer"
)

// A kube-apiserver on Isthmus must behave as on etcd and must log no other errors. `make interop-kubernetes` builds one and
// passes its path in KUBE_APISERVER.

const objects = 2000

type apiserver struct {
	*peer.Process
	t    *testing.T
	url  string
	http *http.Client
}

// dict is a JSON object.
type dict = map[string]any

func startAPIServer(t *testing.T, store string) *apiserver {
	t.Helper()
	return startAPIServerWith(t, store, "AlwaysAllow")
}

// startAPIServerWith starts a kube-apiserver that checks rights in this mode. The token `sesame` may do everything in any.
func startAPIServerWith(t *testing.T, store, authorization string) *apiserver {
	t.Helper()
	bin := os.Getenv("KUBE_APISERVER")
	if bin == "" {
		t.Skip("KUBE_APISERVER is not set: run `make interop-kubernetes`")
	}
	dir := t.TempDir()
	key := try(rsa.GenerateKey(rand.Reader, 2048)).or(t)
	account := filepath.Join(dir, "sa.key")
	block := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
	tokens := filepath.Join(dir, "tokens.csv")
	for file, text := range map[string][]byte{account: block, tokens: []byte(`sesame,admin,admin,"system:masters"`)} {
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	address := peer.FreePort()
	_, port, _ := net.SplitHostPort(address)
	a := &apiserver{t: t, url: "https://" + address}
	// The server makes its certificate at the start; the directory lasts as long as the test.
	a.http = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	a.Process = process(t, "kube-apiserver", bin,
		"--etcd-servers=http://"+store, "--bind-address=127.0.0.1", "--secure-port="+port,
		"--cert-dir="+filepath.Join(dir, "certs"), "--service-cluster-ip-range=10.0.0.0/24",
		// The address is not used, but required on a machine without a default route.
		"--advertise-address=192.0.2.1",
		"--authorization-mode="+authorization, "--token-auth-file="+tokens,
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file="+account,
		"--service-account-signing-key-file="+account, "--endpoint-reconciler-type=none",
		"--etcd-compaction-interval=60s", "--event-ttl=10s")
	if err := a.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "kube-apiserver is ready", func() bool {
		r, err := a.get("/readyz")
		if err != nil {
			return false
		}
		r.Body.Close()
		return r.StatusCode == http.StatusOK
	})
	eventually(t, "there is a namespace", func() bool {
		code, _ := a.call("GET", "/api/v1/namespaces/default", nil)
		return code == http.StatusOK
	})
	return a
}

func (a *apiserver) call(method, path string, body any) (int, dict) {
	a.t.Helper()
	payload, _ := json.Marshal(body)
	if body == nil {
		payload = nil
	}
	q := try(http.NewRequestWithContext(ctx(a.t), method, a.url+path, bytes.NewReader(payload))).or(a.t)
	q.Header.Set("Authorization", "Bearer sesame")
	q.Header.Set("Content-Type", "application/json")
	r, err := a.http.Do(q)
	if err != nil {
		return 0, nil
	}
	defer r.Body.Close()
	var answer dict
	_ = json.NewDecoder(r.Body).Decode(&answer)
	return r.StatusCode, answer
}

func (a *apiserver) expect(code int, method, path string, body any) dict {
	a.t.Helper()
	got, answer := a.call(method, path, body)
	if got != code {
		a.t.Fatalf("%s %s: %d, not %d: %v", method, path, got, code, answer)
	}
	return answer
}

func configMap(name string, n int) dict {
	return dict{
		"metadata": dict{"name": name, "labels": dict{"half": fmt.Sprint(n % 2)}},
		"data":     dict{"n": fmt.Sprint(n)},
	}
}

func meta(object dict, field string) string {
	s, _ := object["metadata"].(dict)[field].(string)
	return s
}

const maps = "/api/v1/namespaces/default/configmaps"

// names lists the names of all objects, page by page.
func (a *apiserver) names(query string) []string {
	a.t.Helper()
	var all []string
	next := ""
	for {
		page := a.expect(200, "GET", maps+"?limit=300&"+query+"&continue="+url.QueryEscape(next), nil)
		for _, item := range page["items"].([]any) {
			all = append(all, meta(item.(dict), "name"))
		}
		if next = meta(page, "continue"); next == "" {
			return all
		}
	}
}

func (a *apiserver) watch(from string) (chan dict, context.CancelFunc) {
	c, cancel := context.WithCancel(context.Background())
	q, _ := http.NewRequestWithContext(c, "GET", a.url+maps+"?watch=1&resourceVersion="+from, nil)
	q.Header.Set("Authorization", "Bearer sesame")
	r, err := a.http.Do(q)
	if err != nil {
		a.t.Fatal(err)
	}
	events := make(chan dict, 3*objects)
	go func() {
		defer close(events)
		defer r.Body.Close()
		for d := json.NewDecoder(r.Body); ; {
			var e dict
			if d.Decode(&e) != nil {
				return
			}
			events <- e
		}
	}()
	return events, cancel
}

// replicated starts an etcd of three members and a replica of it.
func replicated(t testing.TB, _ ...string) *server {
	t.Helper()
	return replicasOf(t, 1, cluster(t, 3).addresses())[0].server
}

func TestKubeAPIServer(t *testing.T) {
	for _, which := range []func(testing.TB, ...string) *server{theirs, ours, replicated} {
		s := which(t)
		t.Run(s.Name, func(t *testing.T) {
			a := startAPIServer(t, s.address)
			useAPIServer(t, a)
			left := a.names("")
			a.Stop(syscall.SIGTERM)
			// Another API server finds the objects of the first one in the store.
			b := startAPIServer(t, s.address)
			if again := b.names(""); fmt.Sprint(again) != fmt.Sprint(left) {
				t.Fatalf("a second apiserver finds %d objects, the first left %d", len(again), len(left))
			}
			b.Stop(syscall.SIGTERM)
			for _, log := range []string{a.Log, b.Log} {
				text := string(try(os.ReadFile(log)).or(t))
				for line := range strings.Lines(text) {
					about := strings.Contains(line, "etcd") || strings.Contains(line, "storage") || strings.Contains(line, "compact")
					// The API server cancels its own short-lived connections while they begin, on etcd as well.
					noise := strings.Contains(line, "error reading server preface") || strings.Contains(line, "failed to write client preface") ||
						strings.Contains(line, "operation was canceled") || strings.Contains(line, "context canceled")
					if (line[0] == 'E' || line[0] == 'F') && about && !noise {
						t.Errorf("the log says: %s", line)
					}
				}
			}
		})
	}
}

// An API server and the watches on it continue when the store is killed and started again.
func TestKubeAPIServerOverARestart(t *testing.T) {
	k := keep(t, "isthmus", t.TempDir())
	k.up(t)
	overRestarts(t, k.address, func(int) {
		k.down(t, syscall.SIGKILL)
		k.up(t)
	})
}

// An API server with two replicas continues when one of them is lost, and when a member of the etcd is. The watch goes over from
// one replica to the other, so that a list of the API server would be seen as events that come again.
func TestKubeAPIServerOverReplicas(t *testing.T) {
	if os.Getenv("KUBE_APISERVER") == "" {
		t.Skip("KUBE_APISERVER is not set: run `make interop-kubernetes`")
	}
	m := cluster(t, 3)
	replicas := replicasOf(t, 2, m.addresses())
	addresses := replicas[0].address + ",http://" + replicas[1].address
	overRestarts(t, addresses, func(n int) {
		for _, k := range []*kept{replicas[n%2].kept, m.kept[n%3]} {
			k.down(t, syscall.SIGKILL)
			k.up(t)
		}
	})
}

// overRestarts creates objects while faults happen, which must show each object once and in order to a watch.
func overRestarts(t *testing.T, store string, fault func(n int)) {
	t.Helper()
	a := startAPIServer(t, store)
	defer a.Stop(syscall.SIGTERM)
	const objects = 300
	events, cancel := a.watch(meta(a.expect(200, "GET", maps+"?limit=1", nil), "resourceVersion"))
	defer cancel()
	for n := range objects {
		if n%100 == 50 {
			fault(n / 100)
		}
		eventually(t, "the object is created", func() bool {
			// The kill of the store may have lost the answer.
			code, _ := a.call("POST", maps, configMap(fmt.Sprintf("cm-%05d", n), n))
			return code == http.StatusCreated || code == http.StatusConflict
		})
	}
	if all := a.names("labelSelector=half"); len(all) != objects {
		t.Fatalf("%d listed", len(all))
	}
	last := ""
	for seen := 0; seen < objects; {
		select {
		case e, ok := <-events:
			if !ok {
				t.Fatalf("the watch ended after %d", seen)
			}
			object := e["object"].(dict)["metadata"].(dict)
			if object["labels"].(dict)["half"] == nil {
				continue
			}
			if name := object["name"].(string); e["type"] != "ADDED" || name <= last {
				t.Fatalf("%v of %s after %s", e["type"], name, last)
			} else {
				last = name
			}
			seen++
		case <-time.After(patience):
			t.Fatalf("the watch brought only %d events", seen)
		}
	}
}

func useAPIServer(t *testing.T, a *apiserver) {
	before := meta(a.expect(200, "GET", maps+"?limit=1", nil), "resourceVersion")
	events, cancel := a.watch(before)
	defer cancel()
	started := time.Now()
	name := func(n int) string { return fmt.Sprintf("cm-%05d", n) }
	for n := range objects {
		a.expect(201, "POST", maps, configMap(name(n), n))
	}
	t.Logf("%d objects created in %v", objects, time.Since(started))
	a.expect(409, "POST", maps, configMap(name(0), 0))
	// The list also has the API server's own config map.
	if all := a.names("labelSelector=half"); len(all) != objects || all[7] != name(7) {
		t.Fatalf("%d listed", len(all))
	}
	if half := a.names("labelSelector=half%3D1"); len(half) != objects/2 {
		t.Fatalf("%d objects listed with a selector for half of them", len(half))
	}
	exact := a.names("labelSelector=half&resourceVersionMatch=Exact&resourceVersion=" + before)
	if len(exact) != 0 {
		t.Fatalf("%d objects before any", len(exact))
	}

	for n := range 200 {
		object := a.expect(200, "GET", maps+"/"+name(n), nil)
		stale := configMap(name(n), n)
		stale["metadata"].(dict)["resourceVersion"] = meta(object, "resourceVersion")
		object["data"] = dict{"n": "changed"}
		a.expect(200, "PUT", maps+"/"+name(n), object)
		a.expect(409, "PUT", maps+"/"+name(n), stale)
	}
	a.expect(409, "DELETE", maps+"/"+name(1), dict{"preconditions": dict{"resourceVersion": "1"}})
	for n := range 100 {
		a.expect(200, "DELETE", maps+"/"+name(n), nil)
	}
	a.expect(200, "DELETE", maps+"?labelSelector=half%3D1", nil)
	if rest := a.names("labelSelector=half"); len(rest) != objects/2-50 {
		t.Fatalf("%d objects left", len(rest))
	}
	a.expect(422, "POST", maps, configMap("Not A Name", 1))
	large := configMap("large", 2)
	large["data"] = dict{"blob": strings.Repeat("x", 900_000)}
	a.expect(201, "POST", maps, large)

	counted := map[string]int{}
	for want := objects + 200 + 100 + objects/2 - 50; counted["ADDED"]+counted["MODIFIED"]+counted["DELETED"] < want; {
		select {
		case e, ok := <-events:
			if !ok {
				t.Fatalf("the watch ended after %v", counted)
			}
			if e["object"].(dict)["metadata"].(dict)["labels"].(dict)["half"] != nil {
				counted[e["type"].(string)]++
			}
		case <-time.After(patience):
			t.Fatalf("the watch brought %v", counted)
		}
	}
	if counted["MODIFIED"] != 200 || counted["DELETED"] != 100+objects/2-50 {
		t.Fatalf("the watch brought %v", counted)
	}
	// Kubernetes events have a lease and expire.
	event := dict{
		"metadata": dict{"name": "e"}, "involvedObject": dict{"namespace": "default", "kind": "Pod", "name": "p"},
		"reason": "Test", "message": "m", "type": "Normal",
	}
	a.expect(201, "POST", "/api/v1/namespaces/default/events", event)
	eventually(t, "the event is gone", func() bool {
		code, _ := a.call("GET", "/api/v1/namespaces/default/events/e", nil)
		return code == http.StatusNotFound
	})
	metrics := try(a.get("/metrics")).or(t)
	io.Copy(io.Discard, metrics.Body)
	metrics.Body.Close()
}

func (a *apiserver) get(path string) (*http.Response, error) {
	q, err := http.NewRequest("GET", a.url+path, nil)
	if err != nil {
		return nil, err
	}
	q.Header.Set("Authorization", "Bearer sesame")
	return a.http.Do(q)
}
