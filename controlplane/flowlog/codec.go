package flowlog

import (
	"bytes"
	"compress/flate"
	"fmt"
	"io"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/datapath"
)

// packed is a run of records as they are spilled: CBOR, compressed. Names come once. Fields
// are found by their names, so that an agent reads what one of another version wrote: what it
// does not know is left out, what is missing is zero.
type packed struct {
	Parties  []*Party
	Rules    []*policy.Rule
	Services []*Ref
	Flows    []packedRecord
}

// packedRecord names parties, rules and services by their place, from 1; 0 is none.
type packedRecord struct {
	Seq        uint64
	At         int64 // of Event.Time, which is left out
	Event      datapath.Event
	Parties    [2]int
	Rules      [2]int
	Services   [2]int
	Ifname     string
	Suppressed uint64
	Lost       uint64
	Cause      string
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
	m, err := cbor.EncOptions{Time: cbor.TimeUnix}.EncMode()
	if err != nil {
		panic(err) // constants
	}
	return m
}()

// packer makes blocks of records; for one goroutine.
type packer struct {
	out  bytes.Buffer
	zip  *flate.Writer
	flat bytes.Buffer
}

func newPacker() *packer {
	p := &packer{}
	p.zip, _ = flate.NewWriter(&p.out, flate.BestSpeed) // a level that there is
	return p
}

// pack is valid until the next call.
func (p *packer) pack(records []*record) ([]byte, error) {
	var parties places[Party]
	var rules places[policy.Rule]
	var services places[Ref]
	flows := make([]packedRecord, len(records))
	for i, r := range records {
		f := &flows[i]
		*f = packedRecord{Seq: r.seq, At: r.event.Time.UnixNano(), Event: r.event, Ifname: r.ifname, Suppressed: r.suppressed, Lost: r.lost, Cause: r.cause}
		f.Event.Time = time.Time{}
		for j := range 2 {
			f.Parties[j], f.Rules[j], f.Services[j] = parties.of(r.parties[j]), rules.of(r.rules[j]), services.of(r.services[j])
		}
	}
	p.flat.Reset()
	if err := cborEncoding.NewEncoder(&p.flat).Encode(packed{parties.list, rules.list, services.list, flows}); err != nil {
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
	in := flate.NewReader(bytes.NewReader(data))
	flat, err := io.ReadAll(io.LimitReader(in, unpackedMost))
	if err != nil {
		return nil, fmt.Errorf("unpack records: %w", err)
	}
	var p packed
	if err := cbor.Unmarshal(flat, &p); err != nil {
		return nil, fmt.Errorf("unpack records: %w", err)
	}
	out := make([]*record, len(p.Flows))
	for i := range p.Flows {
		f := &p.Flows[i]
		r := &record{seq: f.Seq, event: f.Event, ifname: f.Ifname, suppressed: f.Suppressed, lost: f.Lost, cause: f.Cause}
		r.event.Time = time.Unix(0, f.At)
		for j := range 2 {
			r.parties[j], r.rules[j], r.services[j] = placed(p.Parties, f.Parties[j]), placed(p.Rules, f.Rules[j]), placed(p.Services, f.Services[j])
		}
		out[i] = r
	}
	return out, nil
}
