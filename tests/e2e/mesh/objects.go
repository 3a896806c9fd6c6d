package mesh

import (
	"fmt"
	"strings"

	"isthmus.dev/e2e/kube"
)

// Objects are the manifests of what an agent and an operator would make in a cluster with some pods: a node for each machine,
// one identity, an endpoint for each pod, and a global service with a slice of them.
func Objects(cluster *kube.Cluster, pods int) string {
	var b strings.Builder
	fmt.Fprintln(&b, "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}")
	for i, node := range cluster.Nodes {
		fmt.Fprintf(&b, `---
apiVersion: cilium.io/v2
kind: CiliumNode
metadata: {name: %s}
spec:
  addresses: [{type: InternalIP, ip: %s}]
  ipam: {podCIDRs: [%s.%d.0/24]}
`, node.Name, node.Address, cluster.PodNet, i)
	}
	id := Identity(cluster)
	fmt.Fprintf(&b, `---
apiVersion: cilium.io/v2
kind: CiliumIdentity
metadata: {name: "%d", labels: {io.kubernetes.pod.namespace: shop}}
security-labels:
  k8s:app: web
  k8s:io.cilium.k8s.policy.cluster: %s
  k8s:io.cilium.k8s.policy.serviceaccount: default
  k8s:io.kubernetes.pod.namespace: shop
`, id, cluster.Name)
	var endpoints []string
	for i := range pods {
		b.WriteString(Endpoint(cluster, i))
		endpoints = append(endpoints, fmt.Sprintf("{addresses: [%s], conditions: {ready: true}}", PodIP(cluster, i)))
	}
	fmt.Fprintf(&b, `---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, annotations: {service.cilium.io/global: "true"}}
spec: {ports: [{name: http, port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 80, protocol: TCP}]
endpoints: [%s]
`, strings.Join(endpoints, ", "))
	return b.String()
}

// Identity is the number of the identity of the pods: the cluster's number is in the bits above the lowest 16.
func Identity(cluster *kube.Cluster) int { return cluster.ID<<16 + 4242 }

// PodIP is the address of a pod that exists as an endpoint only.
func PodIP(cluster *kube.Cluster, i int) string {
	return fmt.Sprintf("%s.%d.%d", cluster.PodNet, 200+i/200, 10+i%200)
}

// Endpoint is the manifest of the endpoint of a pod.
func Endpoint(cluster *kube.Cluster, i int) string {
	return fmt.Sprintf(`---
apiVersion: cilium.io/v2
kind: CiliumEndpoint
metadata: {name: web-%d, namespace: shop}
status:
  id: %d
  identity: {id: %d, labels: ["k8s:app=web"]}
  networking: {addressing: [{ipv4: %s}], node: %s}
  state: ready
`, i, 100+i, Identity(cluster), PodIP(cluster, i), cluster.Nodes[i%len(cluster.Nodes)].Address)
}

// SliceEntry is the entry of the endpoint of a pod in a CiliumEndpointSlice.
func SliceEntry(cluster *kube.Cluster, i int) string {
	return fmt.Sprintf("- {name: web-%d, id: %d, networking: {addressing: [{ipv4: %s}], node: %s}}\n",
		i, Identity(cluster), PodIP(cluster, i), cluster.Nodes[i%len(cluster.Nodes)].Address)
}
