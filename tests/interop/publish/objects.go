package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"strings"
)

// Objects are rendered as an API server shows them, with the managed fields that make up half of a small object, because
// a publisher has to decode what it ignores, too.

const created = "2026-11-20T10:00:00Z"

func (w *world) uid(of string) string {
	h := fnv.New128a()
	h.Write([]byte(of))
	b := h.Sum(nil)
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// metadata renders the metadata of an object. Labels and annotations are JSON.
func (w *world) metadata(namespace, name string, version int64, labels, annotations, more string) string {
	var b bytes.Buffer
	b.WriteByte('{')
	if annotations != "" {
		fmt.Fprintf(&b, `"annotations":%s,`, annotations)
	}
	fmt.Fprintf(&b, `"creationTimestamp":%q,"generation":1,`, created)
	if labels != "" {
		fmt.Fprintf(&b, `"labels":%s,`, labels)
	}
	b.WriteString(more)
	fmt.Fprintf(&b, `"name":%q,`, name)
	if namespace != "" {
		fmt.Fprintf(&b, `"namespace":%q,`, namespace)
	}
	fmt.Fprintf(&b, `"resourceVersion":"%d","uid":%q}`, version, w.uid(namespace+"/"+name))
	return b.String()
}

// managed renders managedFields with a manager's fields.
func managed(version, manager, fields string) string {
	return fmt.Sprintf(`"managedFields":[{"apiVersion":%q,"fieldsType":"FieldsV1","fieldsV1":%s,"manager":%q,"operation":"Update","time":%q}],`,
		version, fields, manager, created)
}

func text(v any) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(v)
	return strings.TrimSpace(b.String())
}

const managedEndpoint = `{"f:metadata":{"f:labels":{".":{},"f:app.kubernetes.io/instance":{},"f:app.kubernetes.io/name":{},` +
	`"f:pod-template-hash":{},"f:topology.kubernetes.io/zone":{}},"f:ownerReferences":{".":{},` +
	`"k:{\"uid\":\"5f0c9c1e-6bb5-4a3c-9d0e-6f1f6f3f2a11\"}":{}}},"f:status":{".":{},"f:encryption":{},` +
	`"f:external-identifiers":{".":{},"f:cni-attachment-id":{},"f:container-id":{},"f:k8s-namespace":{},` +
	`"f:k8s-pod-name":{},"f:pod-name":{}},"f:id":{},"f:identity":{".":{},"f:id":{},"f:labels":{}},` +
	`"f:named-ports":{},"f:networking":{".":{},"f:addressing":{},"f:node":{}},"f:policy":{".":{},"f:egress":{` +
	`".":{},"f:enforcing":{},"f:state":{}},"f:ingress":{".":{},"f:enforcing":{},"f:state":{}}},` +
	`"f:service-account":{},"f:state":{}}}`

func (w *world) endpoint(p *pod, version int64) []byte {
	ns, name := nsName(p.ns), p.name()
	labels := text(map[string]string{
		"app.kubernetes.io/name": p.app(), "app.kubernetes.io/instance": p.app() + "-" + ns,
		"pod-template-hash": "7f9c5d6b8c", "topology.kubernetes.io/zone": zone(p.node),
	})
	owner := fmt.Sprintf(`"ownerReferences":[{"apiVersion":"v1","kind":"Pod","name":%q,"uid":%q}],`, name, w.uid("pod/"+name))
	meta := w.metadata(ns, name, version, labels, "", managed("cilium.io/v2", "cilium-agent", managedEndpoint)+owner)
	ports := ""
	if p.ports() != nil {
		ports = `"named-ports":[{"name":"http","port":8080,"protocol":"TCP"},{"name":"metrics","port":9090,"protocol":"TCP"}],`
	}
	container := strings.ReplaceAll(w.uid("container/"+name), "-", "")
	return fmt.Appendf(nil, `{"apiVersion":"cilium.io/v2","kind":"CiliumEndpoint","metadata":%s,"status":{"encryption":{},`+
		`"external-identifiers":{"cni-attachment-id":"%s%s:eth0","container-id":"%s%s","k8s-namespace":%q,"k8s-pod-name":%q,"pod-name":"%s/%s"},`+
		`"id":%d,"identity":{"id":%d,"labels":%s},%s"networking":{"addressing":[{"ipv4":%q}],"node":%q},`+
		`"policy":{"egress":{"enforcing":false,"state":"<status disabled>"},"ingress":{"enforcing":true,"state":"<status disabled>"}},`+
		`"service-account":%q,"state":"ready"}}`,
		meta, container, container, container, container, ns, name, ns, name, p.index%4096+1, p.identity,
		text(p.securityLabels()), ports, p.ip(), p.host(), p.account())
}

// securityLabels are the labels of a pod's identity, as cilium-agent derives them.
func (p *pod) securityLabels() []string {
	var all []string
	for k, v := range identityLabels(p.identity, p.ns) {
		all = append(all, k+"="+v)
	}
	return all
}

func (w *world) ciliumSlice(s *ciliumSlice, version int64) []byte {
	fields := `{"f:endpoints":{},"f:namespace":{}}`
	meta := w.metadata("", s.name, version, "", "", managed("cilium.io/v2alpha1", "cilium-operator", fields))
	var b bytes.Buffer
	fmt.Fprintf(&b, `{"apiVersion":"cilium.io/v2alpha1","kind":"CiliumEndpointSlice","metadata":%s,"namespace":%q,"endpoints":[`, meta, nsName(s.ns))
	for i, p := range s.pods {
		if i > 0 {
			b.WriteByte(',')
		}
		ports := ""
		if p.ports() != nil {
			ports = `"named-ports":[{"name":"http","port":8080,"protocol":"TCP"},{"name":"metrics","port":9090,"protocol":"TCP"}],`
		}
		fmt.Fprintf(&b, `{"encryption":{},"id":%d,"name":%q,%s"networking":{"addressing":[{"ipv4":%q}],"node":%q},"service-account":%q}`,
			p.identity, p.name(), ports, p.ip(), p.host(), p.account())
	}
	b.WriteString("]}")
	return b.Bytes()
}

func (w *world) identity(id, ns int, version int64) []byte {
	labels := identityLabels(id, ns)
	own := map[string]string{"app.kubernetes.io/name": labels["k8s:app.kubernetes.io/name"], "io.kubernetes.pod.namespace": nsName(ns)}
	fields := `{"f:metadata":{"f:labels":{".":{},"f:app.kubernetes.io/name":{},"f:io.kubernetes.pod.namespace":{}}},` +
		`"f:security-labels":{".":{},"f:k8s:app.kubernetes.io/name":{},"f:k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name":{},` +
		`"f:k8s:io.cilium.k8s.policy.cluster":{},"f:k8s:io.cilium.k8s.policy.serviceaccount":{},"f:k8s:io.kubernetes.pod.namespace":{}}}`
	meta := w.metadata("", fmt.Sprint(id), version, text(own), "", managed("cilium.io/v2", "cilium-agent", fields))
	return fmt.Appendf(nil, `{"apiVersion":"cilium.io/v2","kind":"CiliumIdentity","metadata":%s,"security-labels":%s}`, meta, text(labels))
}

const managedNode = `{"f:metadata":{"f:annotations":{".":{},"f:network.cilium.io/wg-pub-key":{}},"f:labels":{".":{},` +
	`"f:beta.kubernetes.io/arch":{},"f:kubernetes.io/hostname":{},"f:topology.kubernetes.io/region":{},` +
	`"f:topology.kubernetes.io/zone":{}},"f:ownerReferences":{}},"f:spec":{".":{},"f:addresses":{},` +
	`"f:alibaba-cloud":{},"f:azure":{},"f:bootid":{},"f:encryption":{},"f:eni":{},"f:health":{".":{},"f:ipv4":{}},` +
	`"f:ingress":{},"f:ipam":{".":{},"f:podCIDRs":{},"f:pools":{}}},"f:status":{}}`

func (w *world) nodeObject(n *node, version int64) []byte {
	owner := fmt.Sprintf(`"ownerReferences":[{"apiVersion":"v1","kind":"Node","name":%q,"uid":%q}],`, n.name(), w.uid("node/"+n.name()))
	meta := w.metadata("", n.name(), version, text(n.labels()), text(n.annotations()), managed("cilium.io/v2", "cilium-agent", managedNode)+owner)
	return fmt.Appendf(nil, `{"apiVersion":"cilium.io/v2","kind":"CiliumNode","metadata":%s,"spec":{"addresses":[{"ip":%q,"type":"InternalIP"},`+
		`{"ip":%q,"type":"CiliumInternalIP"}],"alibaba-cloud":{},"azure":{},"bootid":%q,"encryption":{},"eni":{},"health":{"ipv4":%q},"ingress":{},`+
		`"ipam":{"podCIDRs":[%q],"pools":{}}},"status":{"alibaba-cloud":{},"azure":{},"eni":{},"ipam":{"operator-status":{}}}}`,
		meta, n.ip(), n.inner(1), w.uid("boot/"+n.name()), n.inner(2), n.inner(0)+"/24")
}

func (w *world) namespaceObject(i int, version int64) []byte {
	annotations := `{"scheduler.alpha.kubernetes.io/node-selector":""}`
	if !isGlobal(i) {
		annotations = `{"clustermesh.cilium.io/global":"false"}`
	}
	fields := `{"f:metadata":{"f:labels":{".":{},"f:kubernetes.io/metadata.name":{}}}}`
	meta := w.metadata("", nsName(i), version, text(map[string]string{"kubernetes.io/metadata.name": nsName(i)}), annotations,
		managed("v1", "kubectl-create", fields))
	return fmt.Appendf(nil, `{"apiVersion":"v1","kind":"Namespace","metadata":%s,"spec":{"finalizers":["kubernetes"]},"status":{"phase":"Active"}}`, meta)
}

const managedService = `{"f:metadata":{"f:annotations":{".":{},"f:service.cilium.io/global":{}},"f:labels":{".":{},` +
	`"f:app.kubernetes.io/managed-by":{},"f:app.kubernetes.io/name":{}}},"f:spec":{"f:internalTrafficPolicy":{},` +
	`"f:ports":{".":{},"k:{\"port\":80,\"protocol\":\"TCP\"}":{".":{},"f:name":{},"f:port":{},"f:protocol":{},` +
	`"f:targetPort":{}}},"f:selector":{},"f:sessionAffinity":{},"f:type":{}}}`

func (w *world) serviceObject(s *service, version int64) []byte {
	annotations := `{"meta.helm.sh/release-name":"app","meta.helm.sh/release-namespace":"` + nsName(s.ns) + `"}`
	if s.global {
		annotations = `{"service.cilium.io/global":"true"}`
	}
	meta := w.metadata(nsName(s.ns), s.name(), version, text(s.labels()), annotations, managed("v1", "helm", managedService))
	return fmt.Appendf(nil, `{"apiVersion":"v1","kind":"Service","metadata":%s,"spec":{"clusterIP":%q,"clusterIPs":[%q],"internalTrafficPolicy":"Cluster",`+
		`"ipFamilies":["IPv4"],"ipFamilyPolicy":"SingleStack","ports":[{"name":"http","port":80,"protocol":"TCP","targetPort":8080},`+
		`{"name":"metrics","port":9090,"protocol":"TCP","targetPort":9090}],"selector":%s,"sessionAffinity":"None","type":"ClusterIP"},"status":{"loadBalancer":{}}}`,
		meta, s.ip(), s.ip(), text(s.selector()))
}

func (w *world) sliceObject(s *service, version int64) []byte {
	owner := fmt.Sprintf(`"generateName":"%s-","ownerReferences":[{"apiVersion":"v1","blockOwnerDeletion":true,"controller":true,"kind":"Service","name":%q,"uid":%q}],`,
		s.name(), s.name(), w.uid("service/"+s.name()))
	fields := `{"f:addressType":{},"f:endpoints":{},"f:metadata":{"f:annotations":{},"f:generateName":{},"f:labels":{},"f:ownerReferences":{}},"f:ports":{}}`
	meta := w.metadata(nsName(s.ns), s.sliceName(), version, text(s.sliceLabels()), text(s.sliceAnnotations()),
		managed("discovery.k8s.io/v1", "kube-controller-manager", fields)+owner)
	var b bytes.Buffer
	fmt.Fprintf(&b, `{"addressType":"IPv4","apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","metadata":%s,"endpoints":[`, meta)
	for i, p := range s.pods {
		if i > 0 {
			b.WriteByte(',')
		}
		up := !s.down[i]
		fmt.Fprintf(&b, `{"addresses":[%q],"conditions":{"ready":%t,"serving":%t,"terminating":false},"nodeName":%q,`+
			`"targetRef":{"kind":"Pod","name":%q,"namespace":%q,"uid":%q},"zone":%q}`,
			p.ip(), up, up, w.nodes[p.node].name(), p.name(), nsName(p.ns), w.uid("pod/"+p.name()), zone(p.node))
	}
	b.WriteString(`],"ports":[{"name":"http","port":8080,"protocol":"TCP"},{"name":"metrics","port":9090,"protocol":"TCP"}]}`)
	return b.Bytes()
}

func (w *world) crd(plural, group, name, version string, resourceVersion int64) []byte {
	meta := w.metadata("", plural+"."+group, resourceVersion, `{"io.cilium.k8s.crd.schema.version":"1.32.0"}`, "", "")
	return fmt.Appendf(nil, `{"apiVersion":"apiextensions.k8s.io/v1","kind":"CustomResourceDefinition","metadata":%s,"spec":{"group":%q,`+
		`"names":{"kind":%q,"plural":%q},"scope":"Namespaced","versions":[{"name":%q,"served":true,"storage":true}]},`+
		`"status":{"acceptedNames":{"kind":%q,"plural":%q},"conditions":[{"type":"Established","status":"True"},{"type":"NamesAccepted","status":"True"}],`+
		`"storedVersions":[%q]}}`,
		meta, group, name, plural, version, name, plural, version)
}
