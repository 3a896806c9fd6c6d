package mesh

import (
	"fmt"

	"isthmus.dev/e2e/kube"
)

// Config is the manifest of `cilium-config` in a cluster that has its name and number: what the agents' part of the chart makes.
func Config(cluster *kube.Cluster) string {
	return fmt.Sprintf(`apiVersion: v1
kind: ConfigMap
metadata: {name: cilium-config, namespace: kube-system}
data:
  cluster-name: %s
  cluster-id: "%d"
  max-connected-clusters: "255"
  identity-allocation-mode: crd
  routing-mode: tunnel
  tunnel-protocol: vxlan
  ipam: cluster-pool
  cluster-pool-ipv4-cidr: %s.0.0/16
`, cluster.Name, cluster.ID, cluster.PodNet)
}

// Agents is the manifest of stand-in agents: the DaemonSet of the chart as tools look for it, with the volumes that the chart
// gives to agents.
func Agents(cluster *kube.Cluster, image string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: ServiceAccount
metadata: {name: cilium, namespace: kube-system}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: cilium}
rules: [{apiGroups: [""], resources: [services], verbs: [get]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: cilium}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cilium}
subjects: [{kind: ServiceAccount, name: cilium, namespace: kube-system}]
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: cilium, namespace: kube-system, labels: {k8s-app: cilium}}
spec:
  selector: {matchLabels: {k8s-app: cilium}}
  template:
    metadata: {labels: {k8s-app: cilium}}
    spec:
      serviceAccountName: cilium
      hostNetwork: true
      terminationGracePeriodSeconds: 1
      tolerations: [{operator: Exists}]
      containers:
      - name: cilium-agent
        image: %[2]s
        imagePullPolicy: Never
        command: [/usr/bin/cilium, run]
        env: [{name: CLUSTER_NAME, value: %[1]s}]
        volumeMounts: [{name: clustermesh-secrets, mountPath: /var/lib/cilium/clustermesh, readOnly: true}]
      volumes:
      - name: clustermesh-secrets
        projected:
          defaultMode: 0400
          sources:
          - secret: {name: cilium-clustermesh, optional: true}
          - secret:
              name: clustermesh-apiserver-remote-cert
              optional: true
              items:
              - {key: tls.key, path: common-etcd-client.key}
              - {key: tls.crt, path: common-etcd-client.crt}
              - {key: ca.crt, path: common-etcd-client-ca.crt}
          - secret:
              name: clustermesh-apiserver-local-cert
              optional: true
              items:
              - {key: tls.key, path: local-etcd-client.key}
              - {key: tls.crt, path: local-etcd-client.crt}
              - {key: ca.crt, path: local-etcd-client-ca.crt}
`, cluster.Name, image)
}
