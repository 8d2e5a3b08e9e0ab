package loader

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath/maps"
)

// observers are the programs on tracepoints. Their links cannot be given another program:
// the new one is attached first, and for a moment both see what happens.
var observers = []observer{
	{program: bpf.ObserveProgSetState},
	{program: bpf.ObserveProgKernelDrop, raw: "kfree_skb"},
}

type observer struct {
	program string
	raw     string // its tracepoint, where it is not said in its BTF
}

func observerPin(bpffsDir, program string) string {
	return filepath.Join(bpffsDir, observersDir, program)
}

// observe attaches the programs on tracepoints in place of those that are attached.
func (l *Loaded) observe() error {
	if l.observed == nil {
		return nil
	}
	for _, o := range observers {
		if err := o.attach(observerPin(l.cfg.BPFFSDir, o.program), l.observed.Programs[o.program]); err != nil {
			return fmt.Errorf("attach %s to its tracepoint: %w", o.program, err)
		}
	}
	return nil
}

// ObserversIntact reports whether the links of the programs on tracepoints are where they were pinned.
func ObserversIntact(dir string) bool {
	return !slices.ContainsFunc(observers, func(o observer) bool { return !exists(observerPin(dir, o.program)) })
}

// Observe attaches them again.
func Observe(cfg Config) error {
	_, _, observe, err := cfg.specs()
	if err != nil {
		return err
	}
	l := &Loaded{cfg: cfg}
	if l.observed, err = loadCollection(cfg.BPFFSDir, maps.InForce, observe); err != nil {
		return explain(err)
	}
	if err := os.MkdirAll(filepath.Join(cfg.BPFFSDir, observersDir), 0o700); err != nil {
		return errors.Join(err, l.Close())
	}
	return errors.Join(l.observe(), l.Close())
}

func (o observer) link(p *ebpf.Program) (link.Link, error) {
	if o.raw != "" {
		return link.AttachRawTracepoint(link.RawTracepointOptions{Name: o.raw, Program: p})
	}
	return link.AttachTracing(link.TracingOptions{Program: p})
}

func (o observer) attach(pin string, p *ebpf.Program) error {
	l, err := o.link(p)
	if err != nil {
		return err
	}
	defer l.Close()
	old, err := link.LoadPinnedLink(pin, nil)
	switch {
	case err == nil:
		defer old.Close()
		if err := releaseLink(old, pin); err != nil {
			return err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("open pinned link %s: %w", pin, err)
	}
	if err := l.Pin(pin); err != nil {
		return fmt.Errorf("pin %s: %w", pin, err)
	}
	return nil
}

// observeSpec has the other specs' maps where it has maps of their names.
func observeSpec(c Config, others ...*ebpf.CollectionSpec) (*ebpf.CollectionSpec, error) {
	spec, err := bpf.LoadObserve()
	if err != nil {
		return nil, fmt.Errorf("read embedded programs: %w", err)
	}
	c.Sizes.set(spec)
	for _, other := range others {
		for name, m := range other.Maps {
			if _, ok := pinOf(name); ok && spec.Maps[name] != nil {
				spec.Maps[name] = m.Copy()
			}
		}
	}
	return spec, setDropReasons(spec)
}

// reasonsLeft are the kernel's reasons that its drops are not told of: packets that were
// consumed, nobody knows why, or by a program of ours, which has told; the last packets of
// TCP connections, which find theirs closed; and what a socket had got when it was closed, such
// as the ICMP error that its owner has heard of already.
var reasonsLeft = []string{"NOT_DROPPED_YET", "CONSUMED", "NOT_SPECIFIED", "TC_INGRESS", "TC_EGRESS", "XDP", "TCP_CLOSE", "QUEUE_PURGE"}

// setDropReasons tells the program on kfree_skb what this kernel's reasons are.
func setDropReasons(spec *ebpf.CollectionSpec) error {
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		return fmt.Errorf("read the kernel's BTF: %w", err)
	}
	var reasons *btf.Enum
	if err := kernel.TypeByName("skb_drop_reason", &reasons); err != nil {
		return fmt.Errorf("read the kernel's drop reasons: %w", err)
	}
	var left [4]uint64
	left[0] = 1 // 0 is no reason
	var noSocket uint32
	for _, v := range reasons.Values {
		name := strings.TrimPrefix(strings.TrimPrefix(v.Name, "SKB_DROP_REASON_"), "SKB_")
		if slices.Contains(reasonsLeft, name) && v.Value < 256 {
			left[v.Value/64] |= 1 << (v.Value % 64)
		}
		if name == "NO_SOCKET" {
			noSocket = uint32(v.Value)
		}
	}
	netns, err := netnsCookie()
	if err != nil {
		return err
	}
	for name, value := range map[string]any{
		bpf.ObserveVarCfgReasonsLeft: left, bpf.ObserveVarCfgReasonNoSocket: noSocket,
		bpf.ObserveVarCfgReasonSocket: dropTellsSocket(kernel), bpf.ObserveVarCfgNetns: netns,
	} {
		if err := spec.Variables[name].Set(value); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	return nil
}

// dropTellsSocket: from 6.11 the tracepoint has one argument more.
func dropTellsSocket(kernel *btf.Spec) uint32 {
	var t *btf.Typedef
	if kernel.TypeByName("btf_trace_kfree_skb", &t) != nil {
		return 0
	}
	p, _ := t.Type.(*btf.Pointer)
	if p == nil {
		return 0
	}
	if f, _ := p.Target.(*btf.FuncProto); f == nil || len(f.Params) < 5 { // its own data, skb, place, reason, socket
		return 0
	}
	return 1
}

// netnsCookie is the number of the namespace that this thread is in.
func netnsCookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open a socket: %w", err)
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("ask for the network namespace's cookie: %w", err)
	}
	return cookie, nil
}

// NamesSockets reports whether programs below dir note whose sockets are whose.
func NamesSockets(dir string) bool { return exists(maps.Path(dir, bpf.SockMapSocketProcess)) }

// NameSockets notes whose sockets are that were open before the programs that note it, as far
// as this process's PID namespace shows: the oldest process that holds one. It is to be called
// when the maps know the node's endpoints.
func NameSockets(cfg Config) error {
	if cfg.NoProcess {
		return nil
	}
	_, _, observe, err := cfg.specs()
	if err != nil {
		return err
	}
	for name := range observe.Programs {
		if name != bpf.ObserveProgNameSockets {
			delete(observe.Programs, name)
		}
	}
	c, err := loadCollection(cfg.BPFFSDir, maps.InForce, observe)
	if err != nil {
		return explain(err)
	}
	defer c.Close()
	iter, err := link.AttachIter(link.IterOptions{Program: c.Programs[bpf.ObserveProgNameSockets]})
	if err != nil {
		return fmt.Errorf("attach %s: %w", bpf.ObserveProgNameSockets, err)
	}
	defer iter.Close()
	run, err := iter.Open()
	if err != nil {
		return fmt.Errorf("open %s: %w", bpf.ObserveProgNameSockets, err)
	}
	defer run.Close()
	if _, err := io.Copy(io.Discard, run); err != nil {
		return fmt.Errorf("run %s: %w", bpf.ObserveProgNameSockets, err)
	}
	return nil
}
