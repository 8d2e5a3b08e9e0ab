package main

import (
	"net/netip"

	"github.com/spf13/pflag"

	"github.com/weirnet/weir/controlplane/agent"
	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/controlplane/build"
	"github.com/weirnet/weir/controlplane/flowlog"
	"github.com/weirnet/weir/controlplane/hubble"
)

// hubbleOptions are the flags of Hubble's API.
type hubbleOptions struct {
	listen   string
	cert     string
	key      string
	clientCA string
	insecure bool

	tcp *hubble.TCP // of the above, checked; nil = not by TCP
}

func (o *hubbleOptions) flags(f *pflag.FlagSet) {
	f.StringVar(&o.listen, "hubble-listen", "", "ADDRESS:PORT to serve flows at by Hubble's API, to those with a certificate, e.g. :4244 (default: only at hubble.sock in --state-dir; docs/hubble.md)")
	f.StringVar(&o.cert, "hubble-tls-cert", "", "PEM file with this node's certificate for --hubble-listen; read again when it changes")
	f.StringVar(&o.key, "hubble-tls-key", "", "PEM file with its key")
	f.StringVar(&o.clientCA, "hubble-tls-client-ca", "", "PEM file with the authorities of clients' certificates")
	f.BoolVar(&o.insecure, "hubble-insecure", false, "serve --hubble-listen to anybody who reaches it, in the clear")
}

func (o *hubbleOptions) check() error {
	given := 0
	for _, path := range []string{o.cert, o.key, o.clientCA} {
		if path != "" {
			given++
		}
	}
	if o.listen == "" {
		if given > 0 || o.insecure {
			return usage("--hubble-listen is needed: certificates are for TCP, the socket is its owner's alone")
		}
		return nil
	}
	text := o.listen
	if text[0] == ':' {
		text = "[::]" + text
	}
	at, err := netip.ParseAddrPort(text)
	if err != nil {
		return usage("--hubble-listen %q is not ADDRESS:PORT, such as 127.0.0.1:4244 or :4244", o.listen)
	}
	var files *hubble.Files
	switch {
	case given == 3 && !o.insecure:
		files = &hubble.Files{Cert: o.cert, Key: o.key, ClientCA: o.clientCA}
	case given > 0 && o.insecure:
		return usage("--hubble-insecure and certificates exclude each other")
	case given > 0:
		return usage("--hubble-tls-cert, --hubble-tls-key and --hubble-tls-client-ca go together: give all three")
	}
	if o.tcp, err = hubble.NewTCP(at, files, o.insecure); err != nil {
		return usage("--hubble-listen: %w (--hubble-tls-cert, --hubble-tls-key and --hubble-tls-client-ca, or --hubble-insecure)", err)
	}
	return nil
}

// hubbleServer serves flows, and what a knows of other nodes.
func hubbleServer(o *options, a *agent.Agent, flows *flowlog.Log) *hubble.Server {
	return hubble.New(hubble.Options{
		Flows: flows, Node: o.nodeName, Version: "weir " + build.Read().Version, StateDir: o.stateDir, TCP: o.hubble.tcp, Log: o.log,
		State: func() ([]api.Endpoint, []api.Policy, <-chan struct{}) {
			_, changed := a.Nodes()
			return a.Endpoints(), a.PolicyRevisions(), changed
		},
		Peers: func() (out []hubble.Node, changed <-chan struct{}) {
			nodes, changed := a.Nodes()
			for _, n := range nodes {
				out = append(out, hubble.Node{Name: n.Name, Addresses: n.Addresses})
			}
			return out, changed
		},
	})
}
