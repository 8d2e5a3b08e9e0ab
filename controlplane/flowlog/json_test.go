package flowlog

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/datapath"
)

// TestRecordIsItsMessage: what is written without the message is the message, to the byte.
func TestRecordIsItsMessage(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	l := newLog(shop(), 0)
	fill(l)
	records, _ := l.ring.all()
	records = append(records, whole(1), whole(500), &record{lost: 12, cause: LostFlowEvents, event: datapath.Event{Time: noon}}, &record{event: datapath.Event{Time: noon}})
	for range 20000 {
		r := &record{}
		arbitrary(random, reflect.ValueOf(&r.event).Elem())
		r.seq = random.Uint64()
		arbitrary(random, reflect.ValueOf(&r.ifname).Elem())
		if random.IntN(4) == 0 {
			r.suppressed = random.Uint64()
		}
		for i := range 2 {
			arbitrary(random, reflect.ValueOf(&r.parties[i]).Elem())
			arbitrary(random, reflect.ValueOf(&r.rules[i]).Elem())
			arbitrary(random, reflect.ValueOf(&r.services[i]).Elem())
			if r.rules[i] != nil && random.IntN(2) == 0 {
				r.rules[i].Kind = policy.KindNetworkPolicy
			}
		}
		records = append(records, r)
	}
	m := l.Encoder()
	for _, r := range records {
		var want bytes.Buffer
		must(t, AppendLine(&want, l.response(r)))
		got, err := m.AppendRecord([]byte("before"), r)
		must(t, err)
		if got = got[len("before"):]; !bytes.Equal(got, want.Bytes()) {
			t.Fatalf("%s\nwant %s", got, want.Bytes())
		}
		message, err := proto.MarshalOptions{Deterministic: true}.Marshal(l.response(r))
		must(t, err)
		if got, err = m.AppendMessage([]byte("before"), r); err != nil || !bytes.Equal(got[len("before"):], message) {
			t.Fatalf("%x, %v\nwant %x\nof %s", got[len("before"):], err, message, want.Bytes())
		}
		extension, err := json.Marshal(extensionOf(r))
		must(t, err)
		if got := m.appendExtension(nil, r); !bytes.Equal(got, extension) {
			t.Fatalf("%s\nwant %s", got, extension)
		}
	}
}

// arbitrary gives everything below v some value, often zero.
func arbitrary(random *rand.Rand, v reflect.Value) {
	switch v.Interface().(type) {
	case time.Time:
		at := time.Unix(random.Int64N(4e9), []int64{0, 5e6, 5e3, 5}[random.IntN(4)]*random.Int64N(200))
		v.Set(reflect.ValueOf(at.In([]*time.Location{time.UTC, time.FixedZone("", 3600)}[random.IntN(2)])))
		return
	case netip.AddrPort:
		addr := netip.AddrFrom4([4]byte{10, 0, byte(random.Uint32()), byte(random.Uint32())})
		switch random.IntN(4) {
		case 0:
			return
		case 1:
			addr = netip.AddrFrom16([16]byte{0xfd, 1, 15: byte(random.Uint32())})
		}
		v.Set(reflect.ValueOf(netip.AddrPortFrom(addr, uint16(random.Uint32()>>random.IntN(32)))))
		return
	case datapath.Direction:
		v.SetUint(uint64(random.IntN(3)))
		return
	}
	number := random.Uint64() >> random.IntN(64) * uint64(random.IntN(3))
	switch v.Kind() {
	case reflect.Pointer:
		if random.IntN(3) > 0 {
			v.Set(reflect.New(v.Type().Elem()))
			arbitrary(random, v.Elem())
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				arbitrary(random, v.Field(i))
			}
		}
	case reflect.Array:
		for i := range v.Len() {
			arbitrary(random, v.Index(i))
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), random.IntN(4), 4))
		for i := range v.Len() {
			arbitrary(random, v.Index(i))
		}
	case reflect.String:
		runes := []rune("abc:=/-. \"\\<>&\b\f\n\r\t\x00\x1f\x7fé\u2028\U0001f600")
		for range random.IntN(8) {
			v.SetString(v.String() + string(runes[random.IntN(len(runes))]))
		}
		if random.IntN(50) == 0 { // lengths that take two bytes, or three
			v.SetString(strings.Repeat(v.String(), []int{30, 3000}[random.IntN(2)]))
		}
	case reflect.Bool:
		v.SetBool(random.IntN(2) == 0)
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(number >> 1))
	case reflect.Uint8:
		v.SetUint([]uint64{0, 1, 2, 3, 4, 5, 6, 17, 58, 132, 255}[random.IntN(11)])
	case reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(number & (1<<v.Type().Bits() - 1))
	default:
		panic(v.Kind())
	}
}
