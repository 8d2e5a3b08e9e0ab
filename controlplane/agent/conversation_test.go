package agent

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/datapath"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the expected texts of testdata/*.txt")

// TestConversations plays testdata/*.txt against an agent whose kernel and network are
// fakes and whose source is a real directory: a command and its input, "----", what is
// to be answered, "====".
//
//	write FILE                   its text follows; answers as status does
//	remove FILE
//	add CONTAINER NS/POD ADDR... [uid=UID]
//	delete CONTAINER
//	gc CONTAINER...              these are valid
//	gone CONTAINER               its interface vanishes, nobody says so
//	commits fail|work
//	most MAP N                   the kernel says it takes so many
//	room MAP N                   the kernel takes so many, whatever it says
//	restart                      of the agent, as after kill -9
//	explain FROM TO PORT
//	status, state, endpoints, policies
func TestConversations(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no conversations: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) { converse(t, file) })
	}
}

func converse(t *testing.T, file string) {
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	k := newTalk(t)
	var out strings.Builder
	for _, turn := range strings.SplitAfter(string(text), "\n====\n") {
		if strings.TrimSpace(turn) == "" {
			continue
		}
		input, want, ok := strings.Cut(strings.TrimSuffix(turn, "====\n"), "\n----\n")
		if !ok {
			t.Fatalf("%s: no ---- in %q", file, turn)
		}
		got := k.answer(input)
		if got != want && !*rewrite {
			t.Errorf("%s: %s\n--- want\n%s--- got\n%s", file, input, want, got)
		}
		out.WriteString(input + "\n----\n" + got + "====\n")
	}
	if *rewrite {
		if err := os.WriteFile(file, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// talk is one conversation.
type talk struct {
	*bench
	indexes map[string]uint32 // of containers' interfaces
}

func newTalk(t *testing.T) *talk {
	k := &talk{bench: newBench(t), indexes: map[string]uint32{}}
	k.start()
	return k
}

func (k *talk) answer(input string) string {
	for strings.HasPrefix(input, "#") || strings.HasPrefix(input, "\n") {
		_, input, _ = strings.Cut(input, "\n")
	}
	line, body, _ := strings.Cut(input, "\n")
	words := strings.Fields(line)
	switch words[0] {
	case "write":
		k.write(words[1], body+"\n")
		return k.settled()
	case "remove":
		if err := os.Remove(filepath.Join(k.manifests, words[1])); err != nil {
			k.t.Fatal(err)
		}
		return k.settled()
	case "add":
		return k.add(words[1], words[2], words[3:])
	case "delete":
		return outcome(k.agent.DeleteEndpoint(k.t.Context(), attachment(words[1])))
	case "gc":
		var req api.GCRequest
		for _, w := range words[1:] {
			req.Valid = append(req.Valid, attachment(w))
		}
		return outcome(k.agent.GC(k.t.Context(), req))
	case "gone":
		k.network.remove(k.indexes[words[1]])
	case "commits":
		k.kernel.SetCommitErr(map[string]error{"fail": errors.New("map facts: no space left on device")}[words[1]])
	case "most":
		setLimit(k.t, &k.kernel.Most, words[1], words[2])
	case "room":
		setLimit(k.t, &k.kernel.Room, words[1], words[2])
	case "restart":
		k.stop()
		k.start()
		return k.settled()
	case "status":
		return k.status()
	case "state":
		return k.kernel.Text()
	case "endpoints":
		return k.endpoints()
	case "explain":
		return k.explain(words[1], words[2], words[3])
	case "policies":
		return k.policies()
	default:
		k.t.Fatalf("unknown command %q", line)
	}
	return ""
}

func setLimit(t *testing.T, l *datapath.Limits, name, number string) {
	n, err := strconv.Atoi(number)
	i := slices.Index(l.Maps(), name)
	if err != nil || i < 0 {
		t.Fatalf("no limit %s %s", name, number)
	}
	*l.Values()[i] = n
}

func outcome(err error) string {
	if err != nil {
		return "error: " + err.Error() + "\n"
	}
	return ""
}

func attachment(container string) api.Attachment {
	return api.Attachment{ContainerID: container, IfName: "eth0"}
}

func (k *talk) add(container, pod string, words []string) string {
	if k.indexes[container] == 0 {
		k.indexes[container] = uint32(100 + len(k.indexes) + 1)
	}
	index := k.indexes[container]
	req := request(container, pod, index)
	for _, w := range words {
		if uid, ok := strings.CutPrefix(w, "uid="); ok {
			req.PodUID = uid
		} else {
			req.Addresses = append(req.Addresses, w)
		}
	}
	k.network.add(index, req.HostIfName)
	e, err := k.agent.AddEndpoint(k.t.Context(), req)
	if err != nil {
		return outcome(err)
	}
	return endpointText(e)
}

func request(container, pod string, index uint32) api.AddRequest {
	namespace, name, _ := strings.Cut(pod, "/")
	return api.AddRequest{
		ContainerID: container, IfName: "eth0", HostIfName: fmt.Sprintf("weir%011x", index), HostIfindex: index,
		MAC: fmt.Sprintf("02:00:00:00:00:%02x", index), PodNamespace: namespace, PodName: name,
	}
}

func endpointText(e api.Endpoint) string {
	return fmt.Sprintf("endpoint %d %s/%s %s %s identity %d ready %v ingress %s egress %s\n", e.Number, e.PodNamespace, e.PodName,
		strings.Join(e.Addresses, " "), e.Labels, e.Identity, e.Ready, sideText(e.Ingress), sideText(e.Egress))
}

func sideText(s api.EndpointPolicy) string {
	if !s.Isolated {
		return fmt.Sprintf("%d open", s.Ruleset)
	}
	return fmt.Sprintf("%d by %v", s.Ruleset, s.By)
}

// settled waits as status --wait does.
func (k *talk) settled() string {
	_, err := k.agent.Status(k.t.Context(), k.patience)
	return outcome(err) + k.status()
}

func (k *talk) status() string {
	s, err := k.agent.Status(k.t.Context(), 0)
	if err != nil {
		return outcome(err)
	}
	var b strings.Builder
	behind := ""
	if s.Revision.Applied != s.Revision.Desired {
		behind = fmt.Sprintf(", %d wanted", s.Revision.Desired)
	}
	fmt.Fprintf(&b, "revision %d%s epoch %d endpoints %d\n", s.Revision.Applied, behind, s.Epoch, s.Endpoints)
	for _, e := range s.Errors {
		fmt.Fprintf(&b, "error: %s\n", e)
	}
	for _, w := range s.Warnings {
		fmt.Fprintf(&b, "warning: %s\n", w)
	}
	return strings.ReplaceAll(b.String(), k.manifests, "DIR")
}

func (k *talk) endpoints() string {
	var b strings.Builder
	for _, e := range k.agent.Endpoints() {
		b.WriteString(endpointText(e))
	}
	return b.String()
}

func (k *talk) policies() string {
	var b strings.Builder
	for _, p := range k.agent.Policies() {
		fmt.Fprintf(&b, "%s/%s %v selects %d since revision %d\n", p.Namespace, p.Name, p.Types, p.Selects, p.Revision)
	}
	return b.String()
}

func (k *talk) explain(from, to, port string) string {
	e, err := k.agent.Explain(from, to, port, 4)
	if err != nil {
		return outcome(err)
	}
	return fmt.Sprintf("%s last good %v\n", e.Verdict, e.LastGood)
}
