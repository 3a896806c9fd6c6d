package interop

import (
	"encoding/base64"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// The commands of docs/migration.md, on a Kubernetes API with the controllers of Deployments: the objects of Cilium's chart pass
// to the chart of deploy/ and back. No object that agents and other clusters use is made anew, and the pods of one
// Deployment run until those of the next are ready.

// lasting are the objects that agents and other clusters use.
var lasting = [][2]string{
	{"Service", "clustermesh-apiserver"}, {"Secret", "clustermesh-apiserver-server-cert"}, {"Secret", "clustermesh-apiserver-remote-cert"},
	{"Secret", "clustermesh-apiserver-local-cert"}, {"Secret", "cilium-clustermesh"}, {"Secret", "cilium-kvstoremesh"},
	{"ConfigMap", "clustermesh-remote-users"},
}

// startControllers starts those controllers of Kubernetes that a Deployment needs. Without a kubelet, no pod becomes ready.
func (r *release) startControllers() {
	r.t.Helper()
	for _, name := range []string{"kube-controller-manager", "kubectl", "helm"} {
		if _, err := os.Stat(peerBin(r.t, name)); err != nil {
			r.t.Skipf("%v: `make helm e2e-tools` builds the tools", err)
		}
	}
	p := process(r.t, "kube-controller-manager", peerBin(r.t, "kube-controller-manager"), "--kubeconfig="+r.kubeconfig, "--leader-elect=false", "--secure-port=0",
		"--controllers=deployment-controller,replicaset-controller,garbage-collector-controller")
	if err := p.Start(); err != nil {
		r.t.Fatal(err)
	}
}

// controlled are the names of the objects of a kind that the Deployment, or a ReplicaSet of its, controls.
func (r *release) controlled(kind, owner string) (names []string) {
	r.t.Helper()
	list := r.expect(http.StatusOK, "GET", path(r.t, kind, "kube-system"), nil)
	for _, item := range list["items"].([]any) {
		owners, _ := at(item, "metadata", "ownerReferences").([]any)
		if len(owners) == 1 && at(owners[0], "uid") == owner {
			names = append(names, meta(item.(dict), "name"))
		}
	}
	return names
}

// rolled waits until the Deployment controls the ReplicaSets of the former one and has one for its own containers. All of
// them keep their pod, because no new pod is ready.
func (r *release) rolled(before []string) (now []string) {
	r.t.Helper()
	deployment := r.object("Deployment", "clustermesh-apiserver")
	eventually(r.t, "the Deployment adopts the former ReplicaSets and has its own", func() bool {
		now = r.controlled("ReplicaSet", meta(deployment, "uid"))
		adopted := !slices.ContainsFunc(before, func(name string) bool { return !slices.Contains(now, name) })
		return adopted && slices.ContainsFunc(now, func(name string) bool {
			return slices.Equal(containers(r.object("ReplicaSet", name)), containers(deployment))
		})
	})
	for _, name := range now {
		if replicas := at(r.object("ReplicaSet", name), "spec", "replicas"); replicas != float64(1) {
			r.t.Errorf("ReplicaSet %s has %v replicas before the new pod is ready", name, replicas)
		}
	}
	return now
}

// containers are the names of the containers of a pod template.
func containers(object dict) (names []string) {
	for _, container := range at(object, "spec", "template", "spec", "containers").([]any) {
		names = append(names, at(container, "name").(string))
	}
	return names
}

// guide runs the commands of docs/migration.md.
type guide struct {
	*release
	text, dir, cilium string
}

// run executes a command with the tools of the peers, Cilium's chart from its module, and this repository's chart.
func (g *guide) run(command string) {
	g.t.Helper()
	command = strings.ReplaceAll(command, "cilium/cilium", g.cilium)
	command = strings.ReplaceAll(command, "deploy/helm/isthmus", try(filepath.Abs(chart)).or(g.t))
	cmd := exec.Command("bash", "-c", "set -eu\n"+command)
	cmd.Dir = g.dir
	cmd.Env = append(os.Environ(), "KUBECONFIG="+g.kubeconfig, "PATH="+filepath.Dir(peerBin(g.t, "helm"))+":"+os.Getenv("PATH"))
	if out, err := cmd.CombinedOutput(); err != nil {
		g.t.Fatalf("%s%v: %s", command, err, out)
	}
}

// follow executes all commands of a section, but those that need pods that run.
func (g *guide) follow(title string) {
	g.t.Helper()
	for _, command := range section(g.t, g.text, title, "sh") {
		if !strings.Contains(command, "rollout status") && !strings.Contains(command, "kubectl --namespace kube-system exec") {
			g.run(command)
		}
	}
}

func TestKubeAPIServerHelmTakesOverFromCiliumAndBack(t *testing.T) {
	r := newRelease(t)
	g := &guide{r, string(try(os.ReadFile("../../docs/migration.md")).or(t)), t.TempDir(),
		filepath.Join(moduleDir(t, ciliumModule), "install/kubernetes/cilium")}
	r.startControllers()
	// Everything but the mesh is off.
	r.helm("install", "cilium", g.cilium, "--set=cluster.name=tokyo,cluster.id=1",
		"--set=agent=false,operator.enabled=false,envoy.enabled=false,hubble.enabled=false,preflight.enabled=false",
		"--set=clustermesh.useAPIServer=true,clustermesh.config.enabled=true",
		`--set-json=clustermesh.config.clusters={"hk-cluster":{"ips":["10.14.1.128"],"port":32379}}`)
	sets := r.rolled(nil)
	ids := func() (all []string) {
		for _, object := range lasting {
			all = append(all, meta(r.object(object[0], object[1]), "uid"))
		}
		return all
	}
	// The client file of the other cluster; its layout does not matter.
	client := func(secret string) (file dict) {
		text, _ := at(r.object("Secret", secret), "data", "hk-cluster").(string)
		if err := yaml.Unmarshal(try(base64.StdEncoding.DecodeString(text)).or(t), &file); err != nil {
			t.Fatal(err)
		}
		return file
	}
	before, remote, local := ids(), client("cilium-kvstoremesh"), client("cilium-clustermesh")
	if slices.Contains(before, "") {
		t.Fatalf("Cilium's chart has not made all of %v", lasting)
	}
	values := regexp.MustCompile("`(helm [^`]* get values [^`]*)`").FindStringSubmatch(g.text)
	g.run(values[1])
	const there = "To one container"
	file := section(t, g.text, there, "yaml")[0]
	if err := os.WriteFile(filepath.Join(g.dir, "mesh-values.yaml"), []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	protect := section(t, g.text, there, "sh")[0]
	release := strings.ReplaceAll(protect, "helm.sh/resource-policy=keep", "helm.sh/resource-policy-")
	g.follow(there)
	sets = r.rolled(sets)
	if after := ids(); !slices.Equal(before, after) {
		t.Errorf("objects were made anew: %v, then %v", before, after)
	}
	for secret, file := range map[string]dict{"cilium-kvstoremesh": remote, "cilium-clustermesh": local} {
		if now := client(secret); !reflect.DeepEqual(file, now) {
			t.Errorf("Secret %s differs: %v, then %v", secret, file, now)
		}
	}
	g.run(release)
	g.run(protect)
	g.follow("Back")
	r.rolled(sets)
	if after := ids(); !slices.Equal(before, after) {
		t.Errorf("objects were made anew on the way back: %v, then %v", before, after)
	}
	g.run(release)
	for _, object := range lasting {
		if at(r.object(object[0], object[1]), "metadata", "annotations", "helm.sh/resource-policy") != nil {
			t.Errorf("%v is still protected", object)
		}
	}
}
