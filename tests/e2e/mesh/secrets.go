package mesh

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"

	"isthmus.dev/e2e/kube"
	"isthmus.dev/e2e/pki"
)

// Secret is the manifest of a TLS secret of Cluster Mesh.
func Secret(name string, pair pki.Pair, ca []byte) string {
	encode := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("---\napiVersion: v1\nkind: Secret\ntype: kubernetes.io/tls\nmetadata: {name: %s, namespace: %s}\n"+
		"data: {tls.crt: %s, tls.key: %s, ca.crt: %s}\n", name, Namespace, encode(pair.Cert), encode(pair.Key), encode(ca))
}

// ServerHosts are the names and addresses of the chart's server certificate.
var ServerHosts = []string{"clustermesh-apiserver." + Namespace + ".svc", "*.mesh.cilium.io", "127.0.0.1", "::1"}

// Secrets are the four secrets that certgen would make, or that an administrator provides.
func Secrets(cluster string, ca *pki.CA) string {
	var b strings.Builder
	server := pki.Request{CommonName: "clustermesh-apiserver." + Namespace + ".svc", Hosts: ServerHosts, Server: true}
	b.WriteString(Secret("clustermesh-apiserver-server-cert", ca.Issue(server), ca.PEM))
	for secret, name := range map[string]string{AdminUser: "admin-" + cluster, RemoteUser: "remote", LocalUser: "local-" + cluster} {
		b.WriteString(Secret(secret, ca.Issue(pki.Request{CommonName: name, Client: true}), ca.PEM))
	}
	return b.String()
}

// IssueCertificates does what cert-manager does with the Certificates of the chart. Without usages in them, cert-manager sets
// no extended key usage.
func IssueCertificates(cluster *kube.Cluster, ca *pki.CA) error {
	out, err := cluster.Try("get", "certificates.cert-manager.io", "-n", Namespace, "-o", "json")
	if err != nil {
		return err
	}
	var list struct {
		Items []struct {
			Spec struct {
				SecretName, CommonName string
				DNSNames               []string `json:"dnsNames"`
				IPAddresses            []string `json:"ipAddresses"`
			}
		}
	}
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return err
	}
	var b strings.Builder
	for _, item := range list.Items {
		hosts := append(item.Spec.DNSNames, item.Spec.IPAddresses...)
		b.WriteString(Secret(item.Spec.SecretName, ca.Issue(pki.Request{CommonName: item.Spec.CommonName, Hosts: hosts}), ca.PEM))
	}
	return cluster.Apply(b.String())
}

// AnyDefinition is the definition of a kind whose objects may contain anything: a stand-in for what another project installs.
func AnyDefinition(group, version, kind string) string {
	plural := strings.ToLower(kind) + "s"
	return fmt.Sprintf(`---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: %[3]s.%[1]s
  annotations: {api-approved.kubernetes.io: unapproved}
spec:
  group: %[1]s
  names: {kind: %[4]s, plural: %[3]s}
  scope: Namespaced
  versions:
  - name: %[2]s
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
`, group, version, plural, kind)
}
