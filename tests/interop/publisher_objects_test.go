package interop

import (
	"fmt"
	"strings"
)

// Random objects: valid objects as users write them, and some invalid objects.

func strs(pairs ...string) dict {
	m := dict{}
	for i := 0; i < len(pairs); i += 2 {
		m[pairs[i]] = pairs[i+1]
	}
	return m
}

// some returns some of the pairs, each with one of its values.
func (w *mesh) some(percent int, pairs ...[]string) dict {
	m := dict{}
	for _, p := range pairs {
		if w.chance(percent) {
			m[p[0]] = one(w, p[1:]...)
		}
	}
	return m
}

func one[T any](w *mesh, of ...T) T { return of[w.rng.IntN(len(of))] }

func (w *mesh) chance(percent int) bool { return w.rng.IntN(100) < percent }

var (
	booleans = []string{"true", "true", "true", "True", "TRUE", "false", "", "yes", " true"}
	// Characters that JSON encoders escape differently.
	odd = []string{"", "v", "<a>&\"\\/", "\u2028\u2029\u0000\u0001\b\f\n\r\t\u007f", "é☃𝄞", strings.Repeat("long ", 50)}
)

func annotated(name string) []string { return append([]string{name}, booleans...) }

func decorated(name string) []string { return append([]string{name}, odd...) }

func (w *mesh) namespaceObject(name string) dict {
	annotations := w.some(30, decorated("x"))
	if w.chance(70) {
		annotations["clustermesh.cilium.io/global"] = one(w, booleans...)
	}
	return dict{"metadata": dict{"name": name, "annotations": annotations}}
}

var (
	v4s     = append(names("10.1.0.", 30), "", "", "")
	v6s     = []string{"fd00::1", "fd00::2", "FD00::3", "fd00:0:0::4", "", "", "", ""}
	badIPs  = []string{"::ffff:10.1.0.3", "010.1.0.1", "10.1", "fe80::1%eth0", "10.1.0.1/32", " 10.1.0.2", "x"}
	hosts   = []string{"172.18.0.2", "172.18.0.3", "fd01::2", "", "x"}
	cidrs   = []string{"10.244.0.0/24", "10.244.1.7/24", "10.9.0.0/10", "fd00::/64", "fd01::1/48", "::ffff:10.0.0.0/104", "0.0.0.0/0", "1.2.3.4/32"}
	wireKey = []string{"key1=", "key2=", ""}
)

func (w *mesh) node(name string) dict {
	addresses := []any{}
	for range w.rng.IntN(4) {
		kind := one(w, "InternalIP", "ExternalIP", "CiliumInternalIP", "Hostname", "")
		addresses = append(addresses, dict{"type": kind, "ip": w.ip()})
	}
	networks := func() []any {
		l := []any{}
		for range w.rng.IntN(4) {
			l = append(l, one(w, cidrs...))
		}
		return l
	}
	ipam := dict{"podCIDRs": networks()}
	if w.chance(30) {
		pools := []any{dict{"pool": "a", "cidrs": networks()}, dict{"pool": "b", "cidrs": networks()}}
		ipam["pools"] = dict{"allocated": pools}
	}
	spec := dict{"addresses": addresses, "ipam": ipam, "bootid": one(w, "", "b-1", odd[2]), "instance-id": "i"}
	for _, field := range []string{"health", "ingress"} {
		if w.chance(60) {
			spec[field] = dict{"ipv4": w.ip(), "ipv6": one(w, v6s...)}
		}
	}
	if w.chance(50) {
		spec["encryption"] = dict{"key": one(w, 0, 3, 255, 256, 300, -1)}
	}
	if w.chance(30) {
		spec["nodeidentity"] = one(w, 0, 1, 4294967297)
	}
	annotations := w.some(40, decorated("x"), append([]string{"network.cilium.io/wg-pub-key"}, wireKey...),
		append([]string{"io.cilium.network.wg-pub-key"}, wireKey...))
	labels := w.some(40, []string{"kubernetes.io/os", "linux", ""}, []string{"l", "v"})
	return dict{
		"apiVersion": "cilium.io/v2", "kind": "CiliumNode", "spec": spec,
		"metadata": dict{"name": name, "labels": labels, "annotations": annotations},
	}
}

func (w *mesh) ip() string {
	if w.chance(6) {
		return one(w, badIPs...)
	}
	return one(w, v4s...)
}

const podNamespace = "k8s:io.kubernetes.pod.namespace"

func (w *mesh) identity(name string) dict {
	labels := w.some(25,
		decorated("k8s:app"), []string{"k8s:a.b/c", "1"}, []string{"unspecified", "v"}, []string{"$host", ""}, []string{"reserved:", "world", ""},
		[]string{"reserved.host", "v"}, []string{"any:app", "any"}, []string{":empty", "v"}, []string{"k8s:two:colons", "v"},
		[]string{"cidr:10.0.0.0/8", ""}, []string{"cidr:x", "v"}, []string{"k8s:", "v"}, []string{"$", "v"},
		[]string{"k8s:io.cilium.k8s.namespace.labels.x", "y"}, []string{"k8s:eq=;", "=;"}, []string{"container:app", "c"}, []string{"io.x", "y"})
	if w.chance(90) {
		labels[podNamespace] = w.anyNamespace()
	}
	return dict{
		"apiVersion": "cilium.io/v2", "kind": "CiliumIdentity", "security-labels": labels,
		"metadata": dict{"name": name, "labels": w.some(30, []string{"app", "a"})},
	}
}

// anyNamespace is a namespace that may not exist.
func (w *mesh) anyNamespace() string {
	if w.chance(5) {
		return one(w, "", "nowhere")
	}
	return one(w, w.namespaces...)
}

func (w *mesh) networking() dict {
	pairs := []any{}
	for range one(w, 0, 1, 1, 1, 1, 1, 2) {
		pair := dict{}
		if ip := w.ip(); ip != "" || w.chance(50) {
			pair["ipv4"] = ip
		}
		if ip := one(w, v6s...); ip != "" {
			pair["ipv6"] = ip
		}
		pairs = append(pairs, pair)
	}
	networking := dict{"addressing": pairs}
	if w.chance(90) {
		networking["node"] = one(w, hosts...)
	}
	return networking
}

func (w *mesh) namedPorts() []any {
	ports := []any{}
	for i := range 1 + w.rng.IntN(3) {
		p := dict{"name": fmt.Sprint("p", i), "port": one(w, 0, 80, 65535), "protocol": one(w, "TCP", "UDP", "ANY")}
		if w.chance(10) {
			delete(p, one(w, "name", "port", "protocol"))
		}
		ports = append(ports, p)
	}
	return ports
}

// endpoint has the fields that a CiliumEndpoint's status and a CiliumEndpointSlice share.
func (w *mesh) endpoint(object dict) dict {
	if w.chance(95) {
		object["networking"] = w.networking()
	}
	if w.chance(40) {
		object["encryption"] = dict{"key": one(w, 0, 5, 255, 256, 300, -1)}
	}
	if w.chance(40) {
		object["service-account"] = one(w, "sa", "default", odd[2], "")
	}
	if w.chance(25) {
		object["named-ports"] = w.namedPorts()
	}
	return object
}

var ids64 = []int64{0, 1, 196609, 196610, 196611, 4294967295, 4294967297, -1}

func (w *mesh) ciliumEndpoint(name string) dict {
	object := dict{"apiVersion": "cilium.io/v2", "kind": "CiliumEndpoint", "metadata": dict{"name": name}}
	if w.chance(97) {
		status := w.endpoint(dict{"id": 1, "state": one(w, "ready", "creating", "invalid")})
		if w.chance(90) {
			status["identity"] = dict{"id": one(w, ids64...), "labels": []any{"k8s:app=a"}}
		}
		object["status"] = status
	}
	return object
}

func (w *mesh) ciliumEndpointSlice(name string) dict {
	endpoints := []any{}
	for range w.rng.IntN(5) {
		e := w.endpoint(dict{"name": fmt.Sprint("p", 1+w.rng.IntN(6))})
		if w.chance(95) {
			e["id"] = one(w, ids64...)
		}
		endpoints = append(endpoints, e)
	}
	object := dict{
		"apiVersion": "cilium.io/v2alpha1", "kind": "CiliumEndpointSlice", "metadata": dict{"name": name}, "endpoints": endpoints,
	}
	if namespace := w.anyNamespace(); namespace != "" || w.chance(50) {
		object["namespace"] = namespace
	}
	return object
}
