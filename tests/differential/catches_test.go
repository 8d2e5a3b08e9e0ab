package differential

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/identity"
	"github.com/weirnet/weir/tests/randomcluster"
)

// TestDamageIsNoticed shows that the comparison can fail, and that what it prints is small.
func TestDamageIsNoticed(t *testing.T) {
	for name, damage := range map[string]func(*datapath.State){
		"a block's facts are missing": func(s *datapath.State) {
			maps.DeleteFunc(s.Facts, func(f datapath.Fact, _ uint32) bool { return f.Identity&identity.Block != 0 })
		},
		"ranges end one port early": func(s *datapath.State) {
			for id, r := range s.Rulesets {
				for i, g := range r.Groups {
					if g.Low < g.High && g.High < 65535 {
						r.Groups[i].High--
					}
				}
				s.Rulesets[id] = r
			}
		},
		"another rule is named": func(s *datapath.State) {
			for _, r := range s.Rulesets {
				for _, g := range r.Groups {
					for i := range g.Rules {
						g.Rules[i] = datapath.RuleNotIsolated
					}
				}
			}
		},
		"a default allows": func(s *datapath.State) {
			for id, r := range s.Rulesets {
				r.Allow = true
				s.Rulesets[id] = r
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, 1, Options{})
			r.damage = damage
			for range 30 {
				r.next(t)
				questions := slices.DeleteFunc(r.questions(), func(q *question) bool {
					return !randomcluster.HasPorts(q.tuple.Protocol) // what went before decides, too
				})
				err := r.node.Do(func() error { return r.askAll(questions) })
				if f := new(failure); asFailure(err, &f) {
					text := r.explain(f)
					if n := strings.Count(text, "kind: NetworkPolicy"); n == 0 || n > 2 {
						t.Errorf("%d policies are left of a failure that needs one or two:\n%s", n, text)
					}
					t.Log(text)
					return
				} else if err != nil {
					t.Fatal(err)
				}
			}
			t.Error("nobody noticed")
		})
	}
}
