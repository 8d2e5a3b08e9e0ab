package endpoint

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/controlplane/statedir"
)

func request(i int) api.AddRequest {
	return api.AddRequest{
		ContainerID: fmt.Sprintf("container%d", i), IfName: "eth0", HostIfName: fmt.Sprintf("weir%011x", i), HostIfindex: uint32(100 + i),
		MAC: "02:00:00:00:00:01", Addresses: []string{fmt.Sprintf("10.0.0.%d", i), fmt.Sprintf("fd00::%d", i)},
		PodNamespace: "shop", PodName: fmt.Sprintf("web-%d", i),
	}
}

func record(t *testing.T, r api.AddRequest) *Record {
	t.Helper()
	out, err := FromRequest(r)
	if err != nil {
		t.Fatal(err)
	}
	return out.WithPod(&policy.Pod{Namespace: r.PodNamespace, Name: r.PodName})
}

func stateDir(t *testing.T) *statedir.Dir {
	t.Helper()
	d, err := statedir.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func open(t *testing.T, d *statedir.Dir) *Store {
	t.Helper()
	s, err := Open(d)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func idle(uint32) bool { return false }

func add(t *testing.T, s *Store, r *Record, busy func(uint32) bool) *Record {
	t.Helper()
	out, _, err := s.Add(r, busy)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestRecordsSurvive(t *testing.T) {
	d := stateDir(t)
	s := open(t, d)
	one := add(t, s, record(t, request(1)), idle)
	two := add(t, s, record(t, request(2)), idle)
	if one.Number != 1 || two.Number != 2 {
		t.Fatalf("numbers %d, %d", one.Number, two.Number)
	}
	if err := s.Remove(two); err != nil {
		t.Fatal(err)
	}
	s = open(t, d)
	all := s.All()
	if len(all) != 1 || !all[0].Same(one) || all[0].Number != 1 {
		t.Fatalf("after a restart: %+v", all)
	}
	if r := all[0].WithPod(one.LastPod); r != all[0] {
		t.Fatalf("the pod's object changed by being saved: %+v", r.LastPod)
	}
	if again := add(t, s, record(t, request(2)), idle); again.Number != 3 {
		t.Fatalf("number %d follows 2 that was just freed, want 3", again.Number)
	}
}

func TestNumbersInUseAreNotGivenOut(t *testing.T) {
	s := open(t, stateDir(t))
	s.numbers.Last = MaxNumber - 1
	if r := add(t, s, record(t, request(1)), idle); r.Number != MaxNumber {
		t.Fatalf("number %d", r.Number)
	}
	busy := func(n uint32) bool { return n == 1 }
	two := add(t, s, record(t, request(2)), busy)
	if two.Number != 2 {
		t.Fatalf("number %d, want 2: flows hold 1", two.Number)
	}
	if err := s.Remove(two); err != nil {
		t.Fatal(err)
	}
	s.numbers.Last = 1
	if r := add(t, s, record(t, request(3)), idle); r.Number != 3 {
		t.Fatalf("number %d, want 3: 2 is not released", r.Number)
	}
	s.Release(2)
	s.numbers.Last = 1
	if r := add(t, s, record(t, request(4)), idle); r.Number != 2 {
		t.Fatalf("number %d, want 2", r.Number)
	}
	if _, _, err := s.Add(record(t, request(5)), func(uint32) bool { return true }); err == nil || !strings.Contains(err.Error(), "1023") {
		t.Fatalf("no number left: %v", err)
	}
}

func TestAddAgain(t *testing.T) {
	s := open(t, stateDir(t))
	one := add(t, s, record(t, request(1)), idle)
	if again := add(t, s, record(t, request(1)), idle); again != one {
		t.Fatalf("the same request is another record: %+v", again)
	}
	changed := request(1)
	changed.Addresses = []string{"10.0.0.9"}
	if _, _, err := s.Add(record(t, changed), idle); err == nil || !strings.Contains(err.Error(), "container1 has eth0") {
		t.Fatalf("another address: %v", err)
	}
	taken := request(2)
	taken.Addresses = []string{"10.0.0.1"}
	var conflict *ConflictError
	if _, _, err := s.Add(record(t, taken), idle); !errors.As(err, &conflict) || conflict.With != one {
		t.Fatalf("an address that is taken: %v", err)
	}
}

func TestUpdateOfARemovedRecordDoesNotReviveIt(t *testing.T) {
	d := stateDir(t)
	s := open(t, d)
	one := add(t, s, record(t, request(1)), idle)
	if err := s.Remove(one); err != nil {
		t.Fatal(err)
	}
	if err := s.Update(one); err != nil {
		t.Fatal(err)
	}
	if n := len(open(t, d).All()); n != 0 {
		t.Fatalf("%d records", n)
	}
}

func TestDamagedRecordIsSkippedAndNamed(t *testing.T) {
	d := stateDir(t)
	s := open(t, d)
	add(t, s, record(t, request(1)), idle)
	add(t, s, record(t, request(2)), idle)
	if err := os.WriteFile(d.Path("endpoints", "1.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Open(d)
	if err == nil || !strings.Contains(err.Error(), "endpoints/1.json") {
		t.Fatalf("error %v", err)
	}
	if all := s.All(); len(all) != 1 || all[0].Number != 2 {
		t.Fatalf("records %+v", all)
	}
}

func TestRequestsAreChecked(t *testing.T) {
	for _, c := range []struct {
		want   string
		change func(*api.AddRequest)
	}{
		{"containerID", func(r *api.AddRequest) { r.ContainerID = "" }},
		{"podName", func(r *api.AddRequest) { r.PodName = "" }},
		{"hostIfName", func(r *api.AddRequest) { r.HostIfName = "eth0" }},
		{"hostIfindex", func(r *api.AddRequest) { r.HostIfindex = 0 }},
		{"mac", func(r *api.AddRequest) { r.MAC = "02:00" }},
		{"addresses are missing", func(r *api.AddRequest) { r.Addresses = nil }},
		{"addresses", func(r *api.AddRequest) { r.Addresses = []string{"10.0.0.1/24"} }},
		{"one family", func(r *api.AddRequest) { r.Addresses = []string{"10.0.0.1", "10.0.0.2"} }},
		{"addresses", func(r *api.AddRequest) { r.Addresses = []string{"127.0.0.1"} }},
	} {
		r := request(1)
		c.change(&r)
		if _, err := FromRequest(r); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want %q", err, c.want)
		}
	}
}
