package source

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// typeError is a value whose type is not its field's.
type typeError struct{ field, message string }

var unmarshaler = reflect.TypeFor[json.Unmarshaler]()

// typeErrors finds the values in data that do not decode into t. The decoder names a
// field without its place in lists, or none at all; this walks data along t and asks
// for each value whether it decodes. It is for data that is known not to.
func typeErrors(data []byte, t reflect.Type) []typeError {
	var out []typeError
	findTypeErrors(data, t, "", &out)
	return out
}

func findTypeErrors(data []byte, t reflect.Type, path string, out *[]typeError) {
	err := json.Unmarshal(data, reflect.New(t).Interface())
	if err == nil {
		return
	}
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	before := len(*out)
	var object map[string]json.RawMessage
	var list []json.RawMessage
	switch {
	case reflect.PointerTo(t).Implements(unmarshaler):
	case t.Kind() == reflect.Struct && json.Unmarshal(data, &object) == nil:
		fields := jsonFields(t)
		for _, k := range slices.Sorted(maps.Keys(object)) {
			if f, ok := fields[k]; ok {
				findTypeErrors(object[k], f, join(path, k), out)
			}
		}
	case t.Kind() == reflect.Map && json.Unmarshal(data, &object) == nil:
		for _, k := range slices.Sorted(maps.Keys(object)) {
			findTypeErrors(object[k], t.Elem(), path+"["+k+"]", out)
		}
	case t.Kind() == reflect.Slice && json.Unmarshal(data, &list) == nil:
		for i, v := range list {
			findTypeErrors(v, t.Elem(), path+"["+strconv.Itoa(i)+"]", out)
		}
	}
	if len(*out) == before {
		*out = append(*out, typeError{path, wrongType(data, t, err)})
	}
}

func join(path, k string) string {
	if path == "" {
		return k
	}
	return path + "." + k
}

// jsonFields of a struct type, embedded ones included, by JSON name.
func jsonFields(t reflect.Type) map[string]reflect.Type {
	out := map[string]reflect.Type{}
	for f := range t.Fields() {
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous && (name == "" || strings.Contains(options, "inline")) {
			maps.Copy(out, jsonFields(f.Type))
		} else if name != "" && name != "-" {
			out[name] = f.Type
		}
	}
	return out
}

func wrongType(data []byte, t reflect.Type, err error) string {
	is := "is " + describe(data)
	switch {
	case t.String() == "intstr.IntOrString":
		return is + ": want a number or a name"
	case reflect.PointerTo(t).Implements(unmarshaler):
		return is + ": " + err.Error()
	}
	switch t.Kind() {
	case reflect.String:
		if strings.ContainsAny(string(data[:1]), "{[") {
			return is + ": want text"
		}
		return fmt.Sprintf("%s: want text, put it in quotes", is)
	case reflect.Bool:
		return is + ": want true or false"
	case reflect.Slice:
		return is + ": want a list"
	case reflect.Map, reflect.Struct:
		return is + ": want a mapping"
	case reflect.Int32, reflect.Int64, reflect.Int:
		return fmt.Sprintf("%s: want a whole number of at most %d bits", is, t.Bits())
	}
	return is + ": " + err.Error()
}

// describe a JSON value by its type, scalars with their text.
func describe(data []byte) string {
	text := strings.TrimSpace(string(data))
	if len(text) > 40 {
		text = strings.ToValidUTF8(text[:40], "") + "..."
	}
	switch {
	case text == "null":
		return "empty"
	case text == "true" || text == "false":
		return "the truth value " + text
	case strings.HasPrefix(text, "{"):
		return "a mapping"
	case strings.HasPrefix(text, "["):
		return "a list"
	case strings.HasPrefix(text, `"`):
		return "the text " + text
	}
	return "the number " + text
}

// unknownField says that the field at path is not one of t's, and which may have been
// meant. t is a pointer to a struct.
func unknownField(t reflect.Type, path string) string {
	parts := strings.FieldsFunc(path, func(r rune) bool { return r == '.' || r == '[' })
	t = t.Elem()
	for _, part := range parts[:max(0, len(parts)-1)] {
		for t.Kind() == reflect.Pointer {
			t = t.Elem()
		}
		switch {
		case strings.HasSuffix(part, "]") && (t.Kind() == reflect.Slice || t.Kind() == reflect.Map):
			t = t.Elem()
		case t.Kind() == reflect.Struct && jsonFields(t)[part] != nil:
			t = jsonFields(t)[part]
		default:
			return "unknown field: remove it or correct its name"
		}
	}
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || len(parts) == 0 {
		return "unknown field: remove it or correct its name"
	}
	fields := slices.Sorted(maps.Keys(jsonFields(t)))
	if len(fields) > 8 {
		return "unknown field: remove it or correct its name (names are case-sensitive)"
	}
	return "unknown field: remove it or correct its name (here are " + strings.Join(fields, ", ") + ")"
}
