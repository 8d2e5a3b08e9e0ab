package api

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"reflect"
	"strings"
	"testing"
)

// FuzzFlowQuery: what is taken as a query is the same as the request that is made of it.
func FuzzFlowQuery(f *testing.F) {
	for _, query := range []string{
		"", "follow=1&new=true&since=1h5m&last=20", "verdict=DROPPED&kind=new&kind=ended", "pod=shop/web&pod=shop/", "address=10.0.0.7/8&address=::ffff:1.2.3.4&address=fe80::1",
		"policy=a/b&protocol=tcp&protocol=255&port=65535&direction=egress", "reason=flow_table-full", "port=080&protocol=06", "last=-1", "since=1", "colour=red", "pod=%1b%5b2J/",
	} {
		f.Add(query)
	}
	f.Fuzz(func(t *testing.T, query string) {
		v, err := url.ParseQuery(query)
		if err != nil {
			return
		}
		q, err := ParseFlowQuery(v)
		if err != nil {
			if !reflect.DeepEqual(q, FlowQuery{}) {
				t.Errorf("%q is refused (%v), and half of it is there: %+v", query, err, q)
			}
			return
		}
		if again, err := ParseFlowQuery(q.Values()); err != nil || !reflect.DeepEqual(again, q) {
			t.Errorf("%q: %+v is %+v, %v after a round trip", query, q, again, err)
		}
		for _, a := range q.Addresses {
			block, err := ParseBlock(a)
			if err != nil || block != block.Masked() || block.Addr().Is4In6() {
				t.Errorf("address %q is %v, %v", a, block, err)
			}
		}
		for _, p := range q.Protocols {
			if len(FlowProtocols(p)) == 0 {
				t.Errorf("protocol %q is none", p)
			}
		}
	})
}

// FuzzRequest: whatever is asked, the answer is JSON; what cannot be read is the asker's
// fault, and reaches nobody.
func FuzzRequest(f *testing.F) {
	add, err := json.Marshal(AddRequest{ContainerID: "c", IfName: "eth0", HostIfName: "weir0123456789a", HostIfindex: 4, MAC: "02:00:00:00:00:01", Addresses: []string{"10.0.0.1"}, PodNamespace: "shop", PodName: "web"})
	if err != nil {
		f.Fatal(err)
	}
	for _, r := range [][3]string{
		{"GET", PathStatus + "?wait=5s", ""}, {"GET", PathStatus + "?wait=-5s", ""}, {"POST", PathEndpoints, string(add)}, {"POST", PathEndpoints, `{"hostIfindex": -1}`},
		{"POST", PathEndpoints, `{"hostIfindex": 1e99, "addresses": {}}`}, {"DELETE", PathEndpoints + "?container=a&ifname=b", ""}, {"DELETE", PathEndpoints, ""},
		{"POST", PathGC, `{"valid": [{"containerID": "a"}]}`}, {"POST", PathGC, `[`}, {"GET", PathExplain + "?from=a/b&to=c&port=80/tcp&family=5", ""}, {"PUT", PathPing, "x"}, {"GET", "/v1/../v1/ping", ""},
	} {
		f.Add(r[0], r[1], r[2])
	}
	f.Fuzz(func(t *testing.T, method, target, body string) {
		u, err := url.Parse(target)
		if err != nil || !strings.HasPrefix(u.Path, "/") {
			return
		}
		r, err := http.NewRequestWithContext(context.WithValue(t.Context(), peerKey{}, uint32(os.Geteuid())), method, "http://agent"+u.Path, strings.NewReader(body))
		if err != nil {
			return
		}
		r.URL.RawQuery = u.RawQuery
		asked := 0
		agent := &fakeAgent{add: func(_ context.Context, in AddRequest) (Endpoint, error) {
			asked++
			return Endpoint{Number: 1, PodName: in.PodName}, nil
		}}
		flows := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { write(w, http.StatusOK, struct{}{}) })
		w := httptest.NewRecorder()
		NewHandler(agent, agent, flows).ServeHTTP(w, r)
		holdAnswer(t, w, r)
		var in AddRequest
		if wrong := json.Unmarshal([]byte(body), &in); asked > 0 && wrong != nil {
			t.Errorf("%q was taken as a request for an endpoint: %v", body, wrong)
		}
	})
}

// holdAnswer: JSON with the status it says; the mux's own refusals and redirects are text.
func holdAnswer(t *testing.T, w *httptest.ResponseRecorder, r *http.Request) {
	t.Helper()
	if w.Header().Get("Content-Type") != "application/json" {
		if w.Code < 300 || w.Code >= 500 {
			t.Errorf("%s %s: %d %q", r.Method, r.URL, w.Code, w.Body)
		}
		return
	}
	if !json.Valid(w.Body.Bytes()) {
		t.Errorf("%s %s: not JSON: %q", r.Method, r.URL, w.Body)
	}
	var e Error
	if w.Code >= 400 && (json.Unmarshal(w.Body.Bytes(), &e) != nil || e.Message == "") {
		t.Errorf("%s %s: %d without a message: %q", r.Method, r.URL, w.Code, w.Body)
	}
}

// FuzzParseBlock: a block is masked, of the family it is written in, and its text is read as
// the same block.
func FuzzParseBlock(f *testing.F) {
	for _, s := range []string{"10.1.2.3", "10.1.2.3/8", "::ffff:10.0.0.1", "::ffff:10.0.0.0/104", "fe80::1%eth0", "fd00::/64", "0.0.0.0/0", "010.0.0.1", "1.2.3.4/33"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParseBlock(s)
		if err != nil {
			return
		}
		if again, err := ParseBlock(p.String()); err != nil || again != p || p != p.Masked() {
			t.Errorf("%q is %s, which is %s, %v", s, p, again, err)
		}
		if a, err := netip.ParseAddr(s); err == nil && !p.Contains(a.Unmap()) {
			t.Errorf("%s is not in %s", a, p)
		}
	})
}
