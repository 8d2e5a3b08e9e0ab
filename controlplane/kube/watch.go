package kube

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"github.com/go-logr/logr"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

// kind is a resource that is watched, and where it goes.
type kind struct {
	group    schema.GroupVersion
	resource string
	example  runtime.Object
	in       string // a namespace: those alone
	selector string // of labels
	store    interface {
		cache.ReflectorStore
		behind(version uint64, listed map[types.NamespacedName]uint64) bool
		filled() bool
		tapped
	}
}

func (s *stores) kinds() []kind {
	core := corev1.SchemeGroupVersion
	return []kind{
		{group: core, resource: "namespaces", example: &corev1.Namespace{}, store: s.namespaces},
		{group: core, resource: "nodes", example: &corev1.Node{}, store: s.nodes},
		{group: core, resource: "pods", example: &corev1.Pod{}, store: s.pods},
		{group: core, resource: "services", example: &corev1.Service{}, store: s.services},
		{group: discoveryv1.SchemeGroupVersion, resource: "endpointslices", example: &discoveryv1.EndpointSlice{}, store: s.slices},
		{group: networkingv1.SchemeGroupVersion, resource: "networkpolicies", example: &networkingv1.NetworkPolicy{}, store: s.policies},
	}
}

// retries of a watch that ends with an error: an API server that comes back is seen
// within seconds.
var retries = wait.Backoff{Duration: 200 * time.Millisecond, Factor: 2, Jitter: 0.5, Steps: 8, Cap: 5 * time.Second}

// watchAll keeps all stores up to date until ctx is over.
func (s *Source) watchAll(ctx context.Context) {
	ctx = withQuietLogger(ctx, s.Log)
	logger := klog.FromContext(ctx)
	kinds := s.stores.kinds()
	if s.AnnounceIn != "" {
		kinds = append(kinds, kind{group: coordinationv1.SchemeGroupVersion, resource: "leases", example: &coordinationv1.Lease{},
			in: s.AnnounceIn, selector: leaseSelector, store: s.stores.leases})
	}
	for _, k := range kinds {
		backoff := retries
		r := cache.NewReflectorWithOptions(s.listWatch(k), k.example, k.store,
			cache.ReflectorOptions{Name: k.resource, Backoff: &backoff, Logger: &logger})
		go r.RunWithContext(ctx)
	}
}

// listWatch is a kind's calls, noted. An agent that starts does not take a list from the
// API server's cache as it may happen to be: it could be older than what is in force.
func (s *Source) listWatch(k kind) *cache.ListWatch {
	client := s.Client.groups[k.group]
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			if o.ResourceVersion == "0" {
				o.ResourceVersion = ""
			}
			list, err := request(client, k, o).Do(ctx).Get()
			s.health.note(call{k.resource, "list"}, err)
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.Watch = true
			failed := false
			ctx = tapping(ctx, k, o.SendInitialEvents != nil && *o.SendInitialEvents)
			w, err := request(client, k, o).Watch(observed(ctx, func(err error) {
				if failed = err != nil; failed {
					s.health.note(call{k.resource, "watch"}, err)
				}
			}))
			if err == nil && failed {
				return w, nil
			}
			if unsupported := o.SendInitialEvents != nil && apierrors.IsInvalid(err); !unsupported { // then it lists
				s.health.note(call{k.resource, "watch"}, err)
			}
			return w, err
		},
	}
}

func request(client rest.Interface, k kind, o metav1.ListOptions) *rest.Request {
	o.LabelSelector = k.selector
	return client.Get().NamespaceIfScoped(k.in, k.in != "").Resource(k.resource).VersionedParams(&o, metav1.ParameterCodec)
}

// SetLog sends what client-go says without a context to log, too. It is called before
// anything else of this package, or not at all.
func SetLog(log *slog.Logger) { klog.SetLogger(quietLogger(log)) }

func withQuietLogger(ctx context.Context, log *slog.Logger) context.Context {
	return klog.NewContext(ctx, quietLogger(log))
}

func quietLogger(log *slog.Logger) klog.Logger { return logr.FromSlogHandler(quiet{log.Handler()}) }

// observing tells how each request ended in transport. client-go tries a watch again ten
// times before it says so, and one that breaks while it begins looks to its caller like
// one that has ended.
type observing struct{ http.RoundTripper }

type observerKey struct{}

// observed is a context for requests; tell gets each one's error or nil.
func observed(ctx context.Context, tell func(error)) context.Context {
	return context.WithValue(ctx, observerKey{}, tell)
}

func (o observing) RoundTrip(q *http.Request) (*http.Response, error) {
	response, err := o.RoundTripper.RoundTrip(q)
	if tell, ok := q.Context().Value(observerKey{}).(func(error)); ok {
		tell(err)
	}
	if err == nil {
		response.Body = tappedBody(q, response)
	}
	return response, err
}

// WrappedRoundTripper is how client-go finds what is inside.
func (o observing) WrappedRoundTripper() http.RoundTripper { return o.RoundTripper }

// quiet makes debug lines of all that client-go says: what people should know of it
// health says once.
type quiet struct{ slog.Handler }

func (q quiet) Enabled(ctx context.Context, _ slog.Level) bool {
	return q.Handler.Enabled(ctx, slog.LevelDebug)
}

func (q quiet) Handle(ctx context.Context, r slog.Record) error {
	r.Level = slog.LevelDebug
	if !q.Handler.Enabled(ctx, r.Level) { // nobody asked that of an error
		return nil
	}
	return q.Handler.Handle(ctx, r)
}

func (q quiet) WithAttrs(a []slog.Attr) slog.Handler { return quiet{q.Handler.WithAttrs(a)} }
func (q quiet) WithGroup(name string) slog.Handler   { return quiet{q.Handler.WithGroup(name)} }
