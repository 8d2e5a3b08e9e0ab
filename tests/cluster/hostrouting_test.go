package cluster

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"regexp"
	"testing"
	"time"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/tests/lab"
)

// strict is what kube-proxy has on every node: what conntrack takes for no part of a connection it
// knows is dropped. seen counts what the node's stack forwards between pods.
const strict = `table inet strict {
	counter seen {}
	counter invalid {}
	chain forward { type filter hook forward priority filter
		ip saddr 10.244.0.0/16 ip daddr 10.244.0.0/16 counter name seen
		ip6 saddr fd44::/16 ip6 daddr fd44::/16 counter name seen
		ct state invalid counter name invalid drop
	}
}`

var countedPackets = regexp.MustCompile(`packets (\d+)`)

// counted is how often a node's stack did something of strict.
func (p *pair) counted(n *lab.Node, counter string) string {
	p.Helper()
	out, err := n.Run(p.ctx, "nft", "list", "counter", "inet", "strict", counter)
	p.must(err)
	return countedPackets.FindStringSubmatch(out)[1]
}

// forwarded runs traffic and holds the nodes to whether their stacks forward it.
func (p *pair) forwarded(what string, traffic func(), byStack [2]bool) {
	p.Helper()
	var before [2]string
	for i, n := range p.nodes {
		before[i] = p.counted(n, "seen")
	}
	traffic()
	for i, n := range p.nodes {
		if after := p.counted(n, "seen"); (after != before[i]) != byStack[i] {
			p.Errorf("%s: the stack of %s forwards %s packets after %s, want any: %v", what, nodeNames[i], after, before[i], byStack[i])
		}
		if bad := p.counted(n, "invalid"); bad != "0" && p.strictly {
			p.Errorf("%s: conntrack of %s took %s packets for invalid", what, nodeNames[i], bad)
		}
	}
}

// passes waits until a node has as many others reached by BPF.
func (p *pair) passes(i, nodes int) {
	p.Helper()
	p.until(fmt.Sprintf("%s to reach pods of %d nodes by BPF", nodeNames[i], nodes), func() bool {
		s := p.hostRouting(i)
		return s.Nodes == nodes && s.Others == 1 && (s.Path == api.PathBPF) == (nodes > 0)
	})
	p.must(p.nodes[i].Wait(p.ctx)) // status knows before the programs do
}

// pastStack is a pod on each node, whose flows go past both nodes' stacks.
func (p *pair) pastStack() (web, db *lab.Pod) {
	p.strict()
	web, db = p.add(0, "web", "web"), p.add(1, "db", "db")
	p.enforced()
	p.routed(&web.Host, &db.Host)
	p.passes(0, 1)
	p.passes(1, 1)
	return web, db
}

// path is that of the flow to a port, as a node's records say.
func (p *pair) path(i int, to *lab.Pod, protocol string, port int) (path string) {
	p.Helper()
	p.until(fmt.Sprintf("a record of %s of the flow to %s port %d", nodeNames[i], to.Name, port), func() bool {
		flows, err := p.nodes[i].Flows(p.ctx, "--last", "200")
		p.must(err)
		for _, f := range flows {
			name, at := f.Port()
			if f.Destination.String() == "shop/"+to.PodName && name == protocol && at == port {
				x, err := f.Extension()
				p.must(err)
				path = x.Path
			}
		}
		return path != ""
	})
	return path
}

var (
	nodeNames = [2]string{"node-a", "node-b"}
	neither   = [2]bool{false, false}
	families  = []int{4, 6}
)

// TestHostRouting: pods of two nodes reach each other past both nodes' stacks, with all that may
// come of a flow, and nothing that conntrack would call invalid.
func TestHostRouting(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			p := newPair(t, "--routing", mode)
			web, db := p.pastStack()
			p.forwarded("TCP, UDP and echo, both ways", func() {
				for _, ends := range [][2]*lab.Pod{{web, db}, {db, web}} {
					p.probe(&ends[0].Host, &ends[1].Host, lab.Answered)
					for _, family := range families {
						if got, err := ends[0].Probe("icmp", ends[1].Addr(family), 0); err != nil || got != lab.Answered {
							p.Errorf("echo %s -> %s IPv%d: %v, %v", ends[0].Name, ends[1].Name, family, got, err)
						}
					}
				}
			}, neither)
			for i, to := range []*lab.Pod{db, web} {
				for node := range p.nodes {
					if got := p.path(node, to, "tcp", port); got != api.PathBPF {
						p.Errorf("the record of %s says of the flow to %s: path %s", nodeNames[node], nodeNames[1-i], got)
					}
				}
			}
			p.forwarded("8 MB of TCP", func() { p.streams(web, db) }, neither)
			p.forwarded("errors", func() { p.refusedAt(web, db); p.refusedAt(db, web) }, neither)
			p.large(&web.Host, &db.Host) // fragments go by the stack
			p.large(&db.Host, &web.Host)
			p.service(web, db)
			p.revokedPast(web, db)
			p.outage(web, db)
			p.forgedPast(mode, web, db)
			p.withdrawn(web, db)
			p.narrowed(mode, web, db)
		})
	}
}

// TestHostRoutingOfOneNode: each node chooses for itself.
func TestHostRoutingOfOneNode(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			p := newPair(t, "--routing", mode)
			web, db := p.pastStack()
			var conns []net.Conn
			open := func() {
				p.Helper()
				for _, ends := range [][2]*lab.Pod{{web, db}, {db, web}} {
					for _, family := range families {
						conn, err := ends[0].Connect(ends[1].Addr(family), port)
						p.must(err)
						p.Cleanup(func() { conn.Close() })
						conns = append(conns, conn)
					}
				}
			}
			open()
			goOn := func() {
				p.Helper()
				for _, conn := range conns {
					if err := bulk(conn, 1<<20, 20*time.Second); err != nil {
						p.Errorf("a connection of before, %s: %v", conn.RemoteAddr(), err)
					}
				}
			}
			set := func(i int, on bool) {
				p.Helper()
				p.must(p.nodes[i].KillAgent())
				p.forwarded("no agent on "+nodeNames[i], goOn, neither)
				p.nodes[i].Flags(fmt.Sprintf("--bpf-host-routing=%v", on))
				p.must(p.nodes[i].StartAgent(p.ctx))
				p.enforced()
			}
			set(1, false)
			p.forwarded("connections of before keep their path", goOn, neither)
			if s := p.hostRouting(1); s.Path != api.PathStack || len(s.Why) != 1 || s.Why[0] != "--bpf-host-routing=false" {
				p.Errorf("status says %+v", s)
			}
			p.forwarded("one node by its stack", func() {
				p.probe(&web.Host, &db.Host, lab.Answered)
				p.probe(&db.Host, &web.Host, lab.Answered)
				p.refusedAt(web, db)
				p.refusedAt(db, web)
			}, [2]bool{false, true})
			p.large(&web.Host, &db.Host)
			p.large(&db.Host, &web.Host)
			conns = nil
			open()
			p.must(p.nodes[1].KillAgent())
			p.nodes[1].Flags("--bpf-host-routing=true")
			p.must(p.nodes[1].StartAgent(p.ctx))
			p.enforced()
			p.passes(1, 1)
			p.forwarded("those begun by the stack stay there", goOn, [2]bool{false, true})
			p.forwarded("new ones do not", func() { p.probe(&web.Host, &db.Host, lab.Answered) }, neither)
		})
	}
}

// TestHostRoutingUpgrade: an agent whose maps are laid out in another way takes over, and the first
// takes over again; no connection notices.
func TestHostRoutingUpgrade(t *testing.T) {
	const otherLayout = "weir-agent-other-layout"
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			p := newPair(t, "--routing", mode)
			if _, err := os.Stat(p.nodes[0].Binary(otherLayout)); err != nil {
				t.Fatalf("run `make build-other-layout` first: %v", err)
			}
			web, db := p.pastStack()
			var conns []net.Conn
			for _, ends := range [][2]*lab.Pod{{web, db}, {db, web}} {
				for _, family := range families {
					conn, err := ends[0].Connect(ends[1].Addr(family), port)
					p.must(err)
					defer conn.Close()
					conns = append(conns, conn)
				}
			}
			flags := func(i int) []string {
				return []string{"--cni-conf", p.confs[i], "--uplink", "up0", "--uplink", "join", "--routing", mode}
			}
			for _, binary := range []string{otherLayout, "weir-agent"} {
				for i, n := range p.nodes {
					p.must(n.KillAgent())
					n.Build(binary, flags(i)...)
					p.must(n.StartAgent(p.ctx))
					p.must(n.Wait(p.ctx))
					p.passes(i, 1)
					p.forwarded(binary+" on "+nodeNames[i], func() {
						for _, conn := range conns {
							if err := bulk(conn, 1<<20, 20*time.Second); err != nil {
								p.Errorf("%s on %s: %s: %v", binary, nodeNames[i], conn.RemoteAddr(), err)
							}
						}
						p.probe(&web.Host, &db.Host, lab.Answered)
					}, neither)
				}
			}
		})
	}
}

// strict has both nodes drop what conntrack calls invalid, from now on.
func (p *pair) strict() {
	p.Helper()
	p.strictly = true
	for _, n := range p.nodes {
		p.nft(n, strict)
	}
}

func (p *pair) hostRouting(i int) api.HostRoutingStatus {
	p.Helper()
	s := p.statusOf(i)
	if s.HostRouting == nil {
		p.Fatalf("%s: status says nothing of host routing", nodeNames[i])
	}
	return *s.HostRouting
}

func (p *pair) statusOf(i int) (s api.Status) {
	p.Helper()
	r := p.nodes[i].Weir(p.ctx, "status", "-o", "json")
	if err := json.Unmarshal([]byte(r.Stdout), &s); err != nil {
		p.Fatalf("%s: %v: %s", nodeNames[i], err, r.Stderr)
	}
	return s
}

func (p *pair) streams(from, to *lab.Pod) {
	p.Helper()
	for _, family := range families {
		conn, err := from.Connect(to.Addr(family), port)
		p.must(err)
		if err := bulk(conn, 8<<20, 30*time.Second); err != nil {
			p.Errorf("IPv%d: %v", family, err)
		}
		conn.Close()
	}
}
