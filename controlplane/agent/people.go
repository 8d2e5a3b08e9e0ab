package agent

import (
	"sync"
	"time"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/datapath"
)

// forPeople is what people ask about all of a cluster, and no commit needs.
type forPeople struct {
	result   *policy.Result // with its lists, nil before the first commit
	nothing  []string       // warnings about policies that name nothing
	warnings []string       // others about objects
	size     datapath.Limits
}

// peoples is the last forPeople. Where making it takes long it is not made anew for a time:
// it would hold up commits.
type peoples struct {
	mu   sync.Mutex
	last forPeople
	of   *policy.Result
	made time.Time
	took time.Duration
}

const (
	peopleShort = 5 * time.Millisecond // what takes no longer is always made anew
	peopleRests = 20                   // times as long as it took
)

func (a *Agent) forPeople() forPeople {
	p := &a.people
	p.mu.Lock()
	defer p.mu.Unlock()
	a.live.RLock()
	defer a.live.RUnlock()
	a.mu.Lock()
	result, update, cluster := a.applied.result, a.applied.update, a.applied.cluster
	a.mu.Unlock()
	if result == nil {
		return forPeople{}
	}
	if result == p.of || p.took > peopleShort && time.Since(p.made) < peopleRests*p.took {
		return p.last
	}
	begun := time.Now()
	now := forPeople{result: result.Whole(), nothing: grouped(update.Warnings(cluster)), size: result.State.Size()}
	var warnings []api.ObjectError
	for _, w := range now.result.Warnings {
		warnings = append(warnings, objectError(update, w))
	}
	now.warnings = grouped(warnings)
	p.last, p.of, p.made, p.took = now, result, time.Now(), time.Since(begun)
	return now
}
