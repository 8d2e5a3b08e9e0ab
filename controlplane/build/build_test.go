package build

import "testing"

func TestStamp(t *testing.T) {
	defer func(v, r string) { version, revision = v, r }(version, revision)
	for _, c := range []struct{ version, revision, want string }{
		{"0.1.0", "13d20d5eae3913d20d5eae3913d20d5eae390000", "0.1.0 (13d20d5eae39)"},
		{"0.1.0", "13d20d5eae3913d20d5eae3913d20d5eae390000-dirty", "0.1.0 (13d20d5eae39, modified)"},
		{"0.1.0", "", "0.1.0"}, // sources without their history
	} {
		version, revision = c.version, c.revision
		if got := Read().String(); got != c.want {
			t.Errorf("%q, %q: %q, want %q", c.version, c.revision, got, c.want)
		}
	}
	version, revision = "", ""
	if got := Read().Version; got == "" {
		t.Error("without a stamp it says nothing")
	}
}
