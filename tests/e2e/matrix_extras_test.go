package e2e

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"isthmus.dev/e2e/kube"
	"isthmus.dev/e2e/mesh"
)

// metricsAnswer reads the three endpoints of metrics.
func metricsAnswer(_ *kube.Cluster, list []mesh.Pod) error {
	for port, series := range map[int]string{
		9962: "cilium_clustermesh_apiserver_", 9963: "etcd_server_has_leader 1", 9964: "cilium_kvstoremesh_remote_clusters 1",
	} {
		url := fmt.Sprintf("http://%s:%d/metrics", list[0].Status.PodIP, port)
		response, err := http.Get(url)
		if err != nil {
			return err
		}
		body, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil || response.StatusCode != http.StatusOK || !strings.Contains(string(body), series) {
			return fmt.Errorf("%s answers %s without %q: %v", url, response.Status, series, err)
		}
	}
	return nil
}

const corefile = `.:53 {
    errors
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
       pods insecure
       fallthrough in-addr.arpa ip6.arpa
       ttl 30
    }
    forward . /etc/resolv.conf
    cache 30
}
`

// coredns makes what the job finds in a cluster: a Deployment and a ConfigMap. The image is not CoreDNS: the job reads the
// version from its tag.
func coredns(c *kube.Cluster) error {
	for _, kind := range []string{"ServiceExport", "ServiceImport"} {
		if err := definition(c, "multicluster.x-k8s.io", "v1beta1", kind); err != nil {
			return err
		}
	}
	indented := "    " + strings.ReplaceAll(strings.TrimSpace(corefile), "\n", "\n    ")
	return c.Apply(fmt.Sprintf(`apiVersion: v1
kind: ConfigMap
metadata: {name: coredns, namespace: kube-system}
data:
  Corefile: |
%s
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: coredns, namespace: kube-system}
spec:
  selector: {matchLabels: {k8s-app: kube-dns}}
  template:
    metadata: {labels: {k8s-app: kube-dns}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: coredns, image: %s, imagePullPolicy: Never}]
`, indented, coreDNS))
}

// corednsConfigured waits for the job: CoreDNS serves the domain of the set of clusters.
func corednsConfigured(c *kube.Cluster, _ []mesh.Pod) error {
	return mesh.Eventually(30*time.Second, func() error {
		out, err := c.Try("get", "configmap", "-n", mesh.Namespace, "coredns", "-o", "jsonpath={.data.Corefile}")
		if err == nil && !(strings.Contains(out, "clusterset.local") && strings.Contains(out, "multicluster")) {
			jobs, _ := c.Try("get", "jobs,pods", "-n", mesh.Namespace)
			err = fmt.Errorf("the Corefile is unchanged: %s\n%s", out, jobs)
		}
		return err
	})
}
