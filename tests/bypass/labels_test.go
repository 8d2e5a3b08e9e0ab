package bypass

// Labels and names: what a pod is taken for.
var labels = []bypass{{
	id: "B19", name: "own_labels",
	title:  "a pod edits its own security labels",
	public: "CVE-2023-39347",
	note:   "does not apply: a pod's labels come from its object alone, which is the API server's to guard; the plugin tells the agent names and addresses, and nothing inside a pod is asked",
	tests:  []string{"controlplane/endpoint TestRequestsAreChecked"},
}, {
	id: "B20", name: "crafted_labels",
	title:  "crafted labels select across namespaces or pass as a node or reserved identity",
	public: "GHSA-pfhr-pccp-hwmh, CVE-2025-30163",
	try: func(a *attempt) {
		m, b := a.mallory, a.bob
		a.apply("trust.yaml", namespaceYAML("trusted", "team: blue")+podYAML("trusted", "friend", "role: front")+
			policyYAML("ns", "trust", `{podSelector: {matchLabels: {app: bob}}, ingress: [
  {from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: trusted}}}]},
  {from: [{namespaceSelector: {matchLabels: {team: blue}}, podSelector: {matchLabels: {role: front}}}]},
  {from: [{podSelector: {matchLabels: {reserved: host}}, namespaceSelector: {matchLabels: {reserved: host}}}]}]}`))
		friend := a.add(a.T, "trusted", "friend")
		a.pass("who is meant", friend, b, tcp(friend.Addr4, 1, b.Addr4, closedTCP, "S"))
		forged := []string{"app: mallory", "kubernetes.io/metadata.name: trusted", "team: blue", "role: front", "reserved: host", "reserved.host: ''",
			"io.kubernetes.pod.namespace: trusted", "namespace: trusted", "ns.team: blue", "k8s-app: kube-dns"}
		a.apply("pods.yaml", podYAML("ns", "mallory", forged...)+podYAML("ns", "eve", "app: eve")+podYAML("ns", "alice", "app: alice")+podYAML("ns", "bob", "app: bob"))
		for _, v := range [][2]string{{m.Addr4, b.Addr4}, {m.Addr6, b.Addr6}} {
			a.drop("a pod with the labels of a namespace, a node", m, policy, tcp(v[0], 1, v[1], closedTCP, "S"), udp(v[0], 1, v[1], closedUDP))
		}
		if r := a.Weir(a.ctx, "status"); r.Status != 0 {
			a.Errorf("weir status: %s%s", r.Stdout, r.Stderr)
		}
		// A namespace's name is no label that its owner can choose.
		must(a.T, a.Write("namespace.yaml", namespaceYAML("ns", "kubernetes.io/metadata.name: trusted")))
		_ = a.Wait(a.ctx)
		a.drop("a namespace that calls itself by another's name", m, policy, tcp(m.Addr4, 2, b.Addr4, closedTCP, "S"), tcp(m.Addr6, 2, b.Addr6, closedTCP, "S"))
		must(a.T, a.Remove("namespace.yaml"))
		must(a.T, a.Wait(a.ctx))
	},
	tests: []string{"controlplane/policy TestSemantics"},
}, {
	id: "B25", name: "key_collision",
	title: `internal key collision ("a-b"/"c" and "a"/"b-c"); two label sets made to share a hash`,
	try: func(a *attempt) {
		b := a.bob
		a.apply("names.yaml", podYAML("a-b", "c", "app: twin")+podYAML("a", "b-c", "app: twin")+
			policyYAML("ns", "twins", `{podSelector: {matchLabels: {app: bob}}, ingress: [
  {from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: a-b}}}]}]}`)+
			policyYAML("a", "closed", "{podSelector: {}, policyTypes: [Ingress]}"))
		one, other := a.addAs(a.T, "a-b", "c", "-1"), a.addAs(a.T, "a", "b-c", "-2")
		a.pass("a-b/c", one, b, tcp(one.Addr4, 1, b.Addr4, closedTCP, "S"), tcp(one.Addr6, 1, b.Addr6, closedTCP, "S"))
		a.drop("a/b-c", other, policy, tcp(other.Addr4, 1, b.Addr4, closedTCP, "S"), tcp(other.Addr6, 1, b.Addr6, closedTCP, "S"))
		a.pass("to a-b/c", b, one, tcp(b.Addr4, 1, one.Addr4, 80, "S"))
		a.drop("to a/b-c, which is isolated", b, policy, tcp(b.Addr4, 1, other.Addr4, 80, "S"))
	},
	tests: []string{"controlplane/policy TestCollidingLabelsGetTheNextNumber", "cni TestHostIfName"},
}}
