package main

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/controlplane/build"
	"github.com/weirnet/weir/datapath/loader"
)

// options are the flags as they were given.
type options struct {
	standalone   string
	kubeconfig   string
	stateDir     string
	bpffsDir     string
	nodeName     string
	cgroupRoot   string
	cniConf      string
	cniChain     string
	hostPorts    string
	announceIn   string
	clusterCIDRs []string
	uplinks      []string
	uplinkXDP    string
	shieldDeny   string
	nodeEgress   string
	masquerade   bool
	routing      string
	tunnelPort   int
	hostRouting  bool
	addWait      time.Duration
	pickUp       time.Duration
	process      bool
	flowRecords  bool
	flowUpdate   time.Duration
	recheck      time.Duration
	mapSizes     []string
	flowLog      int
	metrics      string
	spill        string
	spillSize    int
	spillAge     time.Duration
	hubble       hubbleOptions
	exports      exportOptions
	markShift    uint32
	logFormat    string
	logLevel     string
	config       string

	// Of the above, checked.
	cidrs []netip.Prefix
	sizes loader.Sizes
	xdp   loader.XDPMode
	log   *slog.Logger
}

// usageError is a wrong command line.
type usageError struct{ error }

func usage(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

func command() *cobra.Command {
	o := &options{}
	c := &cobra.Command{
		Use:           "weir-agent [--kubeconfig FILE | --standalone DIR]",
		Short:         "Enforce network policy on this node's pods and account for their flows",
		Version:       build.Read().String(),
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usage("unexpected argument %q", args[0])
			}
			return nil
		},
		RunE: func(c *cobra.Command, _ []string) error {
			if err := o.settle(c); err != nil {
				return err
			}
			return run(c.Context(), o)
		},
	}
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err} })
	c.CompletionOptions.DisableDefaultCmd = true
	c.AddCommand(installCommand(), uninstallCommand())
	o.flags(c)
	return c
}

// settle makes the options what arguments and the configuration file say, and checks them.
func (o *options) settle(c *cobra.Command) error {
	var file *configFile
	if c.Flags().Changed(configFlag) {
		var err error
		if file, err = readConfig(c, o.config); err != nil {
			return err
		}
	}
	return file.locate(o.check(c))
}

func (o *options) flags(c *cobra.Command) {
	hostname, _ := os.Hostname()
	f := c.Flags()
	f.StringVar(&o.standalone, "standalone", "", "directory of Kubernetes YAML that is the cluster, instead of an API server")
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "how to reach the API server (default: as a pod does)")
	f.StringVar(&o.stateDir, "state-dir", "/run/weir", "socket, endpoints and last good objects are here")
	f.StringVar(&o.bpffsDir, "bpffs-dir", "/sys/fs/bpf/weir", "where programs, maps and links are pinned; on a bpffs")
	f.StringVar(&o.nodeName, "node-name", hostname, "this node's name, as in its Node object")
	f.StringVar(&o.cgroupRoot, "cgroup-root", "", "directory of cgroup2: Services are translated at the sockets of pods' processes below it (default: not at all)")
	f.StringVar(&o.cniConf, "cni-conf", "", "where to write the container runtime's network configuration, e.g. /etc/cni/net.d/05-weir.conflist (not in standalone)")
	f.StringVar(&o.announceIn, "announce-in", "", "namespace of the leases by which agents tell each other of new pods at once (default: they do not; not in standalone)")
	f.StringVar(&o.cniChain, "cni-chain", "", "name of another plugin's network, in a file beside --cni-conf: Weir follows it and leaves interfaces, addresses and routes to it (docs/chained.md)")
	f.StringVar(&o.hostPorts, "host-ports", "nftables", "what the portmap plugin serves pods' hostPorts with: nftables or iptables, whose command the node must have then, or none (not behind --cni-chain)")
	f.StringSliceVar(&o.clusterCIDRs, "cluster-cidr", nil, "range of pods' addresses; repeatable")
	f.StringSliceVar(&o.uplinks, "uplink", nil, "device that leads out of the node; repeatable (default: those of default routes)")
	f.StringVar(&o.uplinkXDP, "uplink-xdp", "off", "XDP shield on uplinks: off, generic, native or auto")
	f.StringVar(&o.shieldDeny, "shield-deny-file", "", "file of addresses and prefixes whose packets the shield drops on uplinks, a line each, # for comments; followed as it changes (docs/install.md)")
	f.StringVar(&o.nodeEgress, "node-egress", "policy", "a pod's traffic to its own node: policy (judged) or allow (always)")
	f.StringVar(&o.routing, "routing", "native", "how packets reach pods of other nodes: native (routes to nodes on the same network), vxlan (a tunnel over any network) or none (not in standalone)")
	f.IntVar(&o.tunnelPort, "tunnel-port", 8472, "UDP port of the tunnel, on all nodes (--routing vxlan)")
	f.BoolVar(&o.hostRouting, "bpf-host-routing", true, "send what pods of two nodes say to each other past the nodes' network stacks (docs/routing.md); false: new flows go by them (not with --routing none)")
	f.BoolVar(&o.masquerade, "masquerade", true, "translate pods' addresses on the way out of the cluster (not in standalone)")
	f.BoolVar(&o.process, "process", true, "note which process opened a pod's socket, for flow records (UDP's with --cgroup-root only)")
	f.BoolVar(&o.flowRecords, "flow-records", true, "record flows and denied packets; false: they are only counted, and weir flows, Hubble's API and exports of flows have nothing")
	f.DurationVar(&o.flowUpdate, "flow-update", time.Minute, "how often a flow that goes on gets a record; 0 = only when it begins and ends")
	f.DurationVar(&o.pickUp, "pick-up", 10*time.Minute, "how long TCP goes on without a record after a node that has pods lost its flow table (docs/flows.md); 0 = it does not")
	f.DurationVar(&o.addWait, "add-wait", api.AddWaitMax, "how long a CNI ADD waits for its pod's object (the plugin waits 12s for the answer)")
	f.DurationVar(&o.recheck, "recheck", 0, "how often pinned links, programs and maps are looked at, and put right (0: 5s, maps 30s, many addresses in parts)")
	f.StringSliceVar(&o.mapSizes, "map-size", nil, "how much a kernel map holds, as NAME=ENTRIES; repeatable (docs/limits.md)")
	f.IntVar(&o.flowLog, "flow-log", 0, "flow records kept for weir flows (0: 65536)")
	o.hubble.flags(f)
	f.StringVar(&o.spill, "flow-spill", "", "directory where flow records outlive the agent, or none (default: flows in the --state-dir; docs/observe.md)")
	f.IntVar(&o.spillSize, "flow-spill-size", 32, "how many MiB of them are kept")
	f.DurationVar(&o.spillAge, "flow-spill-age", 24*time.Hour, "and for how long; 0 = however old")
	f.StringVar(&o.metrics, "metrics-listen", "", "ADDRESS:PORT to serve Prometheus metrics at, e.g. 127.0.0.1:9945 (default: nowhere; docs/observe.md)")
	o.exports.flags(f)
	f.Uint32Var(&o.markShift, "mark-shift", 0, "lowest of the 16 bits used in skb->mark (0: as built)")
	f.StringVar(&o.config, configFlag, "", "YAML file with these settings under these names; arguments go before it")
	f.StringVar(&o.logFormat, "log-format", "text", "text or json")
	f.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
}

func (o *options) check(c *cobra.Command) error {
	if c.Flags().Changed("standalone") && o.standalone == "" {
		return usage("--standalone must name a directory")
	}
	if o.standalone != "" && o.kubeconfig != "" {
		return usage("--standalone and --kubeconfig exclude each other")
	}
	if o.nodeName == "" {
		return usage("--node-name must be given")
	}
	if o.cniConf != "" && (o.standalone != "" || filepath.Ext(o.cniConf) != ".conflist") {
		return usage("--cni-conf %q must name a .conflist, and has no meaning with --standalone", o.cniConf)
	}
	if o.announceIn != "" && o.standalone != "" {
		return usage("--announce-in has no meaning with --standalone: it knows no other nodes")
	}
	if wrong := validation.IsDNS1123Label(o.announceIn); o.announceIn != "" && len(wrong) > 0 {
		return usage("--announce-in %q is no namespace: %s", o.announceIn, wrong[0])
	}
	if o.cniChain != "" && (o.cniConf == "" || o.routing != "none") {
		return usage("--cni-chain %q needs --cni-conf, which gets the network with Weir in it, and --routing none: packets' ways are the other plugin's", o.cniChain)
	}
	if !slices.Contains([]string{"nftables", "iptables", "none"}, o.hostPorts) {
		return usage("--host-ports %q is none of nftables, iptables, none", o.hostPorts)
	}
	if !slices.Contains([]string{"native", "vxlan", "none"}, o.routing) {
		return usage("--routing %q is none of native, vxlan, none", o.routing)
	}
	if o.tunnelPort < 1 || o.tunnelPort > 65535 {
		return usage("--tunnel-port %d must be 1 to 65535", o.tunnelPort)
	}
	if o.standalone != "" && (c.Flags().Changed("masquerade") && o.masquerade || c.Flags().Changed("routing")) {
		return usage("--masquerade and --routing have no meaning with --standalone: it knows no other nodes")
	}
	if o.nodeEgress != "policy" && o.nodeEgress != "allow" {
		return usage("--node-egress %q is neither policy nor allow", o.nodeEgress)
	}
	if o.markShift > 16 {
		return usage("--mark-shift %d: 16 bits must fit, it is 16 at most", o.markShift)
	}
	if !o.flowRecords && o.exports.file != "" {
		return usage("--flow-export-file %s would stay empty with --flow-records=false", o.exports.file)
	}
	if o.flowUpdate < 0 || o.flowUpdate > 0 && o.flowUpdate < time.Second {
		return usage("--flow-update %s must be 0 or at least 1s", o.flowUpdate)
	}
	if o.pickUp < 0 {
		return usage("--pick-up %s must not be negative", o.pickUp)
	}
	if o.addWait <= 0 || o.addWait > api.AddAnswerMax {
		return usage("--add-wait %s must be above 0 and at most %s, for which the plugin waits", o.addWait, api.AddAnswerMax)
	}
	if o.spillSize < 1 {
		return usage("--flow-spill-size %d must be 1 at least; --flow-spill none turns it off", o.spillSize)
	}
	if o.spillAge < 0 {
		return usage("--flow-spill-age %s must not be below 0", o.spillAge)
	}
	if o.flowLog < 0 {
		return usage("--flow-log %d must not be below 0", o.flowLog)
	}
	if err := o.hubble.check(); err != nil {
		return err
	}
	if _, port, err := net.SplitHostPort(o.metrics); o.metrics != "" && (err != nil || port == "") {
		return usage("--metrics-listen %q is not ADDRESS:PORT, such as 127.0.0.1:9945 or :9945", o.metrics)
	}
	if o.recheck < 0 {
		return usage("--recheck %s must not be below 0", o.recheck)
	}
	for _, text := range o.clusterCIDRs {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return usage("--cluster-cidr %q is no CIDR: write ADDRESS/LENGTH", text)
		}
		if p != p.Masked() {
			return usage("--cluster-cidr %q has bits set behind its length: write %s if that is meant", text, p.Masked())
		}
		o.cidrs = append(o.cidrs, p)
	}
	var err error
	if o.xdp, err = loader.ParseXDPMode(o.uplinkXDP); err != nil {
		return usage("--uplink-xdp: %w", err)
	}
	if o.sizes, err = loader.ParseSizes(o.mapSizes); err != nil {
		return usage("--map-size: %w", err)
	}
	if err := o.exports.check(); err != nil {
		return err
	}
	return o.checkLog()
}

func (o *options) checkLog() error {
	var level slog.Level
	if err := level.UnmarshalText([]byte(o.logLevel)); err != nil {
		return usage("--log-level %q is none of debug, info, warn, error", o.logLevel)
	}
	handler := &slog.HandlerOptions{Level: level}
	switch o.logFormat {
	case "text":
		o.log = slog.New(slog.NewTextHandler(os.Stderr, handler))
	case "json":
		o.log = slog.New(slog.NewJSONHandler(os.Stderr, handler))
	default:
		return usage("--log-format %q is neither text nor json", o.logFormat)
	}
	slog.SetDefault(o.log) // of what is not handed one
	return nil
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }
