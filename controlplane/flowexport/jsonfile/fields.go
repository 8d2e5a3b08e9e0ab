package jsonfile

import (
	"fmt"
	"strings"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	observerpb "github.com/cilium/cilium/api/v1/observer"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Fields are the fields of flows that are written. The zero value is all of them.
type Fields struct{ root node }

// node is what is wanted of a message: a field alone, or parts of it.
type node map[protoreflect.FieldDescriptor]node

// ParseFields reads names as Hubble's field mask has them: "verdict", "source.pod_name".
func ParseFields(paths []string) (Fields, error) {
	var f Fields
	for _, path := range paths {
		if f.root == nil {
			f.root = node{}
		}
		if err := f.root.add((&flowpb.Flow{}).ProtoReflect().Descriptor(), path); err != nil {
			return Fields{}, fmt.Errorf("%q: %w", path, err)
		}
	}
	return f, nil
}

func (n node) add(of protoreflect.MessageDescriptor, path string) error {
	name, rest, deeper := strings.Cut(path, ".")
	fd := of.Fields().ByName(protoreflect.Name(name))
	switch {
	case fd == nil:
		return fmt.Errorf("%s has no field %q", of.Name(), name)
	case deeper && (fd.Message() == nil || fd.IsList() || fd.IsMap()):
		return fmt.Errorf("%s.%s has no fields of its own", of.Name(), name)
	}
	below, known := n[fd]
	switch {
	case !deeper:
		n[fd] = nil
		return nil
	case known && below == nil:
		return nil // all of it is wanted already
	case !known:
		below = node{}
		n[fd] = below
	}
	return below.add(fd.Message(), rest)
}

// Of is the message with these fields of its flow; m itself when that is all.
func (f Fields) Of(m *observerpb.GetFlowsResponse) *observerpb.GetFlowsResponse {
	flow := m.GetFlow()
	if f.root == nil || flow == nil {
		return m
	}
	out := &flowpb.Flow{}
	f.root.copy(flow.ProtoReflect(), out.ProtoReflect())
	return &observerpb.GetFlowsResponse{
		ResponseTypes: &observerpb.GetFlowsResponse_Flow{Flow: out},
		NodeName:      m.GetNodeName(),
		Time:          m.GetTime(),
	}
}

// copy shares what is copied whole: neither side is changed after it.
func (n node) copy(from, to protoreflect.Message) {
	for fd, below := range n {
		switch {
		case !from.Has(fd):
		case below == nil:
			to.Set(fd, from.Get(fd))
		default:
			below.copy(from.Get(fd).Message(), to.Mutable(fd).Message())
		}
	}
}
