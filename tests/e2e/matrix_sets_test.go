package e2e

import (
	"encoding/base64"
	"os"
	"strings"

	"isthmus.dev/e2e/kube"
	"isthmus.dev/e2e/mesh"
)

// set is a set of values of the official chart, beside those of every set: the cluster, the peer, and the image.
type set struct {
	name   string
	values []mesh.Values
	// containers of the pod; the default is etcd, apiserver, kvstoremesh.
	containers string
	// before runs before the installation, after between the installation and the wait; remove names what they made.
	before, after func(*kube.Cluster) error
	remove        []string
	// also checks what is special of this set.
	also func(*kube.Cluster, []mesh.Pod) error
	// external is the address of the etcd that has the keys where the pod has none.
	external string
	// noKeys: the publisher does not run, so that the cluster publishes what an agent and an operator would write.
	noKeys bool
	// remark is what a user must know.
	remark string
	// breaks is what the set fails with, with any image; around says how to get around it.
	breaks, around string
}

const (
	meshServer = "clustermesh.apiserver."
	external   = "10.13.1.243:22379"
)

func on(paths ...string) []mesh.Values  { return all(true, paths...) }
func off(paths ...string) []mesh.Values { return all(false, paths...) }

func all(value any, paths ...string) []mesh.Values {
	var values []mesh.Values
	for _, path := range paths {
		values = append(values, mesh.Set(path, value))
	}
	return values
}

func with(values ...[]mesh.Values) []mesh.Values {
	var flat []mesh.Values
	for _, v := range values {
		flat = append(flat, v...)
	}
	return flat
}

func one(path string, value any) []mesh.Values { return []mesh.Values{mesh.Set(path, value)} }

// secrets makes the four secrets, as certgen does or an administrator.
func secrets(c *kube.Cluster) error { return c.Apply(mesh.Secrets(c.Name, shared.ca)) }

var fourSecrets = []string{
	"secret/clustermesh-apiserver-server-cert", "secret/" + mesh.AdminUser, "secret/" + mesh.RemoteUser, "secret/" + mesh.LocalUser,
}

// identitySets are modes of identities, of the mirror and of its store.
func identitySets(port int) []set {
	externalStore := with(one("identityAllocationMode", "kvstore"), one(meshServer+"kvstoremesh.kvstoreMode", "external"),
		on("etcd.enabled"), one("etcd.endpoints", []string{"http://" + external}))
	return []set{
		{name: "default"},
		{name: "KVStoreMesh off", values: off(meshServer + "kvstoremesh.enabled"), containers: "etcd apiserver"},
		{name: "clusters as a list", values: one("clustermesh.config.clusters", []mesh.Values{
			{"name": "hk-cluster", "ips": []string{"10.14.1.128"}, "port": port}})},
		{name: "identityAllocationMode=kvstore", values: with(one("identityAllocationMode", "kvstore"), on("etcd.enabled")),
			containers: "etcd kvstoremesh", noKeys: true},
		{name: "identityAllocationMode=doublewrite-readcrd", values: with(one("identityAllocationMode", "doublewrite-readcrd"),
			on("etcd.enabled"), one("etcd.endpoints", []string{"http://" + external}))},
		{name: "kvstoreMode=external", values: externalStore, containers: "kvstoremesh", external: external, noKeys: true,
			before: secrets, remove: fourSecrets, remark: "the chart makes no certificates in this mode: create the Secret `clustermesh-apiserver-remote-cert`"},
		{name: "kvstoreMode=external, doublewrite-readcrd", values: with(externalStore, one("identityAllocationMode", "doublewrite-readcrd")),
			breaks: `Not found: "etcd-admin-client"`,
			around: "none by values: the chart mounts volumes that it does not define. Use kvstoreMode=internal, or identityAllocationMode=kvstore"},
		{name: "CiliumEndpointSlice", values: on("ciliumEndpointSlice.enabled"), before: slice, remove: []string{"ces/slice-1"}},
		{name: "endpoint slice synchronization", values: on("clustermesh.enableEndpointSliceSynchronization")},
		{name: "config.enabled=false, authMode=legacy", values: with(off("clustermesh.config.enabled"), one(meshServer+"tls.authMode", "legacy")),
			after: config, remove: []string{"secret/cilium-kvstoremesh"}},
		{name: "config.enabled=false", values: off("clustermesh.config.enabled"), breaks: `configmap "clustermesh-remote-users" not found`,
			around: "create the ConfigMap `clustermesh-remote-users` with `users.yaml: \"users: []\"`, or set authMode=legacy"},
		{name: "config.enabled=false, with that ConfigMap", values: off("clustermesh.config.enabled"), after: func(c *kube.Cluster) error {
			if err := config(c); err != nil {
				return err
			}
			return c.Apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: clustermesh-remote-users, namespace: kube-system}\n" +
				"data: {users.yaml: \"users: []\"}\n")
		}, remove: []string{"secret/cilium-kvstoremesh", "configmap/clustermesh-remote-users"}},
		{name: "cluster.id=0, cluster.name=default", values: with(one("cluster.id", 0), one("cluster.name", "default")),
			breaks: "ClusterID 0 is reserved", around: "name the cluster and give it an id from 1: the publisher of the original refuses, too"},
	}
}

// config makes the secret of the mirror's client files, as a tool or a Git repository does where the chart does not.
func config(c *kube.Cluster) error {
	file := "endpoints:\n- https://hk-cluster.mesh.cilium.io:32379\ntrusted-ca-file: /var/lib/cilium/clustermesh/common-etcd-client-ca.crt\n" +
		"key-file: /var/lib/cilium/clustermesh/common-etcd-client.key\ncert-file: /var/lib/cilium/clustermesh/common-etcd-client.crt\n" +
		"cilium-host-aliases:\n- hostname: hk-cluster.mesh.cilium.io\n  ips: [10.14.1.128]\n"
	return c.Apply("apiVersion: v1\nkind: Secret\nmetadata: {name: cilium-kvstoremesh, namespace: kube-system}\ndata: {hk-cluster: " +
		base64.StdEncoding.EncodeToString([]byte(file)) + "}\n")
}

// slice makes a CiliumEndpointSlice with the endpoints of the cluster.
func slice(c *kube.Cluster) error {
	var b strings.Builder
	b.WriteString("apiVersion: cilium.io/v2alpha1\nkind: CiliumEndpointSlice\nmetadata: {name: slice-1}\nnamespace: shop\nendpoints:\n")
	for i := range pods {
		b.WriteString(mesh.SliceEntry(c, i))
	}
	return c.Apply(b.String())
}

// tlsSets are methods of making certificates and modes of users.
func tlsSets() []set {
	return []set{
		{name: "authMode=legacy", values: one(meshServer+"tls.authMode", "legacy")},
		{name: "authMode=migration", values: one(meshServer+"tls.authMode", "migration")},
		{name: "authMode=cluster", values: one(meshServer+"tls.authMode", "cluster")},
		cronJob(),
		{name: "tls.auto.method=certmanager", values: with(one(meshServer+"tls.auto.method", "certmanager"),
			one(meshServer+"tls.auto.certManagerIssuerRef", mesh.Values{"group": "cert-manager.io", "kind": "Issuer", "name": "mesh"})),
			before: func(c *kube.Cluster) error { return definition(c, "cert-manager.io", "v1", "Certificate") },
			after:  func(c *kube.Cluster) error { return mesh.IssueCertificates(c, shared.ca) }, remove: fourSecrets},
		{name: "tls.auto.enabled=false, secrets given", values: off(meshServer + "tls.auto.enabled"), before: secrets, remove: fourSecrets},
		{name: "tls.auto.enabled=false, no secrets", values: off(meshServer + "tls.auto.enabled"), breaks: `secret "clustermesh-apiserver-`,
			around: "create the four secrets, or let Helm, the CronJob or cert-manager make them"},
		{name: "tls.caBundle", values: with(on("tls.caBundle.enabled"), one("tls.caBundle.content", string(shared.ca.PEM)))},
		{name: "config.domain of one's own", values: with(one("clustermesh.config.domain", "mesh.example"),
			one(meshServer+"tls.auto.server.extraDnsNames", []string{"*.mesh.example"})),
			breaks: "certificate", around: "add `*.DOMAIN` to `tls.auto.server.extraDnsNames` of every *peer*"},
	}
}

// cronJob is the method with Cilium's certgen where it is at hand; else the test makes the Secrets.
func cronJob() set {
	s := set{name: "tls.auto.method=cronJob", values: one(meshServer+"tls.auto.method", "cronJob"), remove: fourSecrets}
	if os.Getenv("CERTGEN") == "" {
		s.before = secrets
	}
	s.values = append(s.values, mesh.Set("certgen.image", mesh.Values{"override": certgen, "pullPolicy": "Never"}))
	return s
}

// definition applies a stand-in for a kind of another project and waits until it is served.
func definition(c *kube.Cluster, group, version, kind string) error {
	if err := c.Apply(mesh.AnyDefinition(group, version, kind)); err != nil {
		return err
	}
	_, err := c.Try("wait", "--for=condition=Established", "--timeout=30s", "crd/"+strings.ToLower(kind)+"s."+group)
	return err
}

// podSets change what the pod is and how it is reached.
func podSets() []set {
	metrics := meshServer + "metrics."
	strict := mesh.Values{"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
		"capabilities": mesh.Values{"drop": []string{"ALL"}}, "seccompProfile": mesh.Values{"type": "RuntimeDefault"}}
	limits := mesh.Values{"limits": mesh.Values{"memory": "128Mi"}}
	each := func(path string, value any) []mesh.Values {
		return all(value, meshServer+path, meshServer+"etcd."+path, meshServer+"kvstoremesh."+path)
	}
	return []set{
		{name: "no metrics", values: off(metrics+"enabled", metrics+"etcd.enabled", metrics+"kvstoremesh.enabled")},
		{name: "all metrics, extensive, ServiceMonitor", values: with(one(metrics+"etcd.mode", "extensive"), on(metrics+"serviceMonitor.enabled")),
			before: func(c *kube.Cluster) error { return definition(c, "monitoring.coreos.com", "v1", "ServiceMonitor") }, also: metricsAnswer},
		{name: "replicas=2", values: one(meshServer+"replicas", 2)},
		{name: "storageMedium=Memory, replicas=2", values: with(one(meshServer+"etcd.storageMedium", "Memory"), one(meshServer+"replicas", 2))},
		{name: "service.type=LoadBalancer", values: one(meshServer+"service.type", "LoadBalancer")},
		{name: "service.type=ClusterIP", values: with(one(meshServer+"service.type", "ClusterIP"), one(meshServer+"service.externalTrafficPolicy", nil)),
			remark: "set `service.externalTrafficPolicy` to `null`: Kubernetes refuses the chart's default `Cluster` for this type"},
		{name: "511 clusters, cacheTTL=10m", values: with(one("clustermesh.maxConnectedClusters", 511), one("clustermesh.cacheTTL", "10m")),
			remark: "set maxConnectedClusters alike in every cluster: agents refuse a peer with another number, mirrors do not"},
		{name: "debug, extraArgs, extraEnv", values: with(on("debug.enabled"), one(meshServer+"extraArgs", []string{"--controller-group-metrics=all"}),
			one(meshServer+"extraEnv", []mesh.Values{{"name": "CILIUM_ENABLE_HEARTBEAT", "value": "true"}}),
			one(meshServer+"kvstoremesh.extraArgs", []string{"--log-opt=format=json"}))},
		{name: "read-only root, seccomp, PDB, 128 MiB for each container", values: with(each("securityContext", strict), each("resources", limits),
			on(meshServer+"podDisruptionBudget.enabled"))},
		{name: "another user", values: one(meshServer+"podSecurityContext", mesh.Values{
			"runAsNonRoot": true, "runAsUser": 1000730000, "runAsGroup": 0, "fsGroup": 1000730000})},
		{name: "MCS API with the CoreDNS job", values: on("clustermesh.mcsapi.enabled", "clustermesh.mcsapi.corednsAutoConfigure.enabled"),
			before: coredns, remove: []string{"deployment/coredns", "configmap/coredns"}, also: corednsConfigured},
	}
}
