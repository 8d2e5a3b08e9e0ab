package maps

import (
	"errors"
	"log/slog"
	"time"
)

// grace waits, and notes what is safe to recycle from then on.
func (k *Kernel) grace() error {
	tick, epoch := k.tick, k.Epoch()
	if err := k.wait(); err != nil {
		return err
	}
	k.noteGrace(tick, epoch)
	return nil
}

func (k *Kernel) noteGrace(tick, epoch uint64) {
	k.graced, k.gracedEpoch = max(k.graced, tick), max(k.gracedEpoch, epoch)
}

// garbage reports whether anything waits for a grace to be removed or used again.
func (k *Kernel) garbage() bool {
	removed := max(k.facts.removed, k.masks.removed, k.frontends.removed, k.origins.removed, k.ways.removed, k.rulesets.keys.removed, k.rulesets.exact.removed,
		k.endpoints.numbers.removed, k.peers.addresses.removed, k.peers.prefixes.removed, k.services.removed())
	waiting := len(k.facts.stale) + len(k.masks.stale) + len(k.origins.stale) + len(k.ways.stale) + len(k.rulesets.keys.stale) + len(k.rulesets.limbo) +
		len(k.endpoints.numbers.stale) + len(k.endpoints.retired) +
		len(k.peers.addresses.stale) + len(k.peers.prefixes.stale) + len(k.peers.limbo) + k.services.waiting()
	return waiting > 0 || removed > k.graced || k.Epoch() > k.gracedEpoch
}

// collect removes what was stale at tick before, after which a grace began; what it
// removes is free a grace later.
func (k *Kernel) collect(before uint64) error {
	k.tick++
	return errors.Join(
		k.rulesets.collect(before, k.tick),
		k.facts.collect(before, k.tick, nil),
		k.masks.collect(before, k.tick, nil),
		k.origins.collect(before, k.tick, nil),
		k.ways.collect(before, k.tick, nil),
		k.endpoints.collect(before, k.tick),
		k.peers.collect(before, k.tick),
		k.services.collect(before, k.tick),
	)
}

// settle waits until nothing is left to remove or to free.
func (k *Kernel) settle() error {
	for k.garbage() {
		tick := k.tick
		if err := k.grace(); err != nil {
			return err
		}
		if err := k.collect(tick); err != nil {
			return err
		}
	}
	return nil
}

// Settle removes at once what the last commits left behind, which otherwise happens in
// the background.
func (k *Kernel) Settle() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return errClosed
	}
	return k.settle()
}

// linger is how long keys that nobody wants wait for others': pods that come and go one by
// one, elsewhere, share two graces. While a thread waits for one, Go's runtime looks every 20 us
// whether it has to step in, which costs more than all the keys do. lingerMost do not wait.
const (
	linger     = time.Second
	lingerMost = 1024
)

// collectLater does what settle does off the latency path: the lock is free during
// the graces. patient: no commit that may come soon has to wait for it.
func (k *Kernel) collectLater(patient bool) {
	if !patient || len(k.peers.addresses.stale)+len(k.peers.prefixes.stale) > lingerMost {
		k.collectNow()
	}
	if k.collecting || k.closed || !k.garbage() {
		return
	}
	k.collecting = true
	k.background.Go(func() {
		hurried := false
		wait := func(most time.Duration) {
			select {
			case <-k.hurry:
				hurried = true
			case <-time.After(most):
			}
		}
		wait(k.linger / 10)
		if !hurried && k.lingering() > 1 {
			wait(k.linger - k.linger/10)
		}
		for k.collectOnce() {
		}
		k.retireLater()
	})
}

// lingering counts the keys of gone pods. One alone, whose address may soon be in use again, waits
// for a tenth of linger: what comes back before its collection has to wait for a grace.
func (k *Kernel) lingering() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.peers.addresses.stale) + len(k.peers.prefixes.stale)
}

// collectNow ends the wait of a collection, this one or the next.
func (k *Kernel) collectNow() {
	select {
	case k.hurry <- struct{}{}:
	default:
	}
}

func (k *Kernel) collectOnce() (more bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	tick, epoch := k.tick, k.Epoch()
	k.mu.Unlock()
	err := k.wait()
	k.mu.Lock()
	if err == nil && !k.closed {
		k.noteGrace(tick, epoch)
		err = k.collect(tick)
	}
	if err != nil {
		slog.Warn("stale entries stay in the kernel's maps until the next commit", "error", err)
	}
	k.collecting = err == nil && !k.closed && k.garbage()
	return k.collecting
}
