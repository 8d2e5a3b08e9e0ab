package kube

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net/url"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

var (
	errRefused = &url.Error{Op: "Get", URL: "https://192.0.2.1/api/v1/pods?watch=true", Err: errors.New("dial tcp 192.0.2.1:443: connect: connection refused")}
	errDenied  = apierrors.NewForbidden(schema.GroupResource{Resource: "pods"}, "", errors.New(`user "u" cannot watch resource "pods"`))
	errNobody  = apierrors.NewUnauthorized("Unauthorized")
)

// TestHealth is a conversation: how calls end, what is logged, what status says.
func TestHealth(t *testing.T) {
	var log bytes.Buffer
	h := newHealth("https://192.0.2.1", slog.New(slog.NewTextHandler(&log, nil)))
	step := func(name string, wantLog, wantLines int, contains string) {
		t.Helper()
		lines := h.lines()
		logged := strings.Count(log.String(), "\n")
		if logged != wantLog || len(lines) != wantLines {
			t.Errorf("%s: %d lines logged, want %d; status %q, want %d\n%s", name, logged, wantLog, lines, wantLines, &log)
		}
		if all := log.String() + strings.Join(lines, "\n"); !strings.Contains(all, contains) {
			t.Errorf("%s: no %q in\n%s", name, contains, all)
		}
		log.Reset()
	}
	h.inPod = true
	watchPods, listPods, watchNodes := call{"pods", "watch"}, call{"pods", "list"}, call{"nodes", "watch"}
	hint := "set the chart's k8sServiceHost"
	if got := h.waits([]string{"pods", "nodes"}); !strings.Contains(got, "API server https://192.0.2.1 has not answered yet: ") || !strings.Contains(got, hint) || !strings.HasSuffix(got, "waits for pods, nodes") {
		t.Error(got)
	}
	h.note(listPods, context.Canceled)
	h.note(listPods, errRefused)
	step("never there", 1, 1, hint)
	h.note(listPods, nil)
	step("there", 1, 0, "mended")
	if got := h.waits([]string{"pods"}); strings.Contains(got, hint) || got != "waits for API server https://192.0.2.1 to tell of pods" {
		t.Error(got)
	}
	h.note(watchPods, nil)
	step("well", 0, 0, "")
	h.note(watchPods, context.Canceled)
	h.note(watchPods, apierrors.NewResourceExpired("too old"))
	h.note(watchPods, apierrors.NewTooManyRequests("later", 1))
	step("passing", 0, 0, "")

	h.note(watchPods, errRefused)
	h.note(watchNodes, errRefused)
	h.note(watchPods, errRefused)
	step("away", 1, 1, "does not answer: dial tcp 192.0.2.1:443: connect: connection refused: what was")
	h.note(watchNodes, nil)
	step("not all of it is back", 0, 1, "(since ")
	h.note(watchPods, nil)
	step("back", 1, 0, "mended")

	h.note(watchPods, errDenied)
	h.note(listPods, errDenied)
	step("denied", 2, 1, `does not let this agent watch pods: pods is forbidden: user \"u\" cannot watch`)
	if got := strings.Join(h.lines(), "\n"); !strings.Contains(got, "does not let this agent list, watch pods: pods is forbidden") {
		t.Error(got)
	}
	h.note(listPods, nil)
	step("may list", 1, 1, "mended")
	h.note(watchPods, errRefused)
	step("away after it was denied", 1, 1, "does not answer")
	h.note(watchPods, errDenied)
	step("denied again", 2, 1, "mended")
	h.note(watchPods, nil)
	step("may watch", 1, 0, "")

	for _, c := range []call{watchPods, watchNodes} {
		h.note(c, &url.Error{Op: "Get", URL: "https://192.0.2.1/api/v1/pods", Err: &tls.CertificateVerificationError{
			Err: x509.CertificateInvalidError{Reason: x509.Expired, Detail: "current time 1 is before 2"}}})
	}
	step("a clock that is off", 1, 1, "is not believed: tls: failed to verify certificate: x509: certificate has expired or is not yet valid: "+
		"current time 1 is before 2: set this node's clock, or renew the certificate")
	h.note(watchNodes, nil)
	h.note(watchPods, errNobody)
	step("then a stranger", 2, 1, "mended")
	h.note(watchPods, nil)
	step("and well", 1, 0, "mended")
	h.note(listPods, errNobody)
	h.note(watchPods, errNobody)
	step("a stranger", 1, 1, "does not accept this agent's credentials")
	h.note(watchPods, nil)
	step("a watch that went well needs no list", 1, 0, "")
	h.note(watchPods, apierrors.NewInternalError(errors.New("etcd has no leader")))
	step("broken", 1, 1, "watch pods: Internal error")
}

// What client-go says is for debugging, errors included.
func TestClientGoIsQuiet(t *testing.T) {
	for level, want := range map[slog.Level]int{slog.LevelInfo: 0, slog.LevelDebug: 2} {
		var out strings.Builder
		log := quietLogger(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: level})))
		log.Error(errors.New("denied"), "Failed to watch")
		log.Info("Starting")
		if got := strings.Count(out.String(), "level=DEBUG"); got != want || strings.Count(out.String(), "\n") != want {
			t.Errorf("at %v: %q", level, out.String())
		}
	}
}
