package main

import "testing"

func TestHubbleFlags(t *testing.T) {
	tls := []string{"--hubble-tls-cert", "c", "--hubble-tls-key", "k", "--hubble-tls-client-ca", "a"}
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, ""},
		{[]string{"--hubble-listen", "127.0.0.1:4244"}, ""},
		{append([]string{"--hubble-listen", ":4244"}, tls...), ""},
		{[]string{"--hubble-listen", ":4244", "--hubble-insecure"}, ""},
		{[]string{"--hubble-listen", ":4244"}, "--hubble-listen: [::]:4244 can be reached from other machines, and flows tell who talks to whom: give certificates, or say that it is to be insecure (--hubble-tls-cert, --hubble-tls-key and --hubble-tls-client-ca, or --hubble-insecure)"},
		{[]string{"--hubble-listen", "worker-1"}, `--hubble-listen "worker-1" is not ADDRESS:PORT, such as 127.0.0.1:4244 or :4244`},
		{[]string{"--hubble-listen", "127.0.0.1:0"}, "--hubble-listen: the port must not be 0: other nodes have to know it (--hubble-tls-cert, --hubble-tls-key and --hubble-tls-client-ca, or --hubble-insecure)"},
		{append([]string{"--hubble-listen", ":4244"}, tls[:4]...), "--hubble-tls-cert, --hubble-tls-key and --hubble-tls-client-ca go together: give all three"},
		{append([]string{"--hubble-listen", ":4244", "--hubble-insecure"}, tls...), "--hubble-insecure and certificates exclude each other"},
		{tls, "--hubble-listen is needed: certificates are for TCP, the socket is its owner's alone"},
	} {
		o, err := settled(t, "standalone: /tmp\n", c.args...)
		if c.want == "" && err != nil || c.want != "" && (err == nil || err.Error() != c.want) {
			t.Errorf("%q: %v, want %q", c.args, err, c.want)
		}
		if given := len(c.args) > 0; err == nil && given != (o.hubble.tcp != nil) {
			t.Errorf("%q: TCP is %v", c.args, o.hubble.tcp)
		}
	}
}
