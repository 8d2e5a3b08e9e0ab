package otlp

import (
	"fmt"
	"slices"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
)

// Fields are the attributes of flows that are sent, and their body. The zero value is all.
type Fields struct{ wanted map[string]bool }

// fieldBody is the field that is no attribute.
const fieldBody = "body"

// fieldNames are all that a flow may have.
var fieldNames = func() []string {
	names := []string{
		fieldBody, string(semconv.LogRecordUIDKey),
		"network.type", "network.transport", "network.interface.name", "weir.icmp.type", "weir.icmp.code",
		"weir.kind", "weir.verdict", "weir.reason", "weir.kernel_reason", "weir.path", "weir.epoch", "weir.end", "weir.duration", "weir.suppressed", "weir.picked_up",
		"weir.packets.sent", "weir.packets.received", "weir.bytes.sent", "weir.bytes.received", "weir.tcp.flags.sent", "weir.tcp.flags.received",
	}
	below := func(prefixes []string, of ...string) {
		for _, prefix := range prefixes {
			for _, name := range of {
				names = append(names, prefix+name)
			}
		}
	}
	below([]string{"source.", "destination."}, "address", "port", "k8s.namespace.name", "k8s.pod.name", "k8s.workload.kind", "k8s.workload.name",
		"k8s.service.namespace", "k8s.service.name", "k8s.node.name")
	below([]string{"weir.egress.", "weir.ingress."}, "verdict", "rule.kind", "rule.namespace", "rule.name", "rule.index", "isolated_by")
	below([]string{"weir.tcp.source.", "weir.tcp.destination."}, "rtt", "retransmits")
	below([]string{"", "weir.listener."}, "process.pid", "process.comm", "process.executable.path", "process.executable.name", "process.creation.time", "container.id")
	return names
}()

// ParseFields reads names of attributes, or what such names begin with up to a dot
// ("source.k8s"), and "body".
func ParseFields(names []string) (Fields, error) {
	var f Fields
	for _, name := range names {
		found := false
		for _, field := range fieldNames {
			if rest, ok := strings.CutPrefix(field, name); ok && name != "" && (rest == "" || rest[0] == '.') {
				if f.wanted == nil {
					f.wanted = map[string]bool{}
				}
				f.wanted[field], found = true, true
			}
		}
		if !found {
			return Fields{}, fmt.Errorf("%q: flows have no such attribute, nor any below it (docs/export.md names all)", name)
		}
	}
	return f, nil
}

// want reports whether a field is sent.
func (f Fields) want(name string) bool { return f.wanted == nil || f.wanted[name] }

// of are those of a that are sent.
func (f Fields) of(a attributes) attributes {
	if f.wanted == nil {
		return a
	}
	return slices.DeleteFunc(a, func(kv attribute.KeyValue) bool { return !f.wanted[string(kv.Key)] })
}
