package kube

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/record"

	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/controlplane/source"
)

// Reasons of events.
const (
	ReasonNotEnforced = "NotEnforced"
	ReasonEnforced    = "Enforced"
)

const (
	component = "weir-agent"
	// An API server forgets events after an hour.
	repeatAfter = 30 * time.Minute
	// A message that differs, perhaps only by a number in it, is told again after that.
	renewAfter = 5 * time.Minute
)

// Recorder tells the owners of objects what of them is not enforced on this node, by
// events on the objects: a Warning when it begins, a Normal one when it is mended. It is
// used by one goroutine, and waits for nobody.
type Recorder struct {
	node     string
	recorder record.EventRecorder
	now      func() time.Time
	told     map[corev1.ObjectReference]told
}

type told struct {
	message string
	at      time.Time
}

// NewRecorder makes a Recorder whose events are sent until ctx is over.
func NewRecorder(ctx context.Context, c Config) *Recorder {
	b := record.NewBroadcaster(record.WithContext(withQuietLogger(ctx, c.Log)))
	b.StartRecordingToSink(sink{c.Client.groups[corev1.SchemeGroupVersion]})
	return newRecorder(c.NodeName, b.NewRecorder(scheme, corev1.EventSource{Component: component, Host: c.NodeName}))
}

func newRecorder(node string, r record.EventRecorder) *Recorder {
	return &Recorder{node: node, recorder: r, now: time.Now, told: map[corev1.ObjectReference]told{}}
}

// Report takes what came of an update. A policy is the business of the nodes whose pods
// it isolates, and, for one that is refused and isolates nobody, of the first node.
func (r *Recorder) Report(u *source.Update, result *policy.Result) {
	c, local := u.Cluster, isolating(result)
	first := u.Nodes == nil || len(u.Nodes.Others) == 0 || r.node < u.Nodes.Others[0].Name
	now, wrong := map[corev1.ObjectReference][]string{}, map[policy.Ref]bool{}
	for _, p := range result.Errors {
		wrong[p.Ref] = true
		if p.Kind == policy.KindNetworkPolicy && !first && !local[p.Ref] {
			continue
		}
		if ref, ok := reference(c, p.Ref); ok {
			text := p.Message
			if p.Field != "" {
				text = p.Field + ": " + text
			}
			now[ref] = append(now[ref], text)
		}
	}
	for ref, texts := range now {
		slices.Sort(texts)
		r.tell(ref, fmt.Sprintf("node %s: not enforced as it is written: %s", r.node, strings.Join(slices.Compact(texts), "; ")))
	}
	for ref := range r.told {
		if now[ref] != nil {
			continue
		}
		delete(r.told, ref)
		object := policy.Ref{Kind: ref.Kind, Namespace: ref.Namespace, Name: ref.Name}
		if is, ok := reference(c, object); ok && is == ref && !wrong[object] {
			r.recorder.Event(&ref, corev1.EventTypeNormal, ReasonEnforced, fmt.Sprintf("node %s: enforced as it is written", r.node))
		}
	}
}

// isolating are the policies that isolate pods of this node.
func isolating(result *policy.Result) map[policy.Ref]bool {
	out := map[policy.Ref]bool{}
	for _, e := range result.Endpoints {
		for _, side := range e.Sides {
			for _, ref := range side.IsolatedBy {
				out[ref] = true
			}
		}
	}
	return out
}

// tell says a message if it was not said lately.
func (r *Recorder) tell(ref corev1.ObjectReference, message string) {
	was, ok := r.told[ref]
	age := r.now().Sub(was.at)
	if ok && age < renewAfter || ok && was.message == message && age < repeatAfter {
		return
	}
	r.told[ref] = told{message, r.now()}
	r.recorder.Event(&ref, corev1.EventTypeWarning, ReasonNotEnforced, shorten(message))
}

// shorten to what the API takes as an event's message.
func shorten(message string) string {
	const most = 1024
	if len(message) <= most {
		return message
	}
	return strings.ToValidUTF8(message[:most-4], "") + " ..."
}

// reference to an object of c; false: it has none that events could be on.
func reference(c *policy.Cluster, r policy.Ref) (corev1.ObjectReference, bool) {
	name := types.NamespacedName{Namespace: r.Namespace, Name: r.Name}
	out := corev1.ObjectReference{Kind: r.Kind, Namespace: r.Namespace, Name: r.Name, APIVersion: corev1.SchemeGroupVersion.String()}
	switch r.Kind {
	case policy.KindNetworkPolicy:
		out.APIVersion = networkingv1.SchemeGroupVersion.String()
		if o := c.NetworkPolicies[name]; o != nil {
			out.UID = o.UID
		}
	case "EndpointSlice":
		out.APIVersion = discoveryv1.SchemeGroupVersion.String()
		if o := c.EndpointSlices[name]; o != nil {
			out.UID = o.UID
		}
	case "Pod":
		if o := c.Pods[name]; o != nil {
			out.UID = o.UID
		}
	case "Service":
		if o := c.Services[name]; o != nil {
			out.UID = o.UID
		}
	}
	return out, out.UID != ""
}

// sink writes events.
type sink struct{ core rest.Interface }

var _ record.EventSink = sink{}

func (s sink) Create(e *corev1.Event) (*corev1.Event, error) {
	out := &corev1.Event{}
	return out, s.core.Post().Namespace(e.Namespace).Resource("events").Body(e).Do(context.Background()).Into(out)
}

// Update is of the interface; nothing calls it.
func (s sink) Update(e *corev1.Event) (*corev1.Event, error) { return s.Create(e) }

func (s sink) Patch(e *corev1.Event, patch []byte) (*corev1.Event, error) {
	out := &corev1.Event{}
	return out, s.core.Patch(types.StrategicMergePatchType).Namespace(e.Namespace).Resource("events").Name(e.Name).
		Body(patch).Do(context.Background()).Into(out)
}
