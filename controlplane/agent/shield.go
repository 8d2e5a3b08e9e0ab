package agent

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/controlplane/shield"
	"github.com/weirnet/weir/controlplane/source"
	"github.com/weirnet/weir/datapath"
)

// shielder is a Kernel that drops by the source's address at the uplinks.
type shielder interface {
	// Deny makes the list that of the programs, at once; on a FullError nothing changed.
	Deny(list []netip.Prefix) error
	Denied() ([]netip.Prefix, error)
	DeniedMost() int
}

// shielded is what became of the list.
type shielded struct {
	wake   chan struct{}
	denied int               // a.mu
	errors []api.ObjectError // a.mu
}

// shieldErrors are as many of a list's errors as people are shown.
const shieldErrors = 20

// shieldAgain has the list looked at again: what may not be in it changed perhaps.
func (a *Agent) shieldAgain() {
	select {
	case a.shield.wake <- struct{}{}:
	default:
	}
}

// shieldList is the list as the file has it. What is enforced stays while that is not known.
type shieldList struct {
	file    string
	read    bool // there is a file's text, or no file
	failed  error
	lines   []shield.Entry
	refused []shield.Refused
	good    []shield.Entry // the last that could be read and fit; nil: none yet
	servers apiServer
}

func (l *shieldList) take(text []byte, err error) {
	if l.read, l.failed = true, err; err == nil {
		l.lines, l.refused = shield.Parse(text)
	}
}

// keepShield makes the shield drop what the file lists: when it changes, and when what may not be
// in it does.
func (a *Agent) keepShield(ctx context.Context) error {
	kernel, ok := a.Kernel.(shielder)
	if !ok {
		return nil
	}
	l := &shieldList{file: a.ShieldFile, read: a.ShieldFile == "", servers: apiServer{host: a.APIServer}}
	texts := make(chan func())
	var follow sync.WaitGroup
	defer follow.Wait()
	if l.file != "" {
		follow.Go(func() {
			source.Follow(ctx, l.file, a.Log, func(text []byte, err error) {
				select {
				case texts <- func() { l.take(text, err) }:
				case <-ctx.Done():
				}
			})
		})
	}
	var retry <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case take := <-texts:
			take()
		case <-a.shield.wake:
		case <-retry:
		}
		retry = nil
		if !l.read {
			continue
		}
		if err := a.deny(ctx, kernel, l); err != nil {
			retry = time.After(retryMost)
		}
	}
}

// deny enforces what may be enforced of the list, and says what may not.
func (a *Agent) deny(ctx context.Context, kernel shielder, l *shieldList) error {
	if l.failed != nil && l.good == nil {
		inForce, err := kernel.Denied()
		if err != nil {
			return a.noteShield(l, 0, []api.ObjectError{{Message: "the shield's list: " + err.Error()}}, err)
		}
		l.good = []shield.Entry{}
		for _, p := range inForce {
			l.good = append(l.good, shield.Entry{Prefix: p})
		}
	}
	kept := a.kept(ctx, l)
	if kept == nil {
		return nil // it comes again when the node's and the cluster's addresses are known
	}
	var errs []api.ObjectError
	var list []netip.Prefix
	if l.failed != nil {
		errs = append(errs, l.error(0, fmt.Sprintf("the last good list stays in force: %v", l.failed)))
		list, _ = l.allowed(kept, l.good)
	} else {
		var refused []shield.Refused
		list, refused = l.allowed(kept, l.lines)
		for _, r := range slices.Concat(l.refused, refused) {
			errs = append(errs, l.error(r.Line, r.Reason))
		}
		if most := kernel.DeniedMost(); len(list) > most {
			errs = []api.ObjectError{l.error(0, fmt.Sprintf("the last list stays in force: %d entries, and map shield_deny holds %d (--map-size shield_deny=N makes it larger)", len(list), most))}
			if l.good == nil {
				return a.noteShield(l, -1, errs, nil)
			}
			list, _ = l.allowed(kept, l.good)
		} else {
			l.good = l.lines
		}
	}
	err := kernel.Deny(list)
	if err != nil {
		errs = append(errs, l.error(0, fmt.Sprintf("the shield's list is not enforced whole: %v", err)))
	}
	return a.noteShield(l, len(list), errs, err)
}

func (l *shieldList) error(line int, message string) api.ObjectError {
	e := api.ObjectError{File: l.file, Message: message}
	if line > 0 {
		e.File = fmt.Sprintf("%s:%d", l.file, line)
	}
	return e
}

func (l *shieldList) allowed(kept *shield.Kept, entries []shield.Entry) (list []netip.Prefix, refused []shield.Refused) {
	for _, e := range entries {
		if why := kept.Refuse(e.Prefix); why != "" {
			refused = append(refused, shield.Refused{Line: e.Line, Reason: why})
			continue
		}
		list = append(list, e.Prefix)
	}
	return list, refused
}

// noteShield is what status and the log say; denied below 0: as many as before.
func (a *Agent) noteShield(l *shieldList, denied int, errs []api.ObjectError, err error) error {
	slices.SortStableFunc(errs, func(x, y api.ObjectError) int { return lineOf(x) - lineOf(y) })
	if more := len(errs) - shieldErrors; more > 0 {
		errs = append(errs[:shieldErrors:shieldErrors], l.error(0, fmt.Sprintf("%d more entries are refused", more)))
	}
	a.mu.Lock()
	was, n := a.shield.errors, a.shield.denied
	if denied < 0 {
		denied = n
	}
	a.shield.errors, a.shield.denied = errs, denied
	a.mu.Unlock()
	a.logErrors(was, errs)
	if denied != n {
		a.Log.Info("the shield's list is in force", "entries", denied, "file", l.file)
		if a.ShieldOff && denied > 0 {
			a.Log.Warn(noShield(denied))
		}
	}
	return err
}

func lineOf(e api.ObjectError) int {
	line := 0
	if i := strings.LastIndexByte(e.File, ':'); i >= 0 {
		fmt.Sscan(e.File[i+1:], &line)
	}
	return line
}

func noShield(denied int) string {
	return fmt.Sprintf("the shield's list is not empty (%d) and no uplink has the shield, so nothing drops what is on it: set uplink-xdp to native, generic or auto", denied)
}

// shieldStatus is for people, with what warns them; a.mu is held.
func (a *Agent) shieldStatus(drops map[datapath.Reason]uint64, hooks []string) (*api.ShieldStatus, []string) {
	kernel, ok := a.Kernel.(shielder)
	if !ok || a.ShieldFile == "" && a.shield.denied == 0 {
		return nil, nil
	}
	s := &api.ShieldStatus{
		File: a.ShieldFile, Denied: a.shield.denied, Most: kernel.DeniedMost(), Dropped: drops[datapath.ReasonShield],
		Attached: slices.ContainsFunc(hooks, func(h string) bool { return strings.HasPrefix(h, "shield ") }),
	}
	if s.Denied > 0 && !s.Attached {
		return s, []string{noShield(s.Denied)}
	}
	return s, nil
}

// kept is what may not be in the list; nil: not all of it is known yet. An empty list asks nobody.
func (a *Agent) kept(ctx context.Context, l *shieldList) *shield.Kept {
	whose := map[netip.Prefix]string{}
	keep := func(what string, addrs ...netip.Addr) {
		for _, addr := range addrs {
			if addr = addr.Unmap().WithZone(""); addr.IsValid() {
				whose[netip.PrefixFrom(addr, addr.BitLen())] = what
			}
		}
	}
	listed := len(l.lines)+len(l.good) > 0
	if listed {
		keep("the API server's", l.servers.addresses(ctx)...)
		keep("a DNS server of this node (/etc/resolv.conf)", resolvers()...)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.input.update == nil || a.input.network == nil {
		return nil
	}
	if !listed {
		return shield.Keep(nil)
	}
	for name, pod := range a.input.cluster.Pods {
		if !pod.Finished {
			keep("pod "+name.String()+"'s", pod.Addresses...)
		}
	}
	for _, r := range a.records.All() {
		keep("pod "+r.Pod().String()+"'s", r.Addresses()...)
	}
	for _, p := range clusterCIDRs(a.ClusterCIDRs, a.input.update.Nodes) {
		whose[p.Masked()] = "pods' addresses"
	}
	if nodes := a.input.update.Nodes; nodes != nil {
		for i := range nodes.Others {
			keep("an address of node "+nodes.Others[i].Name, nodes.Others[i].Addresses...)
		}
		if nodes.Own != nil {
			keep("an address of this node", nodes.Own.Addresses...)
		}
	}
	keep("an address of this node", a.input.network.Addresses...)
	if s := a.input.cluster.EndpointSlices[apiServerSlice]; s != nil {
		for _, e := range s.Endpoints {
			for _, text := range e.Addresses {
				addr, _ := netip.ParseAddr(text)
				keep("the API server's", addr)
			}
		}
	}
	return shield.Keep(whose)
}

// apiServerSlice has the API servers' own addresses, whose packets come with them.
var apiServerSlice = types.NamespacedName{Namespace: "default", Name: "kubernetes"}

// apiServer is the one that the agent was told of.
type apiServer struct {
	host  string // name or address, none = there is no API server
	found []netip.Addr
	asked time.Time
}

// addresses are the last that were found.
func (s *apiServer) addresses(ctx context.Context) []netip.Addr {
	if s.host == "" || !s.asked.IsZero() && time.Since(s.asked) < recheckMaps {
		return s.found
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", s.host); err == nil {
		s.found = found
	}
	s.asked = time.Now()
	return s.found
}

func resolvers() (out []netip.Addr) {
	text, _ := os.ReadFile("/etc/resolv.conf")
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "nameserver" {
			if addr, err := netip.ParseAddr(f[1]); err == nil {
				out = append(out, addr)
			}
		}
	}
	return out
}
