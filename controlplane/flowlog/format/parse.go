package format

import (
	"encoding/json"
	"fmt"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	observerpb "github.com/cilium/cilium/api/v1/observer"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/weirnet/weir/controlplane/api"
)

// Parse reads one line of api.PathFlows; fields that this version does not know are
// left out.
func Parse(line []byte) (*observerpb.GetFlowsResponse, error) {
	m := &observerpb.GetFlowsResponse{}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(line, m); err != nil {
		return nil, fmt.Errorf("read flow record: %w", err)
	}
	return m, nil
}

// Extension reads a flow's extension; it is empty for a flow that has none of ours.
func Extension(f *flowpb.Flow) api.FlowExtension {
	var x api.FlowExtension
	text := &wrapperspb.StringValue{}
	if f.GetExtensions().UnmarshalTo(text) != nil || json.Unmarshal([]byte(text.GetValue()), &x) != nil {
		return api.FlowExtension{}
	}
	return x
}
