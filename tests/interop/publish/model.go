package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
	"google.golang.org/protobuf/encoding/protowire"
)

// The expected contents of etcd, derived from the world rather than from the objects that a publisher reads. Values are
// those that the original writes, byte for byte.

const (
	cluster   = "c3"
	clusterID = 3
	state     = "cilium/state/"
)

// want is the expected value of a key.
type want struct {
	value string
	// The value is compressed in etcd, and compressors differ.
	packed bool
}

var unpacker, _ = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1))

// is says whether a value in etcd is the expected one.
func (w want) is(value string) bool {
	if w.packed {
		plain, err := unpacker.DecodeAll([]byte(value), nil)
		return err == nil && string(plain) == w.value
	}
	return value == w.value
}

// publisherKind is Cilium's publisher or Isthmus's.
type publisherKind int

const (
	theirs publisherKind = iota + 1
	ours
)

func (k publisherKind) String() string {
	if k == theirs {
		return "original"
	}
	return "isthmus"
}

func goJSON(v any) string {
	b, _ := json.Marshal(v)
	return string(b)
}

func (p *pod) key() string { return state + "ip/v1/default/" + p.ip() }

type namedPort struct {
	Name     string
	Port     int
	Protocol string
}

func (p *pod) ports() []namedPort {
	if p.index%2 != 0 {
		return nil
	}
	return []namedPort{{"http", 8080, "TCP"}, {"metrics", 9090, "TCP"}}
}

func (p *pod) want() want {
	return want{value: goJSON(struct {
		IP                string
		Mask              *string
		HostIP            string
		ID, Key           int
		Metadata          string
		K8sNamespace      string
		K8sPodName        string
		K8sServiceAccount string
		NamedPorts        []namedPort `json:",omitempty"`
	}{
		IP: p.ip(), HostIP: p.host(), ID: p.identity, K8sNamespace: nsName(p.ns), K8sPodName: p.name(),
		K8sServiceAccount: p.account(), NamedPorts: p.ports(),
	})}
}

func identityKey(id int) string { return fmt.Sprint(state, "identities/v1/id/", id) }

func identityWant(id, ns int) want {
	var b strings.Builder
	labels := identityLabels(id, ns)
	// All labels have one source, so their keys sort like the labels.
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		b.WriteString(k + "=" + labels[k] + ";")
	}
	return want{value: b.String()}
}

func (n *node) key() string { return state + "nodes/v1/" + cluster + "/" + n.name() }

func (w *world) nodeWant(n *node) want {
	type address struct{ Type, IP string }
	type cidr struct{ IP, Mask string }
	return want{value: goJSON(struct {
		Name, Cluster           string
		IPAddresses             []address
		IPv4AllocCIDR           *cidr
		IPv4SecondaryAllocCIDRs []cidr
		IPv6AllocCIDR           *cidr
		IPv6SecondaryAllocCIDRs []cidr
		IPv4HealthIP            string
		IPv6HealthIP            string
		IPv4IngressIP           string
		IPv6IngressIP           string
		ClusterID               int
		Source                  string
		EncryptionKey           int
		Labels, Annotations     map[string]string
		WireguardPubKey         string
		BootID                  string
	}{
		Name: n.name(), Cluster: cluster,
		IPAddresses:   []address{{"InternalIP", n.ip()}, {"CiliumInternalIP", n.inner(1)}},
		IPv4AllocCIDR: &cidr{n.inner(0), base64.StdEncoding.EncodeToString([]byte{255, 255, 255, 0})},
		IPv4HealthIP:  n.inner(2), ClusterID: clusterID, Source: "custom-resource",
		Labels: n.labels(), Annotations: n.annotations(),
		WireguardPubKey: n.annotations()["network.cilium.io/wg-pub-key"], BootID: w.uid("boot/" + n.name()),
	})}
}

func (s *service) key() string {
	return state + "services/v1/" + cluster + "/" + nsName(s.ns) + "/" + s.name()
}

func (s *service) sliceKey() string {
	return state + "endpointslices/v1/" + cluster + "/" + nsName(s.ns) + "/" + s.sliceName()
}

func (w *world) serviceWant(s *service) want {
	type port struct {
		Protocol string
		Port     int
	}
	type placed struct {
		Zone     string     `json:"zone"`
		ForZones []struct{} `json:"forZones"`
	}
	backends, zones := map[string]map[string]port{}, map[string]placed{}
	for i, p := range s.pods {
		if !s.down[i] {
			backends[p.ip()] = map[string]port{"http": {"TCP", 8080}, "metrics": {"TCP", 9090}}
			zones[p.ip()] = placed{zone(p.node), []struct{}{}}
		}
	}
	value := goJSON(struct {
		Cluster         string                     `json:"cluster"`
		Namespace       string                     `json:"namespace"`
		Name            string                     `json:"name"`
		Frontends       map[string]map[string]port `json:"frontends"`
		Backends        map[string]map[string]port `json:"backends"`
		Zones           map[string]placed          `json:"zones,omitempty"`
		Labels          map[string]string          `json:"labels"`
		Selector        map[string]string          `json:"selector"`
		IncludeExternal bool                       `json:"includeExternal"`
		Shared          bool                       `json:"shared"`
		ClusterID       int                        `json:"clusterID"`
	}{
		cluster, nsName(s.ns), s.name(),
		map[string]map[string]port{s.ip(): {"http": {"TCP", 80}, "metrics": {"TCP", 9090}}},
		backends, zones, s.labels(), s.selector(), true, true, clusterID,
	})
	return want{value: value}
}

// sliceWant encodes the message ClusterEndpointSlice with the fields of Cilium 1.20 and, nested, of discovery/v1. Maps are
// in the order of their keys.
func (w *world) sliceWant(s *service) want {
	var b []byte
	text := func(b []byte, field protowire.Number, value string) []byte {
		return protowire.AppendString(protowire.AppendTag(b, field, protowire.BytesType), value)
	}
	number := func(b []byte, field protowire.Number, value uint64) []byte {
		return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), value)
	}
	message := func(b []byte, field protowire.Number, inner []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(b, field, protowire.BytesType), inner)
	}
	b = number(text(b, 1, cluster), 2, clusterID)
	b = text(text(b, 3, nsName(s.ns)), 4, s.sliceName())
	for i, of := range []map[string]string{s.sliceLabels(), s.sliceAnnotations()} {
		for _, k := range slices.Sorted(maps.Keys(of)) {
			b = message(b, protowire.Number(5+i), text(text(nil, 1, k), 2, of[k]))
		}
	}
	b = text(b, 7, "IPv4")
	for i, p := range s.pods {
		up := protowire.EncodeBool(!s.down[i])
		conditions := number(number(number(nil, 1, up), 2, up), 3, 0)
		e := message(text(nil, 1, p.ip()), 2, conditions)
		b = message(b, 8, text(text(e, 6, w.nodes[p.node].name()), 7, zone(p.node)))
	}
	for _, port := range []namedPort{{"http", 8080, "TCP"}, {"metrics", 9090, "TCP"}} {
		b = message(b, 9, number(text(text(nil, 1, port.Name), 2, port.Protocol), 3, uint64(port.Port)))
	}
	return want{value: string(b), packed: true}
}

// scopeOf is the prefix of a key that names its kind.
func scopeOf(key string) string {
	rest, found := strings.CutPrefix(key, state)
	if !found {
		return "other"
	}
	scope, _, _ := strings.Cut(rest, "/")
	return scope
}
