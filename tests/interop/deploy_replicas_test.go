package interop

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"isthmus.dev/interop/peer"
)

// The manifests of replicas, rendered and run: the processes get the arguments, the variables and the files of the pods, so that
// names, paths, certificates and rights have to fit together. Only names of hosts and the paths below /var are others.

// shapes are the deployments of docs/replicas.md.
var shapes = map[string]func(t testing.TB) rendered{
	"etcd and replicas": func(t testing.TB) rendered {
		return overlay(t, []string{"../base", "../etcd"}, "etcd-cert-manager", "replicas")
	},
	"leader and replicas": func(t testing.TB) rendered { return build(t, "persistent", "followers") },
}

// names of the kinds of objects whose pods a Service or a budget selects.
var podKinds = []string{"Deployment", "StatefulSet", "Job"}

func TestDeployReplicasFitTogether(t *testing.T) {
	for name, shape := range shapes {
		t.Run(name, func(t *testing.T) {
			all := shape(t)
			selected := func(key string, selector dict) (pods []dict) {
				for other, object := range all {
					kind, _, _ := strings.Cut(other, "/")
					labels, _ := at(object, "spec", "template", "metadata", "labels").(dict)
					fits := labels != nil && contains(podKinds, kind)
					for label, value := range selector {
						fits = fits && labels[label] == value
					}
					if fits {
						pods = append(pods, at(object, "spec", "template", "spec").(dict))
					}
				}
				if len(pods) == 0 {
					t.Errorf("%s selects no pods: %v", key, selector)
				}
				return pods
			}
			for key, object := range all {
				switch object["kind"] {
				case "Service":
					for _, pod := range selected(key, at(object, "spec", "selector").(dict)) {
						for _, port := range at(object, "spec", "ports").([]any) {
							if !hasPort(pod, at(port, "targetPort").(string)) {
								t.Errorf("%s: no container has the port %v", key, at(port, "targetPort"))
							}
						}
					}
				case "PodDisruptionBudget":
					selected(key, at(object, "spec", "selector", "matchLabels").(dict))
					if at(object, "spec", "maxUnavailable") != 1.0 {
						t.Errorf("%s blocks the drain of a node, or allows too much", key)
					}
				case "Deployment", "StatefulSet":
					if own := at(object, "spec", "selector", "matchLabels").(dict); len(selected(key, own)) != 1 {
						t.Errorf("%s selects the pods of others", key)
					}
				}
			}
			rollouts(t, all)
		})
	}
}

// rollouts checks that clients can move before a pod ends.
func rollouts(t *testing.T, all rendered) {
	t.Helper()
	moved := 0
	for key, object := range all {
		container, _ := at(object, "spec", "template", "spec", "containers").([]any)
		if object["kind"] != "Deployment" || container == nil {
			continue
		}
		drain := ""
		for _, variable := range list(at(container[0], "env")) {
			if at(variable, "name") == "CILIUM_DRAIN_TIME" {
				drain = at(variable, "value").(string)
			}
		}
		for _, arg := range list(at(container[0], "args")) {
			if value, is := strings.CutPrefix(arg.(string), "--drain-time="); is {
				drain = value
			}
		}
		if drain == "" {
			continue
		}
		moved++
		secs := try(time.ParseDuration(drain)).or(t).Seconds()
		if grace := at(object, "spec", "template", "spec", "terminationGracePeriodSeconds").(float64); grace < secs+15 {
			t.Errorf("%s is killed after %v s, and drains for %v s", key, grace, secs)
		}
		update := at(object, "spec", "strategy", "rollingUpdate").(dict)
		if update["maxSurge"] != 1.0 || update["maxUnavailable"] != 0.0 {
			t.Errorf("%s: %v", key, update)
		}
		if at(object, "spec", "replicas").(float64) < 2 || len(list(at(object, "spec", "template", "spec", "topologySpreadConstraints"))) != 2 {
			t.Errorf("%s is not spread", key)
		}
	}
	if moved != 1 {
		t.Errorf("%d Deployments move their clients", moved)
	}
}

func contains(words []string, word string) bool {
	for _, w := range words {
		if w == word {
			return true
		}
	}
	return false
}

func list(value any) []any {
	all, _ := value.([]any)
	return all
}

func hasPort(pod dict, name string) bool {
	for _, container := range list(pod["containers"]) {
		for _, port := range list(at(container, "ports")) {
			if at(port, "name") == name {
				return true
			}
		}
	}
	return false
}

// === certificates ===

type authority struct {
	t    testing.TB
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pem  []byte
}

func newAuthority(t testing.TB, name string) *authority {
	t.Helper()
	a := &authority{t: t, key: try(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)).or(t)}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der := try(x509.CreateCertificate(rand.Reader, template, template, &a.key.PublicKey, a.key)).or(t)
	a.cert = try(x509.ParseCertificate(der)).or(t)
	a.pem = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return a
}

// secret is a Secret with a certificate for this name and these hosts, and for 127.0.0.1.
func (a *authority) secret(name string, hosts ...string) map[string][]byte {
	a.t.Helper()
	key := try(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)).or(a.t)
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: hosts, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der := try(x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)).or(a.t)
	return map[string][]byte{
		"tls.crt": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		"tls.key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: try(x509.MarshalPKCS8PrivateKey(key)).or(a.t)}),
		"ca.crt":  a.pem,
	}
}

// === pods as processes ===

// namespace is what pods find in the cluster.
type namespace struct {
	t       testing.TB
	objects rendered
	secrets map[string]map[string][]byte
	// The addresses of hosts with their ports.
	hosts map[string]string
}

// podProcess is one pod, in a directory in the place of /.
type podProcess struct {
	*namespace
	name, root string
	spec       dict
	// Ports of the container on all interfaces, and where they are here.
	ports map[string]string
}

func (n *namespace) pod(object, name string, ports ...string) *podProcess {
	n.t.Helper()
	p := &podProcess{n, name, n.t.TempDir(), at(n.objects[object], "spec", "template", "spec").(dict), map[string]string{}}
	for _, port := range ports {
		p.ports[port] = peer.FreePort()
	}
	return p
}

// here is a text of the manifests with the names and paths of this machine.
func (p *podProcess) here(text string) string {
	text = strings.NewReplacer("$(POD_NAME)", p.name, "$(POD_IP)", "127.0.0.1").Replace(text)
	for host, address := range p.hosts {
		text = strings.ReplaceAll(text, host, address)
	}
	for port, address := range p.ports {
		text = strings.ReplaceAll(text, "0.0.0.0:"+port, address)
		text = strings.ReplaceAll(text, "127.0.0.1:"+port, address)
	}
	for _, before := range []string{"=", " "} {
		text = strings.ReplaceAll(text, before+"/var/", before+p.root+"/var/")
	}
	return text
}

// mount writes the files of the container's volumes.
func (p *podProcess) mount(container dict) {
	p.t.Helper()
	for _, mount := range list(container["volumeMounts"]) {
		dir := filepath.Join(p.root, at(mount, "mountPath").(string))
		if err := os.MkdirAll(dir, 0o700); err != nil {
			p.t.Fatal(err)
		}
		for _, volume := range list(p.spec["volumes"]) {
			if at(volume, "name") != at(mount, "name") {
				continue
			}
			if name, is := at(volume, "secret", "secretName").(string); is {
				p.files(dir, dict{"secret": dict{"name": name}})
			}
			for _, source := range list(at(volume, "projected", "sources")) {
				p.files(dir, source.(dict))
			}
		}
	}
}

// files writes a source of a volume.
func (p *podProcess) files(dir string, source dict) {
	p.t.Helper()
	write := func(name string, content []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			p.t.Fatal(err)
		}
	}
	if name, is := at(source, "configMap", "name").(string); is {
		for key, value := range at(p.objects["ConfigMap/"+name], "data").(dict) {
			write(key, []byte(p.here(value.(string))))
		}
		return
	}
	name := at(source, "secret", "name").(string)
	secret, exists := p.secrets[name]
	if !exists && at(source, "secret", "optional") != true {
		p.t.Fatalf("the pod %s waits for the Secret %s", p.name, name)
	}
	items := list(at(source, "secret", "items"))
	for key, content := range secret {
		if items == nil {
			write(key, content)
		}
	}
	for _, item := range items {
		if content, exists := secret[at(item, "key").(string)]; exists {
			write(at(item, "path").(string), content)
		}
	}
}

// process is the container of the pod with more arguments.
func (p *podProcess) process(bin string, more ...string) *peer.Process {
	p.t.Helper()
	container := list(p.spec["containers"])[0].(dict)
	p.mount(container)
	run := process(p.t, p.name, bin)
	for _, arg := range list(container["args"]) {
		run.Args = append(run.Args, p.here(arg.(string)))
	}
	run.Args = append(run.Args, more...)
	cilium := map[string]string{"cluster-name": "tokyo", "cluster-id": "1"}
	for _, variable := range list(container["env"]) {
		name, value := at(variable, "name").(string), ""
		switch {
		case at(variable, "value") != nil:
			value = strings.TrimPrefix(p.here("="+at(variable, "value").(string)), "=")
		case at(variable, "valueFrom", "configMapKeyRef") != nil:
			value = cilium[at(variable, "valueFrom", "configMapKeyRef", "key").(string)]
		default:
			continue
		}
		if value != "" {
			run.Env = append(run.Env, name+"="+value)
		}
	}
	return run
}

func (p *podProcess) start(bin string, more ...string) *peer.Process {
	p.t.Helper()
	run := p.process(bin, more...)
	if err := run.Start(); err != nil {
		p.t.Fatal(err)
	}
	return run
}

// serve starts `serve` of a pod. The defaults of some flags are paths and ports of the pod.
func (p *podProcess) serve(manifests string) *peer.Process {
	p.t.Helper()
	port := func() string { return peer.FreePort() }
	more := []string{"--manifests=" + manifests, "--listen-client-urls=https://" + p.ports["2379"], "--api-serve-addr=" + port(),
		"--health-port=" + peer.PortOf(port()), "--prometheus-serve-addr=" + port(), "--ui-addr="}
	for flag, file := range map[string]string{"cert": "tls.crt", "key": "tls.key", "trusted-ca": "ca.crt"} {
		more = append(more, "--"+flag+"-file="+filepath.Join(p.root, "var/lib/etcd-secrets", file))
	}
	return p.start(isthmusBin(p.t), more...)
}

// client has the certificate of a user of the mesh.
func (n *namespace) client(mesh *authority, user, address string) *clientv3.Client {
	n.t.Helper()
	secret, roots := mesh.secret(user), x509.NewCertPool()
	roots.AppendCertsFromPEM(mesh.pem)
	certificate := try(tls.X509KeyPair(secret["tls.crt"], secret["tls.key"])).or(n.t)
	c := try(clientv3.New(clientv3.Config{Endpoints: []string{address}, DialTimeout: 10 * time.Second,
		TLS: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{certificate}}})).or(n.t)
	n.t.Cleanup(func() { c.Close() })
	return c
}

// publishes waits until a remote cluster reads what the publisher wrote, with the rights that it should have.
func (n *namespace) publishes(mesh *authority, address string) {
	n.t.Helper()
	c := n.client(mesh, "remote", address)
	eventually(n.t, "a remote cluster reads the keys at "+address, func() bool {
		found, err := c.Get(ctx(n.t), "cilium/state/nodes/v1/", clientv3.WithPrefix())
		return err == nil && found.Count > 0
	})
	if _, err := c.Get(ctx(n.t), "cilium/cache/", clientv3.WithPrefix()); err == nil || !strings.Contains(err.Error(), "permission denied") {
		n.t.Errorf("a remote cluster may read what it should not: %v", err)
	}
}

func says(run *peer.Process, words string) func() bool {
	return func() bool {
		log, _ := os.ReadFile(run.Log)
		return strings.Contains(string(log), words)
	}
}

func tokyo(t testing.TB) string {
	t.Helper()
	return try(filepath.Abs("../../examples/tokyo-hk/tokyo-cluster")).or(t)
}

func TestDeployReplicasOfAnEtcdRun(t *testing.T) {
	own, mesh := newAuthority(t, "clustermesh-etcd-ca"), newAuthority(t, "mesh")
	n := &namespace{t: t, objects: shapes["etcd and replicas"](t), hosts: map[string]string{}}
	hosts := list(at(n.objects["Certificate/clustermesh-etcd-server-cert"], "spec", "dnsNames"))
	n.secrets = map[string]map[string][]byte{
		"clustermesh-etcd-server-cert":      own.secret("clustermesh-etcd", hosts[0].(string)),
		"clustermesh-etcd-root-cert":        own.secret(at(n.objects["Certificate/clustermesh-etcd-root-cert"], "spec", "commonName").(string)),
		"clustermesh-apiserver-server-cert": mesh.secret("clustermesh-apiserver"),
		"clustermesh-apiserver-admin-cert":  mesh.secret("admin-tokyo"),
	}
	var members []*podProcess
	for i := range 3 {
		p := n.pod("StatefulSet/clustermesh-etcd", fmt.Sprint("clustermesh-etcd-", i), "2379", "2380", "2381")
		for _, port := range []string{"2379", "2380"} {
			n.hosts[p.name+".clustermesh-etcd.kube-system.svc:"+port] = p.ports[port]
		}
		members = append(members, p)
	}
	for _, p := range members {
		p.start(peerBin(t, "etcd"), "--unsafe-no-fsync")
	}
	job := n.pod("Job/clustermesh-etcd-users", "users").process(isthmusBin(t))
	prepared := exec.Command(job.Bin, job.Args...)
	prepared.Env = append(os.Environ(), job.Env...)
	if out, err := prepared.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var runs []*peer.Process
	for i := range 3 {
		p := n.pod("Deployment/clustermesh-apiserver", fmt.Sprint("replica-", i), "2379")
		if i == 0 {
			n.hosts["clustermesh-apiserver-peers.kube-system.svc:2379"] = p.ports["2379"]
		}
		run := p.serve(tokyo(t))
		eventually(t, "a replica serves", says(run, "serving etcd clients"))
		n.publishes(mesh, p.ports["2379"])
		runs = append(runs, run)
	}
	for i, run := range runs[1:] {
		if !says(run, "the keys of another replica are loaded")() {
			t.Errorf("replica %d was not loaded from its sister:\n%s", i+1, run.Tail(40))
		}
	}
}

func TestDeployReplicasOfALeaderRun(t *testing.T) {
	mesh := newAuthority(t, "mesh")
	n := &namespace{t: t, objects: shapes["leader and replicas"](t), hosts: map[string]string{}}
	n.secrets = map[string]map[string][]byte{
		"clustermesh-apiserver-server-cert": mesh.secret("clustermesh-apiserver"),
		"clustermesh-apiserver-admin-cert":  mesh.secret("admin-tokyo"),
	}
	leader := n.pod("Deployment/clustermesh-apiserver", "leader", "2379")
	leader.serve(tokyo(t))
	n.publishes(mesh, leader.ports["2379"])
	n.hosts["clustermesh-apiserver-leader.kube-system.svc:2379"] = leader.ports["2379"]
	n.hosts["clustermesh-apiserver-peers.kube-system.svc:2379"] = peer.FreePort()
	for i := range 2 {
		p := n.pod("Deployment/clustermesh-apiserver-replica", fmt.Sprint("replica-", i), "2379", "9962")
		run := p.start(isthmusBin(t))
		eventually(t, "a replica serves", says(run, "ready to serve client requests"))
		n.publishes(mesh, p.ports["2379"])
		if i == 0 {
			n.hosts["clustermesh-apiserver-peers.kube-system.svc:2379"] = p.ports["2379"]
		} else if !says(run, "the keys of another replica are loaded")() {
			t.Errorf("the replica was not loaded from its sister:\n%s", run.Tail(40))
		}
		if metrics := page(t, p.ports["9962"]); !strings.Contains(metrics, "\nisthmus_follow_connected 1\n") {
			t.Error("the port of the metrics does not say that the leader is followed")
		}
	}
}
