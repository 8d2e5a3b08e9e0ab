package kube

import (
	"bufio"
	"context"
	"encoding/binary"
	"io"
	"mime"
	"net/http"
	"reflect"
	"strconv"

	"google.golang.org/protobuf/encoding/protowire"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
)

// tap reads a watch before client-go does. An event that is the next for a store goes there from
// the goroutine that reads, which client-go would wake two others for; most of what a hundred events
// a second cost was that. Whatever else comes is the reflector's: what a watch begins with, bookmarks,
// errors, events before the store has all that the reflector was given, and what is not understood. At the end
// the reflector gets a bookmark, so that it watches on from what the store has.
type tap struct {
	body    io.ReadCloser
	from    *bufio.Reader
	into    tapped
	version string // of the kind's API
	kind    string

	frame    []byte
	out      []byte // for the reflector
	passed   uint64 // the newest version that it was given
	put      uint64 // the newest that went to the store since; 0: none did
	replaced uint64 // what the store says of replacements until the reflector has what the watch begins with
	begins   bool   // it does so with all objects
	blind    bool   // all that comes is the reflector's
	ended    error
}

// tapped is a store whose events need no reflector.
type tapped interface {
	// replacements counts what came by Replace.
	replacements() uint64
	// event puts an object in, or takes it out; false: it is not the next after what the store has, or not
	// understood. That is at least since, and was replaced since replaced, if that is not nil.
	event(what watch.EventType, object []byte, since uint64, replaced *uint64) (version uint64, ok bool)
}

const (
	frameHead = 4        // bytes of a frame's length
	frameMost = 16 << 20 // that client-go takes
)

type tapKey struct{}

// tapping is a context for a request to watch k.
func tapping(ctx context.Context, k kind, begins bool) context.Context {
	t := &tap{into: k.store, version: k.group.String(), kind: reflect.TypeOf(k.example).Elem().Name(), begins: begins, replaced: k.store.replacements()}
	return context.WithValue(ctx, tapKey{}, t)
}

// tappedBody is what client-go reads of a response.
func tappedBody(r *http.Request, response *http.Response) io.ReadCloser {
	asked, ok := r.Context().Value(tapKey{}).(*tap)
	media, _, err := mime.ParseMediaType(response.Header.Get("Content-Type"))
	if !ok || err != nil || media != runtime.ContentTypeProtobuf || response.StatusCode != http.StatusOK {
		return response.Body
	}
	t := *asked // a request may be sent again
	t.body, t.from = response.Body, bufio.NewReader(response.Body)
	return &t
}

func (t *tap) Close() error { return t.body.Close() }

func (t *tap) Read(p []byte) (int, error) {
	for len(t.out) == 0 {
		if t.ended != nil {
			return 0, t.ended
		}
		if t.blind {
			return t.from.Read(p)
		}
		t.next()
	}
	n := copy(p, t.out)
	t.out = t.out[n:]
	return n, nil
}

// next reads a frame, or that there is no more.
func (t *tap) next() {
	head, err := t.from.Peek(frameHead)
	if err == nil {
		size := frameHead + int(binary.BigEndian.Uint32(head))
		if size > frameMost {
			t.blind = true
			t.caughtUp()
			return
		}
		if cap(t.frame) < size || cap(t.frame) > 1<<16 && size < 1<<12 { // one was large
			t.frame = make([]byte, size)
		}
		t.frame = t.frame[:size]
		var n int
		if n, err = io.ReadFull(t.from, t.frame); err == nil {
			t.take()
			return
		}
		if t.frame = t.frame[:n]; err == io.ErrUnexpectedEOF {
			err = io.EOF
		}
	} else {
		t.frame = append(t.frame[:0], head...)
	}
	// What there is of a frame lets the reflector see that it broke.
	t.ended = err
	t.caughtUp()
	t.out = append(t.out, t.frame...)
}

// take hands a frame on.
func (t *tap) take() {
	e, ok := parseEvent(t.frame[frameHead:])
	if ok = ok && e.version == t.version && e.kind == t.kind; ok {
		switch e.what {
		case watch.Added, watch.Modified, watch.Deleted:
			var replaced *uint64
			if t.begins {
				replaced = &t.replaced
			}
			if version, ok := t.into.event(e.what, e.object, t.passed, replaced); ok {
				t.put, t.begins = version, false
				return
			}
		case watch.Bookmark:
		default:
			ok = false
		}
	}
	t.caughtUp()
	if version, known := versionOf(e.object); ok && known {
		t.passed = max(t.passed, version)
	} else {
		t.blind = true
	}
	t.out = append(t.out, t.frame...)
}

// caughtUp tells the reflector how far the store is.
func (t *tap) caughtUp() {
	t.out = t.out[:0]
	if t.put == 0 {
		return
	}
	t.out, t.passed, t.put = appendBookmark(t.out, t.version, t.kind, t.put), max(t.passed, t.put), 0
}

// rawEvent is a watch's event, whose object is not decoded.
type rawEvent struct {
	what          watch.EventType
	version, kind string
	object        []byte
}

// Field numbers of meta/v1 WatchEvent and RawExtension, of runtime.Unknown and its TypeMeta, of any object and ObjectMeta.
const (
	eventType, eventObject, extensionRaw           = 1, 2, 1
	unknownType, unknownRaw, typeVersion, typeKind = 1, 2, 1, 2
	objectMetadata, metaResourceVersion            = 1, 6
)

// protobufMagic begins what Kubernetes says in protobuf.
const protobufMagic = "k8s\x00"

func parseEvent(frame []byte) (e rawEvent, ok bool) {
	var unknown []byte
	ok = fields(frame, func(n protowire.Number, event []byte) bool {
		switch n {
		case eventType:
			e.what = watch.EventType(event)
		case eventObject:
			return fields(event, func(n protowire.Number, raw []byte) bool {
				if n == extensionRaw {
					unknown = raw
				}
				return true
			})
		}
		return true
	})
	if !ok || len(unknown) < len(protobufMagic) || string(unknown[:len(protobufMagic)]) != protobufMagic {
		return e, false
	}
	ok = fields(unknown[len(protobufMagic):], func(n protowire.Number, part []byte) bool {
		switch n {
		case unknownType:
			return fields(part, func(n protowire.Number, text []byte) bool {
				switch n {
				case typeVersion:
					e.version = string(text)
				case typeKind:
					e.kind = string(text)
				}
				return true
			})
		case unknownRaw:
			e.object = part
		}
		return true
	})
	return e, ok
}

// versionOf an object that is not decoded.
func versionOf(object []byte) (version uint64, ok bool) {
	_ = fields(object, func(n protowire.Number, part []byte) bool {
		return n != objectMetadata || fields(part, func(n protowire.Number, text []byte) bool {
			if n == metaResourceVersion {
				v, err := strconv.ParseUint(string(text), 10, 64)
				version, ok = v, err == nil
			}
			return true
		})
	})
	return version, ok
}

// fields calls each with the fields of a message that are texts or messages; false: it is none, or each
// said so.
func fields(b []byte, each func(protowire.Number, []byte) bool) bool {
	for len(b) > 0 {
		n, kind, size := protowire.ConsumeTag(b)
		if size < 0 {
			return false
		}
		b = b[size:]
		if kind != protowire.BytesType {
			if size = protowire.ConsumeFieldValue(n, kind, b); size < 0 {
				return false
			}
			b = b[size:]
			continue
		}
		value, size := protowire.ConsumeBytes(b)
		if size < 0 || !each(n, value) {
			return false
		}
		b = b[size:]
	}
	return true
}

// appendBookmark appends a frame that says that all up to version was seen.
func appendBookmark(b []byte, api, kind string, version uint64) []byte {
	meta := appendText(nil, metaResourceVersion, strconv.AppendUint(nil, version, 10))
	types := appendText(appendText(nil, typeVersion, []byte(api)), typeKind, []byte(kind))
	unknown := appendText(appendText([]byte(protobufMagic), unknownType, types), unknownRaw, appendText(nil, objectMetadata, meta))
	event := appendText(appendText(nil, eventType, []byte(watch.Bookmark)), eventObject, appendText(nil, extensionRaw, unknown))
	return append(binary.BigEndian.AppendUint32(b, uint32(len(event))), event...)
}

func appendText(b []byte, n protowire.Number, text []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, n, protowire.BytesType), text)
}

func (s *store[A, P]) replacements() uint64 {
	s.Lock()
	defer s.Unlock()
	return s.replaced
}

func (s *store[A, P]) event(what watch.EventType, object []byte, since uint64, replaced *uint64) (version uint64, ok bool) {
	o, err := decode[A](object)
	if err != nil {
		return 0, false
	}
	is, err := s.read(o)
	if err != nil {
		return 0, false
	}
	s.Lock()
	defer s.Unlock()
	if !s.synced || s.version < since || is.version <= s.version || replaced != nil && *replaced == s.replaced {
		return 0, false
	}
	s.learn(is, what == watch.Deleted)
	return is.version, true
}

// decode an object of the API in protobuf.
func decode[A metav1.Object](raw []byte) (A, error) {
	o := reflect.New(reflect.TypeFor[A]().Elem()).Interface().(A)
	return o, any(o).(interface{ Unmarshal([]byte) error }).Unmarshal(raw)
}
