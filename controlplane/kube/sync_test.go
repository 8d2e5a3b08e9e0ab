package kube

import (
	"fmt"
	"maps"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/types"
)

// A list of versions is read whatever order it is in, and one that breaks off is none.
func TestReadVersions(t *testing.T) {
	const items = `"items":[{"metadata":{"name":"a","namespace":"n","resourceVersion":"3","labels":{"resourceVersion":"x"},"managedFields":[{"time":"now"}]}},
		{"kind":"PartialObjectMetadata","metadata":{"name":"b","resourceVersion":"7"}}]`
	const meta = `"metadata":{"resourceVersion":"9","remainingItemCount":0}`
	want := map[types.NamespacedName]uint64{{Namespace: "n", Name: "a"}: 3, {Name: "b"}: 7}
	for _, text := range []string{
		`{"kind":"PartialObjectMetadataList","apiVersion":"meta.k8s.io/v1",` + meta + `,` + items + `}`,
		`{` + items + `,` + meta + `,"other":{"items":[{"metadata":{"name":"c"}}]}}`,
	} {
		if version, got, err := readVersions(strings.NewReader(text)); err != nil || version != 9 || !maps.Equal(got, want) {
			t.Errorf("%s: %d, %v, %v", text, version, got, err)
		}
		for cut := range len(text) - 1 {
			if _, _, err := readVersions(strings.NewReader(text[:cut])); err == nil {
				t.Errorf("no error of the first %d bytes of %s", cut, text)
			}
		}
	}
	for _, none := range []string{`[]`, `null`} {
		if version, got, err := readVersions(strings.NewReader(`{` + meta + `,"items":` + none + `}`)); err != nil || version != 9 || len(got) != 0 {
			t.Errorf("items %s: %d, %v, %v", none, version, got, err)
		}
	}
	for _, bad := range []string{``, `[]`, `{}`, `{` + items + `}`, `{"metadata":{"resourceVersion":"9"},"items":{}}`,
		`{"metadata":{"resourceVersion":"9"},"items":[{"metadata":{"name":"a"}}]}`, `{"metadata":{"resourceVersion":"x"}}`} {
		if _, _, err := readVersions(strings.NewReader(bad)); err == nil {
			t.Errorf("no error of %s", bad)
		}
	}
}

// Reading a list does not hold it.
func TestReadVersionsIsSmall(t *testing.T) {
	const pods = 2000
	var list strings.Builder
	list.WriteString(`{"metadata":{"resourceVersion":"9"},"items":[`)
	for i := range pods {
		fmt.Fprintf(&list, `%s{"metadata":{"name":"p%d","resourceVersion":"%d","annotations":{"a":%q}}}`, map[bool]string{true: ","}[i > 0], i, i+1, strings.Repeat("x", 5000))
	}
	list.WriteString(`]}`)
	got := testing.Benchmark(func(b *testing.B) {
		for b.Loop() {
			if _, listed, err := readVersions(strings.NewReader(list.String())); err != nil || len(listed) != pods {
				b.Fatal(len(listed), err)
			}
		}
	})
	if bytes := got.AllocedBytesPerOp(); bytes > 3<<20 {
		t.Errorf("%d bytes are allocated for a list of %d", bytes, list.Len())
	}
}
