package format

import (
	"fmt"
	"strings"
	"time"

	"github.com/weirnet/weir/controlplane/api"
)

// processShort is " curl[812]", or nothing for a process that is not known.
func processShort(p *api.FlowProcess) string {
	if p == nil {
		return ""
	}
	return fmt.Sprintf(" %s[%d]", processName(p), p.PID)
}

func processName(p *api.FlowProcess) string {
	if p.Name == "" {
		return "?"
	}
	return Safe(p.Name)
}

// processText is all of a process; what is not known is left out.
func processText(p *api.FlowProcess, s Style) string {
	if p == nil {
		return ""
	}
	text := fmt.Sprintf("%s[%d]", processName(p), p.PID)
	if p.Executable != "" {
		text += "  " + Safe(p.Executable)
	}
	if p.ContainerID != "" {
		text += "  container " + Safe(p.ContainerID)
	}
	if p.Start != nil {
		text += "  since " + s.time(*p.Start, time.RFC3339)
	}
	if p.Held {
		text += "  (the oldest that held the socket)"
	}
	return text
}

// connection is how a TCP connection went, by the end that says so: ", RTT 1.2ms with 3 sent
// again (source)".
func connection(x api.FlowExtension) string {
	var ends []string
	for _, e := range []struct {
		t   *api.FlowTCP
		who string
	}{{x.TCPSource, " (source)"}, {x.TCPDestination, " (destination)"}} {
		if e.t != nil {
			ends = append(ends, tcpText(e.t)+e.who)
		}
	}
	if len(ends) == 0 {
		return ""
	}
	return ", " + strings.Join(ends, ", ")
}

func tcpText(t *api.FlowTCP) string {
	text := "RTT not measured"
	if t.RTT > 0 {
		text = "RTT " + Duration(t.RTT)
	}
	if t.Retransmits > 0 {
		text += fmt.Sprintf(" with %d sent again", t.Retransmits)
	}
	return text
}
