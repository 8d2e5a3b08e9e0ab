package packetfuzz

import (
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/cilium/ebpf"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath/maps"
)

var number = regexp.MustCompile(`[0-9a-fx.:\[\]]*[0-9][0-9a-fx.:\[\]]*`)

// alikeness is what two complaints have in common that are about the same thing.
func alikeness(says string) string { return number.ReplaceAllString(says, "#") }

// shrink makes the frame of a disagreement as short and as empty as it stays one.
func (j *judge) shrink(d *disagreement) *disagreement {
	for smaller := true; smaller; {
		smaller = false
		for _, f := range lesser(d.frame) {
			c := d.sample
			c.frame = f
			_, _, again, err := j.try(c)
			if err == nil && again != nil && again.alike == d.alike {
				d, smaller = again, true
				break
			}
		}
	}
	return d
}

// lesser are frames with less in them: cut, a piece taken out, a byte cleared.
func lesser(b []byte) (out [][]byte) {
	for n := len(b) / 2; n > 0; n /= 2 {
		if len(b)-n >= 14 {
			out = append(out, b[:len(b)-n])
		}
	}
	for n := 16; n > 0; n /= 2 {
		for at := 14; at+n <= len(b); at += n {
			out = append(out, slices.Delete(slices.Clone(b), at, at+n))
		}
	}
	for i := range b {
		if b[i] != 0 {
			c := slices.Clone(b)
			c[i] = 0
			out = append(out, c)
		}
	}
	return out
}

func (d *disagreement) String() string {
	var s strings.Builder
	fmt.Fprintf(&s, "%s\n%s, %d segments: verdict %d, mark %#x\n", d.says, d.way, d.segments, d.answer.verdict, d.answer.mark)
	fmt.Fprintf(&s, "the reference: %s\nweir: %s\n%s", d.reading, d.took, hex.Dump(d.frame))
	return s.String()
}

// took says what Weir took the last sample for: the entries that moved and that nobody saw
// move, and the reasons it counts when it gets the sample again.
func (j *judge) took(c sample, r *reading) string {
	says, err := j.unseen()
	if key, side := keyOf(r.tuple); r.tuple.source.IsValid() {
		var f bpf.WeirFlow
		if ok, _ := j.tables.Flow(&key, &f); ok {
			says = append(says, fmt.Sprintf("the packet's flow, side %d: stamp %#x, state %#x, interfaces %x, endpoints %d, rules %d",
				side, f.Stamp, f.State, f.Ifindex, f.Endpoint, f.Rule))
		}
	}
	before, err1 := j.Kernel.Counters()
	_, err2 := j.run(c)
	after, err3 := j.Kernel.Counters()
	for reason, n := range after.Drops {
		if n != before.Drops[reason] {
			says = append(says, "again: dropped for "+reason.String())
		}
	}
	_, err4 := j.unseen() // from here on judged as if that had not been
	var err5 error
	j.untracked, err5 = j.counter(bpf.WeirCounterCOUNT_UNTRACKED)
	if err := errors.Join(err, err1, err2, err3, err4, err5); err != nil {
		says = append(says, err.Error())
	}
	return strings.Join(says, "; ")
}

// unseen sees all entries, and says which had moved since they were last read.
func (j *judge) unseen() (moved []string, err error) {
	flows, err := ebpf.LoadPinnedMap(maps.Path(j.Config.BPFFSDir, bpf.WeirMapFlows), nil)
	if err != nil {
		return nil, err
	}
	defer flows.Close()
	var key bpf.WeirFlowKey
	var f bpf.WeirFlow
	entries := flows.Iterate()
	for entries.Next(&key, &f) {
		if was := j.see(key, &f); was != j.seen[key] {
			moved = append(moved, fmt.Sprintf("moved protocol %d %x:%d %x:%d from %v to %v",
				key.Protocol, key.Addr[0], key.Port[0], key.Addr[1], key.Port[1], was, j.seen[key]))
		}
	}
	return moved, entries.Err()
}
