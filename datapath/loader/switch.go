package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"reflect"
	"unsafe"

	"github.com/cilium/ebpf"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath/maps"
)

// continueFrom has the spec's control page go on where that in force is: epochs never come
// again, and what may be picked up without a record is not more than before. A build that
// knows no such word has it zero.
func continueFrom(dir string, spec *ebpf.CollectionSpec) error {
	have, err := readLayout(dir, maps.InForce)
	if err != nil {
		return err
	}
	want, err := layoutOf(spec)
	if err != nil {
		return err
	}
	m, err := ebpf.LoadPinnedMap(maps.Path(dir, maps.MapControl), nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open map %s: %w", maps.Path(dir, maps.MapControl), err)
	}
	defer m.Close()
	p, err := mapPage(m)
	if err != nil {
		return err
	}
	defer p.unmap()
	translated := want[maps.MapControl].Value.from(have[maps.MapControl].Value)(p)
	was := (*bpf.WeirControl)(unsafe.Pointer(&translated[0]))
	var node bpf.WeirControl
	if err := spec.Variables[bpf.WeirVarNode].Get(&node); err != nil {
		return fmt.Errorf("read %s: %w", bpf.WeirVarNode, err)
	}
	node.Epoch, node.PickupUntil = was.Epoch+1, was.PickupUntil
	if err := spec.Variables[bpf.WeirVarNode].Set(node); err != nil {
		return fmt.Errorf("set %s: %w", bpf.WeirVarNode, err)
	}
	return nil
}

// Switch puts programs on maps of their own in force, once something was committed there
// (to k), with the flows that the programs before them know. It may be called again if it
// fails. What is new or answered between the last look at the old table and the store is
// looked for again right after it: until then an answer may meet no flow and is judged by
// itself. It returns how many flows were taken over, and for how many there was no room.
func (l *Loaded) Switch(k *maps.Kernel) (taken, left int, err error) {
	if l.flows == nil {
		if l.flows, err = l.openFlows(); err != nil {
			return 0, 0, err
		}
	}
	if !l.switched {
		if err := l.flows.carry(); err != nil {
			return 0, 0, err
		}
		if err := l.flows.carry(); err != nil { // what came while the first look took its time
			return 0, 0, err
		}
		if err := l.putInForce(); err != nil {
			return 0, 0, err
		}
		l.switched = true
	}
	if err := l.flows.carry(); err != nil {
		return 0, 0, err
	}
	if err := l.vacate(); err != nil { // those that ran have ended
		return 0, 0, err
	}
	if err := l.flows.carry(); err != nil {
		return 0, 0, err
	}
	if err := attachSockets(l.cfg.BPFFSDir, l.cfg.CgroupRoot, l.sockets.Programs); err != nil {
		return 0, 0, err
	}
	l.Unobserved = errors.Join(l.Unobserved, l.observe())
	if err := k.Promote(func() error { return renameSets(l.cfg.BPFFSDir) }); err != nil {
		return 0, 0, err
	}
	l.Next = false
	return len(l.flows.done) - l.flows.left, l.flows.left, l.flows.close()
}

// flowCarrier takes over what the table in force holds.
type flowCarrier struct {
	table      *ebpf.Map // nil: there is none
	key, value func(old []byte) []byte
	to         *ebpf.Program
	done       map[bpf.WeirFlowKey]bpf.WeirFlow // as they were when last looked at
	left       int                              // those for which there is no room
}

func (l *Loaded) openFlows() (*flowCarrier, error) {
	dir := l.cfg.BPFFSDir
	have, err := readLayout(dir, maps.InForce)
	if err != nil {
		return nil, err
	}
	want, err := readLayout(dir, maps.Next)
	if err != nil {
		return nil, err
	}
	was, is := have[bpf.WeirMapFlows], want[bpf.WeirMapFlows]
	c := &flowCarrier{
		key: is.Key.from(was.Key), value: is.Value.from(was.Value),
		to: l.Programs[bpf.WeirProgImportFlow], done: map[bpf.WeirFlowKey]bpf.WeirFlow{},
	}
	path := maps.Path(dir, bpf.WeirMapFlows)
	if c.table, err = ebpf.LoadPinnedMap(path, nil); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open map %s: %w", path, err)
	}
	return c, nil
}

func (c *flowCarrier) close() error {
	if c.table == nil {
		return nil
	}
	return c.table.Close()
}

// carry takes over what is new since the last call.
func (c *flowCarrier) carry() error {
	if c.table == nil {
		return nil
	}
	const batch = 4096
	keys, values := arrays(batch, c.table.KeySize()), arrays(batch, c.table.ValueSize())
	var cursor ebpf.MapBatchCursor
	for {
		n, err := c.table.BatchLookup(&cursor, keys.Interface(), values.Interface(), nil)
		for i := range n {
			if err := c.take(keys.Index(i).Bytes(), values.Index(i).Bytes()); err != nil {
				return err
			}
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the flows in force: %w", err)
		}
	}
}

// arrays are n byte arrays of a size that only another build knew.
func arrays(n int, size uint32) reflect.Value {
	return reflect.MakeSlice(reflect.SliceOf(reflect.ArrayOf(int(size), reflect.TypeFor[byte]())), n, n)
}

const (
	closed  = uint32(bpf.WeirFlowStateFLOW_CLOSED)
	claimed = uint32(bpf.WeirFlowStateFLOW_CLAIMED)
)

func (c *flowCarrier) take(oldKey, oldValue []byte) error {
	keyBytes, flowBytes := c.key(oldKey), c.value(oldValue)
	key, f := *(*bpf.WeirFlowKey)(unsafe.Pointer(&keyBytes[0])), *(*bpf.WeirFlow)(unsafe.Pointer(&flowBytes[0]))
	was, again := c.done[key]
	if again && was.Created == f.Created && was.State == f.State && was.TcpFlags == f.TcpFlags && was.Side == f.Side {
		return nil
	}
	if f.Stamp == 0 || f.State&claimed != 0 || f.State&closed != 0 && !(again && was.Created == f.Created) {
		return nil // being written, or over before it was looked at
	}
	c.done[key] = f
	f.Stamp &= 1<<bpf.WeirStampBitsSTAMP_SHIFT - 1 // of no epoch: judged again
	f.Basis = 0
	if again && was.Created == f.Created {
		for i := range f.Side { // what it counts is there up to here
			f.Side[i].Packets -= was.Side[i].Packets
			f.Side[i].Bytes -= was.Side[i].Bytes
		}
	}
	packet := make([]byte, 14, 14+unsafe.Sizeof(key)+unsafe.Sizeof(f))
	packet = append(packet, unsafe.Slice((*byte)(unsafe.Pointer(&key)), unsafe.Sizeof(key))...)
	packet = append(packet, unsafe.Slice((*byte)(unsafe.Pointer(&f)), unsafe.Sizeof(f))...)
	ret, err := c.to.Run(&ebpf.RunOptions{Data: packet})
	if err != nil {
		return fmt.Errorf("run %s: %w", bpf.WeirProgImportFlow, err)
	}
	switch bpf.WeirDropReason(ret) {
	case bpf.WeirDropReasonDROP_NONE, bpf.WeirDropReasonDROP_REASON_MAX: // taken; there already
	default:
		c.left++
	}
	return nil
}
