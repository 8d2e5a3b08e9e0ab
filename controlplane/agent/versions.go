package agent

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"path/filepath"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/controlplane/statedir"
)

const versionsDir = "policies"

// version is a policy as it is in force, kept for an agent that starts and finds it
// changed into something that cannot be enforced.
type version struct {
	Namespace string                      `json:"namespace"`
	Name      string                      `json:"name"`
	InForce   *networkingv1.NetworkPolicy `json:"inForce"` // nil: it isolates and allows nothing
}

func (v version) key() types.NamespacedName {
	return types.NamespacedName{Namespace: v.Namespace, Name: v.Name}
}

// file is named by a hash: names may be as long as a file's.
func (v version) file() string {
	sum := sha256.Sum256([]byte(v.key().String()))
	return filepath.Join(versionsDir, hex.EncodeToString(sum[:16])+".json")
}

// versions are those of the policies that isolate pods of this node, as they are on disk.
type versions struct {
	dir   *statedir.Dir
	saved map[types.NamespacedName]*networkingv1.NetworkPolicy
}

// openVersions returns what can be read, whatever cannot.
func openVersions(dir *statedir.Dir) (versions, error) {
	v := versions{dir, map[types.NamespacedName]*networkingv1.NetworkPolicy{}}
	files, err := dir.List(versionsDir)
	for _, file := range files {
		var one version
		if _, bad := dir.Load(file, &one); bad != nil {
			err = errors.Join(err, bad, dir.Remove(file))
			continue
		}
		v.saved[one.key()] = one.InForce
	}
	return v, err
}

// save writes what r changed.
func (v *versions) save(r *policy.Result) error {
	local := map[types.NamespacedName]bool{}
	for _, e := range r.Endpoints {
		for _, side := range e.Sides {
			for _, ref := range side.IsolatedBy {
				local[nameOf(ref)] = true
			}
		}
	}
	for name := range local {
		now := r.Version(name)
		if was, ok := v.saved[name]; ok && was == now {
			continue
		}
		one := version{name.Namespace, name.Name, now}
		if err := v.dir.Save(one.file(), one); err != nil {
			return err
		}
		v.saved[name] = now
	}
	for name := range v.saved {
		if local[name] {
			continue
		}
		if err := v.dir.Remove(version{Namespace: name.Namespace, Name: name.Name}.file()); err != nil {
			return err
		}
		delete(v.saved, name)
	}
	return nil
}

// before is what is in force now: by the last commit, or before the first by what the
// agent before this one kept.
func (a *Agent) before() policy.Before {
	if a.applied.result != nil {
		return a.applied.result.InForce()
	}
	return policy.Before{Policies: a.versions.saved}
}
