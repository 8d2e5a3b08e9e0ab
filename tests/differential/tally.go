package differential

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
)

// tally is how much was compared.
type tally struct {
	sets, restarts                                   int
	masked                                           int // sets in which a pod has so many ranges that masks are asked
	first, again, replies, forwarded, dropped, event int

	pastStack int // packets to and from another node

	questions int            // of the reference and the judges: a cluster and a tuple each
	unanimous int            // packets that the kernel, the reference and every judge spoke of
	judged    map[string]int // packets, by judge
	silent    map[string]int // those it has no rule for, by judge and why
}

func (n *tally) count(p packet, want answer) {
	n.countJudges(want)
	switch {
	case p.first:
		n.first++
	case p.reply:
		n.replies++
	default:
		n.again++
	}
	if want.forwarded {
		n.forwarded++
	} else {
		n.dropped++
	}
}

func (n *tally) add(m tally) {
	n.sets, n.restarts, n.masked = n.sets+m.sets, n.restarts+m.restarts, n.masked+m.masked
	n.first, n.again, n.replies = n.first+m.first, n.again+m.again, n.replies+m.replies
	n.forwarded, n.dropped, n.event = n.forwarded+m.forwarded, n.dropped+m.dropped, n.event+m.event
	n.pastStack += m.pastStack
	n.questions, n.unanimous = n.questions+m.questions, n.unanimous+m.unanimous
	n.judged, n.silent = added(n.judged, m.judged), added(n.silent, m.silent)
}

func added(a, b map[string]int) map[string]int {
	if a == nil {
		a = map[string]int{}
	}
	for k, v := range b {
		a[k] += v
	}
	return a
}

// countJudges: a judge that is silent about one of the packet's sides did not judge it.
func (n *tally) countJudges(want answer) {
	if n.judged == nil {
		n.judged, n.silent = map[string]int{}, map[string]int{}
	}
	all := len(want.judges) > 0
	for i, j := range want.judges {
		why := ""
		for d, side := range want.sides {
			if side != nil && want.words[i][d].Silent != "" {
				why = want.words[i][d].Silent
			}
		}
		if why != "" {
			n.silent[j.Name+" on "+why]++
			all = false
		} else {
			n.judged[j.Name]++
		}
	}
	if all {
		n.unanimous++
	}
}

func (n *tally) verdicts() int { return n.forwarded + n.dropped }

func (n *tally) String() string {
	text := fmt.Sprintf("%d verdicts (%d first packets, %d later ones, %d replies): %d forwarded, %d dropped; %d events; %d commits, %d with masks, %d restarts; %d past the stack; %d tuples explained",
		n.verdicts(), n.first, n.again, n.replies, n.forwarded, n.dropped, n.event, n.sets, n.masked, n.restarts, n.pastStack, n.questions)
	if len(n.judged) > 0 {
		text += fmt.Sprintf("; %d with every answer", n.unanimous)
	}
	return text + listed("; by ", n.judged) + listed("; silent: ", n.silent)
}

func listed(head string, counts map[string]int) (text string) {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, fmt.Sprintf("%s %d", k, counts[k]))
	}
	if len(parts) == 0 {
		return ""
	}
	return head + strings.Join(parts, ", ")
}

// check fails a run that could not have told anything.
func (n *tally) check(t *testing.T) {
	t.Helper()
	if few := min(n.forwarded, n.dropped); few*20 < n.verdicts() || n.verdicts() == 0 {
		t.Errorf("%d forwarded, %d dropped: too much alike to tell anything", n.forwarded, n.dropped)
	}
	if n.masked*20 < n.sets {
		t.Errorf("masks in %d of %d clusters: too few to tell anything", n.masked, n.sets)
	}
	if n.pastStack*100 < n.verdicts() {
		t.Errorf("%d of %d packets past the stack: too few to tell anything", n.pastStack, n.verdicts())
	}
	if len(n.judged) > 0 && n.unanimous*5 < n.verdicts()*4 {
		t.Errorf("only %d of %d verdicts were everybody's", n.unanimous, n.verdicts())
	}
}
