package atomic

import (
	"encoding/binary"
	"fmt"
	"math/rand"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/tests/testnode"
)

// judgeThread sends packets until the flood stops, of flows and on a CPU that are its own
// alone, so that it knows which denials are its own.
type judgeThread struct {
	*flood
	rand   *rand.Rand
	cpu    int
	hook   *testnode.Hook
	tables *testnode.Tables
	ports  uint16 // its own begin here
	frames map[frameKey][]byte
	denied map[bpf.WeirDenialCountKey]uint64 // on its CPU
	tally  tally
	done   <-chan error
}

const portsOfJudge = 4096

type frameKey struct {
	pair
	flags string
}

func (f *flood) judge(t *testing.T, number, cpu int) *judgeThread {
	t.Helper()
	j := &judgeThread{
		flood: f, cpu: cpu, ports: uint16(number) * portsOfJudge, rand: rand.New(rand.NewSource(int64(number))),
		frames: map[frameKey][]byte{}, denied: map[bpf.WeirDenialCountKey]uint64{},
	}
	j.tally.epochs = map[uint64]int{}
	var err error
	if j.hook, err = f.node.Hook("from_pod"); err != nil {
		t.Fatal(err)
	}
	if j.tables, err = f.node.Tables(); err != nil {
		t.Fatal(err)
	}
	j.done = f.node.Thread(j.send)
	return j
}

// cpus are two of those that we may run on.
func cpus(t *testing.T) (out []int) {
	t.Helper()
	var may unix.CPUSet
	if err := unix.SchedGetaffinity(0, &may); err != nil {
		t.Fatal(err)
	}
	for cpu := 0; len(out) < min(2, may.Count()); cpu++ {
		if may.IsSet(cpu) {
			out = append(out, cpu)
		}
	}
	return out
}

func (j *judgeThread) send() error {
	defer j.tables.Close()
	defer j.hook.Close()
	defer j.stop()
	var own unix.CPUSet
	own.Set(j.cpu)
	if err := unix.SchedSetaffinity(0, &own); err != nil {
		return err
	}
	for next := packetsAnEpoch; j.over.Err() == nil; {
		if err := j.round(); err != nil {
			return err
		}
		if j.tally.packets >= next {
			next = j.tally.packets + packetsAnEpoch
			select {
			case j.judged <- struct{}{}:
			default:
			}
		}
	}
	return nil
}

// round is a SYN of each pair on some port: of a new flow, of one that was reset, or of one
// that goes on; then perhaps an answer, and perhaps a reset, which makes room for the next.
func (j *judgeThread) round() error {
	for _, p := range j.pairs {
		port := j.ports + uint16(j.rand.Intn(portsOfJudge))
		forwarded, err := j.sendOne(p, port, "S", false)
		if err != nil || !forwarded {
			if err != nil {
				return err
			}
			continue
		}
		if p.to < outsider && j.rand.Intn(4) == 0 {
			if _, err := j.sendOne(p, port, "SA", true); err != nil {
				return err
			}
		}
		if j.rand.Intn(2) == 0 {
			if _, err := j.sendOne(p, port, "R", false); err != nil {
				return err
			}
		}
	}
	return nil
}

// sendOne judges one packet and holds the answer to the epoch it was judged under: a flow
// entry tells; a denial's is known when the epoch did not move meanwhile.
func (j *judgeThread) sendOne(p pair, port uint16, flags string, reply bool) (bool, error) {
	frame, err := j.frame(p, port, flags, reply)
	if err != nil {
		return false, err
	}
	sender := p.from
	if reply {
		sender = p.to
	}
	ifindex := int(j.locals[sender-1].Endpoint.Ifindex)
	before := j.node.Kernel.Epoch()
	verdict, err := j.hook.Run(frame, ifindex, ifindex, 0)
	after := j.node.Kernel.Epoch()
	if err != nil {
		return false, err
	}
	j.tally.packets++
	if verdict == testnode.Drop {
		j.tally.dropped++
		epoch, err := j.checkDenial(p, sender, flags, before, after)
		j.tally.under(epoch)
		return false, err
	}
	epoch := uint64(0)
	if flags != "R" {
		epoch, err = j.checkFlow(p, port, before, after)
	}
	if epoch == 0 && err == nil {
		epoch, err = j.checkForwarded(p, flags, before, after)
	}
	j.tally.under(epoch)
	return true, err
}

// checkForwarded holds the verdict alone to the epochs it can be of; 0 = of several.
func (j *judgeThread) checkForwarded(p pair, flags string, before, after uint64) (of uint64, err error) {
	if before == after {
		of = before
	}
	for epoch := before; epoch <= after; epoch++ {
		if j.at(p, epoch).forwarded {
			return of, nil
		}
	}
	return of, fmt.Errorf("%s of %v in epochs %d to %d: forwarded, which none of them does", flags, p, before, after)
}

// denials are a policy's, by their reasons: of a packet that cannot begin a flow, and of an
// address that is nobody's in the pods' ranges, there are others.
var denials = []bpf.WeirDropReason{bpf.WeirDropReasonDROP_POLICY, bpf.WeirDropReasonDROP_TCP_STRAY, bpf.WeirDropReasonDROP_UNMANAGED_PEER}

// checkDenial finds where this CPU counted the denial, and so its rule and direction.
func (j *judgeThread) checkDenial(p pair, sender uint32, flags string, before, after uint64) (uint64, error) {
	for epoch := before; epoch <= after; epoch++ {
		o := j.at(p, epoch)
		if o.forwarded {
			continue
		}
		key := bpf.WeirDenialCountKey{Endpoint: sender}
		key.Rule, key.Direction = o.denial()
		for _, reason := range denials {
			key.Reason = uint8(reason)
			byCPU, err := j.tables.DeniedByCPU(&key)
			if err != nil {
				return epoch, err
			}
			if len(byCPU) > j.cpu && byCPU[j.cpu].Packets == j.denied[key]+1 {
				j.denied[key]++
				return epoch, nil
			}
		}
	}
	return 0, fmt.Errorf("%s of %v in epochs %d to %d: dropped, but not as any of them does: %+v", flags, p, before, after, j.at(p, before))
}

// checkFlow holds a forwarded packet's entry to the epoch in its stamp; 0 = there is none.
func (j *judgeThread) checkFlow(p pair, port uint16, before, after uint64) (uint64, error) {
	var flow bpf.WeirFlow
	key, _ := testnode.FlowKey(j.ends(p, port))
	ok, err := j.tables.Flow(&key, &flow)
	if err != nil {
		return 0, err
	}
	epoch, want := flow.Stamp>>bpf.WeirStampBitsSTAMP_SHIFT, outcome{}
	if !ok || flow.State&uint32(bpf.WeirFlowStateFLOW_CLOSED|bpf.WeirFlowStateFLOW_CLAIMED) != 0 {
		return 0, nil // the sweep's
	}
	if epoch < before || epoch > after {
		return epoch, fmt.Errorf("flow of %v: forwarded in epochs %d to %d, stamped with %d", p, before, after, epoch)
	}
	if want = j.at(p, epoch); !want.forwarded || want.rule != flow.Rule {
		return epoch, fmt.Errorf("flow of %v in epoch %d: forwarded by rules %d, want %+v", p, epoch, flow.Rule, want)
	}
	return epoch, nil
}

const dport = 80

func (j *judgeThread) ends(p pair, port uint16) (from, to netip.AddrPort, protocol uint8) {
	return netip.AddrPortFrom(j.addresses[p][0], port), netip.AddrPortFrom(j.addresses[p][1], dport), datapath.TCP
}

// frame is good until the next call.
func (j *judgeThread) frame(p pair, port uint16, flags string, reply bool) ([]byte, error) {
	from, to, _ := j.ends(p, port)
	if reply {
		from, to = to, from
	}
	key := frameKey{p, flags}
	b := j.frames[key]
	if b == nil {
		fresh, err := testnode.TCP(from.Addr().String(), from.Port(), to.Addr().String(), to.Port(), flags).Serialize()
		if err != nil {
			return nil, err
		}
		b = slices.Clone(fresh)
		j.frames[key] = b
	}
	l4 := b[14+20:]
	if p.family == 6 {
		l4 = b[14+40:]
	}
	binary.BigEndian.PutUint16(l4, from.Port())
	binary.BigEndian.PutUint16(l4[2:], to.Port())
	return b, nil
}
