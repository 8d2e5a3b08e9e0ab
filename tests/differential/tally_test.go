package differential

import (
	"fmt"
	"testing"
)

// tally is how much was compared.
type tally struct {
	sets, restarts                                   int
	first, again, replies, forwarded, dropped, event int
}

func (n *tally) count(p packet, forwarded bool) {
	switch {
	case p.first:
		n.first++
	case p.reply:
		n.replies++
	default:
		n.again++
	}
	if forwarded {
		n.forwarded++
	} else {
		n.dropped++
	}
}

func (n *tally) add(m tally) {
	n.sets, n.restarts = n.sets+m.sets, n.restarts+m.restarts
	n.first, n.again, n.replies = n.first+m.first, n.again+m.again, n.replies+m.replies
	n.forwarded, n.dropped, n.event = n.forwarded+m.forwarded, n.dropped+m.dropped, n.event+m.event
}

func (n *tally) verdicts() int { return n.forwarded + n.dropped }

func (n *tally) String() string {
	return fmt.Sprintf("%d verdicts (%d first packets, %d later ones, %d replies): %d forwarded, %d dropped; %d events; %d commits, %d restarts",
		n.verdicts(), n.first, n.again, n.replies, n.forwarded, n.dropped, n.event, n.sets, n.restarts)
}

// check fails a run that could not have told anything.
func (n *tally) check(t *testing.T) {
	t.Helper()
	if few := min(n.forwarded, n.dropped); few*20 < n.verdicts() || n.verdicts() == 0 {
		t.Errorf("%d forwarded, %d dropped: too much alike to tell anything", n.forwarded, n.dropped)
	}
}
