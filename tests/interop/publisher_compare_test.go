package interop

import (
	"encoding/json"
	"fmt"
	stdmaps "maps"
	"regexp"
	"slices"
	"strings"
)

// Two publishers may publish the same objects differently in these cases:
//   - an invalid address: the original writes it under the key `<nil>`, where all invalid addresses collide and which
//     readers reject; Isthmus omits it;
//   - an address that several slices of a service have: the original takes the ports of one of them, by chance; Isthmus
//     takes the ports of all;
//   - a service of type ExternalName has no address: the original publishes an empty one, for which readers reject the
//     whole service; Isthmus may omit it;
//   - labels of an identity that differ only in their source: the original takes one by chance;
//   - the owner of an address that several pods claim, where the publishers may have seen the pods in different orders;
//   - an identity or a slice that turned invalid keeps its last valid keys, which a publisher that has just started does
//     not know; Isthmus withdraws them with their namespace, the original does not;
//   - compressed slices: the decoded contents are compared.

const (
	stateIP         = "cilium/state/ip/v1/default/"
	stateServices   = "cilium/state/services/v1/c3/"
	stateIdentities = "cilium/state/identities/v1/id/"
	stateSlices     = "cilium/state/endpointslices/v1/c3/"
	stateExports    = "cilium/state/serviceexports/v1/c3/"
)

type deviation struct{ key, ours, theirs string }

func (d deviation) String() string {
	return fmt.Sprintf("%s\n     is %s\n Cilium %s", d.key, d.ours, d.theirs)
}

func known(d deviation) bool {
	matches, err := regexp.MatchString(*publisherKnown, d.String())
	return *publisherKnown != "" && (matches || err != nil)
}

// pair says how two publishers differ that are compared.
type pair struct {
	// Whether one publisher has just started, and so saw the objects in another order.
	anew bool
	// Whether both publishers are Cilium's.
	originals bool
	contested map[string][]claimant
}

// differences lists where the keys differ from those of Cilium's publisher.
func (w *mesh) differences(ours, theirs map[string]string, of pair) []deviation {
	of.contested = w.contested()
	all := stdmaps.Clone(ours)
	stdmaps.Copy(all, theirs)
	var found []deviation
	for _, key := range slices.Sorted(stdmaps.Keys(all)) {
		mine, here := ours[key]
		other, there := theirs[key]
		if here && there && (mine == other || strings.HasPrefix(key, "cilium/synced/")) {
			if address := strings.TrimPrefix(key, stateIP); of.contested[address] != nil && !of.anew && !w.unordered[address] {
				w.seen["contested addresses of a known order"]++
			}
			continue
		}
		d := deviation{key, shown(mine, here), shown(other, there)}
		if !known(d) && !w.allowed(key, mine, other, here, there, of) {
			found = append(found, d)
		}
	}
	return found
}

func (w *mesh) allowed(key, mine, other string, here, there bool, of pair) bool {
	if key == stateIP+"<nil>" {
		return of.originals || !here
	}
	// With slices only, the original omits this canary, and a reader without support for slices waits for ever.
	if key == "cilium/synced/c3/cilium/state/services/v1" {
		return here
	}
	if !here || !there {
		return there && w.isExternal(key) || (there || of.anew) && w.isInvalid(key)
	}
	switch {
	case strings.HasPrefix(key, stateSlices):
		return decodeSlice(mine) == decodeSlice(other)
	case strings.HasPrefix(key, stateIdentities):
		return w.sameIdentity(strings.TrimPrefix(key, stateIdentities), mine, other)
	case strings.HasPrefix(key, stateServices):
		return w.sameService(strings.TrimPrefix(key, stateServices), mine, other, of.originals)
	case strings.HasPrefix(key, stateIP):
		address := strings.TrimPrefix(key, stateIP)
		lenient := of.anew || w.unordered[address] || w.touched[address] > 1
		if claims := of.contested[address]; !lenient || !owns(claims, mine) || !owns(claims, other) {
			return false
		}
		// From now on, the publishers may have the claims in different orders.
		w.unordered[address] = true
		w.seen["contested addresses of different owners"]++
		return true
	}
	return false
}

func shown(value string, there bool) string {
	switch {
	case !there:
		return "(no such key)"
	case strings.HasPrefix(value, "\x28\xb5\x2f\xfd"):
		return decodeSlice(value)
	}
	return value
}

func (w *mesh) isExternal(key string) bool {
	namespace, name, _ := strings.Cut(strings.TrimPrefix(key, stateServices), "/")
	object := w.objects["/api/v1/namespaces/"+namespace+"/services/"+name]
	spec, _ := object["spec"].(dict)
	return strings.HasPrefix(key, stateServices) && spec["type"] == "ExternalName"
}

// isInvalid says whether the key may be the last valid one of an object that turned invalid: its namespace is missing.
func (w *mesh) isInvalid(key string) bool {
	missing := func(namespace any) bool {
		name, _ := namespace.(string)
		return !w.exists(name)
	}
	if name, found := strings.CutPrefix(key, stateIdentities); found {
		object := w.objects["/apis/cilium.io/v2/ciliumidentities/"+name]
		labels, _ := object["security-labels"].(dict)
		return object != nil && missing(labels[podNamespace])
	}
	for path, object := range w.objects {
		if strings.HasPrefix(key, stateIP) && strings.Contains(path, "/ciliumendpointslices/") && missing(object["namespace"]) {
			return true
		}
	}
	return false
}

// owns says whether the value belongs to one of the claims.
func owns(claims []claimant, value string) bool {
	var pair struct {
		ID           uint32
		K8sNamespace string
		K8sPodName   string
	}
	if json.Unmarshal([]byte(value), &pair) != nil {
		return false
	}
	return slices.ContainsFunc(claims, func(c claimant) bool {
		return c.namespace == pair.K8sNamespace && c.pod == pair.K8sPodName && uint32(int64(c.identity)) == pair.ID
	})
}

// sameIdentity compares identities, and accepts any source of a label that the identity has from several sources.
func (w *mesh) sameIdentity(name, mine, other string) bool {
	object := w.objects["/apis/cilium.io/v2/ciliumidentities/"+name]
	labels, _ := object["security-labels"].(dict)
	// Key without source → the labels with values that may be published.
	forms := map[string][]string{}
	for label, value := range labels {
		key, form := securityLabel(label, value.(string))
		forms[key] = append(forms[key], form)
	}
	want := func(text string) bool {
		for _, key := range slices.Sorted(stdmaps.Keys(forms)) {
			i := slices.IndexFunc(forms[key], func(form string) bool { return strings.HasPrefix(text, form) })
			if i < 0 {
				return false
			}
			text = text[len(forms[key][i]):]
		}
		return text == ""
	}
	collide := len(forms) < len(labels)
	if collide {
		w.seen["identities with colliding labels"]++
	}
	return collide && want(mine) && want(other)
}

// securityLabel is Cilium's NewLabel (pkg/labels/labels.go).
func securityLabel(label, value string) (key, form string) {
	source, key := "", label
	if rest, ok := strings.CutPrefix(label, "$"); ok {
		source, key = "reserved", rest
	} else if before, after, ok := strings.Cut(label, ":"); ok {
		source, key = before, after
	}
	if source == "reserved" && key == "" {
		key, value = value, ""
	}
	if source == "" {
		source = "unspec"
	}
	return key, fmt.Sprintf("%s:%s=%s;", source, key, value)
}

// === services ===

// backend is the entry of one address in one slice.
type backend struct {
	ports    map[string]string
	hostname string
	zone     string
}

// backends of a service: address → the entry of each slice that has it. Within a slice the last endpoint counts.
func (w *mesh) backends(service string) map[string][]backend {
	namespace, name, _ := strings.Cut(service, "/")
	all := map[string][]backend{}
	prefix := "/apis/discovery.k8s.io/v1/namespaces/" + namespace + "/endpointslices/"
	for _, path := range slices.Sorted(stdmaps.Keys(w.objects)) {
		slice := w.objects[path]
		if strings.HasPrefix(path, prefix) && labelOf(slice, "kubernetes.io/service-name") == name && isFollowed(slice) {
			for address, b := range backendsOf(slice) {
				all[address] = append(all[address], b)
			}
		}
	}
	return all
}

func isFollowed(slice dict) bool {
	return slice["addressType"] != "FQDN" &&
		labelOf(slice, "endpointslice.kubernetes.io/managed-by") != "endpointslice-mesh-controller.cilium.io"
}

func backendsOf(slice dict) map[string]backend {
	ports := map[string]string{}
	list, _ := slice["ports"].([]any)
	for _, p := range list {
		if number, ok := p.(dict)["port"].(float64); ok {
			name, _ := p.(dict)["name"].(string)
			ports[name] = fmt.Sprintf(`{"Port":%d,"Protocol":%q}`, int(number), p.(dict)["protocol"])
		}
	}
	all := map[string]backend{}
	endpoints, _ := slice["endpoints"].([]any)
	for _, e := range endpoints {
		endpoint := e.(dict)
		b := backend{ports: ports}
		b.hostname, _ = endpoint["hostname"].(string)
		zone, set := endpoint["zone"].(string)
		if topology, _ := endpoint["deprecatedTopology"].(dict); !set && topology != nil {
			zone, _ = topology["topology.kubernetes.io/zone"].(string)
		}
		if zone != "" {
			b.zone = zoneText(zone, endpoint["hints"])
		}
		conditions, _ := endpoint["conditions"].(dict)
		for _, a := range endpoint["addresses"].([]any) {
			address := canonical(a.(string))
			if delete(all, address); conditions["ready"] != false || conditions["serving"] != false {
				all[address] = b
			}
		}
	}
	return all
}

func zoneText(zone string, hints any) string {
	names := []any{}
	if h, ok := hints.(dict); ok {
		zones, _ := h["forZones"].([]any)
		names = append(names, zones...)
	}
	text, _ := json.Marshal(dict{"zone": zone, "forZones": names})
	return string(text)
}

// sameService compares services, and accepts differences about addresses that several slices have.
func (w *mesh) sameService(name, mine, other string, originals bool) bool {
	var ours, theirs dict
	if json.Unmarshal([]byte(mine), &ours) != nil || json.Unmarshal([]byte(other), &theirs) != nil {
		return false
	}
	for address, candidates := range w.backends(name) {
		if len(candidates) < 2 {
			continue
		}
		mineFits := merged
		if originals {
			mineFits = oneOf
		}
		if !oneOf(theirs, address, candidates) || !mineFits(ours, address, candidates) {
			return false
		}
		w.seen["addresses in several slices"]++
		for _, field := range []string{"backends", "hostnames", "zones"} {
			for _, value := range []dict{ours, theirs} {
				if of, ok := value[field].(dict); ok {
					if delete(of, address); len(of) == 0 && field != "backends" {
						delete(value, field)
					}
				}
			}
		}
	}
	a, _ := json.Marshal(ours)
	b, _ := json.Marshal(theirs)
	return string(a) == string(b)
}

func portTexts(service dict, address string) (map[string]string, bool) {
	backends, _ := service["backends"].(dict)
	ports, there := backends[address].(dict)
	texts := map[string]string{}
	for name, p := range ports {
		text, _ := json.Marshal(p)
		texts[name] = string(text)
	}
	return texts, there
}

func fieldOf(service dict, field, address string) string {
	of, _ := service[field].(dict)
	switch value := of[address].(type) {
	case nil:
		return ""
	case string:
		return value
	default:
		text, _ := json.Marshal(value)
		return string(text)
	}
}

// fits says whether host name and zone come from one of the slices, if any slice has them.
func fits(service dict, address string, candidates []backend) bool {
	for _, field := range []string{"hostnames", "zones"} {
		said := []string{}
		for _, b := range candidates {
			value := b.hostname
			if field == "zones" {
				value = b.zone
			}
			if value != "" {
				said = append(said, value)
			}
		}
		if value := fieldOf(service, field, address); !slices.Contains(said, value) && (value != "" || len(said) > 0) {
			return false
		}
	}
	return true
}

func oneOf(service dict, address string, candidates []backend) bool {
	ports, there := portTexts(service, address)
	return there && fits(service, address, candidates) &&
		slices.ContainsFunc(candidates, func(b backend) bool { return stdmaps.Equal(b.ports, ports) })
}

func merged(service dict, address string, candidates []backend) bool {
	ports, there := portTexts(service, address)
	names := map[string]bool{}
	for _, b := range candidates {
		for name := range b.ports {
			names[name] = true
		}
	}
	for name, text := range ports {
		if !slices.ContainsFunc(candidates, func(b backend) bool { return b.ports[name] == text }) {
			return false
		}
	}
	return there && len(names) == len(ports) && fits(service, address, candidates)
}
