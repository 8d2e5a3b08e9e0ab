// Package oracle compares the reference verdict with engines that others wrote, on
// random clusters. It is a module of its own: they need much that the product does not.
package oracle

import (
	"flag"
	"math/rand"
	"testing"
)

var (
	seed = flag.Int64("seed", 1, "first seed")
	sets = flag.Int("sets", 1000, "random clusters")
)

func TestVerdictAgreesWith(t *testing.T) {
	for name, make := range map[string]func(*scene) engine{
		"cyclonus":              cyclonus,
		"kube-network-policies": kubeNetworkPolicies,
	} {
		t.Run(name, func(t *testing.T) { compare(t, make) })
	}
}

func compare(t *testing.T, make func(*scene) engine) {
	asked, allowed, differ := 0, 0, 0
	for n := *seed; n < *seed+int64(*sets); n++ {
		s := newScene(rand.New(rand.NewSource(n)))
		ours, theirs := reference(s), make(s)
		for _, from := range s.pods {
			for _, to := range s.pods {
				if from == to {
					continue // they have no rule for a pod and itself, and outside to outside is nothing
				}
				question := s.traffic(from, to)
				got, want := ours(question), theirs(question)
				asked++
				if want.egress && want.ingress {
					allowed++
				}
				if got != want {
					if differ++; differ <= 5 {
						t.Errorf("seed %d, %s to %s port %d/%s: reference %+v, they %+v", n, question.fromAddr, question.toAddr, question.port, question.protocol, got, want)
					}
				}
			}
		}
	}
	t.Logf("%d questions, %d allowed, %d differ", asked, allowed, differ)
	if asked == 0 || allowed*20 < asked || allowed*20 > 19*asked {
		t.Errorf("%d of %d allowed: too much alike to tell anything", allowed, asked)
	}
}
