package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
)

// Pod is a pod that the CNI plugin attached.
type Pod struct {
	Host
	Namespace, PodName string
	container          string
}

// AddPod makes a network namespace and has the plugin attach it, as a runtime does. The
// pod's manifest need not be there yet. On an error the namespace is gone; a CNI error
// (*types.Error) is wrapped.
func (n *Node) AddPod(ctx context.Context, namespace, name string) (*Pod, error) {
	return n.AddSandbox(ctx, namespace, name, "")
}

// AddSandbox is AddPod with a suffix to the names of the sandbox and its namespace: a pod may
// have a new sandbox while the DEL of its last is still on its way.
func (n *Node) AddSandbox(ctx context.Context, namespace, name, suffix string) (*Pod, error) {
	sandbox := n.opts.Prefix + namespace + "-" + name + suffix
	p := &Pod{Namespace: namespace, PodName: name, container: sandbox}
	p.Host = Host{Name: namespace + "/" + name, Netns: sandbox}
	if err := p.addNetns(); err != nil {
		return nil, err
	}
	if err := n.attach(ctx, p); err != nil {
		return nil, errors.Join(fmt.Errorf("add pod %s: %w", p.Name, err), ip("netns del %s", p.Netns))
	}
	n.pods[p.Name] = p
	return p, nil
}

// AddForeign is AddPod for a pod whose interface, eth0, make makes, chained: no plugin is
// before weir-cni, only its result, 10.77.0.250.
func (n *Node) AddForeign(ctx context.Context, namespace, name string, make func(*Pod) error) (*Pod, error) {
	sandbox := n.opts.Prefix + namespace + "-" + name + "-foreign"
	p := &Pod{Namespace: namespace, PodName: name, container: sandbox}
	p.Host = Host{Name: namespace + "/" + name, Netns: sandbox}
	if err := p.addNetns(); err != nil {
		return nil, err
	}
	text, err := json.Marshal(object{"cniVersion": "1.1.0", "name": "weir", "plugins": []object{{
		"type": "weir-cni", "stateDir": n.StateDir(), "bpffsDir": n.BPFFSDir(),
		"prevResult": object{"cniVersion": "1.1.0", "ips": []object{{"address": "10.77.0.250/24"}}},
	}}})
	if err != nil {
		return nil, err
	}
	list, err := libcni.NetworkConfFromBytes(text)
	if err == nil {
		err = make(p)
	}
	if err == nil {
		err = n.Do(func() error {
			_, err := n.runtime().AddNetworkList(ctx, list, n.args(p))
			return err
		})
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("add pod %s: %w", p.Name, err), ip("netns del %s", p.Netns))
	}
	n.pods[p.Name] = p
	return p, nil
}

// End removes the pod's namespace with every process in it, without a DEL.
func (p *Pod) End() error { return ip("netns del %s", p.Netns) }

func (n *Node) attach(ctx context.Context, p *Pod) error {
	list, err := n.network()
	if err != nil {
		return err
	}
	return n.Do(func() error {
		r, err := n.runtime().AddNetworkList(ctx, list, n.args(p))
		if err != nil {
			return err
		}
		got, err := current.NewResultFromResult(r)
		if err != nil {
			return err
		}
		for _, a := range got.IPs {
			p.take(a.Address.IP)
		}
		return nil
	})
}

func (p *Pod) take(addr net.IP) {
	if addr.To4() != nil {
		p.Addr4 = addr.String()
	} else {
		p.Addr6 = addr.String()
	}
}

// DelPod detaches the pod and removes its namespace with every process in it.
func (n *Node) DelPod(ctx context.Context, p *Pod) error {
	return errors.Join(n.DetachPod(ctx, p), ip("netns del %s", p.Netns))
}

// DetachPod runs DEL alone; the namespace need not be there any more.
func (n *Node) DetachPod(ctx context.Context, p *Pod) error {
	list, err := n.network()
	if err != nil {
		return err
	}
	delete(n.pods, p.Name)
	return n.Do(func() error { return n.runtime().DelNetworkList(ctx, list, n.args(p)) })
}

// DetachLast runs DEL of the list's last plugin alone: the first that a runtime would run.
func (n *Node) DetachLast(ctx context.Context, p *Pod) error {
	list, err := n.network()
	if err != nil {
		return err
	}
	list.Plugins = list.Plugins[len(list.Plugins)-1:]
	return n.Do(func() error { return n.runtime().DelNetworkList(ctx, list, n.args(p)) })
}

// CheckPod asks the plugin whether the pod is as it was made.
func (n *Node) CheckPod(ctx context.Context, p *Pod) error {
	list, err := n.network()
	if err != nil {
		return err
	}
	return n.Do(func() error { return n.runtime().CheckNetworkList(ctx, list, n.args(p)) })
}

// Pods are those that are attached.
func (n *Node) Pods() []*Pod {
	var l []*Pod
	for _, p := range n.pods {
		l = append(l, p)
	}
	return l
}

func (n *Node) runtime() *libcni.CNIConfig {
	return libcni.NewCNIConfigWithCacheDir([]string{n.opts.Bin}, filepath.Join(n.opts.Run, "cni"), nil)
}

func (n *Node) args(p *Pod) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{ContainerID: p.container, NetNS: p.Path(), IfName: "eth0", Args: [][2]string{
		{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", p.Namespace}, {"K8S_POD_NAME", p.PodName},
	}}
}

// network is the node's CNI configuration.
func (n *Node) network() (*libcni.NetworkConfigList, error) {
	weir := object{"type": "weir-cni", "stateDir": n.StateDir(), "bpffsDir": n.BPFFSDir(), "xdp": n.opts.XDP}
	ipam := object{
		"type": "host-local", "dataDir": filepath.Join(n.opts.Run, "addresses"),
		"ranges": [][]object{{n.pool(n.opts.Pool4)}, {n.pool(n.opts.Pool6)}},
	}
	plugins := []object{weir}
	if n.opts.Chain != "" {
		ipam["routes"] = []object{{"dst": "0.0.0.0/0"}, {"dst": "::/0"}}
		plugins = []object{{"type": n.opts.Chain, "ipam": ipam}, weir}
		if n.opts.Chain == "bridge" {
			plugins[0]["bridge"], plugins[0]["isGateway"] = Bridge, true
		}
	} else {
		weir["ipam"] = ipam
	}
	text, err := json.Marshal(object{"cniVersion": "1.1.0", "name": "weir", "plugins": plugins})
	if err != nil {
		return nil, err
	}
	return libcni.NetworkConfFromBytes(text)
}

type object = map[string]any

// Bridge is the device of Chain "bridge".
const Bridge = "cni0"

func (n *Node) pool(subnet string) map[string]any {
	pool := map[string]any{"subnet": subnet}
	if n.opts.RangeFirst > 0 {
		pool["rangeStart"] = hostAddress(subnet, n.opts.RangeFirst)
	}
	if n.opts.RangeLast > 0 {
		pool["rangeEnd"] = hostAddress(subnet, n.opts.RangeLast)
	}
	return pool
}

// hostAddress is a subnet's address with a host number.
func hostAddress(subnet string, number int) string {
	first, _, _ := strings.Cut(subnet, "/")
	if strings.Contains(subnet, ":") {
		return fmt.Sprintf("%s%x", first, number)
	}
	return fmt.Sprintf("%s.%d", first[:strings.LastIndex(first, ".")], number)
}

// CNICode is the code of a plugin's error, 0 if err holds none.
func CNICode(err error) uint {
	var e *types.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return 0
}
