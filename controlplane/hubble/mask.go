package hubble

import (
	"strings"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

// mask says which fields of a message stay: those it has, whole where it is empty; nil
// leaves all.
type mask map[protoreflect.Name]mask

func newMask(m *fieldmaskpb.FieldMask) (mask, error) {
	if len(m.GetPaths()) == 0 {
		return nil, nil
	}
	for _, path := range m.GetPaths() {
		if _, err := fieldmaskpb.New(&flowpb.Flow{}, path); err != nil {
			return nil, invalid("field_mask: a flow has no field %q", path)
		}
	}
	m.Normalize() // a path below another one is gone
	out := mask{}
	for _, path := range m.GetPaths() {
		at := out
		for _, name := range strings.Split(path, ".") {
			next := at[protoreflect.Name(name)]
			if next == nil {
				next = mask{}
				at[protoreflect.Name(name)] = next
			}
			at = next
		}
	}
	return out, nil
}

// apply takes from f what m does not have; f is this reader's own.
func (m mask) apply(f *flowpb.Flow) {
	if m != nil && f != nil {
		m.prune(f.ProtoReflect())
	}
}

func (m mask) prune(message protoreflect.Message) {
	message.Range(func(field protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		below, stays := m[field.Name()]
		switch {
		case !stays:
			message.Clear(field)
		case len(below) > 0:
			below.prune(v.Message())
		}
		return true
	})
}
