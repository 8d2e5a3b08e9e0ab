package policy_test

import (
	"encoding/json"
	"math/rand"
	"reflect"
	"testing"

	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/tests/randomcluster"
)

// What is written line by line means what is written whole: an Allocator that reads it gives
// the same numbers again, and knows what they stand for.
func TestReplayedNumbersAreTheSame(t *testing.T) {
	for seed := range int64(20) {
		w := randomcluster.New(rand.New(rand.NewSource(seed)))
		ids := policy.NewAllocator()
		policy.Compile(w.Cluster, w.Node, w.Locals, ids)
		whole, err := json.Marshal(ids)
		if err != nil {
			t.Fatal(err)
		}
		ids.SavedAll()
		var lines []byte
		for range 15 {
			w.Edit()
			policy.Compile(w.Cluster, w.Node, w.Locals, ids)
			more, n := ids.Unsaved()
			lines = append(lines, more...)
			ids.Saved(n)
			if seed%2 == 0 {
				ids.Forget()
			}
		}
		again := policy.NewAllocator()
		if err := json.Unmarshal(whole, again); err != nil {
			t.Fatal(err)
		}
		for range 2 { // twice tells nothing new
			if err := again.Replay(append(lines, `{"number": 7, "set": "half a li`...)); err != nil {
				t.Fatal(err)
			}
		}
		want := policy.Compile(w.Cluster, w.Node, w.Locals, ids)
		got := policy.Compile(w.Cluster, w.Node, w.Locals, again)
		if !reflect.DeepEqual(got.State, want.State) {
			t.Fatalf("seed %d: other numbers: %s", seed, difference(got.State.Text(), want.State.Text()))
		}
		for _, r := range got.State.Rulesets {
			a, known := again.Rule(r.Default)
			if b, _ := ids.Rule(r.Default); !known || !reflect.DeepEqual(a, b) {
				t.Errorf("seed %d: rule %d is %v, was %v", seed, r.Default, a, b)
			}
		}
		if again.Changed() != 0 {
			t.Errorf("seed %d: %d numbers given out again", seed, again.Changed())
		}
	}
}

// A line in the middle that cannot be read is an error: numbers would be given out twice.
func TestReplayRefusesDamage(t *testing.T) {
	if err := policy.NewAllocator().Replay([]byte("{\"number\": 7\n{}\n")); err == nil {
		t.Error("it is taken")
	}
}
