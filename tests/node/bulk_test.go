package node

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/tests/lab"
)

// Objects as large as the API server takes them.
func TestLargeObjects(t *testing.T) {
	long := strings.Repeat("v", 63)
	prefix := strings.Repeat(strings.Repeat("k", 61)+".", 4) + "example" // 255 bytes
	prefix = prefix[len(prefix)-253:]
	prefix = "k" + prefix[1:]
	key := prefix + "/" + strings.Repeat("n", 63)
	e := newEnv(t, "pods.yaml", pod("ns", "a", key+": "+long)+pod("ns", "b", "app: b")+pod("ns", "c"))
	e.add("ns/a", "ns/b", "ns/c")

	// A selector of a key and a value of the greatest lengths.
	e.apply("np.yaml", policy("ns", "np", fmt.Sprintf("  podSelector: {matchLabels: {app: b}}\n"+
		"  ingress: [{from: [{podSelector: {matchLabels: {%s: %s}}}]}]\n", key, long)))
	e.check(probe{"ns/a", "ns/b", "tcp", portHTTP, lab.Answered}, probe{"ns/c", "ns/b", "tcp", portHTTP, lab.Silent})

	// 5,000 blocks in one rule, the last of which is the outside's.
	var from []string
	for i := range 4998 {
		from = append(from, fmt.Sprintf("{ipBlock: {cidr: 10.%d.%d.0/24}}", 128+i/256, i%256))
	}
	from = append(from, "{ipBlock: {cidr: 192.0.2.10/32}}", "{ipBlock: {cidr: '2001:db8::10/128'}}")
	e.apply("np.yaml", policy("ns", "np", "  podSelector: {matchLabels: {app: b}}\n  ingress: [{from: ["+strings.Join(from, ",")+"]}]\n"))
	e.check(probe{"outside", "ns/b", "tcp", portHTTP, lab.Answered}, probe{"ns/a", "ns/b", "tcp", portHTTP, lab.Silent})

	// 1,000 policies on one pod, each with a port of its own; the last two matter.
	var all strings.Builder
	for i := range 998 {
		all.WriteString(policy("ns", fmt.Sprintf("many-%d", i), fmt.Sprintf("  podSelector: {matchLabels: {app: b}}\n  ingress: [{ports: [{port: %d}]}]\n", 20000+i)))
	}
	all.WriteString(policy("ns", "many-998", fmt.Sprintf("  podSelector: {matchLabels: {app: b}}\n  ingress: [{from: [{podSelector: {}}], ports: [{port: %d}]}]\n", portHTTP)))
	all.WriteString(policy("ns", "many-999", "  podSelector: {matchLabels: {app: b}}\n"))
	begun := time.Now()
	e.apply("np.yaml", all.String())
	t.Logf("1,000 policies were enforced in %s", time.Since(begun))
	e.check(probe{"ns/c", "ns/b", "tcp", portHTTP, lab.Answered}, probe{"outside", "ns/b", "tcp", portHTTP, lab.Silent},
		probe{"ns/c", "ns/b", "tcp", portOther, lab.Silent})
	if out := e.Weir(e.ctx, "policy", "explain", "--from", "ns/c", "--to", "ns/b", "--port", fmt.Sprint(portHTTP)).Stdout; !strings.Contains(out, "many-998") {
		t.Errorf("explain does not name the rule that allows:\n%s", out)
	}
}

// What an API server rejects is rejected, by field; unicode and escapes in it are shown harmless.
func TestUnicodeAndEscapes(t *testing.T) {
	e := newEnv(t, "pods.yaml", pod("ns", "a"))
	e.add("ns/a")
	for text, field := range map[string]string{
		pod("ns", "b", `app: "ünïcode"`):                                          "metadata.labels",
		pod("ns", "b", `"\e[2Jkey": v`):                                           "metadata.labels",
		pod("ns", "b", `app: `+strings.Repeat("v", 64)):                           "metadata.labels",
		pod("ns", "pöd"):                                                          "metadata.name",
		policy("ns", `"\e]0;title\a"`, "  podSelector: {}\n"):                     "metadata.name",
		policy("ns", "np", "  podSelector: {matchLabels: {\"\\e[31mred\": x}}\n"): "spec.podSelector",
		policy("ns", "np", "  podSelector: {}\n  ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}]}]\n"): "except",
	} {
		e.write("bad.yaml", text)
		r := e.Weir(e.ctx, "status", "--wait")
		if r.Status != 1 || !strings.Contains(r.Stderr, "bad.yaml document 1") || !strings.Contains(r.Stderr, field) {
			t.Errorf("%q: status %d, want field %s: %s", text, r.Status, field, r.Stderr)
		}
		for _, out := range []string{r.Stderr, r.Stdout} {
			if strings.ContainsAny(out, "\x1b\a") {
				t.Errorf("%q: an escape comes through: %q", text, out)
			}
		}
	}
}
