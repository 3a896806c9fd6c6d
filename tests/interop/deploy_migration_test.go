package interop

import (
	"encoding/base64"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
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
	bin := peerBin(r.t, "kube-controller-manager")
	if _, err := os.Stat(bin); err != nil {
		r.t.Skipf("%v: `make e2e-tools` builds it", err)
	}
	p := process(r.t, "kube-controller-manager", bin, "--kubeconfig="+r.kubeconfig, "--leader-elect=false", "--secure-port=0",
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

// orphan deletes the Deployment and leaves its pods, as `kubectl delete --cascade=orphan` does.
func (r *release) orphan() {
	r.t.Helper()
	r.expect(http.StatusOK, "DELETE", path(r.t, "Deployment", "kube-system")+"/clustermesh-apiserver",
		dict{"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Orphan"})
	eventually(r.t, "the Deployment is gone", func() bool { return r.object("Deployment", "clustermesh-apiserver") == nil })
}

func TestKubeAPIServerHelmTakesOverFromCiliumAndBack(t *testing.T) {
	r := newRelease(t)
	cilium := filepath.Join(moduleDir(t, ciliumModule), "install/kubernetes/cilium")
	// Everything but the mesh is off.
	values := []string{"--set=agent=false,operator.enabled=false,envoy.enabled=false,hubble.enabled=false,preflight.enabled=false",
		"--set=cluster.name=tokyo,cluster.id=1",
		`--set-json=clustermesh.config={"clusters":{"hk":{"ips":["10.14.1.128"],"port":32379}}}`}
	on := slices.Concat(values, []string{"--set=clustermesh.useAPIServer=true,clustermesh.config.enabled=true"})
	off := slices.Concat(values, []string{"--set=clustermesh.useAPIServer=false,clustermesh.config.enabled=false"})
	r.startControllers()
	r.helm(append([]string{"install", "cilium", cilium}, on...)...)
	sets := r.rolled(nil)
	ids := func() (all []string) {
		for _, object := range lasting {
			all = append(all, meta(r.object(object[0], object[1]), "uid"))
		}
		return all
	}
	// The client file of the other cluster; its layout does not matter.
	client := func(secret string) (file dict) {
		text, _ := at(r.object("Secret", secret), "data", "hk").(string)
		if err := yaml.Unmarshal(try(base64.StdEncoding.DecodeString(text)).or(t), &file); err != nil {
			t.Fatal(err)
		}
		return file
	}
	before, remote, local := ids(), client("cilium-kvstoremesh"), client("cilium-clustermesh")
	if slices.Contains(before, "") {
		t.Fatalf("Cilium's chart has not made all of %v", lasting)
	}
	keep := func() {
		for _, object := range lasting {
			r.annotate(object[0], object[1], "helm.sh/resource-policy", "keep")
		}
	}
	keep()
	r.orphan()
	r.helm(append([]string{"upgrade", "cilium", cilium}, off...)...)
	r.helm("install", "mesh", chart, "--take-ownership", "--set=tls.method=existing,config.enabled=true",
		`--set-json=config.clusters={"hk":{"ips":["10.14.1.128"],"port":32379}}`)
	sets = r.rolled(sets)
	if after := ids(); !slices.Equal(before, after) {
		t.Errorf("objects were made anew: %v, then %v", before, after)
	}
	for secret, file := range map[string]dict{"cilium-kvstoremesh": remote, "cilium-clustermesh": local} {
		if now := client(secret); !reflect.DeepEqual(file, now) {
			t.Errorf("Secret %s differs: %v, then %v", secret, file, now)
		}
	}
	keep()
	// An upgrade heeds the annotation of an object, and uninstalling does not: the objects leave the release first.
	r.helm("upgrade", "mesh", chart, "--reuse-values", "--set=config.enabled=false,service.externallyCreated=true")
	// Now: an upgrade would make the Deployment again.
	r.orphan()
	r.helm("uninstall", "mesh")
	if after := ids(); !slices.Equal(before, after) {
		t.Errorf("uninstalling removed objects: %v, then %v", before, after)
	}
	r.helm(append([]string{"upgrade", "cilium", cilium, "--take-ownership"}, on...)...)
	r.rolled(sets)
	if after := ids(); !slices.Equal(before, after) {
		t.Errorf("objects were made anew on the way back: %v, then %v", before, after)
	}
}
