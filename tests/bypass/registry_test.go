package bypass

import (
	"fmt"
	"slices"
	"testing"
)

// A bypass is one way around a policy and how it is shown not to be one.
type bypass struct {
	id     string // B01 .. B47, or an experiment's
	name   string // of the subtest, after the id
	title  string
	public string // cases of others

	try func(*attempt) // nil: the other fields say it all

	tests []string // tests elsewhere that show it, or more of it: "package Test"
	note  string   // what the results do not say: why it does not apply, or where it is tested later
}

// ways are all of them, by family, in the order of their ids.
func ways() []bypass {
	all := slices.Concat(fragments, headers, icmp, spoofing, flows, labels, lifecycle, meaning, node, surfaces)
	slices.SortFunc(all, func(a, b bypass) int {
		if a.id < b.id {
			return -1
		}
		return 1
	})
	return all
}

// attempt is a bypass being tried: its subtest, the node, and what came of it.
type attempt struct {
	*testing.T
	*scene
	outcomes []outcome
	caught   *[]string // takes what would fail the test (TestASuccessIsSeen)
}

// Errorf says that the attack, or its control, did not end as it has to.
func (a *attempt) Errorf(format string, args ...any) {
	a.Helper()
	if a.caught != nil {
		*a.caught = append(*a.caught, fmt.Sprintf(format, args...))
		return
	}
	a.T.Errorf(format, args...)
}

// outcome is what became of a number of packets, or of something else, in words.
type outcome struct {
	words   string
	packets int // 0: not a matter of packets
}

// note adds to what came of the attempt.
func (a *attempt) note(words string, packets int) {
	for i, o := range a.outcomes {
		if o.words == words {
			a.outcomes[i].packets += packets
			return
		}
	}
	a.outcomes = append(a.outcomes, outcome{words, packets})
}

// shown notes something that is not a matter of counted packets.
func (a *attempt) shown(words string) { a.note(words, 0) }
