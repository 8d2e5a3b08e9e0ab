package maps

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath"
)

// deniedByKernel is what the map has, sorted as Denied is.
func deniedByKernel(t *testing.T, k *Kernel) (out []netip.Prefix) {
	t.Helper()
	for key := range dump[bpf.WeirPrefixKey, uint32](t, k.denied.m) {
		out = append(out, decodePrefix(key))
	}
	slices.SortFunc(out, func(x, y netip.Prefix) int { return x.Addr().Compare(y.Addr()) })
	return out
}

// The list is enforced without a commit, as it is at once, and found by who starts.
func TestDenyFollowsTheList(t *testing.T) {
	dir := pinMaps(t, map[string]uint32{bpf.WeirMapShieldDeny: 64})
	k := openQuiet(t, dir)
	commitState(t, k, oneOfEach())
	many := func(from, n int) (out []netip.Prefix) {
		for i := range n {
			out = append(out, prefix(fmt.Sprintf("198.51.100.%d/32", from+i)))
		}
		return out
	}
	for i, list := range [][]netip.Prefix{
		{prefix("198.51.100.7/32"), prefix("203.0.113.0/24"), prefix("2001:db8:bad::/48")},
		{prefix("198.51.100.8/32"), prefix("203.0.113.0/24")},
		{},
		many(0, 64),
		many(64, 64), // all others, and no room for both
	} {
		epoch := k.Epoch()
		must(t, k.Deny(list))
		if got := deniedByKernel(t, k); !slices.Equal(got, list) {
			t.Errorf("step %d: the kernel has %v, want %v", i, got, list)
		}
		got, err := k.Denied()
		if must(t, err); !slices.Equal(got, list) || k.Epoch() != epoch {
			t.Errorf("step %d: Denied has %v, want %v; epoch %d after %d", i, got, list, k.Epoch(), epoch)
		}
		if found, err := k.Recheck(); err != nil || len(found) != 0 {
			t.Errorf("step %d: nothing was done, and found: %v, %v", i, found, err)
		}
	}
	full := new(datapath.FullError)
	if err := k.Deny(many(0, 65)); !errors.As(err, &full) || full.Need != 65 || full.Size != 64 {
		t.Errorf("65 of 64: %v", err)
	}
	if got := deniedByKernel(t, k); !slices.Equal(got, many(64, 64)) {
		t.Errorf("a list that is too long left %v", got)
	}

	again := openQuiet(t, dir)
	if got, err := again.Denied(); err != nil || len(got) != 64 {
		t.Errorf("after a restart: %v, %v", got, err)
	}
	must(t, again.Deny(many(100, 3)))
	if got := deniedByKernel(t, again); !slices.Equal(got, many(100, 3)) {
		t.Errorf("after a restart: %v", got)
	}
}

func TestRecheckFindsAChangedDenyList(t *testing.T) {
	list := []netip.Prefix{prefix("198.51.100.7/32"), prefix("203.0.113.0/24")}
	for name, damage := range map[string]func(k *Kernel) error{
		"gone":     func(k *Kernel) error { return k.denied.m.Delete(encodePrefix(list[0])) },
		"too many": func(k *Kernel) error { return k.denied.m.Put(encodePrefix(prefix("10.0.0.0/8")), uint32(1)) },
	} {
		t.Run(name, func(t *testing.T) {
			k := openQuiet(t, pinMaps(t, nil))
			commitState(t, k, oneOfEach())
			must(t, k.Deny(list))
			must(t, damage(k))
			if found, err := k.Recheck(); err != nil || !slices.Contains(found, bpf.WeirMapShieldDeny) {
				t.Errorf("found %v, %v", found, err)
			}
			must(t, k.Deny(list))
			if got := deniedByKernel(t, k); !slices.Equal(got, list) {
				t.Errorf("after the repair: %v", got)
			}
		})
	}
}

// An address that the old list denies and the new one by another prefix is denied all the while.
func TestDenyLeavesNoGap(t *testing.T) {
	dir := pinMaps(t, map[string]uint32{bpf.WeirMapShieldDeny: 64})
	k := openQuiet(t, dir)
	one, all := []netip.Prefix{prefix("198.51.100.7/32")}, []netip.Prefix{prefix("198.51.100.0/24")}
	must(t, k.Deny(one))
	stop, gaps := make(chan struct{}), make(chan int)
	go func() {
		missed := 0
		for {
			select {
			case <-stop:
				gaps <- missed
				return
			default:
			}
			var value uint32
			if err := k.denied.m.Lookup(encodePrefix(one[0]), &value); err != nil {
				missed++
			}
		}
	}()
	for range 5000 {
		must(t, k.Deny(all))
		must(t, k.Deny(one))
	}
	close(stop)
	if missed := <-gaps; missed > 0 {
		t.Errorf("an address of both lists was not denied at %d looks", missed)
	}
}
