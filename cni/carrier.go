package cni

import (
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
)

const (
	carrierWait  = 5 * time.Second
	carrierPause = 2 * time.Millisecond
)

// awaitCarrier returns when both sides can send. The end that was taken up first has no
// carrier until the other is up; the kernel tells it so in its own time, and until then
// drops what it sends without a word.
func (v *veth) awaitCarrier() error {
	for _, side := range []struct {
		h     *netlink.Handle
		index int
		name  string
	}{{v.pod, v.podIndex, v.podName + " in " + v.podNetns.Path()}, {v.node, v.hostIndex, v.hostName}} {
		if err := awaitUp(side.h, side.index); err != nil {
			return fmt.Errorf("carrier of %s: %w", side.name, err)
		}
	}
	return nil
}

func awaitUp(h *netlink.Handle, index int) error {
	for end := time.Now().Add(carrierWait); ; time.Sleep(carrierPause) {
		link, err := h.LinkByIndex(index)
		if err != nil {
			return err
		}
		state := link.Attrs().OperState
		if state == netlink.OperUp {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("still %s after %s", state, carrierWait)
		}
	}
}
