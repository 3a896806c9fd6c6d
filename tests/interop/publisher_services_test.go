package interop

import "fmt"

// Random services, slices and exports.

func (w *mesh) service(name string) dict {
	labels := w.some(8, []string{"service.kubernetes.io/headless", ""}, []string{"service.kubernetes.io/service-proxy-name", "other"})
	for k, v := range w.some(40, []string{"app", "a", "b", ""}, []string{"x.y/z", "1"}) {
		labels[k] = v
	}
	annotations := w.some(15, annotated("io.cilium/global-service"), annotated("service.cilium.io/shared"),
		annotated("io.cilium/shared-service"), []string{"service.cilium.io/affinity", "local", "x"}, decorated("x"))
	if w.chance(75) {
		annotations["service.cilium.io/global"] = one(w, booleans...)
	}
	spec := dict{"ports": w.servicePorts()}
	switch w.rng.IntN(10) {
	case 0:
		spec = dict{"type": "ExternalName", "externalName": "example.org"}
		if w.chance(50) {
			spec["ports"] = w.servicePorts()
		}
	case 1, 2:
		spec["clusterIP"] = "None"
	case 3:
		// A headless service without a selector has both IP families, whatever its addresses have.
		spec["clusterIP"] = "None"
		spec["ipFamilyPolicy"] = "RequireDualStack"
		delete(spec, "selector")
	case 4:
		spec["type"] = one(w, "NodePort", "LoadBalancer")
	}
	if w.chance(50) && spec["ipFamilyPolicy"] == nil {
		spec["selector"] = w.some(60, []string{"app", "a", ""}, []string{"tier", "b"})
	}
	if spec["type"] != "ExternalName" {
		w.traffic(spec)
	}
	return dict{"metadata": dict{"name": name, "labels": labels, "annotations": annotations}, "spec": spec}
}

func (w *mesh) traffic(spec dict) {
	if w.chance(30) {
		spec["sessionAffinity"] = "ClientIP"
		if w.chance(50) {
			spec["sessionAffinityConfig"] = dict{"clientIP": dict{"timeoutSeconds": one(w, 1, 10800, 86400)}}
		}
	}
	if w.chance(30) {
		spec["internalTrafficPolicy"] = one(w, "Cluster", "Local")
	}
	if w.chance(30) {
		spec["trafficDistribution"] = one(w, "PreferClose", "PreferSameZone", "PreferSameNode")
	}
}

func (w *mesh) servicePorts() []any {
	ports := []any{}
	n := one(w, 1, 1, 2, 3)
	for i := range n {
		p := dict{"name": fmt.Sprint("p", i), "port": one(w, 80, 443, 65535) - i, "protocol": one(w, "TCP", "UDP", "SCTP")}
		if n == 1 && w.chance(40) {
			delete(p, "name")
		}
		if w.chance(20) {
			p["appProtocol"] = one(w, "http", "kubernetes.io/h2c")
		}
		if w.chance(20) {
			p["targetPort"] = one[any](w, 8080, "web")
		}
		ports = append(ports, p)
	}
	return ports
}

func (w *mesh) slice(name string) dict {
	labels := w.some(5, []string{"endpointslice.kubernetes.io/managed-by", "endpointslice-mesh-controller.cilium.io", "x"})
	for k, v := range w.some(20, []string{"l", "v"}, []string{"service.kubernetes.io/headless", ""}) {
		labels[k] = v
	}
	if w.chance(95) {
		labels["kubernetes.io/service-name"] = one(w, "s1", "s2", "s3", "s4", "s5", "nowhere", "")
	}
	family := one(w, "IPv4", "IPv4", "IPv4", "IPv6", "FQDN")
	endpoints := []any{}
	for range w.rng.IntN(5) {
		endpoints = append(endpoints, w.sliceEndpoint(family))
	}
	ports := []any{}
	for i := range w.rng.IntN(4) {
		p := dict{"name": fmt.Sprint("p", i), "port": one(w, 80, 8080, 65535) - i, "protocol": one(w, "TCP", "UDP", "SCTP")}
		for _, field := range []string{"name", "port", "protocol"} {
			if w.chance(15) && (field != "name" || i == 0) {
				delete(p, field)
			}
		}
		if w.chance(20) {
			p["appProtocol"] = one(w, "http", "kubernetes.io/ws")
		}
		ports = append(ports, p)
	}
	return dict{
		"metadata":    dict{"name": name, "labels": labels, "annotations": w.some(30, decorated("x"))},
		"addressType": family, "endpoints": endpoints, "ports": ports,
	}
}

func (w *mesh) sliceEndpoint(family string) dict {
	addresses := map[string][]string{
		"IPv4": {"10.2.0.1", "10.2.0.2", "10.2.0.3", "10.2.0.4", "10.2.0.5", "10.2.0.6"},
		"IPv6": {"fd02::1", "fd02::2", "fd02::3", "fd02::4"},
		"FQDN": {"a.example.org", "b.example.org"},
	}[family]
	e := dict{"addresses": []any{one(w, addresses...)}}
	if w.chance(15) {
		e["addresses"] = []any{addresses[0], addresses[1]}
	}
	if w.chance(70) {
		conditions := dict{}
		for _, condition := range []string{"ready", "serving", "terminating"} {
			if w.chance(60) {
				conditions[condition] = w.chance(60)
			}
		}
		e["conditions"] = conditions
	}
	if w.chance(30) {
		e["hostname"] = one(w, "h1", "h2")
	}
	if w.chance(40) {
		e["nodeName"] = one(w, "node1", "node2")
	}
	if w.chance(40) {
		e["zone"] = one(w, "z1", "z2", "")
	}
	if w.chance(10) {
		e["deprecatedTopology"] = w.some(50, []string{"topology.kubernetes.io/zone", "z9"}, []string{"kubernetes.io/hostname", "n9"}, []string{"x", "y"})
	}
	if w.chance(30) {
		zones := []any{}
		for i := range w.rng.IntN(3) {
			zones = append(zones, dict{"name": fmt.Sprint("z", 2-i)})
		}
		e["hints"] = dict{"forZones": zones}
		if w.chance(20) {
			e["hints"].(dict)["forNodes"] = []any{dict{"name": "node1"}}
		}
	}
	return e
}

func (w *mesh) export(name string) dict {
	object := dict{
		"apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport",
		"metadata": dict{"name": name, "annotations": w.some(20, decorated("x"))},
	}
	if w.chance(60) {
		object["spec"] = dict{
			"exportedLabels":      w.some(50, []string{"l", "v", ""}, []string{"x.y/z", "1"}),
			"exportedAnnotations": w.some(50, decorated("a"), []string{"b", "1"}),
		}
	}
	return object
}
