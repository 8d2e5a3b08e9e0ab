package loader

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"reflect"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/weirnet/weir/datapath/maps"
)

// layout describes maps by name: what makes two builds of the programs fit one set of
// maps. It is pinned with the maps, since the kernel tells it to nobody without
// CAP_SYS_ADMIN.
type layout map[string]mapLayout

type mapLayout struct {
	Type       string
	MaxEntries uint32
	Flags      uint32 `json:",omitempty"`
	Key        record
	Value      record
}

// record is a key or value as the programs read it.
type record struct {
	Size   uint32
	Fields []part `json:",omitempty"`
}

// part is a field that has no fields, by its path, e.g. side[1].packets.
type part struct {
	Path   string
	Offset uint32
	Size   uint32
}

// layoutOf describes what specs pin.
func layoutOf(specs ...*ebpf.CollectionSpec) (layout, error) {
	out := layout{}
	for _, spec := range specs {
		for name, m := range spec.Maps {
			pin, ok := pinOf(name)
			if !ok {
				continue
			}
			key, err := recordOf(m.Key, m.KeySize)
			if err != nil {
				return nil, fmt.Errorf("key of map %s: %w", name, err)
			}
			value, err := recordOf(m.Value, m.ValueSize)
			if err != nil {
				return nil, fmt.Errorf("value of map %s: %w", name, err)
			}
			out[pin] = mapLayout{m.Type.String(), m.MaxEntries, m.Flags, key, value}
		}
	}
	return out, nil
}

func recordOf(t btf.Type, size uint32) (record, error) {
	r := record{Size: size}
	if t == nil {
		return r, nil
	}
	err := r.add(t, "", 0)
	r.join()
	return r, err
}

// joined is from how many bytes on an array of them is one field: the kernel keeps the text.
const joined = 64

// join makes fields of arrays of bytes, which earlier builds list byte by byte.
func (r *record) join() {
	var fields []part
	for i := 0; i < len(r.Fields); {
		f, n := r.Fields[i], 1
		if base, ok := strings.CutSuffix(f.Path, "[0]"); ok && f.Size == 1 {
			for i+n < len(r.Fields) && r.Fields[i+n] == (part{base + "[" + strconv.Itoa(n) + "]", f.Offset + uint32(n), 1}) {
				n++
			}
			if n < joined {
				fields = append(fields, r.Fields[i:i+n]...)
			} else {
				fields = append(fields, part{base, f.Offset, uint32(n)})
			}
		} else {
			fields = append(fields, f)
		}
		i += n
	}
	r.Fields = fields
}

func (r *record) add(t btf.Type, path string, offset uint32) error {
	members := func(ms []btf.Member) error {
		for _, m := range ms {
			if err := r.add(m.Type, strings.TrimPrefix(path+"."+m.Name, "."), offset+m.Offset.Bytes()); err != nil {
				return err
			}
		}
		return nil
	}
	switch u := btf.UnderlyingType(t).(type) {
	case *btf.Struct:
		return members(u.Members)
	case *btf.Union:
		return members(u.Members)
	case *btf.Datasec:
		for _, v := range u.Vars {
			variable, ok := v.Type.(*btf.Var)
			if !ok {
				return fmt.Errorf("%s has no variable", path)
			}
			if err := r.add(variable.Type, variable.Name, offset+v.Offset); err != nil {
				return err
			}
		}
		return nil
	case *btf.Array:
		size, err := btf.Sizeof(u.Type)
		if err != nil {
			return err
		}
		for i := range u.Nelems {
			if err := r.add(u.Type, path+"["+strconv.Itoa(int(i))+"]", offset+i*uint32(size)); err != nil {
				return err
			}
		}
		return nil
	}
	size, err := btf.Sizeof(t)
	if err != nil {
		return err
	}
	r.Fields = append(r.Fields, part{path, offset, uint32(size)})
	return nil
}

// from makes a record of one as another build had it. What that did not have is zero, and
// so is a field whose size is another.
func (r record) from(was record) func(old []byte) []byte {
	at := map[string]part{}
	for _, f := range was.Fields {
		at[f.Path] = f
	}
	type move struct{ to, from, size uint32 }
	var moves []move
	for _, f := range r.Fields {
		if old, ok := at[f.Path]; ok && old.Size == f.Size {
			moves = append(moves, move{f.Offset, old.Offset, f.Size})
		}
	}
	return func(old []byte) []byte {
		out := make([]byte, r.Size)
		for _, m := range moves {
			copy(out[m.to:m.to+m.size], old[m.from:])
		}
		return out
	}
}

const layoutPin = "layout"

// write pins l in a set of maps, compressed: as it is it takes more than a hundred KiB.
func (l layout) write(dir, set string) error {
	path := maps.PathIn(dir, set, layoutPin)
	if exists(path) {
		return nil
	}
	text, err := l.text()
	if err != nil {
		return err
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "layout", Type: ebpf.Array, KeySize: 4, ValueSize: uint32(len(text)), MaxEntries: 1})
	if err != nil {
		return fmt.Errorf("make map %s: %w", layoutPin, err)
	}
	defer m.Close()
	if err := m.Put(uint32(0), text); err != nil {
		return fmt.Errorf("write map %s: %w", layoutPin, err)
	}
	if err := m.Pin(path); err != nil {
		return fmt.Errorf("pin %s: %w", path, err)
	}
	return nil
}

func (l layout) text() ([]byte, error) {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if err := errors.Join(json.NewEncoder(z).Encode(l), z.Close()); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// plain is what text had, as it is; older builds did not compress it.
func plain(text []byte) ([]byte, error) {
	if bytes.HasPrefix(text, []byte("{")) {
		return bytes.TrimRight(text, "\x00"), nil
	}
	z, err := gzip.NewReader(bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	z.Multistream(false)
	return io.ReadAll(z)
}

// readLayout returns nil where a set is not begun.
func readLayout(dir, set string) (layout, error) {
	path := maps.PathIn(dir, set, layoutPin)
	m, err := ebpf.LoadPinnedMap(path, nil)
	if errors.Is(err, fs.ErrNotExist) {
		if exists(maps.PathIn(dir, set, maps.MapControl)) {
			return nil, fmt.Errorf("adopt maps in %s: a version made them that did not say what they hold (detach and remove that directory to start anew)", dir)
		}
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open map %s: %w", path, err)
	}
	defer m.Close()
	text, err := m.LookupBytes(uint32(0))
	if err == nil {
		text, err = plain(text)
	}
	if err != nil {
		return nil, fmt.Errorf("read map %s: %w", path, err)
	}
	l := layout{}
	if err := json.Unmarshal(text, &l); err != nil {
		return nil, fmt.Errorf("read map %s: %w", path, err)
	}
	for name, m := range l {
		m.Key.join()
		m.Value.join()
		l[name] = m
	}
	return l, nil
}

// same reports whether a map is as another build has it.
func (m mapLayout) same(o mapLayout) bool { return reflect.DeepEqual(m, o) }
