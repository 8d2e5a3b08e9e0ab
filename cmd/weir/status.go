package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/controlplane/flowlog/format"
)

// patience is how long an answer that needs no waiting may take.
const patience = 10 * time.Second

func (a *app) status() *cobra.Command {
	var wait bool
	var timeout time.Duration
	c := a.verb(&cobra.Command{
		Use:   "status",
		Short: "What the node enforces, and what it cannot",
		Long: `What the node enforces, and what it cannot.

It fails as long as the container runtime does not hand new pods to Weir, and says why. With --wait:
succeeds once all that the source holds at the moment of the call is enforced;
fails at once, with the reason, if something of it cannot be, or when the time is over.`,
		RunE: func(c *cobra.Command, _ []string) error {
			if !wait {
				return a.showStatus(c.Context())
			}
			if timeout <= 0 {
				return usage("--timeout: %s is not above 0", timeout)
			}
			return a.waitStatus(c.Context(), timeout)
		},
	}, outputTable, outputJSON)
	c.Flags().BoolVar(&wait, "wait", false, "wait until what the source holds now is enforced")
	c.Flags().DurationVar(&timeout, "timeout", 10*time.Second, "how long to wait")
	return c
}

func (a *app) showStatus(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	s, err := a.client().Status(ctx, 0)
	if err != nil {
		return err
	}
	return a.writeStatus(s)
}

// waitStatus shows the status in either case, so that a script that fails has it.
func (a *app) waitStatus(parent context.Context, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(parent, timeout+patience)
	defer cancel()
	s, err := a.client().Status(ctx, timeout)
	var refusal *api.Error
	if errors.As(err, &refusal) {
		return errors.Join(err, a.showStatus(parent))
	}
	if err != nil {
		return err
	}
	if err := a.writeStatus(s); err != nil {
		return err
	}
	if len(s.Errors) > 0 {
		return errors.New(s.Errors[0].String())
	}
	return nil
}

func (a *app) writeStatus(s api.Status) error {
	if err := a.printStatus(s); err != nil {
		return err
	}
	if len(s.Unready) > 0 { // the agent's readiness probe shows it
		return errors.New("not ready: " + strings.Join(s.Unready, "; "))
	}
	return nil
}

func (a *app) printStatus(s api.Status) error {
	if a.output == outputJSON {
		return a.json(s)
	}
	head := fmt.Sprintf("%s  Weir %s, up %s", a.style.Strong(format.Safe(s.Node)), format.Safe(s.Version), uptime(s.Started))
	if s.Degraded {
		head += ", " + a.style.Bad("degraded")
	}
	lines := []string{head}
	for _, row := range [][2]string{
		{"policy", a.policyText(s)},
		{"endpoints", endpointsText(s)},
		{"flows", a.flowsText(s.Flows)},
		{"flow log", a.logText(s.Flows.Log)},
		{"exports", a.exportsText(s.Exports)},
		{"services", servicesText(s.Services)},
		{"routing", hostRoutingText(s.HostRouting)},
		{"shield", shieldText(s.Shield)},
		{"drops", dropsText(s.Drops)},
		{"maps", mapsText(s.Maps)},
		{"hooks", format.Safe(cmp.Or(strings.Join(s.Hooks, ", "), "none"))},
	} {
		if row[1] != "" {
			lines = append(lines, fmt.Sprintf("  %-10s %s", row[0], row[1]))
		}
	}
	lines = append(lines, a.troubles(s)...)
	return a.print(append(lines, "", next(s))...)
}

func uptime(since time.Time) string {
	if since.IsZero() {
		return "unknown"
	}
	return time.Since(since).Truncate(time.Second).String()
}

func (a *app) policyText(s api.Status) string {
	enforced := fmt.Sprintf("revision %d enforced (epoch %d)", s.Revision.Applied, s.Epoch)
	if s.Revision.Applied < s.Revision.Desired {
		return a.style.Warn(fmt.Sprintf("%s, revision %d not yet", enforced, s.Revision.Desired))
	}
	return enforced
}

func (a *app) flowsText(f api.FlowStatus) string {
	text := fmt.Sprintf("%d active, %d recorded", f.Active, f.Emitted)
	if m := f.Made; m != nil {
		text += fmt.Sprintf(" (%d new, %d updated, %d ended, %d revoked; %d denied)", m["new"], m["updated"], m["ended"], m["revoked"], f.EmittedBy["denial_events"])
	}
	if f.Off {
		text += ", records are off (--flow-records=false)"
	}
	if f.Lost > 0 {
		text += ", " + a.style.Warn(fmt.Sprintf("%d lost%s", f.Lost, lostBy(f.LostBy)))
	}
	if f.Suppressed > 0 {
		text += fmt.Sprintf(", %d denied packets counted only", f.Suppressed)
	}
	if f.Parked > 0 {
		text += fmt.Sprintf(", %d first packets of pods not known yet (%d sent on)", f.Parked, f.Resent)
	}
	return text
}

// lostBy has the causes that lost something.
func lostBy(causes map[string]uint64) string {
	var out []string
	for _, cause := range slices.Sorted(maps.Keys(causes)) {
		if causes[cause] > 0 {
			out = append(out, fmt.Sprintf("%d in ring %s", causes[cause], format.Safe(cause)))
		}
	}
	if len(out) == 0 {
		return ""
	}
	return " (" + strings.Join(out, ", ") + ")"
}

// exportsText is what became of the flows that others get.
func (a *app) exportsText(exports []api.ExportStatus) string {
	var out []string
	for _, e := range exports {
		text := fmt.Sprintf("%s: %d to %s", format.Safe(e.Export), e.Exported, format.Safe(e.Target))
		if e.Queued > 0 {
			text += fmt.Sprintf(", %d wait", e.Queued)
		}
		for _, cause := range slices.Sorted(maps.Keys(e.Lost)) {
			if n := e.Lost[cause]; n > 0 {
				text += ", " + a.style.Warn(fmt.Sprintf("%d lost (%s)", n, format.Safe(cause)))
			}
		}
		out = append(out, text)
	}
	return strings.Join(out, "; ")
}

// logText is what became of the events in the agent: what its log holds, and who was too slow for it.
func (a *app) logText(l *api.FlowLogStatus) string {
	if l == nil {
		return "" // an older agent
	}
	text := fmt.Sprintf("%d events read, %d of %d records kept", l.Read, l.Kept, l.Size)
	if s := l.Spill; s != nil {
		text += fmt.Sprintf("; %s on disk", format.Bytes(uint64(s.Bytes)))
		if s.Oldest != nil {
			text += " since " + s.Oldest.Local().Format("Jan _2 15:04:05")
		}
		if s.Lost > 0 {
			text += ", " + a.style.Warn(fmt.Sprintf("%d records not written", s.Lost))
		}
		if s.Missing > 0 {
			text += ", " + a.style.Warn(fmt.Sprintf("%d read by an agent that kept them nowhere", s.Missing))
		}
		if s.Error != "" {
			text += ", " + a.style.Bad(format.Safe(s.Error))
		}
		if s.Corrupt > 0 {
			text += ", " + a.style.Warn(plural(int(s.Corrupt), "damaged file", "damaged files"))
		}
	}
	for _, r := range l.Readers {
		reader := fmt.Sprintf("%s took %d", format.Safe(r.Name), r.Taken)
		if r.Lost > 0 {
			reader += ", " + a.style.Warn(fmt.Sprintf("lost %d", r.Lost))
		}
		if r.Cut > 0 {
			reader += ", " + a.style.Warn(fmt.Sprintf("cut off %d times", r.Cut))
		}
		text += "; " + reader
	}
	return text
}

func servicesText(s api.ServiceStatus) string {
	if !s.Translated {
		return "left to the node's NAT (weir-agent has no --cgroup-root)"
	}
	return fmt.Sprintf("%d addresses and ports translated at sockets below %s", s.Addresses, format.Safe(s.CgroupRoot))
}

// hostRoutingText is how flows to other nodes' pods cross this node.
func hostRoutingText(h *api.HostRoutingStatus) string {
	switch {
	case h == nil:
		return "" // somebody else's matter, or an older agent
	case h.Path == api.PathBPF && h.Nodes == h.Others:
		return "by BPF to pods of " + plural(h.Nodes, "other node", "other nodes")
	case h.Path == api.PathBPF:
		return fmt.Sprintf("by BPF to all pods of %d of %d other nodes: see the warnings", h.Nodes, h.Others)
	case len(h.Why) == 1:
		return fmt.Sprintf("by this node's stack to pods of other nodes (%s)", format.Safe(h.Why[0]))
	}
	return "by this node's stack to pods of other nodes"
}

// shieldText is what the uplinks drop by the source's address.
func shieldText(s *api.ShieldStatus) string {
	switch {
	case s == nil || s.Denied == 0 && !s.Attached:
		return "" // no list, or an older agent
	case s.Denied > 0 && !s.Attached:
		return plural(s.Denied, "address or prefix", "addresses and prefixes") + " listed, no uplink has the shield"
	}
	return fmt.Sprintf("%s denied at the uplinks (%d dropped)", plural(s.Denied, "address or prefix", "addresses and prefixes"), s.Dropped)
}

// dropsText has the commonest reason first.
func dropsText(drops map[string]uint64) string {
	reasons := slices.SortedFunc(maps.Keys(drops), func(x, y string) int {
		return cmp.Or(cmp.Compare(drops[y], drops[x]), cmp.Compare(x, y))
	})
	var out []string
	for _, r := range reasons {
		if drops[r] > 0 {
			out = append(out, fmt.Sprintf("%d %s", drops[r], format.Safe(r)))
		}
	}
	return cmp.Or(strings.Join(out, ", "), "none")
}

// mapsText has the fullest maps first.
func mapsText(maps []api.MapUse) string {
	percent := func(m api.MapUse) int { return 100 * m.Used / max(m.Most, 1) }
	full := slices.SortedStableFunc(slices.Values(maps), func(x, y api.MapUse) int { return percent(y) - percent(x) })
	var out []string
	for _, m := range full[:min(3, len(full))] {
		out = append(out, fmt.Sprintf("%s %d%%", format.Safe(m.Name), percent(m)))
	}
	return cmp.Or(strings.Join(out, ", "), "none")
}

func (a *app) troubles(s api.Status) []string {
	var lines []string
	if len(s.Errors) > 0 {
		lines = append(lines, "", a.style.Bad(plural(len(s.Errors), "error", "errors")+", not enforced as written:"))
	}
	for _, e := range s.Errors {
		lines = append(lines, "  "+a.style.Bad(format.Safe(e.String())))
	}
	if len(s.Warnings) > 0 {
		lines = append(lines, "", a.style.Warn(plural(len(s.Warnings), "warning", "warnings")+":"))
	}
	for _, w := range s.Warnings {
		lines = append(lines, "  "+a.style.Warn(format.Safe(w)))
	}
	return lines
}

func endpointsText(s api.Status) string {
	if s.Chained == 0 {
		return fmt.Sprint(s.Endpoints)
	}
	return fmt.Sprintf("%d, %d of them chained: on interfaces of another CNI plugin's", s.Endpoints, s.Chained)
}

// next is what to do.
func next(s api.Status) string {
	switch {
	case len(s.Errors) > 0 && s.Errors[0].File != "":
		return "Mend the file and save it: it is read again at once."
	case len(s.Errors) > 0:
		return "Mend what the errors name: each says what is enforced until then."
	case s.Revision.Applied < s.Revision.Desired:
		return "The newest revision is on its way: 'weir status --wait' returns when it is enforced."
	case s.Unprotected > 0:
		return "Restart the pods that the warning names: all others are enforced."
	case s.Endpoints == 0:
		return "No pod is attached yet: the CNI plugin weir-cni attaches them as they start."
	}
	if len(s.Warnings) > 0 {
		return "All that this agent knows is enforced: see the warnings."
	}
	if s.Flows.Off {
		return "All is enforced; flows are not recorded."
	}
	return "All is enforced. 'weir flows -f' shows the flows as they come."
}
