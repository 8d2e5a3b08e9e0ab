package flowlog

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/datapath"
)

// filled gives every field below v a value that is not zero, so that a field which is added
// and does not come back from disk is found out.
func filled(v reflect.Value, n *int) {
	*n++
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		filled(v.Elem(), n)
	case reflect.Struct:
		switch v.Addr().Interface().(type) {
		case *time.Time:
			v.Set(reflect.ValueOf(time.Unix(1_700_000_000+int64(*n), 1001).UTC()))
			return
		case *netip.Addr:
			v.Set(reflect.ValueOf(netip.AddrFrom4([4]byte{10, 0, 0, byte(*n)})))
			return
		case *netip.AddrPort:
			v.Set(reflect.ValueOf(netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(*n)}), uint16(*n))))
			return
		}
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				filled(v.Field(i), n)
			}
		}
	case reflect.Array:
		for i := range v.Len() {
			filled(v.Index(i), n)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		filled(v.Index(0), n)
		filled(v.Index(1), n)
	case reflect.String:
		v.SetString(fmt.Sprint("text", *n))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(int64(*n % 100))
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(uint64(*n % 100))
	default:
		panic(v.Kind())
	}
}

func whole(n int) *record {
	r := &record{seq: 7, ifname: "eth0", suppressed: 3, lost: 0}
	filled(reflect.ValueOf(&r.event).Elem(), &n)
	r.event.Time = noon.Add(time.Duration(n))
	for i := range 2 {
		r.parties[i], r.rules[i], r.services[i] = &Party{}, &policy.Rule{}, &Ref{}
		filled(reflect.ValueOf(r.parties[i]).Elem(), &n)
		filled(reflect.ValueOf(r.rules[i]).Elem(), &n)
		filled(reflect.ValueOf(r.services[i]).Elem(), &n)
	}
	return r
}

// Every field of a record comes back, names are shared again, and so is what is not there.
func TestPackedRecordsComeBackWhole(t *testing.T) {
	a, b := whole(1), whole(500)
	b.parties[0], b.parties[1] = a.parties[0], nil
	lost := &record{seq: 9, lost: 12, cause: LostFlowEvents, event: datapath.Event{Time: noon}}
	data, err := newPacker().pack([]*record{a, b, lost}, reading{})
	must(t, err)
	back, err := unpack(data)
	must(t, err)
	for i, want := range []*record{a, b, lost} {
		got := back[i]
		if !got.event.Time.Equal(want.event.Time) {
			t.Errorf("%d: time %v, want %v", i, got.event.Time, want.event.Time)
		}
		got.event.Time = want.event.Time
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%d: got  %+v\nwant %+v", i, got, want)
		}
	}
	if back[0].parties[0] != back[1].parties[0] {
		t.Error("one party has become two")
	}
}

// A record says the same after it was spilled.
func TestPackedRecordSaysTheSame(t *testing.T) {
	l := newLog(shop(), 0)
	fill(l)
	kept, _ := l.ring.all()
	data, err := newPacker().pack(kept, reading{})
	must(t, err)
	back, err := unpack(data)
	must(t, err)
	for i := range kept {
		if got, want := l.response(back[i]).String(), l.response(kept[i]).String(); got != want {
			t.Errorf("%s\nwant %s", got, want)
		}
	}
}

// FuzzUnpack: what is no block is an error, whatever it is.
func FuzzUnpack(f *testing.F) {
	data, err := newPacker().pack([]*record{whole(1), whole(900)}, reading{})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(append([]byte{}, data...))
	f.Add([]byte{})
	f.Add(data[:len(data)/2])
	f.Fuzz(func(t *testing.T, data []byte) {
		records, err := unpack(data)
		if err != nil {
			return
		}
		l := newLog(shop(), 1)
		for _, r := range records {
			_ = l.response(r)
		}
	})
}

func BenchmarkPack(b *testing.B) {
	l := newLog(shop(), 512)
	for i := range 512 {
		e := began()
		e.Source = netip.AddrPortFrom(e.Source.Addr(), uint16(i*7+1024))
		e.Created, e.Time = uint64(i)*7919, noon.Add(time.Duration(i)*1234567)
		e.Packets, e.Bytes = [2]uint64{uint64(i % 37), uint64(i % 41)}, [2]uint64{uint64(i * 311), uint64(i * 77)}
		l.add(e)
	}
	kept, _ := l.ring.all()
	p := newPacker()
	b.ReportAllocs()
	size := 0
	for b.Loop() {
		data, err := p.pack(kept, reading{})
		if err != nil {
			b.Fatal(err)
		}
		size = len(data)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/512, "ns/record")
	b.ReportMetric(float64(size)/512, "B/record")
}

func BenchmarkUnpack(b *testing.B) {
	l := newLog(shop(), 512)
	for range 512 {
		l.add(began())
	}
	kept, _ := l.ring.all()
	data, err := newPacker().pack(kept, reading{})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := unpack(data); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/512, "ns/record")
}

// TestRecordsArePackedByTheirTags: what is written by hand is what the library makes of the tags,
// up to how the number of fields is written. A field that is added here is to be added there.
func TestRecordsArePackedByTheirTags(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	var full packedRecord
	n := 1
	filled(reflect.ValueOf(&full).Elem(), &n)
	all := []packedRecord{{}, full}
	for range 5000 {
		var f packedRecord
		arbitrary(random, reflect.ValueOf(&f).Elem())
		f.At -= int64(random.Uint64() >> 1)
		for _, p := range []*[2]int{&f.Parties, &f.Rules, f.Services, f.Processes} {
			if p != nil {
				p[0], p[1] = p[0]&0xffff, p[1]&0xffff
			}
		}
		all = append(all, f)
	}
	for _, f := range all {
		want, err := cborEncoding.Marshal(f)
		must(t, err)
		got := f.append([]byte("before"))[len("before"):]
		if want[0] == got[0] {
			want, got = want[2:], got[2:]
		} else if want[0] == cborMap|got[1] && got[1] < 24 {
			want, got = want[1:], got[2:]
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("%+v:\n%x, want\n%x", f, got, want)
		}
	}
}
