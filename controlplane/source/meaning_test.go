package source

import (
	"net/netip"
	"slices"
	"testing"

	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/datapath"
)

const meaningText = `kind: Namespace
apiVersion: v1
metadata: {name: x, labels: {team: one}}
---
{kind: Pod, apiVersion: v1, metadata: {name: a, namespace: x, labels: {app: a}}, status: {podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]}}
---
{kind: Pod, apiVersion: v1, metadata: {name: b, namespace: x, labels: {app: b}}, status: {podIP: 10.0.0.2}, spec: {containers: [{name: c, ports: [{name: web, containerPort: 80}]}]}}
---
{kind: Pod, apiVersion: v1, metadata: {name: c}, status: {podIP: 10.0.0.3}}
---
kind: NetworkPolicy
apiVersion: networking.k8s.io/v1
metadata: {name: p, namespace: x}
spec:
`

// Whatever objects the directory takes, they compile, and the compiled state says of their
// pods what the reference says.
func FuzzMeaning(f *testing.F) {
	for _, spec := range []string{
		"  podSelector: {}",
		"  podSelector: {}\n  ingress: [{from: [{podSelector: {}}, {namespaceSelector: {matchLabels: {team: one}}}], ports: [{port: web}, {port: 80, endPort: 90, protocol: UDP}]}]",
		"  podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [b]}]}\n  egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.2/31]}}]}]\n  policyTypes: [Egress]",
		"  podSelector: {}\n  ingress: [{from: [{ipBlock: {cidr: '::/0', except: ['fd00::/8']}}], ports: [{}]}, {}]\n  egress: [{to: [{namespaceSelector: {}, podSelector: {matchLabels: {app: b}}}], ports: [{port: web}, {protocol: SCTP}]}]",
	} {
		f.Add([]byte(meaningText + spec))
	}
	for _, r := range rules {
		if r.want == "" {
			f.Add([]byte(meaningText[:len(meaningText)-len("kind: NetworkPolicy\napiVersion: networking.k8s.io/v1\nmetadata: {name: p, namespace: x}\nspec:\n")] + heads[r.kind] + r.text))
		}
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		objects, errs := parse("f.yaml", text)
		if len(errs) > 0 {
			return
		}
		m := merge(map[string]*file{"f.yaml": {good: &content{objects: objects}}}, nil, nil)
		places := placesOf(m.cluster)
		if len(places) > 6 || len(m.cluster.NetworkPolicies) > 6 {
			return // enough is tried, and not for long
		}
		result := policy.Compile(m.cluster, policy.Node{}, localsOf(places), policy.NewAllocator())
		for _, problem := range result.Errors {
			t.Errorf("taken by the directory, and does not compile: %v", problem)
		}
		for _, from := range places {
			for _, to := range places {
				holdMeaning(t, m.cluster, result.State, from, to)
			}
		}
	})
}

// place is a pod of the text, all of which are on this node, or an address of nobody.
type place struct {
	name   types.NamespacedName
	addr   netip.Addr
	number uint32
}

func placesOf(c *policy.Cluster) []place {
	out := []place{{addr: netip.MustParseAddr("192.0.2.1")}, {addr: netip.MustParseAddr("2001:db8::1")}}
	taken := map[netip.Addr]bool{out[0].addr: true, out[1].addr: true}
	names := make([]types.NamespacedName, 0, len(c.Pods))
	for name := range c.Pods {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b types.NamespacedName) int {
		return slices.Compare([]string{a.Namespace, a.Name}, []string{b.Namespace, b.Name})
	})
	for i, name := range names {
		pod := c.Pods[name]
		if len(pod.Addresses) == 0 || pod.HostNetwork || taken[pod.Addresses[0]] {
			continue
		}
		a := pod.Addresses[0]
		taken[a] = true
		out = append(out, place{name, a, uint32(i + 1)})
	}
	return out
}

func localsOf(places []place) (locals []policy.Local) {
	for _, p := range places {
		if p.number == 0 {
			continue
		}
		e := datapath.Endpoint{Ifindex: p.number}
		if p.addr.Is4() {
			e.Addr4 = p.addr
		} else {
			e.Addr6 = p.addr
		}
		locals = append(locals, policy.Local{Pod: p.name, Number: p.number, Endpoint: e})
	}
	return locals
}

// holdMeaning asks about the ports that texts are likely to have.
func holdMeaning(t *testing.T, c *policy.Cluster, s *datapath.State, from, to place) {
	t.Helper()
	if from.addr.Is4() != to.addr.Is4() || from.number+to.number == 0 || from == to {
		return
	}
	for _, protocol := range []uint8{datapath.TCP, datapath.UDP, datapath.SCTP, 1} {
		for _, port := range []uint16{80, 81, 90, 65535} {
			if protocol == 1 {
				port = 0
			}
			tuple := policy.Tuple{From: policy.End{Pod: from.name, Addr: from.addr}, To: policy.End{Pod: to.name, Addr: to.addr}, Protocol: protocol, Port: port}
			want := policy.Verdict(c, policy.Node{}, tuple)
			peers := [2]datapath.Peer{peerOf(s, from.addr), peerOf(s, to.addr)}
			got := [2]bool{true, true}
			if from.number != 0 {
				got[0], _, _ = s.Judge(s.Endpoints[from.number].Egress, peers[1], protocol, port)
			}
			if to.number != 0 {
				got[1], _, _ = s.Judge(s.Endpoints[to.number].Ingress, peers[0], protocol, port)
			}
			if (got[0] && got[1]) != want.Forwarded {
				t.Errorf("%+v: compiled egress %v, ingress %v; the reference says %v", tuple, got[0], got[1], want.Forwarded)
			}
		}
	}
}

// peerOf is who the address is: itself, else the longest prefix over it.
func peerOf(s *datapath.State, a netip.Addr) datapath.Peer {
	for bits := a.BitLen(); bits >= 0; bits-- {
		if p, ok := s.Peers[netip.PrefixFrom(a, bits).Masked()]; ok {
			return p
		}
	}
	return datapath.Peer{}
}
