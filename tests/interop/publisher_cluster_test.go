package interop

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"sigs.k8s.io/yaml"

	"isthmus.dev/interop/peer"
)

// The rig of the publisher suite: a Kubernetes API with Cilium's custom resources, and publishers of Cilium and of
// Isthmus.

const (
	ciliumModule = "github.com/cilium/cilium@v1.20.2"
	mcsModule    = "sigs.k8s.io/mcs-api@v0.5.2"
	exportCRD    = "config/crd/multicluster.x-k8s.io_serviceexports.yaml"
)

// moduleDir is the directory of a Go module's files.
func moduleDir(t testing.TB, module string) string {
	t.Helper()
	cmd := exec.Command("go", "mod", "download", "-json", module)
	cmd.Env = append(os.Environ(), "GOFLAGS=-mod=mod")
	out, err := cmd.Output()
	var answer struct{ Dir string }
	if err != nil || json.Unmarshal(out, &answer) != nil {
		t.Fatalf("go mod download %s: %v\n%s", module, err, out)
	}
	return answer.Dir
}

func manifest(t testing.TB, module, file string) dict {
	t.Helper()
	var object dict
	text := try(os.ReadFile(filepath.Join(moduleDir(t, module), file))).or(t)
	if err := yaml.Unmarshal(text, &object); err != nil {
		t.Fatal(err)
	}
	return object
}

const crdPath = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"

// define installs a custom resource and waits until it is served.
func (a *apiserver) define(crd dict) {
	a.t.Helper()
	a.expect(201, "POST", crdPath, crd)
	spec := crd["spec"].(dict)
	for _, version := range spec["versions"].([]any) {
		v := version.(dict)
		if v["served"] != true {
			continue
		}
		path := fmt.Sprintf("/apis/%s/%s/%s", spec["group"], v["name"], spec["names"].(dict)["plural"])
		eventually(a.t, path+" is served", func() bool {
			code, _ := a.call("GET", path, nil)
			return code == 200
		})
	}
}

func (a *apiserver) defineCilium() {
	a.t.Helper()
	for _, file := range []string{
		"v2/ciliumnodes.yaml", "v2/ciliumidentities.yaml", "v2/ciliumendpoints.yaml", "v2alpha1/ciliumendpointslices.yaml",
	} {
		a.define(manifest(a.t, ciliumModule, "pkg/k8s/apis/cilium.io/client/crds/"+file))
	}
}

// kubeconfig writes a client's file.
func (a *apiserver) kubeconfig() string {
	a.t.Helper()
	return a.kubeconfigOf("sesame")
}

// kubeconfigOf writes the file of a client with this token.
func (a *apiserver) kubeconfigOf(token string) string {
	a.t.Helper()
	file := filepath.Join(a.t.TempDir(), "kubeconfig")
	text, _ := json.Marshal(dict{
		"apiVersion": "v1", "kind": "Config", "current-context": "c",
		"clusters": []any{dict{"name": "c", "cluster": dict{"server": a.url, "insecure-skip-tls-verify": true}}},
		"users":    []any{dict{"name": "u", "user": dict{"token": token}}},
		"contexts": []any{dict{"name": "c", "context": dict{"cluster": "c", "user": "u"}}},
	})
	if err := os.WriteFile(file, text, 0o600); err != nil {
		a.t.Fatal(err)
	}
	return file
}

// === publishers ===

// publisher is a process that publishes into a store and can be killed and started again.
type publisher struct {
	*peer.Process
	t       testing.TB
	args    []string
	flags   []string
	client  *clientv3.Client
	running bool
	// Whether this is Cilium's publisher.
	theirs bool
}

// newPublisher prepares a publisher that does not run yet. The flags may be changed before each start.
func newPublisher(t testing.TB, name, bin, store string, flags []string, args ...string) *publisher {
	t.Helper()
	p := &publisher{Process: process(t, name, bin), t: t, args: args, flags: flags}
	p.client = (&server{address: store}).client(t)
	t.Cleanup(func() {
		p.down(syscall.SIGKILL)
		p.client.Close()
	})
	return p
}

// common are the arguments that both publishers accept.
func common(command, kubeconfig string, more ...string) []string {
	args := []string{command, "--cluster-id=3", "--cluster-name=c3", "--clustermesh-enable-mcs-api", "--k8s-kubeconfig-path=" + kubeconfig}
	return append(args, more...)
}

// cilium is Cilium's publisher into a store.
func cilium(t testing.TB, kubeconfig, store string, flags []string) *publisher {
	t.Helper()
	p := newPublisher(t, "cilium", os.Getenv("CILIUM_APISERVER"), store, flags, common("clustermesh", kubeconfig,
		"--kvstore-opt=etcd.address=http://"+store, "--kvstore-opt=etcd.qps=1000", "--kvstore-opt=etcd.bootstrapQps=10000",
		"--health-port="+peer.PortOf(peer.FreePort()), "--enable-gops=false", "--shell-sock-path=",
		"--k8s-client-qps=200", "--k8s-client-burst=400")...)
	p.theirs = true
	return p
}

// oursAlone is the publisher of Isthmus into a store of another process.
func oursAlone(t testing.TB, kubeconfig, store string, flags []string) *publisher {
	t.Helper()
	file := filepath.Join(t.TempDir(), "etcd.yaml")
	if err := os.WriteFile(file, []byte("endpoints:\n- http://"+store+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return newPublisher(t, "isthmus-clustermesh", os.Getenv("ISTHMUS_BIN"), store, flags, common("clustermesh", kubeconfig,
		"--kvstore-opt=etcd.config="+file, "--kvstore-opt=etcd.qps=1000", "--kvstore-opt=etcd.bootstrapQps=10000",
		"--health-port="+peer.PortOf(peer.FreePort()))...)
}

// oursWithStore is the publisher of Isthmus with its store in the same process (`serve`).
func oursWithStore(t testing.TB, kubeconfig string, flags []string) *publisher {
	t.Helper()
	store := peer.FreePort()
	return newPublisher(t, "isthmus-serve", os.Getenv("ISTHMUS_BIN"), store, flags, common("serve", kubeconfig,
		"--listen-client-urls=http://"+store, "--client-cert-auth=false", "--data-dir="+t.TempDir(), "--durability=none",
		"--health-port="+peer.PortOf(peer.FreePort()), "--api-serve-addr="+peer.FreePort())...)
}

// up starts the publisher with its present flags.
func (p *publisher) up() {
	p.t.Helper()
	p.Args = append(slices.Clone(p.args), p.flags...)
	if err := p.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.running = true
}

// down ends the publisher.
func (p *publisher) down(signal syscall.Signal) {
	if p.running {
		p.Stop(signal)
	}
	p.running = false
}

// keys reads the published keys. The result is empty if the store does not answer.
func (p *publisher) keys() map[string]string {
	c, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	all, err := p.client.Get(c, "cilium/", clientv3.WithPrefix())
	if err != nil {
		return nil
	}
	keys := map[string]string{}
	for _, kv := range all.Kvs {
		key := string(kv.Key)
		// Cilium's publisher writes no probe.
		for _, prefix := range []string{"cilium/state/", "cilium/cluster-config/", "cilium/synced/"} {
			if strings.HasPrefix(key, prefix) && !strings.HasPrefix(key, "cilium/state/probe/") {
				keys[key] = string(kv.Value)
			}
		}
	}
	return keys
}

// wipe empties the store, so that the next publisher starts without keys of an earlier one.
func (p *publisher) wipe() {
	p.t.Helper()
	try(p.client.Delete(ctx(p.t), "", clientv3.WithPrefix())).or(p.t)
}
