package cni

import (
	"encoding/json"
	"errors"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
)

// FuzzConfig: what is taken of a network configuration stays within what the plugin may
// open and run, and means the same when it is written and read again; an error has a CNI code.
func FuzzConfig(f *testing.F) {
	for _, text := range []string{
		`{"cniVersion":"1.1.0","name":"weir","type":"weir","ipam":{"type":"host-local"}}`,
		`{"cniVersion":"1.0.0","name":"weir","type":"weir","stateDir":"/run/weir/","bpffsDir":"/sys/fs/bpf/weir","xdp":"auto","mtu":1400,"ipam":{"type":"x.y"},"dns":{"nameservers":["10.0.0.1"]},"prevResult":{},"cni.dev/valid-attachments":[{"containerID":"a","ifname":"eth0"}]}`,
		`{"stateDir":"/a/../b","ipam":{"type":"a"}}`, `{"ipam":{"type":"../../bin/sh"}}`, `{"STATEDIR":"x"}`, `{"mtu":1e3,"ipam":{"type":"a"}}`, `{"mtu":-1}`, `null`, `[]`, `{"xdp":"\u0000"}`,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := parseConfig(data)
		if c == nil {
			t.Fatal("DEL has nothing to go by")
		}
		if err != nil {
			holdCode(t, err, types.ErrInvalidNetworkConfig, types.ErrDecodingFailure)
			return
		}
		for _, dir := range []string{c.StateDir, c.BPFFSDir} {
			if !filepath.IsAbs(dir) || strings.Contains(dir+"/", "/../") {
				t.Errorf("directory %q", dir)
			}
		}
		if p := c.IPAM.Type; p != "" && p != filepath.Base(p) || p == "." || p == ".." || strings.ContainsAny(p, "/\x00") {
			t.Errorf("IPAM plugin %q", p)
		}
		if c.MTU != 0 && (c.MTU < 1280 || c.MTU > 65535) {
			t.Errorf("MTU %d", c.MTU)
		}
		text, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		again, err := parseConfig(text)
		if err != nil {
			t.Fatalf("%s written as %s: %v", data, text, err)
		}
		if a, b := *c, *again; !sameConfig(&a, &b) {
			t.Errorf("%s written as %s: %+v, then %+v", data, text, a, b)
		}
	})
}

// sameConfig leaves out the text that each was read from.
func sameConfig(a, b *config) bool {
	a.raw, b.raw = nil, nil
	for _, c := range []*config{a, b} {
		if len(c.PrevResult) == 0 {
			c.PrevResult = json.RawMessage("null")
		}
	}
	x, err1 := json.Marshal(a)
	y, err2 := json.Marshal(b)
	return err1 == nil && err2 == nil && string(x) == string(y) && a.xdp == b.xdp && reflect.DeepEqual(a.pins, b.pins)
}

// FuzzArgs: a pod's names are what Kubernetes takes for one, and errors say so as CNI asks.
func FuzzArgs(f *testing.F) {
	for _, args := range []string{
		"K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1;K8S_POD_UID=0e2f-1;K8S_POD_INFRA_CONTAINER_ID=abc;IgnoreUnknown=1",
		"IgnoreUnknown=true;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web.example;X=1", "K8S_POD_NAMESPACE=../a;K8S_POD_NAME=b", "K8S_POD_NAMESPACE=a;K8S_POD_NAME=a\n", "K8S_POD_NAME=a", ";=;", "",
		"K8S_POD_NAMESPACE=a;K8S_POD_NAME=b..c", "K8S_POD_NAMESPACE=a;K8S_POD_NAME=b.-c", "K8S_POD_NAMESPACE=a;K8S_POD_NAME=" + strings.Repeat("b", 254),
	} {
		f.Add(args)
	}
	f.Fuzz(func(t *testing.T, args string) {
		p, err := parsePod(args)
		if err != nil {
			holdCode(t, err, types.ErrInvalidEnvironmentVariables)
			if p != (pod{}) {
				t.Errorf("%q: %v, and a pod %v", args, err, p)
			}
			return
		}
		if wrong := append(validation.IsDNS1123Label(p.Namespace), validation.IsDNS1123Subdomain(p.Name)...); len(wrong) > 0 {
			t.Errorf("%q is the pod %q: %v", args, p, wrong)
		}
	})
}

func holdCode(t *testing.T, err error, codes ...uint) {
	t.Helper()
	var e *types.Error
	if !errors.As(err, &e) || e.Msg == "" {
		t.Fatalf("no CNI error: %v", err)
	}
	for _, c := range codes {
		if e.Code == c {
			return
		}
	}
	t.Errorf("code %d: %v", e.Code, err)
}
