package flowlog

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/identity"
)

// filterCases have a record that each filter takes and one that it does not; what is "never"
// is an error on a whitelist and excludes nothing on a blacklist.
var filterCases = []struct{ filter, takes, leaves, never string }{
	{filter: `{"uuid":["00000000-0000-8000-8000-000000000000"]}`, leaves: "web to db"},
	{filter: `{"event_type":[{"type":1}]}`, takes: "denied", leaves: "web to db"},
	{filter: `{"event_type":[{"type":129},{"type":4}]}`, takes: "web to db", leaves: "denied"},
	{filter: `{"event_type":[{"type":1,"match_sub_type":true,"sub_type":133}]}`, takes: "denied", leaves: "spoofed"},
	{filter: `{"event_type":[{"match_sub_type":true,"sub_type":132}]}`, takes: "spoofed", leaves: "denied"},
	{filter: `{"event_type":[{"type":129}]}`, never: "records are drops (type 1) and traces (type 4)"},
	{filter: `{"verdict":["DROPPED"]}`, takes: "denied", leaves: "web to db"},
	{filter: `{"verdict":["AUDIT","FORWARDED"]}`, takes: "web to db", leaves: "denied"},
	{filter: `{"verdict":["REDIRECTED"]}`, never: "FORWARDED or DROPPED"},
	{filter: `{"drop_reason_desc":["POLICY_DENIED"]}`, takes: "denied", leaves: "spoofed"},
	{filter: `{"drop_reason_desc":["INVALID_SOURCE_IP"]}`, takes: "spoofed", leaves: "web to db"},
	{filter: `{"drop_reason_desc":["UNKNOWN_ICMPV6_TYPE","TTL_EXCEEDED"]}`, leaves: "ping"},
	{filter: `{"drop_reason_desc":["TTL_EXCEEDED"]}`, never: "Weir drops nothing for [TTL_EXCEEDED]"},
	{filter: `{"reply":[false]}`, takes: "web to db"},
	{filter: `{"reply":[true]}`, never: "both ways of a flow"},
	{filter: `{"encrypted":[false,true]}`, takes: "web to db"},
	{filter: `{"encrypted":[true]}`, never: "does not encrypt"},
	{filter: `{"source_identity":[7,1001]}`, takes: "web to db", leaves: "from world"},
	{filter: `{"destination_identity":[1002]}`, takes: "suppressed", leaves: "to dns"},
	{filter: `{"source_identity":[0]}`, leaves: "suppressed", takes: "spoofed"},
	{filter: `{"protocol":["TCP"]}`, takes: "web to db", leaves: "ping"},
	{filter: `{"protocol":["icmp"]}`, takes: "ping", leaves: "suppressed"},
	{filter: `{"protocol":["icmpv6"]}`, leaves: "ping"},
	{filter: `{"protocol":["http","udp"]}`, takes: "to dns", leaves: "web to db"},
	{filter: `{"protocol":["http","vrrp"]}`, never: `"http", "vrrp": records are of tcp`},
	{filter: `{"source_ip":["10.0.0.2"]}`, takes: "web to db", leaves: "from world"},
	{filter: `{"source_ip":["203.0.113.0/24","fd00::/8"]}`, takes: "from world", leaves: "suppressed"},
	{filter: `{"destination_ip":["fd00::9"]}`, takes: "spoofed", leaves: "web to db"},
	{filter: `{"source_ip_xlated":["10.0.0.2"]}`, never: "by the address their sender gave them"},
	{filter: `{"source_pod":["shop/we"]}`, takes: "web to db", leaves: "from world"},
	{filter: `{"source_pod":["web-1"]}`, leaves: "web to db"},
	{filter: `{"source_pod":["/web"]}`, takes: "web to db", leaves: "suppressed"},
	{filter: `{"destination_pod":["shop/"]}`, takes: "web to db", leaves: "to dns"},
	{filter: `{"source_workload":[{"kind":"Deployment"}]}`, takes: "web to db", leaves: "from world"},
	{filter: `{"destination_workload":[{"name":"db","kind":"StatefulSet"}]}`, takes: "web to db", leaves: "to dns"},
	{filter: `{"destination_workload":[{"name":"web"}]}`, leaves: "web to db"},
	{filter: `{"source_service":["kube-system/dns"]}`, leaves: "to dns"},
	{filter: `{"destination_service":["kube-system/d"]}`, takes: "to dns", leaves: "web to db"},
	{filter: `{"source_fqdn":["worker-*"]}`, takes: "from node", leaves: "web to db"},
	{filter: `{"destination_fqdn":["*"]}`, leaves: "web to db"},
	{filter: `{"source_label":["app=web"]}`, takes: "web to db", leaves: "from world"},
	{filter: `{"source_label":["app!=web"]}`, takes: "suppressed", leaves: "web to db"},
	{filter: `{"source_label":["k8s:app in (db, web),k8s:io.cilium.k8s.namespace.labels.team"]}`, takes: "web to db", leaves: "suppressed"},
	{filter: `{"source_label":["reserved:world"]}`, takes: "from world", leaves: "from node"},
	{filter: `{"source_label":["reserved:app"]}`, leaves: "web to db"},
	{filter: `{"destination_label":["k8s:io.kubernetes.pod.namespace=shop"]}`, takes: "web to db", leaves: "to dns"},
	{filter: `{"node_labels":["!zone"]}`, takes: "web to db"},
	{filter: `{"source_label":["app=web,app=db"]}`, never: "requires of app what no one label has"},
	{filter: `{"source_label":["app=web,app=db","app=web"]}`, takes: "web to db", leaves: "from world"},
	{filter: `{"node_labels":["zone=a"]}`, never: "no labels of their node"},
	{filter: `{"source_port":["40001"]}`, takes: "web to db", leaves: "from world"},
	{filter: `{"destination_port":["53","80"]}`, takes: "to dns", leaves: "web to db"},
	{filter: `{"destination_port":["0"]}`, leaves: "suppressed"},
	{filter: `{"tcp_flags":[{"SYN":true}]}`, takes: "web to db", leaves: "picked up"},
	{filter: `{"tcp_flags":[{"SYN":true,"ACK":true},{"ACK":true}]}`, takes: "picked up", leaves: "to dns"},
	{filter: `{"tcp_flags":[{"NS":true}]}`, never: "NS is no flag"},
	{filter: `{"node_name":["worker-1"]}`, takes: "web to db"},
	{filter: `{"node_name":["default/WORK*."]}`, takes: "web to db"},
	{filter: `{"node_name":["worker-2","other/"]}`, leaves: "web to db"},
	{filter: `{"source_cluster_name":["default"]}`, takes: "web to db", leaves: "from world"},
	{filter: `{"destination_cluster_name":["default"]}`, takes: "web to db", leaves: "to dns"},
	{filter: `{"source_cluster_name":["east"]}`, never: `of the cluster "default"`},
	{filter: `{"destination_cluster_name":["west"]}`, never: `of the cluster "default"`},
	{filter: `{"ip_version":["IPv6"]}`, takes: "spoofed", leaves: "web to db"},
	{filter: `{"ip_version":["IP_NOT_USED"]}`, takes: "suppressed", leaves: "web to db"},
	{filter: `{"traffic_direction":["INGRESS"]}`, takes: "denied", leaves: "web to db"},
	{filter: `{"traffic_direction":["EGRESS"]}`, takes: "web to db", leaves: "denied"},
	{filter: `{"interface":[{"index":7}]}`, takes: "web to db", leaves: "from world"},
	{filter: `{"interface":[{"name":"weir0000000000a"}]}`, takes: "web to db", leaves: "from world"},
	{filter: `{"interface":[{"name":"weir0000000000a","index":8}]}`, leaves: "web to db"},
	{filter: `{"http_status_code":["5+"]}`, never: noL7},
	{filter: `{"http_method":["GET"]}`, never: noL7},
	{filter: `{"http_path":["/a.*"]}`, never: noL7},
	{filter: `{"http_url":["/a.*"]}`, never: noL7},
	{filter: `{"http_header":[{"key":"a","value":"b"}]}`, never: noL7},
	{filter: `{"dns_query":["kube.*"]}`, never: noL7},
	{filter: `{"trace_id":["00"]}`, never: noL7},
	{filter: `{"ip_trace_id":["0"]}`, takes: "web to db"},
	{filter: `{"ip_trace_id":["9"]}`, never: "trace options"},
	{filter: `{"experimental":{}}`, takes: "web to db"},
	{filter: `{"source_pod":["shop/web"],"destination_port":["6379"],"verdict":["FORWARDED"]}`, takes: "web to db", leaves: "denied"},
}

// filterRecords are what filterCases choose from.
func filterRecords() map[string]*record {
	n := newNamer(shop())
	out := map[string]*record{}
	for name, e := range map[string]datapath.Event{
		"web to db": began(),
		"denied":    refused(),
		"spoofed": with(refused(), func(e *datapath.Event) {
			e.Reason, e.Direction, e.Rule, e.Endpoint, e.Identity = 5, datapath.None, [2]uint32{}, [2]uint32{1, 0}, [2]identity.Number{}
			e.Source, e.Destination = netip.MustParseAddrPort("[fd00::1]:1"), netip.MustParseAddrPort("[fd00::9]:443")
		}),
		"from world": with(began(), func(e *datapath.Event) {
			e.Source, e.Endpoint[0], e.Identity[0], e.Ifindex = netip.MustParseAddrPort("203.0.113.9:5000"), 0, identity.World, 3
		}),
		"from node": with(began(), func(e *datapath.Event) {
			e.Source, e.Endpoint[0], e.Identity[0] = netip.MustParseAddrPort("192.168.0.10:5000"), 0, identity.Host
		}),
		"ping":      with(began(), func(e *datapath.Event) { e.Protocol, e.ICMPType = 1, 8 }),
		"picked up": with(began(), func(e *datapath.Event) { e.TCPFlags = 0x10 }),
		"to dns": with(began(), func(e *datapath.Event) {
			e.Protocol, e.Destination, e.Endpoint[1], e.Identity[1] = datapath.UDP, netip.MustParseAddrPort("10.96.0.10:53"), 0, identity.World
		}),
	} {
		out[name] = n.record(e)
	}
	e := refused()
	e.Source, e.Destination, e.Endpoint[0], e.Ifindex = netip.AddrPort{}, netip.AddrPort{}, 0, 0
	out["suppressed"] = n.record(e)
	out["suppressed"].suppressed = 42
	return out
}

func flowFilter(t *testing.T, text string) *flowpb.FlowFilter {
	t.Helper()
	f := &flowpb.FlowFilter{}
	if err := protojson.Unmarshal([]byte(text), f); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return f
}

func TestEveryFilterField(t *testing.T) {
	l, records := newLog(shop(), 0), filterRecords()
	for _, c := range filterCases {
		f := flowFilter(t, c.filter)
		allow, err := l.HubbleFilter([]*flowpb.FlowFilter{f}, nil)
		deny, failed := l.HubbleFilter(nil, []*flowpb.FlowFilter{f})
		if failed != nil {
			t.Errorf("%s as a blacklist: %v", c.filter, failed)
		}
		if c.never != "" {
			var wrong *FilterError
			if !errors.As(err, &wrong) || !strings.Contains(err.Error(), c.never) || !strings.HasPrefix(wrong.Field, "whitelist[0].") {
				t.Errorf("%s: %v, want %q", c.filter, err, c.never)
			}
			if !deny.match(records["web to db"]) {
				t.Errorf("%s as a blacklist excludes something", c.filter)
			}
			if _, err := l.HubbleFilter([]*flowpb.FlowFilter{f, {}}, nil); err != nil {
				t.Errorf("%s or anything: %v", c.filter, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", c.filter, err)
			continue
		}
		for name, want := range map[string]bool{c.takes: true, c.leaves: false} {
			if r := records[name]; r != nil && (allow.match(r) != want || deny.match(r) == want) {
				t.Errorf("%s: whitelist %v, blacklist %v for %q", c.filter, allow.match(r), deny.match(r), name)
			} else if r == nil && name != "" {
				t.Errorf("%s: there is no record %q", c.filter, name)
			}
		}
	}
}

// A filter by the uuid that a message has finds its record.
func TestFilterByUUID(t *testing.T) {
	l := newLog(shop(), 0)
	fill(l)
	kept, _ := l.ring.all()
	f, err := l.HubbleFilter([]*flowpb.FlowFilter{{Uuid: []string{l.flow(kept[3]).GetUuid()}}}, nil)
	must(t, err)
	var to collector
	must(t, l.Select(t.Context(), Selection{Filter: f}, &to))
	if got := sourcePorts(&to); got != "4" {
		t.Errorf("found %q, want 4", got)
	}
}

// Each field of the API is in the table, so that a new one is not ignored in silence, and
// has a case.
func TestNoFilterFieldIsForgotten(t *testing.T) {
	known := map[string]bool{}
	for _, f := range filterFields {
		known[f.name] = true
	}
	all := (&flowpb.FlowFilter{}).ProtoReflect().Descriptor().Fields()
	for i := range all.Len() {
		name := string(all.Get(i).Name())
		if !known[name] {
			t.Errorf("the API has a filter field %s that filterFields does not", name)
		}
		delete(known, name)
		has := false
		for _, c := range filterCases {
			has = has || strings.Contains(c.filter, `"`+name+`"`)
		}
		if !has {
			t.Errorf("no case for the field %s", name)
		}
	}
	for name := range known {
		t.Errorf("the API has no filter field %s", name)
	}
	all = (&flowpb.FlowFilter_Experimental{}).ProtoReflect().Descriptor().Fields()
	if all.Len() != 1 || all.Get(0).Name() != "cel_expression" {
		t.Errorf("experimental has %v fields, the filter knows cel_expression", all.Len())
	}
}

func TestMalformedFilters(t *testing.T) {
	l := newLog(shop(), 0)
	for filter, want := range map[string]string{
		`{"source_ip":["10.0.0.0/33"]}`:                     `source_ip: "10.0.0.0/33" is no CIDR`,
		`{"destination_ip":["10.0.0"]}`:                     `destination_ip: "10.0.0" is no address`,
		`{"source_ip_xlated":["10.0.0.0/33"]}`:              `source_ip_xlated: "10.0.0.0/33" is no CIDR`,
		`{"http_status_code":["5++"]}`:                      `http_status_code: "5++" is no status code such as 404`,
		`{"http_method":["GET"],"event_type":[{"type":1}]}`: `http_method: event_type must have 129 (l7) beside it`,
		`{"node_labels":["!zone","a in b"]}`:                `node_labels: "a in b" is no label selector`,
		`{"source_port":["http"]}`:                          `source_port: "http" is not a port number (0-65535)`,
		`{"destination_port":["65536"]}`:                    `destination_port: "65536" is not a port number (0-65535)`,
		`{"protocol":["quic"]}`:                             `protocol: "quic" is not one of tcp, udp`,
		`{"source_pod":[""]}`:                               `source_pod: a name must not be empty`,
		`{"destination_service":[""]}`:                      `destination_service: a name must not be empty`,
		`{"source_cluster_name":[""]}`:                      `source_cluster_name: a name must not be empty`,
		`{"source_label":["app in (a"]}`:                    `source_label: "app in (a" is no label selector`,
		`{"destination_label":["a b"]}`:                     `destination_label: "a b" is no label selector`,
		`{"node_labels":["=="]}`:                            `node_labels: "==" is no label selector`,
		`{"node_name":["a/b/c"]}`:                           `node_name: "a/b/c": a pattern is NODE or CLUSTER/NODE`,
		`{"node_name":[""]}`:                                `node_name: a pattern must not be empty`,
		`{"source_fqdn":["exa mple"]}`:                      `source_fqdn: "exa mple": ' ' has no place in a name`,
		`{"destination_fqdn":["a.."]}`:                      `destination_fqdn: "a.." is no pattern of a name`,
		`{"http_path":["(a"]}`:                              `http_path: error parsing regexp: missing closing ): ` + "`(a`",
		`{"http_url":["[a"]}`:                               `http_url: error parsing regexp`,
		`{"dns_query":["*"]}`:                               `dns_query: error parsing regexp`,
		`{"experimental":{"cel_expression":["true"]}}`:      `experimental: cel_expression: expressions are not supported`,
		`{"http_method":["GET"],"source_ip":["x"]}`:         `source_ip: "x" is no address`,
	} {
		for _, list := range []string{"whitelist", "blacklist"} {
			lists := map[string][]*flowpb.FlowFilter{list: {{}, flowFilter(t, filter)}}
			_, err := l.HubbleFilter(lists["whitelist"], lists["blacklist"])
			if err == nil || !strings.HasPrefix(err.Error(), list+"[1]."+want) {
				t.Errorf("%s: %v, want %s", filter, err, list+"[1]."+want)
			}
		}
	}
}
