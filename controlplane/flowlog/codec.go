package flowlog

import (
	"bytes"
	"compress/flate"
	"fmt"
	"io"
	"net/netip"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/identity"
)

// packed is a run of records as they are spilled: CBOR, compressed. What records share comes
// once. Fields have numbers, so that an agent reads what one of another version wrote: what it
// does not know is left out, what is missing is zero. A number is never given to another field.
type packed struct {
	Parties   []*Party            `cbor:"1,keyasint"`
	Rules     []*policy.Rule      `cbor:"2,keyasint"`
	Services  []*Ref              `cbor:"3,keyasint"`
	Processes []*datapath.Process `cbor:"4,keyasint"`
	Flows     []packedRecord      `cbor:"5,keyasint"`
	reading                       // when the last of them was read
}

// packedBy is packed with its flows as they are written: most of a block is those, and most of
// what a library takes for them is finding out of what they are made.
type packedBy struct {
	Parties   []*Party            `cbor:"1,keyasint"`
	Rules     []*policy.Rule      `cbor:"2,keyasint"`
	Services  []*Ref              `cbor:"3,keyasint"`
	Processes []*datapath.Process `cbor:"4,keyasint"`
	Flows     cbor.RawMessage     `cbor:"5,keyasint"`
	reading
}

// reading is how far a life of the log has read the kernel's rings.
type reading struct {
	Begun uint64 `cbor:"6,keyasint"` // bytes that were read before it began
	Each  uint64 `cbor:"7,keyasint"` // that an event takes; 0: nobody knows
	Read  uint64 `cbor:"8,keyasint"` // events since then

	// The same of denials, and what is told of them: all that changed since the last block
	// that had everything.
	DenialsBegun uint64       `cbor:"9,keyasint,omitempty"`
	DenialsRead  uint64       `cbor:"10,keyasint,omitempty"`
	Told         []packedTold `cbor:"11,keyasint,omitempty"`
	Debt         uint64       `cbor:"12,keyasint,omitempty"`
	Everything   bool         `cbor:"13,keyasint,omitempty"`
}

// packedTold is what is told of one of the kernel's counts of denials.
type packedTold struct {
	_         struct{} `cbor:",toarray"`
	Endpoint  uint32
	Rule      uint32
	Direction datapath.Direction
	Reason    datapath.Reason
	Packets   uint64
}

// packedRecord is a record and its event; it names parties, rules, services and processes by
// their place, from 1: 0 is none.
type packedRecord struct {
	Seq        uint64  `cbor:"1,keyasint"`
	At         int64   `cbor:"2,keyasint"`
	Parties    [2]int  `cbor:"3,keyasint"`
	Rules      [2]int  `cbor:"4,keyasint"`
	Services   *[2]int `cbor:"5,keyasint,omitempty"`
	Processes  *[2]int `cbor:"6,keyasint,omitempty"`
	Ifname     string  `cbor:"7,keyasint,omitempty"`
	Suppressed uint64  `cbor:"8,keyasint,omitempty"`
	Lost       uint64  `cbor:"9,keyasint,omitempty"`
	Cause      string  `cbor:"10,keyasint,omitempty"`

	Kind         datapath.EventKind  `cbor:"20,keyasint,omitempty"`
	Created      uint64              `cbor:"21,keyasint,omitempty"`
	Age          time.Duration       `cbor:"22,keyasint,omitempty"`
	Epoch        uint64              `cbor:"23,keyasint,omitempty"`
	Source       netip.AddrPort      `cbor:"24,keyasint"`
	Destination  netip.AddrPort      `cbor:"25,keyasint"`
	Protocol     uint8               `cbor:"26,keyasint,omitempty"`
	Ifindex      uint32              `cbor:"27,keyasint,omitempty"`
	Endpoint     [2]uint32           `cbor:"28,keyasint"`
	Identity     [2]identity.Number  `cbor:"29,keyasint"`
	Rule         [2]uint32           `cbor:"30,keyasint"`
	Dropped      bool                `cbor:"31,keyasint,omitempty"`
	Reason       datapath.Reason     `cbor:"32,keyasint,omitempty"`
	Direction    datapath.Direction  `cbor:"33,keyasint,omitempty"`
	Judged       uint8               `cbor:"34,keyasint,omitempty"`
	Path         uint8               `cbor:"35,keyasint,omitempty"`
	End          uint8               `cbor:"36,keyasint,omitempty"`
	ICMPType     uint8               `cbor:"37,keyasint,omitempty"`
	ICMPCode     uint8               `cbor:"38,keyasint,omitempty"`
	PickedUp     bool                `cbor:"39,keyasint,omitempty"`
	TCPFlags     uint16              `cbor:"40,keyasint,omitempty"`
	Packets      [2]uint64           `cbor:"41,keyasint"`
	Bytes        [2]uint64           `cbor:"42,keyasint"`
	TCP          *[2]datapath.TCPEnd `cbor:"43,keyasint,omitempty"`
	KernelReason string              `cbor:"44,keyasint,omitempty"`
	Service      uint16              `cbor:"45,keyasint,omitempty"`
}

// pack is r with what it shares left to the places.
func (f *packedRecord) pack(r *record, in *sharing) {
	e := &r.event
	*f = packedRecord{
		Seq: r.seq, At: e.Time.UnixNano(), Ifname: r.ifname, Suppressed: r.suppressed, Lost: r.lost, Cause: r.cause,
		Kind: e.Kind, Created: e.Created, Age: e.Age, Epoch: e.Epoch, Source: e.Source, Destination: e.Destination, Protocol: e.Protocol,
		Ifindex: e.Ifindex, Endpoint: e.Endpoint, Identity: e.Identity, Rule: e.Rule, Dropped: e.Dropped, Reason: e.Reason, Direction: e.Direction,
		Judged: e.Judged, Path: e.Path, End: e.End, ICMPType: e.ICMPType, ICMPCode: e.ICMPCode, PickedUp: e.PickedUp, TCPFlags: e.TCPFlags,
		Packets: e.Packets, Bytes: e.Bytes, KernelReason: e.KernelReason, Service: e.Service,
	}
	for j := range 2 {
		f.Parties[j], f.Rules[j] = in.parties.of(r.parties[j]), in.rules.of(r.rules[j])
	}
	if r.services != [2]*Ref{} {
		f.Services = &[2]int{in.services.of(r.services[0]), in.services.of(r.services[1])}
	}
	if e.Process != nil || e.Listener != nil {
		f.Processes = &[2]int{in.processes.of(e.Process), in.processes.of(e.Listener)}
	}
	if e.TCP != [2]datapath.TCPEnd{} {
		f.TCP = &e.TCP
	}
}

func (f *packedRecord) unpack(p *packed) *record {
	r := &record{seq: f.Seq, ifname: f.Ifname, suppressed: f.Suppressed, lost: f.Lost, cause: f.Cause}
	r.event = datapath.Event{
		Time: time.Unix(0, f.At),
		Kind: f.Kind, Created: f.Created, Age: f.Age, Epoch: f.Epoch, Source: f.Source, Destination: f.Destination, Protocol: f.Protocol,
		Ifindex: f.Ifindex, Endpoint: f.Endpoint, Identity: f.Identity, Rule: f.Rule, Dropped: f.Dropped, Reason: f.Reason, Direction: f.Direction,
		Judged: f.Judged, Path: f.Path, End: f.End, ICMPType: f.ICMPType, ICMPCode: f.ICMPCode, PickedUp: f.PickedUp, TCPFlags: f.TCPFlags,
		Packets: f.Packets, Bytes: f.Bytes, KernelReason: f.KernelReason, Service: f.Service,
	}
	for j := range 2 {
		r.parties[j], r.rules[j] = placed(p.Parties, f.Parties[j]), placed(p.Rules, f.Rules[j])
	}
	if f.Services != nil {
		r.services = [2]*Ref{placed(p.Services, f.Services[0]), placed(p.Services, f.Services[1])}
	}
	if f.Processes != nil {
		r.event.Process, r.event.Listener = placed(p.Processes, f.Processes[0]), placed(p.Processes, f.Processes[1])
	}
	if f.TCP != nil {
		r.event.TCP = *f.TCP
	}
	return r
}

// sharing is what the records of a run share.
type sharing struct {
	parties   places[Party]
	rules     places[policy.Rule]
	services  places[Ref]
	processes places[datapath.Process]
}

// places numbers what records share.
type places[T any] struct {
	list []*T
	at   map[*T]int
}

func (p *places[T]) of(v *T) int {
	if v == nil {
		return 0
	}
	if p.at == nil {
		p.at = map[*T]int{}
	}
	if p.at[v] == 0 {
		p.list = append(p.list, v)
		p.at[v] = len(p.list)
	}
	return p.at[v]
}

func placed[T any](list []*T, at int) *T {
	if at < 1 || at > len(list) {
		return nil
	}
	return list[at-1]
}

var cborEncoding = func() cbor.EncMode {
	m, err := cbor.EncOptions{Time: cbor.TimeRFC3339Nano}.EncMode()
	if err != nil {
		panic(err) // constants
	}
	return m
}()

// packer makes blocks of records; for one goroutine.
type packer struct {
	out   bytes.Buffer
	zip   *flate.Writer
	flat  bytes.Buffer
	flows []byte
}

func newPacker() *packer {
	p := &packer{}
	p.zip, _ = flate.NewWriter(&p.out, flate.BestSpeed) // a level that there is
	return p
}

// pack is valid until the next call.
func (p *packer) pack(records []*record, since reading) ([]byte, error) {
	var in sharing
	p.flows = appendHead(p.flows[:0], cborArray, uint64(len(records)))
	for _, r := range records {
		var f packedRecord
		f.pack(r, &in)
		p.flows = f.append(p.flows)
	}
	p.flat.Reset()
	if err := cborEncoding.NewEncoder(&p.flat).Encode(packedBy{in.parties.list, in.rules.list, in.services.list, in.processes.list, p.flows, since}); err != nil {
		return nil, fmt.Errorf("pack records: %w", err)
	}
	p.out.Reset()
	p.zip.Reset(&p.out)
	if _, err := p.zip.Write(p.flat.Bytes()); err != nil {
		return nil, fmt.Errorf("pack records: %w", err)
	}
	if err := p.zip.Close(); err != nil {
		return nil, fmt.Errorf("pack records: %w", err)
	}
	return p.out.Bytes(), nil
}

// unpackedMost bounds what a block may become.
const unpackedMost = 64 << 20

func unpack(data []byte) ([]*record, error) {
	p, err := unpackBlock(data)
	if err != nil {
		return nil, err
	}
	out := make([]*record, len(p.Flows))
	for i := range p.Flows {
		out[i] = p.Flows[i].unpack(p)
	}
	return out, nil
}

func unpackBlock(data []byte) (*packed, error) {
	in := flate.NewReader(bytes.NewReader(data))
	flat, err := io.ReadAll(io.LimitReader(in, unpackedMost))
	if err != nil {
		return nil, fmt.Errorf("unpack records: %w", err)
	}
	p := &packed{}
	if err := cbor.Unmarshal(flat, p); err != nil {
		return nil, fmt.Errorf("unpack records: %w", err)
	}
	return p, nil
}
