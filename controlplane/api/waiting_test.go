package api

import (
	"errors"
	"strings"
	"testing"
)

// Whoever asks an agent that does not answer yet hears what it waits for.
func TestWaiting(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		why  []string
		want string
	}{
		{nil, ""},
		{[]string{"API server x does not let this agent list\npods", "and more"}, "it is starting and waits: API server x does not let this agent list pods; and more"},
		{nil, ""},
	} {
		if err := SayWaiting(dir, c.why); err != nil {
			t.Fatal(err)
		}
		_, err := Dial(dir).Ping(t.Context())
		if !errors.Is(err, ErrNoAgent) || !strings.Contains(err.Error(), c.want) || errors.Is(err, ErrStarting) != (c.want != "") {
			t.Errorf("%q: %v", c.why, err)
		}
	}
}
