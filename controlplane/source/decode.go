package source

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"

	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"
	kjson "sigs.k8s.io/json"

	"github.com/weirnet/weir/controlplane/api"
)

// key names an object in the cluster.
type key struct {
	kind string
	types.NamespacedName
}

func (k key) String() string {
	if k.Namespace == "" {
		return k.kind + " " + k.Name
	}
	return k.kind + " " + k.Namespace + "/" + k.Name
}

// object is a valid object with its defaults, and where it stands.
type object struct {
	key
	document int
	hash     [sha256.Size]byte // of key and content
	value    metav1.Object
}

// kind is what the directory takes: how an object is made, defaulted, then validated.
type kind struct {
	apiVersion string
	make       func() metav1.Object
	check      func(metav1.Object) field.ErrorList
}

var kinds = map[string]kind{
	"Namespace":     kindOf("v1", checkNamespace),
	"Pod":           kindOf("v1", checkPod),
	"Service":       kindOf("v1", checkService),
	"NetworkPolicy": kindOf(networkingv1.SchemeGroupVersion.String(), checkNetworkPolicy),
	"EndpointSlice": kindOf(discoveryv1.SchemeGroupVersion.String(), checkEndpointSlice),
}

const kindsText = "Namespace, Pod, Service and List (v1), NetworkPolicy (networking.k8s.io/v1), EndpointSlice (discovery.k8s.io/v1)"

func kindOf[T any, P interface {
	*T
	metav1.Object
}](apiVersion string, check func(P) field.ErrorList) kind {
	return kind{
		apiVersion: apiVersion,
		make:       func() metav1.Object { return P(new(T)) },
		check:      func(o metav1.Object) field.ErrorList { return check(o.(P)) },
	}
}

// parse reads all documents of a file. The objects count only if there are no errors;
// errors have no File yet.
func parse(name string, data []byte) ([]object, []api.ObjectError) {
	p := &parser{}
	for _, d := range documents(name, data) {
		p.document = d.number
		if d.err != nil {
			p.errors = append(p.errors, withDocument(*d.err, d.number))
			continue
		}
		p.decode(d.json, nil)
	}
	return p.objects, p.errors
}

func withDocument(e api.ObjectError, n int) api.ObjectError {
	e.Document = n
	return e
}

type parser struct {
	document int
	objects  []object
	errors   []api.ObjectError
}

// fail records an error of the object called name; path may be nil.
func (p *parser) fail(name string, path *field.Path, fieldName, message string) {
	if at := path.String(); path != nil && fieldName != "" {
		fieldName = at + "." + fieldName
	} else if path != nil {
		fieldName = at
	}
	p.errors = append(p.errors, api.ObjectError{Document: p.document, Object: name, Field: fieldName, Message: message})
}

// decode one object, or a List of them; path is where it stands in its document.
func (p *parser) decode(data []byte, path *field.Path) {
	var root map[string]any
	if err := json.Unmarshal(data, &root); err != nil || root == nil {
		p.fail("", path, "", fmt.Sprintf("is %s: want an object with apiVersion and kind", describe(data)))
		return
	}
	apiVersion, _ := root["apiVersion"].(string)
	kindName, _ := root["kind"].(string)
	name := nameOf(root, kindName)
	if kindName == "List" && apiVersion == "v1" {
		p.decodeList(data, path)
		return
	}
	k, known := kinds[kindName]
	switch {
	case kindName == "":
		p.fail(name, path, "kind", "is missing: want one of "+kindsText)
	case !known && kindName != "List":
		p.fail(name, path, "kind", fmt.Sprintf("unknown kind %q of apiVersion %q: this directory takes %s; move the document elsewhere", kindName, apiVersion, kindsText))
	case apiVersion == "" || apiVersion != k.apiVersion:
		want := k.apiVersion
		if !known {
			want = "v1"
		}
		p.fail(name, path, "apiVersion", fmt.Sprintf("unknown apiVersion %q of kind %q: want %q", apiVersion, kindName, want))
	default:
		p.decodeObject(data, path, name, kindName, k)
	}
}

func (p *parser) decodeObject(data []byte, path *field.Path, name, kindName string, k kind) {
	value := k.make()
	if !p.unmarshal(data, path, name, value) {
		return
	}
	if kindName != "Namespace" && value.GetNamespace() == "" {
		value.SetNamespace(metav1.NamespaceDefault)
	}
	for _, e := range k.check(value) {
		p.fail(name, path, e.Field, e.ErrorBody())
	}
	o := object{key: key{kindName, types.NamespacedName{Namespace: value.GetNamespace(), Name: value.GetName()}}, document: p.document, value: value}
	content, err := json.Marshal(value)
	if err != nil {
		p.fail(name, path, "", err.Error())
		return
	}
	o.hash = sha256.Sum256(append([]byte(o.key.String()+"\n"), content...))
	p.objects = append(p.objects, o)
}

// decodeList flattens `kubectl get -o yaml`.
func (p *parser) decodeList(data []byte, path *field.Path) {
	var list struct {
		metav1.TypeMeta `json:",inline"`
		metav1.ListMeta `json:"metadata"`
		Items           []json.RawMessage `json:"items"`
	}
	if path != nil {
		p.fail("List", path, "kind", "a List inside a List: take its items out of it")
		return
	}
	if !p.unmarshal(data, path, "List", &list) {
		return
	}
	for i, item := range list.Items {
		p.decode(item, field.NewPath("items").Index(i))
	}
}

// unmarshal strictly; false if value cannot be used even to look for more errors.
func (p *parser) unmarshal(data []byte, path *field.Path, name string, value any) bool {
	strict, err := kjson.UnmarshalStrict(data, value)
	for _, e := range strict {
		at, message := "", e.Error()
		if f, ok := errors.AsType[kjson.FieldError](e); ok {
			at = f.FieldPath()
		}
		switch {
		case strings.HasPrefix(message, "unknown field"):
			message = unknownField(reflect.TypeOf(value), at)
		case strings.HasPrefix(message, "duplicate field"):
			message = "is there twice: remove one"
		}
		p.fail(name, path, at, message)
	}
	if err == nil {
		return true
	}
	wrong := typeErrors(data, reflect.TypeOf(value).Elem())
	for _, w := range wrong {
		p.fail(name, path, w.field, w.message)
	}
	if len(wrong) == 0 {
		p.fail(name, path, "", err.Error())
	}
	return false
}

// nameOf an object that may be anything.
func nameOf(root map[string]any, kindName string) string {
	meta, _ := root["metadata"].(map[string]any)
	name, _ := meta["name"].(string)
	ns, _ := meta["namespace"].(string)
	if ns == "" && kindName != "Namespace" && name != "" {
		ns = metav1.NamespaceDefault
	}
	if kindName == "Namespace" {
		ns = ""
	}
	return strings.TrimSpace(key{kindName, types.NamespacedName{Namespace: ns, Name: name}}.String())
}
