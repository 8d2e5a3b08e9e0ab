// Package cni is the CNI plugin: it makes a pod's interface, or takes the one that the
// plugin before it made (chained.go), puts the node's programs on it, and asks the agent for
// the endpoint. It decides nothing about policy; until the agent has answered the programs
// drop everything.
//
//	ADD     agent? -> addresses (IPAM) -> veth, both ends down -> links -> pod and node side -> up
//	                                                           \> endpoint, meanwhile; ADD ends with both
//	DEL     endpoint -> veth -> links -> addresses: the reverse, so that no address is
//	        reused while a packet can still be judged by its last owner's endpoint
//	        (chained: addresses and veth are found, then links and endpoint alone, and back)
//	        (addresses that cannot be given back are noted, and the pod goes: owed.go)
//	CHECK   each of these, every mismatch named
//	GC      DEL of whatever is not listed
//	STATUS  is ADD possible
package cni

import (
	"os"
	"strings"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/version"
)

// About is printed when the plugin is run by hand.
const About = "Weir CNI plugin: run by a container runtime, with CNI_COMMAND set"

// Versions of the CNI specification the plugin speaks.
func Versions() version.PluginInfo {
	return version.PluginSupports("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
}

// Funcs are the plugin's verbs. Their errors are *types.Error, whose codes are those
// of the CNI specification, or become code 999.
func Funcs() skel.CNIFuncs {
	return skel.CNIFuncs{Add: lenient(add), Del: lenient(del), Check: lenient(check), GC: lenient(gc), Status: status}
}

// lenient lets the plugins that a verb delegates to ignore the pod's arguments, which
// they do not know, whether or not the runtime thought of saying so.
func lenient(verb func(*skel.CmdArgs) error) func(*skel.CmdArgs) error {
	return func(args *skel.CmdArgs) error {
		if err := os.Setenv("CNI_ARGS", strings.TrimPrefix(os.Getenv("CNI_ARGS")+";IgnoreUnknown=1", ";")); err != nil {
			return err
		}
		return verb(args)
	}
}
