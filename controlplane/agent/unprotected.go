package agent

import (
	"fmt"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/controlplane/endpoint"
	"github.com/weirnet/weir/controlplane/policy"
)

// hosted are the pods that the API server has with an address on this node, by since when they
// may have no endpoint: they were seen first, or their endpoint went.
type hosted map[types.NamespacedName]hostedPod

type hostedPod struct {
	uid   types.UID
	since time.Time
}

const (
	// An object and an endpoint do not come and go at once.
	unprotectedAfter = 30 * time.Second
	unprotectedNamed = 10
)

// take changes of pods; nil: it is gone.
func (h hosted) take(node string, pods map[types.NamespacedName]*policy.Pod, now time.Time) {
	for name, p := range pods {
		if p == nil || p.NodeName != node || len(policy.StatusAddresses(p)) == 0 {
			delete(h, name)
		} else if was, ok := h[name]; !ok || was.uid != p.UID {
			h[name] = hostedPod{p.UID, now}
		}
	}
}

// lost notes that pods' endpoints went: their objects follow.
func (h hosted) lost(records []*endpoint.Record, now time.Time) {
	for _, r := range records {
		if p, ok := h[r.Pod()]; ok {
			h[r.Pod()] = hostedPod{p.uid, now}
		}
	}
}

// unprotected are the pods that no program of ours judges, sorted.
func (h hosted) unprotected(records []*endpoint.Record, now time.Time) (out []string) {
	attached := make(map[types.NamespacedName]bool, len(records))
	for _, r := range records {
		attached[r.Pod()] = true
	}
	for name, p := range h {
		if !attached[name] && now.Sub(p.since) >= unprotectedAfter {
			out = append(out, name.String())
		}
	}
	slices.Sort(out)
	return out
}

func unprotectedWarning(pods []string) string {
	what := "1 pod of this node has"
	if len(pods) > 1 {
		what = fmt.Sprintf("%d pods of this node have", len(pods))
	}
	return fmt.Sprintf("%s no policy enforced: %s: they started without weir-cni. Restart them; if they come back so, "+
		"another CNI configuration sorts before Weir's in the container runtime's directory: move it away", what, fewOf(pods, unprotectedNamed))
}
