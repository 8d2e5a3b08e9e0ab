package apiserver

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"net/http"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
)

var (
	scheme = runtime.NewScheme()
	codecs = serializer.NewCodecFactory(scheme)
)

func init() {
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, networkingv1.AddToScheme, discoveryv1.AddToScheme} {
		utilruntime.Must(add(scheme))
	}
}

// encoding is how a client wants things.
type encoding struct {
	name, stream string
	object       func(runtime.Object) ([]byte, error)
	event        func(event) ([]byte, error)
}

// encodingFor is protobuf for those who take it, as with a real server.
func encodingFor(r *http.Request) encoding {
	if strings.Contains(r.Header.Get("Accept"), runtime.ContentTypeProtobuf) {
		return encoding{name: runtime.ContentTypeProtobuf, stream: ";stream=watch", object: with(runtime.ContentTypeProtobuf), event: protobufEvent}
	}
	return encoding{name: runtime.ContentTypeJSON, object: with(runtime.ContentTypeJSON), event: jsonEvent}
}

func with(contentType string) func(runtime.Object) ([]byte, error) {
	info, _ := runtime.SerializerInfoForMediaType(codecs.SupportedMediaTypes(), contentType)
	return func(o runtime.Object) ([]byte, error) {
		kinds, _, err := scheme.ObjectKinds(o)
		if err != nil {
			return nil, err
		}
		var b bytes.Buffer
		err = codecs.EncoderForVersion(info.Serializer, kinds[0].GroupVersion()).Encode(o, &b)
		return b.Bytes(), err
	}
}

func protobuf(o runtime.Object) ([]byte, error) { return with(runtime.ContentTypeProtobuf)(o) }

// protobufEvent is a length and a WatchEvent.
func protobufEvent(e event) ([]byte, error) {
	w := metav1.WatchEvent{Type: e.kind, Object: runtime.RawExtension{Raw: e.raw}}
	body, err := w.Marshal()
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...), err
}

func jsonEvent(e event) ([]byte, error) {
	raw, err := with(runtime.ContentTypeJSON)(e.object)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	b.WriteString(`{"type":"` + e.kind + `","object":`)
	b.Write(bytes.TrimSpace(raw))
	b.WriteString("}\n")
	return b.Bytes(), nil
}

// uid is one that names give.
func uid(name string) types.UID {
	h := sha256.Sum256([]byte(name))
	x := hex.EncodeToString(h[:16])
	return types.UID(strings.Join([]string{x[:8], x[8:12], x[12:16], x[16:20], x[20:]}, "-"))
}
