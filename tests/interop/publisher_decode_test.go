package interop

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
	"google.golang.org/protobuf/encoding/protowire"
)

// canonical is an address in the form that Cilium writes.
func canonical(text string) string {
	address, err := netip.ParseAddr(text)
	if err != nil {
		return text
	}
	return address.String()
}

// message describes the fields of a protobuf message that are messages themselves, and those that are maps, whose order is
// ignored.
type message struct {
	nested map[protowire.Number]*message
	maps   []protowire.Number
}

// Cilium's ClusterEndpointSlice.
var clusterEndpointSlice = func() *message {
	zones := &message{nested: map[protowire.Number]*message{1: {}}}
	endpoint := &message{nested: map[protowire.Number]*message{2: {}, 5: {}, 8: zones}, maps: []protowire.Number{5}}
	return &message{
		nested: map[protowire.Number]*message{5: {}, 6: {}, 8: endpoint, 9: {}},
		maps:   []protowire.Number{5, 6},
	}
}()

var unzstd = func() *zstd.Decoder {
	d, err := zstd.NewReader(nil)
	if err != nil {
		panic(err)
	}
	return d
}()

// decodeSlice renders the contents of an exported slice field by field.
func decodeSlice(value string) string {
	data, err := unzstd.DecodeAll([]byte(value), nil)
	if err != nil {
		return "not zstd: " + err.Error()
	}
	return clusterEndpointSlice.show(data)
}

func (m *message) show(data []byte) string {
	fields := map[protowire.Number][]string{}
	for len(data) > 0 {
		number, kind, n := protowire.ConsumeTag(data)
		if n < 0 {
			return "not protobuf"
		}
		rest := data[n:]
		n = protowire.ConsumeFieldValue(number, kind, rest)
		if n < 0 {
			return "not protobuf"
		}
		text := ""
		if kind == protowire.BytesType {
			content, _ := protowire.ConsumeBytes(rest)
			if nested := m.nested[number]; nested != nil {
				text = "{" + nested.show(content) + "}"
			} else {
				text = fmt.Sprintf("%q", content)
			}
		} else {
			v, _ := protowire.ConsumeVarint(rest)
			text = fmt.Sprint(v)
		}
		fields[number] = append(fields[number], text)
		data = rest[n:]
	}
	var texts []string
	for number, of := range fields {
		if slices.Contains(m.maps, number) {
			// An entry of a map may omit an empty key or value.
			for i, entry := range of {
				of[i] = strings.ReplaceAll(entry, ` 02:""`, "")
			}
			slices.Sort(of)
		}
		texts = append(texts, fmt.Sprintf("%02d:%s", number, strings.Join(of, ",")))
	}
	slices.Sort(texts)
	return strings.Join(texts, " ")
}
