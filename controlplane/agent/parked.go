package agent

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"time"

	"github.com/weirnet/weir/datapath/parked"
)

// Parked are first packets of pods that this node did not know when they were sent.
type Parked interface {
	Read() (parked.Frame, error) // os.ErrClosed after Close
	Send(parked.Frame) error
	Close() error
}

const (
	parkedFor  = 3 * time.Second // then its sender has sent it again
	parkedMost = 512             // frames; with more, the oldest go
)

// parkedFrame waits for news about its peer.
type parkedFrame struct {
	parked.Frame
	until time.Time
}

// SendParked sends what p has again as soon as a commit has made its peer known, until ctx
// is over (nil). It is judged like any packet then.
func (a *Agent) SendParked(ctx context.Context, p Parked) error {
	frames := make(chan parked.Frame, parkedMost)
	failed := make(chan error, 1)
	go func() {
		defer close(frames)
		for {
			f, err := p.Read()
			if err != nil {
				if !errors.Is(err, os.ErrClosed) {
					failed <- err
				}
				return
			}
			frames <- f
		}
	}()
	defer func() {
		_ = p.Close()
		for range frames {
		}
	}()
	var waiting []parkedFrame
	for {
		a.mu.Lock()
		changed := a.changed
		a.mu.Unlock()
		waiting = a.sendKnown(p, waiting)
		expire := time.After(time.Hour)
		if len(waiting) > 0 {
			expire = time.After(time.Until(waiting[0].until))
		}
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return err
		case <-changed:
		case <-expire:
		case f, ok := <-frames:
			if !ok {
				continue // failed says why
			}
			waiting = append(waiting[max(0, len(waiting)+1-parkedMost):], parkedFrame{f, time.Now().Add(parkedFor)})
		}
	}
}

// sendKnown sends those of waiting whose peers are known, and returns those that go on waiting.
func (a *Agent) sendKnown(p Parked, waiting []parkedFrame) []parkedFrame {
	if len(waiting) == 0 {
		return nil
	}
	a.live.RLock()
	defer a.live.RUnlock()
	a.mu.Lock()
	result := a.applied.result
	a.mu.Unlock()
	if result == nil {
		return waiting
	}
	now := time.Now()
	var rest []parkedFrame
	for _, f := range waiting {
		switch peer := result.State.Peers[netip.PrefixFrom(f.Peer, f.Peer.BitLen())]; {
		case peer.Identity.IsPod():
			if err := p.Send(f.Frame); err != nil {
				a.Log.Debug("send a parked frame again", "peer", f.Peer, "error", err)
				continue
			}
			a.resent.Add(1)
		case now.Before(f.until):
			rest = append(rest, f)
		}
	}
	return rest
}
