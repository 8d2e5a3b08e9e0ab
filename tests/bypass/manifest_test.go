package bypass

import (
	"fmt"
	"strings"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath"
)

// The drop reasons, in the words of the flow log.
const (
	policy          = datapath.Reason(bpf.WeirDropReasonDROP_POLICY)
	unmanaged       = datapath.Reason(bpf.WeirDropReasonDROP_UNMANAGED_PEER)
	noEndpoint      = datapath.Reason(bpf.WeirDropReasonDROP_NO_ENDPOINT)
	noRuleset       = datapath.Reason(bpf.WeirDropReasonDROP_NO_RULESET)
	spoofed         = datapath.Reason(bpf.WeirDropReasonDROP_SPOOFED_SOURCE)
	badSource       = datapath.Reason(bpf.WeirDropReasonDROP_BAD_SOURCE)
	foreignSource   = datapath.Reason(bpf.WeirDropReasonDROP_FOREIGN_SOURCE)
	ethertype       = datapath.Reason(bpf.WeirDropReasonDROP_ETHERTYPE)
	vlan            = datapath.Reason(bpf.WeirDropReasonDROP_VLAN)
	truncated       = datapath.Reason(bpf.WeirDropReasonDROP_TRUNCATED)
	badHeader       = datapath.Reason(bpf.WeirDropReasonDROP_BAD_HEADER)
	ipOptions       = datapath.Reason(bpf.WeirDropReasonDROP_IP_OPTIONS)
	extensionHeader = datapath.Reason(bpf.WeirDropReasonDROP_EXTENSION_HEADER)
	fragmentShort   = datapath.Reason(bpf.WeirDropReasonDROP_FRAGMENT_SHORT)
	fragmentUnknown = datapath.Reason(bpf.WeirDropReasonDROP_FRAGMENT_UNKNOWN)
	tcpFlags        = datapath.Reason(bpf.WeirDropReasonDROP_TCP_FLAGS)
	tcpStray        = datapath.Reason(bpf.WeirDropReasonDROP_TCP_STRAY)
	icmpType        = datapath.Reason(bpf.WeirDropReasonDROP_ICMP_TYPE)
	icmpUnrelated   = datapath.Reason(bpf.WeirDropReasonDROP_ICMP_UNRELATED)
	neighbour       = datapath.Reason(bpf.WeirDropReasonDROP_NEIGHBOUR)
	multicast       = datapath.Reason(bpf.WeirDropReasonDROP_MULTICAST)
	flowShare       = datapath.Reason(bpf.WeirDropReasonDROP_FLOW_SHARE)
	destination     = datapath.Reason(bpf.WeirDropReasonDROP_DESTINATION)
)

// podYAML is a Pod's manifest; its labels are "k: v" lists.
func podYAML(namespace, name string, labels ...string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {namespace: %q, name: %q, labels: {%s}}\n"+
		"spec: {containers: [{name: c, image: c}]}\n---\n", namespace, name, strings.Join(labels, ", "))
}

// policyYAML is a NetworkPolicy's manifest; spec is its spec in YAML's flow style.
func policyYAML(namespace, name, spec string) string {
	return fmt.Sprintf("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {namespace: %s, name: %s}\nspec: %s\n---\n",
		namespace, name, spec)
}

func namespaceYAML(name string, labels ...string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Namespace\nmetadata: {name: %s, labels: {%s}}\n---\n", name, strings.Join(labels, ", "))
}

var pods = podYAML("ns", "mallory", "app: mallory") + podYAML("ns", "eve", "app: eve") +
	podYAML("ns", "alice", "app: alice") + podYAML("ns", "bob", "app: bob")

// fromAll lets mallory and eve to bob's two ports, and alice to all of them.
const fromAll = `{podSelector: {matchLabels: {app: bob}}, ingress: [
  {from: [{podSelector: {matchLabels: {app: alice}}}]},
  {from: [{podSelector: {matchExpressions: [{key: app, operator: In, values: [mallory, eve]}]}}],
   ports: [{port: 8080}, {port: 9000, protocol: UDP}]}]}`

var policies = policyYAML("ns", "bob", fromAll) +
	policyYAML("ns", "alice", "{podSelector: {matchLabels: {app: alice}}, policyTypes: [Ingress]}") +
	// eve reaches bob's open port and a block without one of its addresses, nothing else.
	policyYAML("ns", "eve", `{podSelector: {matchLabels: {app: eve}}, policyTypes: [Egress], egress: [
  {to: [{podSelector: {matchLabels: {app: bob}}}], ports: [{port: 8080}]},
  {to: [{ipBlock: {cidr: 203.0.113.0/24, except: [203.0.113.13/32]}}]}]}`)
