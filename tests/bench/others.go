package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/weirnet/weir/tests/lab"
)

// What controllers that write iptables or nftables rules make of the policies of cluster: a
// connection that is open goes on; what goes to pod b goes through a chain for it, from
// there through a chain for each policy, which marks what it lets in; what is not marked in
// the end is dropped. A policy's peers are rules, or a set.

// ruleset is a file and the command that puts it in force.
type ruleset struct {
	command string // %s is the file
	text    string
}

// apply writes each file below the node's run directory and puts it in force.
func apply(ctx context.Context, n *lab.Node, sets ...ruleset) error {
	for i, r := range sets {
		file := filepath.Join(n.RunDir(), fmt.Sprintf("rules-%d", i))
		if err := os.WriteFile(file, []byte(r.text), 0o600); err != nil {
			return err
		}
		if err := shell(ctx, &n.Host, fmt.Sprintf(r.command, file)); err != nil {
			return err
		}
	}
	return nil
}

const (
	nft             = "nft -f %s"
	iptablesRestore = "iptables-legacy-restore < %s"
	ipsetRestore    = "ipset restore < %s"
)

// match is what a policy's rule names: a peer and, but for the last, a port.
func match(i, policies int, a string) (peer string, port bool) {
	if i == policies-1 {
		return a, false
	}
	return peerAddress(i), true
}

// iptables is linear, or has a set for each policy's peers.
func iptables(policies int, a, b string, sets bool) []ruleset {
	var t, s strings.Builder
	t.WriteString("*filter\n:FORWARD ACCEPT [0:0]\n:POD-B - [0:0]\n")
	for i := range policies {
		fmt.Fprintf(&t, ":POLICY-%d - [0:0]\n", i)
	}
	t.WriteString("-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n")
	fmt.Fprintf(&t, "-A FORWARD -d %s/32 -j POD-B\n", b)
	if sets {
		fmt.Fprintf(&s, "create PODS hash:ip\nadd PODS %s\n", b)
	}
	for i := range policies {
		fmt.Fprintf(&t, "-A POD-B -j POLICY-%d\n", i)
		peer, port := match(i, policies, a)
		from, to, by := fmt.Sprintf("-s %s/32", peer), "", ""
		if sets {
			fmt.Fprintf(&s, "create PEERS-%d hash:ip\nadd PEERS-%d %s\n", i, i, peer)
			from, to = fmt.Sprintf("-m set --match-set PEERS-%d src", i), "-m set --match-set PODS dst"
		}
		if port {
			by = "-p tcp -m tcp --dport 80"
		}
		fmt.Fprintf(&t, "-A POLICY-%d %s %s %s -j MARK --set-xmark 0x10000/0x10000\n", i, from, to, by)
		fmt.Fprintf(&t, "-A POLICY-%d -m mark --mark 0x10000/0x10000 -j RETURN\n", i)
	}
	t.WriteString("-A POD-B -m mark --mark 0x10000/0x10000 -j ACCEPT\n-A POD-B -j DROP\nCOMMIT\n")
	rules := ruleset{iptablesRestore, t.String()}
	if sets {
		return []ruleset{{ipsetRestore, s.String()}, rules}
	}
	return []ruleset{rules}
}

// nftables is likewise.
func nftables(policies int, a, b string, sets bool) []ruleset {
	var t strings.Builder
	t.WriteString("table ip engine\ndelete table ip engine\ntable ip engine {\n")
	for i := range policies {
		peer, port := match(i, policies, a)
		from, by := peer, ""
		if sets {
			fmt.Fprintf(&t, " set peers-%d { type ipv4_addr; elements = { %s }; }\n", i, peer)
			from = fmt.Sprintf("@peers-%d", i)
		}
		if port {
			by = "tcp dport 80"
		}
		fmt.Fprintf(&t, " chain policy-%d { ip saddr %s %s accept; }\n", i, from, by)
	}
	t.WriteString(" chain pod-b {\n")
	for i := range policies {
		fmt.Fprintf(&t, "  jump policy-%d\n", i)
	}
	fmt.Fprintf(&t, "  drop\n }\n chain forward { type filter hook forward priority 0; ct state established,related accept; ip daddr vmap { %s : jump pod-b }; }\n}\n", b)
	return []ruleset{{nft, t.String()}}
}

// oneSet is the best that nftables can do: all policies of a pod in one set of peers and
// ports, which only policies allow that are all of one shape.
func oneSet(policies int, a, b string) []ruleset {
	var t strings.Builder
	t.WriteString("table ip engine\ndelete table ip engine\ntable ip engine {\n set whole { type ipv4_addr; elements = { " + a + " }; }\n" +
		" set some { type ipv4_addr . inet_proto . inet_service; elements = { ")
	for i := range policies {
		// More peers than there are, so that there are as many elements as policies.
		fmt.Fprintf(&t, "10.65.%d.%d . tcp . 80, ", i/250, i%250)
	}
	fmt.Fprintf(&t, "}; }\n chain pod-b { ip saddr @whole accept; ip saddr . meta l4proto . th dport @some accept; drop; }\n"+
		" chain forward { type filter hook forward priority 0; ct state established,related accept; ip daddr vmap { %s : jump pod-b }; }\n}\n", b)
	return []ruleset{{nft, t.String()}}
}

// queueRules are those of kube-network-policies for kernels that lack what its own need: the
// node's pods that a policy selects are in its set.
func queueRules(selected string) []ruleset {
	set := "create podips hash:ip\n"
	if selected != "" {
		set += "add podips " + selected + "\n"
	}
	return []ruleset{
		{ipsetRestore, set},
		{iptablesRestore, "*mangle\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT\n" +
			"-A POSTROUTING -m set --match-set podips src -j NFQUEUE --queue-num 100 --queue-bypass\n" +
			"-A POSTROUTING -m set --match-set podips dst -j NFQUEUE --queue-num 100 --queue-bypass\nCOMMIT\n"},
	}
}
