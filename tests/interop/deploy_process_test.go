package interop

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"isthmus.dev/interop/peer"
)

// What the chart renders runs: two releases with certificates and configuration made by Helm, without Kubernetes. The processes
// get the arguments, the variables and the files of the pods; only the paths below /var are others, and the objects come
// from manifests.

// podFiles is a directory in the place of / for one pod.
type podFiles struct {
	t    testing.TB
	root string
}

// volume writes the files of a Secret or a ConfigMap, as the kubelet does. The keys that are named get other names.
func (f podFiles) volume(object dict, mount string, names map[string]string) {
	f.t.Helper()
	dir := filepath.Join(f.root, mount)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		f.t.Fatal(err)
	}
	for key, value := range at(object, "data").(dict) {
		content := []byte(value.(string))
		if object["kind"] == "Secret" {
			content = try(base64.StdEncoding.DecodeString(value.(string))).or(f.t)
		}
		if names != nil {
			if key = names[key]; key == "" {
				f.t.Fatal("the Secret has a key that the pod does not mount")
			}
		}
		content = []byte(strings.ReplaceAll(string(content), " /var/", " "+f.root+"/var/"))
		if err := os.WriteFile(filepath.Join(dir, key), content, 0o600); err != nil {
			f.t.Fatal(err)
		}
	}
}

// running is a release whose process runs.
type running struct {
	t               testing.TB
	rendered        rendered
	process         *peer.Process
	store, api, dir string
}

// runRelease renders a release, and starts its container.
func runRelease(t testing.TB, store, api, manifests string, values dict) *running {
	t.Helper()
	health, metrics := peer.FreePort(), peer.FreePort()
	number := func(address string) json.Number { return json.Number(peer.PortOf(address)) }
	values["healthPort"], values["metrics"] = number(health), dict{"port": number(metrics)}
	// Loopback instead of all interfaces, and a port of its own.
	values["extraArgs"] = []string{"--listen-client-urls=https://" + store, "--api-serve-addr=" + api, "--manifests=" + manifests}
	values["ciliumConfig"] = ""
	r := &running{t: t, store: store, api: api, dir: t.TempDir()}
	r.rendered = render(t, string(try(json.Marshal(values)).or(t)))
	files := podFiles{t, r.dir}
	files.volume(r.rendered["Secret/clustermesh-apiserver-server-cert"], "/var/lib/etcd-secrets", nil)
	files.volume(r.rendered["Secret/clustermesh-apiserver-remote-cert"], "/var/lib/cilium/clustermesh", map[string]string{
		"tls.crt": "common-etcd-client.crt", "tls.key": "common-etcd-client.key", "ca.crt": "common-etcd-client-ca.crt"})
	files.volume(r.rendered["Secret/cilium-kvstoremesh"], "/var/lib/cilium/clustermesh", nil)
	files.volume(r.rendered["ConfigMap/clustermesh-remote-users"], "/var/lib/cilium/etcd-config", nil)
	container := at(r.rendered["Deployment/clustermesh-apiserver"], "spec", "template", "spec", "containers", 0).(dict)
	r.process = process(t, "serve", isthmusBin(t))
	elsewhere := func(s string) string { return strings.Replace(s, "/var/", r.dir+"/var/", 1) }
	for _, arg := range container["args"].([]any) {
		r.process.Args = append(r.process.Args, elsewhere(arg.(string)))
	}
	for _, variable := range container["env"].([]any) {
		r.process.Env = append(r.process.Env, at(variable, "name").(string)+"="+elsewhere(at(variable, "value").(string)))
	}
	// The defaults of these flags are the paths in the pod.
	for flag, file := range map[string]string{"cert": "tls.crt", "key": "tls.key", "trusted-ca": "ca.crt"} {
		r.process.Args = append(r.process.Args, "--"+flag+"-file="+filepath.Join(r.dir, "var/lib/etcd-secrets", file))
	}
	if err := r.process.Start(); err != nil {
		t.Fatal(err)
	}
	for _, probe := range []string{"startupProbe", "readinessProbe", "livenessProbe"} {
		url := "http://" + health + at(container, probe, "httpGet", "path").(string)
		if at(container, probe, "httpGet", "port") != "apiserv-health" {
			t.Errorf("the %s has another port", probe)
		}
		eventually(t, probe+" succeeds", func() bool {
			answer, err := http.Get(url)
			if err != nil {
				return false
			}
			answer.Body.Close()
			return answer.StatusCode == http.StatusOK
		})
	}
	if !strings.Contains(page(t, metrics), "cilium_clustermesh_apiserver_bootstrap_seconds") {
		t.Error("the port of the metrics serves others")
	}
	return r
}

// client connects with a certificate that Helm made, under the name of the server that agents use.
func (r *running) client(secret, name string) *clientv3.Client {
	r.t.Helper()
	part := func(key string) []byte {
		return try(base64.StdEncoding.DecodeString(at(r.rendered["Secret/"+secret], "data", key).(string))).or(r.t)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(part("ca.crt"))
	certificate := try(tls.X509KeyPair(part("tls.crt"), part("tls.key"))).or(r.t)
	c := try(clientv3.New(clientv3.Config{Endpoints: []string{r.store}, DialTimeout: 10 * time.Second,
		TLS: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{certificate}, ServerName: name}})).or(r.t)
	r.t.Cleanup(func() { c.Close() })
	return c
}

func TestDeployReleasesFormAMesh(t *testing.T) {
	// The CA that the first installation makes is passed to both, as docs/installing.md says.
	ca := at(render(t, `{cluster: {name: tokyo, id: 1}}`)["Secret/clustermesh-apiserver-ca"], "data").(dict)
	shared := dict{"cert": ca["ca.crt"], "key": ca["ca.key"]}
	examples := try(filepath.Abs("../../examples/tokyo-hk")).or(t)
	stores, apis := []string{peer.FreePort(), peer.FreePort()}, []string{peer.FreePort(), peer.FreePort()}
	names, manifests := []string{"tokyo", "hk"}, []string{"tokyo-cluster", "hk-cluster"}
	var releases []*running
	for i, name := range names {
		other := dict{names[1-i]: dict{"ips": []string{"127.0.0.1"}, "port": json.Number(peer.PortOf(stores[1-i]))}}
		releases = append(releases, runRelease(t, stores[i], apis[i], filepath.Join(examples, manifests[i]), dict{
			"cluster": dict{"name": name, "id": i + 1},
			"tls":     dict{"authMode": "cluster", "ca": shared},
			"config":  dict{"enabled": true, "clusters": other},
		}))
	}
	for i, r := range releases {
		eventually(t, names[i]+" mirrors the other", func() bool {
			out, _ := exec.Command(isthmusBin(t), "kvstoremesh-dbg", "status", "--host="+apis[i]).CombinedOutput()
			return strings.Contains(string(out), "1/1 remote clusters ready")
		})
		// An agent reads the other cluster from the store of its own, and this cluster's keys are not its business.
		agent := r.client("clustermesh-apiserver-local-cert", "clustermesh-apiserver.kube-system.svc")
		cache := fmt.Sprintf("cilium/cache/nodes/v1/%s/", names[1-i])
		if nodes := try(agent.Get(ctx(t), cache, clientv3.WithPrefix())).or(t); nodes.Count == 0 {
			t.Errorf("%s has no nodes of the other cluster", names[i])
		}
		if _, err := agent.Get(ctx(t), "cilium/state/nodes/v1/", clientv3.WithPrefix()); err != rpctypes.ErrPermissionDenied {
			t.Errorf("an agent reads the state of its own cluster: %v", err)
		}
		// The certificate for other clusters names this cluster, which is no user of its own store.
		if _, err := r.client("clustermesh-apiserver-remote-cert", "x.mesh.cilium.io").Get(ctx(t), "cilium/state/"); err == nil {
			t.Error("the certificate for other clusters is valid in the own store")
		}
	}
}

// section returns the blocks of code of a section of a document, in one language.
func section(t testing.TB, document, title, language string) (blocks []string) {
	t.Helper()
	_, rest, found := strings.Cut(document, "\n## "+title+"\n")
	if !found {
		t.Fatalf("the document has no section %q", title)
	}
	body, _, _ := strings.Cut(rest, "\n## ")
	for _, match := range regexp.MustCompile("(?s)```"+language+"\n(.*?)```").FindAllStringSubmatch(body, -1) {
		blocks = append(blocks, match[1])
	}
	return blocks
}

// The commands of "Two machines" in docs/installing.md, with addresses of loopback for the machines.
func TestDeployTwoMachines(t *testing.T) {
	document, dir := string(try(os.ReadFile("../../docs/installing.md")).or(t)), t.TempDir()
	bin := filepath.Join(dir, "clustermesh-apiserver")
	if err := os.Symlink(isthmusBin(t), bin); err != nil {
		t.Fatal(err)
	}
	addresses := []string{peer.FreePort(), peer.FreePort()}
	here := strings.NewReplacer("192.0.2.1:2379", addresses[0], "192.0.2.2:2379", addresses[1], "192.0.2.1", "127.0.0.1",
		"192.0.2.2", "127.0.0.1", "\nclustermesh-apiserver serve", "\nexec clustermesh-apiserver serve")
	blocks := section(t, here.Replace(document), "Two machines", "sh")
	shell := func(machine, script string) *exec.Cmd {
		cmd := exec.Command("bash", "-c", "set -eu -o pipefail\n"+script)
		cmd.Dir = filepath.Join(dir, machine)
		cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"))
		return cmd
	}
	// The fourth argument of the function is optional.
	if out, err := shell("", "set +u\n"+strings.Join(blocks[:3], "\n")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	apis, names := []string{peer.FreePort(), peer.FreePort()}, []string{"tokyo", "hk"}
	for i, name := range names {
		copied := fmt.Sprintf("mkdir %[1]s && cp ca.crt %[1]s-server.* %[1]s-admin.* remote.* %[1]s/ && cp -r %[2]s/%[1]s-cluster %[1]s/manifests",
			name, try(filepath.Abs("../../examples/tokyo-hk")).or(t))
		if out, err := shell("", copied).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		serve := process(t, name, "bash", "-c", "cd "+filepath.Join(dir, name)+"\n"+blocks[3+i])
		serve.Env = []string{"PATH=" + dir + ":" + os.Getenv("PATH"), "CILIUM_LISTEN_CLIENT_URLS=https://" + addresses[i],
			"CILIUM_HEALTH_PORT=" + peer.PortOf(peer.FreePort()), "CILIUM_API_SERVE_ADDR=" + apis[i]}
		if err := serve.Start(); err != nil {
			t.Fatal(err)
		}
	}
	for i, name := range names {
		status := strings.TrimSpace(blocks[5]) + " --host=" + apis[i]
		eventually(t, name+" mirrors the other", func() bool {
			out, _ := shell(name, status).CombinedOutput()
			return strings.Contains(string(out), "1/1 remote clusters ready")
		})
		if out, err := shell(name, blocks[6]).CombinedOutput(); err != nil || strings.Contains(string(out), "❌") {
			t.Errorf("%v: %s", err, out)
		}
	}
}
