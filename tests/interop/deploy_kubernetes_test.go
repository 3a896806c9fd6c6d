package interop

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// A kube-apiserver takes every object of deploy/, without unknown fields, and the pod into a namespace of the level
// `restricted`. Helm keeps certificates over upgrades, and takes over from Cilium's chart and gives back, as
// docs/migration.md says.

const (
	certManagerModule = "github.com/cert-manager/cert-manager@v1.21.2"
	prometheusModule  = "github.com/prometheus-operator/prometheus-operator@v0.85.0"
)

// paths are the collections of the kinds that deploy/ has. An empty namespace stands for a cluster-wide kind.
var paths = map[string][2]string{
	"ServiceAccount":        {"/api/v1", "serviceaccounts"},
	"Service":               {"/api/v1", "services"},
	"ConfigMap":             {"/api/v1", "configmaps"},
	"Secret":                {"/api/v1", "secrets"},
	"Pod":                   {"/api/v1", "pods"},
	"PersistentVolumeClaim": {"/api/v1", "persistentvolumeclaims"},
	"Deployment":            {"/apis/apps/v1", "deployments"},
	"ReplicaSet":            {"/apis/apps/v1", "replicasets"},
	"StatefulSet":           {"/apis/apps/v1", "statefulsets"},
	"Job":                   {"/apis/batch/v1", "jobs"},
	"PodDisruptionBudget":   {"/apis/policy/v1", "poddisruptionbudgets"},
	"NetworkPolicy":         {"/apis/networking.k8s.io/v1", "networkpolicies"},
	"ServiceMonitor":        {"/apis/monitoring.coreos.com/v1", "servicemonitors"},
	"PrometheusRule":        {"/apis/monitoring.coreos.com/v1", "prometheusrules"},
	"Certificate":           {"/apis/cert-manager.io/v1", "certificates"},
	"Issuer":                {"/apis/cert-manager.io/v1", "issuers"},
	"ClusterRole":           {"/apis/rbac.authorization.k8s.io/v1", "clusterroles"},
	"ClusterRoleBinding":    {"/apis/rbac.authorization.k8s.io/v1", "clusterrolebindings"},
}

func path(t testing.TB, kind, namespace string) string {
	t.Helper()
	where, known := paths[kind]
	if !known {
		t.Fatalf("the kind %s is not in the list of this test", kind)
	}
	if namespace == "" {
		return where[0] + "/" + where[1]
	}
	return where[0] + "/namespaces/" + namespace + "/" + where[1]
}

// apply sends an object by server-side apply, as a dry run, and fails on unknown fields.
func (a *apiserver) apply(t testing.TB, object dict) {
	t.Helper()
	text := try(yaml.Marshal(object)).or(t)
	url := a.url + path(t, object["kind"].(string), meta(object, "namespace")) + "/" + meta(object, "name") +
		"?dryRun=All&fieldManager=deploy&force=true&fieldValidation=Strict"
	q := try(http.NewRequestWithContext(ctx(t), "PATCH", url, strings.NewReader(string(text)))).or(t)
	q.Header.Set("Authorization", "Bearer sesame")
	q.Header.Set("Content-Type", "application/apply-patch+yaml")
	r := try(a.http.Do(q)).or(t)
	defer r.Body.Close()
	if answer, _ := io.ReadAll(r.Body); r.StatusCode/100 != 2 {
		t.Errorf("%s %s is refused: %s\n%s", object["kind"], meta(object, "name"), answer, text)
	}
	if warning := r.Header.Values("Warning"); len(warning) > 0 {
		t.Errorf("%s %s: %s", object["kind"], meta(object, "name"), warning)
	}
}

func TestKubeAPIServerTakesTheDeployment(t *testing.T) {
	a := startAPIServer(t, ours(t).address)
	for _, kind := range []string{"certificates", "issuers"} {
		a.define(manifest(t, certManagerModule, "deploy/crds/cert-manager.io_"+kind+".yaml"))
	}
	for _, kind := range []string{"servicemonitors", "prometheusrules"} {
		a.define(manifest(t, prometheusModule, "example/prometheus-operator-crd/monitoring.coreos.com_"+kind+".yaml"))
	}
	a.expect(201, "POST", "/api/v1/namespaces", dict{"metadata": dict{"name": "restricted",
		"labels": dict{"pod-security.kubernetes.io/enforce": "restricted"}}})
	account := func(name string) {
		a.call("POST", path(t, "ServiceAccount", "restricted"), dict{"metadata": dict{"name": name}})
	}
	take := func(t *testing.T, all rendered) {
		for _, object := range all {
			a.apply(t, object)
			if template, is := at(object, "spec", "template").(dict); is {
				name, is := at(template, "spec", "serviceAccountName").(string)
				if !is {
					name = "default"
				}
				account(name)
				if object["kind"] == "StatefulSet" {
					// Claims are made for each pod.
					template["spec"].(dict)["volumes"] = append(at(template, "spec", "volumes").([]any), dict{"name": "data", "emptyDir": dict{}})
				}
				template["metadata"].(dict)["name"] = "pod"
				pod := dict{"metadata": template["metadata"], "spec": template["spec"]}
				a.t = t
				a.expect(201, "POST", path(t, "Pod", "restricted")+"?dryRun=All&fieldValidation=Strict", pod)
			}
		}
	}
	for name, values := range valueSets {
		t.Run(name, func(t *testing.T) { take(t, render(t, values)) })
	}
	for _, component := range []string{"persistent", "memory", "network-policy", "service-monitor", "prometheus-rule"} {
		t.Run("component "+component, func(t *testing.T) { take(t, build(t, component)) })
	}
	for name, shape := range shapes {
		t.Run(name, func(t *testing.T) { take(t, shape(t)) })
	}
	users := parse(t, try(exec.Command("cat", filepath.Join(kustomize, "base/remote-users.yaml")).Output()).or(t))
	a.apply(t, users["ConfigMap/clustermesh-remote-users"])
}

// release is Helm, connected to a cluster.
type release struct {
	*apiserver
	kubeconfig string
}

func (r *release) helm(args ...string) {
	r.t.Helper()
	if out, err := renderer(r.t, "", "helm", append(args, "--kubeconfig="+r.kubeconfig, "--namespace=kube-system")...); err != nil {
		r.t.Fatalf("helm %v: %s", args, out)
	}
}

// object reads an object of kube-system; nil if there is none.
func (r *release) object(kind, name string) dict {
	r.t.Helper()
	code, object := r.call("GET", path(r.t, kind, "kube-system")+"/"+name, nil)
	if code == http.StatusNotFound {
		return nil
	}
	if code != http.StatusOK {
		r.t.Fatalf("%s %s: %d %v", kind, name, code, object)
	}
	return object
}

// annotate sets an annotation of an object, as `kubectl annotate` does.
func (r *release) annotate(kind, name, key, value string) {
	r.t.Helper()
	object := r.object(kind, name)
	notes, _ := at(object, "metadata", "annotations").(dict)
	if notes == nil {
		notes = dict{}
	}
	notes[key] = value
	object["metadata"].(dict)["annotations"] = notes
	r.expect(200, "PUT", path(r.t, kind, "kube-system")+"/"+name, object)
}

// certificate decodes a certificate of a Secret.
func (r *release) certificate(secret, key string) *x509.Certificate {
	r.t.Helper()
	text, _ := at(r.object("Secret", secret), "data", key).(string)
	block, _ := pem.Decode(try(base64.StdEncoding.DecodeString(text)).or(r.t))
	if block == nil {
		r.t.Fatalf("Secret %s has no %s", secret, key)
	}
	return try(x509.ParseCertificate(block.Bytes)).or(r.t)
}

// leaves are the serial numbers of the three certificates, after a check of chain, names and usages.
func (r *release) leaves(ca *x509.Certificate) (serials []string) {
	r.t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	for _, name := range []string{"server", "remote", "local"} {
		leaf := r.certificate("clustermesh-apiserver-"+name+"-cert", "tls.crt")
		usage := x509.ExtKeyUsageClientAuth
		if name == "server" {
			usage = x509.ExtKeyUsageServerAuth
			for _, host := range []string{"clustermesh-apiserver.kube-system.svc", "hk.mesh.cilium.io", "127.0.0.1"} {
				if err := leaf.VerifyHostname(host); err != nil {
					r.t.Error(err)
				}
			}
		}
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
			r.t.Errorf("%s: %v", name, err)
		}
		serials = append(serials, leaf.SerialNumber.String())
	}
	return serials
}

func newRelease(t *testing.T) *release {
	a := startAPIServer(t, ours(t).address)
	return &release{a, a.kubeconfig()}
}

func (r *release) ciliumConfig() {
	r.t.Helper()
	r.expect(201, "POST", path(r.t, "ConfigMap", "kube-system"),
		dict{"metadata": dict{"name": "cilium-config"}, "data": dict{"cluster-name": "tokyo", "cluster-id": "1"}})
}

func TestKubeAPIServerHelmKeepsCertificates(t *testing.T) {
	r := newRelease(t)
	r.ciliumConfig()
	r.helm("install", "mesh", chart, "--set=storage.type=persistent")
	ca := r.certificate("clustermesh-apiserver-ca", "ca.crt")
	first := r.leaves(ca)
	if local := r.certificate("clustermesh-apiserver-local-cert", "tls.crt").Subject.CommonName; local != "local-tokyo" {
		t.Errorf("the common name is %s", local)
	}
	changed := func(what string, want ...bool) {
		t.Helper()
		next := r.leaves(ca)
		for i, serial := range next {
			if (serial != first[i]) != want[i] {
				t.Errorf("%s: certificate %d changed: %v", what, i, !want[i])
			}
		}
		first = next
	}
	r.helm("upgrade", "mesh", chart, "--reuse-values", "--set=podLabels.a=b")
	changed("an upgrade", false, false, false)
	r.helm("upgrade", "mesh", chart, "--reuse-values", "--set=tls.server.extraDnsNames={mesh.example.org}")
	changed("a further name of the server", true, false, false)
	r.helm("upgrade", "mesh", chart, "--reuse-values", "--set=tls.authMode=cluster")
	changed("another mode of authentication", false, true, false)
	if remote := r.certificate("clustermesh-apiserver-remote-cert", "tls.crt").Subject.CommonName; remote != "remote-tokyo" {
		t.Errorf("the common name is %s", remote)
	}
	// A certificate that is due is renewed.
	r.annotate("Secret", "clustermesh-apiserver-local-cert", "isthmus.dev/renew-after", "1")
	r.helm("upgrade", "mesh", chart, "--reuse-values")
	changed("two thirds of the validity", false, false, true)
	r.helm("uninstall", "mesh")
	for kind, name := range map[string]string{"Secret": "clustermesh-apiserver-ca", "PersistentVolumeClaim": "clustermesh-apiserver"} {
		if r.object(kind, name) == nil {
			t.Errorf("uninstalling removed %s %s", kind, name)
		}
	}
	r.helm("install", "mesh", chart, "--set=storage.type=persistent")
	changed("a new installation with the same CA", true, true, true)
	// Cilium's CA is used where this chart has none.
	r.helm("uninstall", "mesh")
	old := r.object("Secret", "clustermesh-apiserver-ca")
	r.expect(200, "DELETE", path(t, "Secret", "kube-system")+"/clustermesh-apiserver-ca", nil)
	r.expect(201, "POST", path(t, "Secret", "kube-system"), dict{"metadata": dict{"name": "cilium-ca"}, "data": old["data"]})
	r.helm("install", "mesh", chart)
	r.leaves(ca)
	if r.object("Secret", "clustermesh-apiserver-ca") != nil {
		t.Error("the chart keeps a copy of Cilium's CA")
	}
}
