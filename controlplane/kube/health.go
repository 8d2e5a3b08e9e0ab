package kube

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// call is what is asked of the API server again and again.
type call struct{ resource, verb string }

// class is what kind of answer the API server gives to a call.
type class int

const (
	well       class = iota
	passing          // an answer that asks for another call: gone, too many requests
	away             // none
	distrusted       // its certificate is not one that we believe
	stranger         // it does not know who we are
	denied           // it knows, and we may not
	broken           // anything else
)

// common to all calls.
func (c class) common() bool { return c == away || c == distrusted || c == stranger }

// trouble of a call since it last went well.
type trouble struct {
	class
	since time.Time
	text  string // its first
}

// health is how the API server has answered lately. It is asked by people, and logs when
// it turns.
type health struct {
	host  string
	inPod bool // host is what a pod's environment says
	log   *slog.Logger

	mu       sync.Mutex
	answered bool // it has, ever
	troubles map[call]trouble
}

func newHealth(host string, log *slog.Logger) *health {
	return &health{host: host, log: log, troubles: map[call]trouble{}}
}

func classify(err error) class {
	var status apierrors.APIStatus
	var untrue *tls.CertificateVerificationError
	switch {
	case err == nil:
		return well
	case errors.Is(err, context.Canceled), apierrors.IsResourceExpired(err), apierrors.IsGone(err), apierrors.IsTooManyRequests(err):
		return passing
	case errors.As(err, &untrue):
		return distrusted
	case apierrors.IsUnauthorized(err):
		return stranger
	case apierrors.IsForbidden(err):
		return denied
	case errors.As(err, &status) && !apierrors.IsServiceUnavailable(err) && !apierrors.IsTimeout(err) && !apierrors.IsServerTimeout(err):
		return broken
	}
	return away
}

// note how a call ended.
func (h *health) note(c call, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	is := classify(err)
	h.answered = h.answered || is != away && is != distrusted && !errors.Is(err, context.Canceled)
	switch was, ok := h.troubles[c]; {
	case is == passing || ok && was.class == is:
		return
	case is == well:
		h.mend(c)
		return
	case ok && was.class.common():
		h.mend(c) // it answers now, if not as it should
	}
	t := trouble{is, time.Now(), reason(err)}
	if !h.has(is) || is == denied || is == broken {
		h.log.Warn(h.line(c, t) + ": what was last known stays in force")
	}
	h.troubles[c] = t
}

// mend what a call that went well shows to be over.
func (h *health) mend(c call) {
	for _, over := range []call{c, {c.resource, "list"}} {
		t, ok := h.troubles[over]
		if !ok || over != c && c.verb != "watch" {
			continue
		}
		delete(h.troubles, over)
		if !h.has(t.class) || t.class == denied || t.class == broken {
			h.log.Info("mended: "+h.line(over, t), "lasted", time.Since(t.since).Round(time.Millisecond))
		}
	}
}

func (h *health) has(is class) bool {
	for _, t := range h.troubles {
		if t.class == is {
			return true
		}
	}
	return false
}

// address says what an API server may need that never answered at a Service's address.
func (h *health) address() string {
	if h.answered || !h.inPod {
		return ""
	}
	return ": where no kube-proxy serves that address, set the chart's k8sServiceHost and k8sServicePort to the API server's own"
}

// waits is what is said while it has yet to tell something that is needed.
func (h *health) waits(lacking []string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	text := "waits for API server " + h.host + " to tell of "
	if !h.answered {
		text = "API server " + h.host + " has not answered yet" + h.address() + ": waits for "
	}
	return text + strings.Join(lacking, ", ")
}

func (h *health) line(c call, t trouble) string {
	switch t.class {
	case away:
		return fmt.Sprintf("API server %s does not answer: %s", h.host, t.text) + h.address()
	case distrusted:
		return fmt.Sprintf("API server %s is not believed: %s", h.host, t.text)
	case stranger:
		return fmt.Sprintf("API server %s does not accept this agent's credentials: %s", h.host, t.text)
	case denied:
		return fmt.Sprintf("API server %s does not let this agent %s %s: %s: apply deploy/rbac.yaml, or upgrade the chart's release", h.host, c.verb, c.resource, t.text)
	}
	return fmt.Sprintf("API server %s: %s %s: %s", h.host, c.verb, c.resource, t.text)
}

// lines are the present troubles, one a line; of those that all calls have in common one, and
// one of all that is denied.
func (h *health) lines() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	first := map[string]trouble{}
	may, said := h.denied()
	for c, t := range h.troubles {
		key := h.line(c, t)
		switch {
		case t.class.common():
			key = fmt.Sprint(t.class)
		case t.class == denied:
			key, c, t.text = fmt.Sprint(t.class), may, said
		}
		if was, ok := first[key]; !ok || t.since.Before(was.since) {
			t.text = h.line(c, t)
			first[key] = t
		}
	}
	var out []string
	for _, t := range first {
		out = append(out, fmt.Sprintf("%s (since %s, %s): what was last known stays in force",
			t.text, t.since.Format(time.DateTime), time.Since(t.since).Round(time.Second)))
	}
	slices.Sort(out)
	return out
}

// denied are the calls that are, as one, and what the API server says to the first of them.
func (h *health) denied() (all call, text string) {
	var verbs, resources []string
	for c, t := range h.troubles {
		if t.class != denied {
			continue
		}
		verbs, resources = append(verbs, c.verb), append(resources, c.resource)
		if text == "" || t.text < text {
			text = t.text
		}
	}
	join := func(words []string) string {
		slices.Sort(words)
		return strings.Join(slices.Compact(words), ", ")
	}
	return call{join(resources), join(verbs)}, text
}

// reason is err on one line without the URL, which says nothing to people.
func reason(err error) string {
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	text := strings.Join(strings.Fields(err.Error()), " ")
	var invalid x509.CertificateInvalidError
	if errors.As(err, &invalid) && invalid.Reason == x509.Expired {
		text += ": set this node's clock, or renew the certificate"
	}
	return text
}
