// Package endpoint keeps the pods' interfaces of this node: what each is, whose it is
// and its number, across restarts of the agent.
package endpoint

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"regexp"

	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/datapath"
)

// Record is an endpoint. A Record handed out is not changed afterwards.
type Record struct {
	Number      uint32     `json:"number"`
	ContainerID string     `json:"containerID"`
	IfName      string     `json:"ifName"`
	HostIfName  string     `json:"hostIfName"`
	HostIfindex uint32     `json:"hostIfindex"`
	MAC         string     `json:"mac"`
	Addr4       netip.Addr `json:"addr4"` // zero = none
	Addr6       netip.Addr `json:"addr6"` // zero = none
	Netns       string     `json:"netns"`
	NetnsCookie uint64     `json:"netnsCookie"`
	NoRedirect  bool       `json:"noRedirect,omitempty"`
	Network     string     `json:"network,omitempty"` // name of the CNI configuration
	Chained     bool       `json:"chained,omitempty"` // another plugin made the interface
	PinName     string     `json:"pins,omitempty"`    // "" = HostIfName, see Pins
	Namespace   string     `json:"namespace"`
	Name        string     `json:"pod"`
	UID         string     `json:"podUID,omitempty"` // as the runtime gave it

	// LastPod is what policy needs of the pod's object as it was last seen. It counts
	// once the object is gone and the interface is not: a pod that is being terminated
	// keeps the policy it had until its DEL, whatever deletes the object first. A later
	// object of the same name counts for the interface at once, whatever its uid.
	LastPod *policy.Pod `json:"lastPod"`
}

var hostIfName = regexp.MustCompile(`^weir[0-9a-f]{11}$`)

// IsHostIfName reports whether a device's name is one that the CNI plugin gives the
// host side of a pod's veth.
func IsHostIfName(name string) bool { return hostIfName.MatchString(name) }

// FromRequest checks a request and makes its record, which has no number yet. Errors
// name the field.
func FromRequest(r api.AddRequest) (*Record, error) {
	for _, f := range []struct{ name, value string }{
		{"containerID", r.ContainerID}, {"ifName", r.IfName}, {"podNamespace", r.PodNamespace}, {"podName", r.PodName},
	} {
		if f.value == "" {
			return nil, fmt.Errorf("%s is missing", f.name)
		}
	}
	own, pins := r.HostIfName, cmp.Or(r.Pins, r.HostIfName)
	if r.Chained {
		own = pins
	}
	if !IsHostIfName(own) || own != pins {
		return nil, fmt.Errorf("hostIfName %q, pins %q: not weir and 11 hexadecimal digits", r.HostIfName, r.Pins)
	}
	if r.Chained && IsHostIfName(r.HostIfName) {
		return nil, fmt.Errorf("hostIfName %s: chained to an interface of Weir's own", r.HostIfName)
	}
	if r.HostIfName == "" {
		return nil, fmt.Errorf("hostIfName is missing")
	}
	if r.HostIfindex == 0 {
		return nil, fmt.Errorf("hostIfindex is missing")
	}
	if mac, err := net.ParseMAC(r.MAC); err != nil || len(mac) != 6 {
		return nil, fmt.Errorf("mac %q is no Ethernet address", r.MAC)
	}
	out := &Record{
		ContainerID: r.ContainerID, IfName: r.IfName, HostIfName: r.HostIfName, HostIfindex: r.HostIfindex, MAC: r.MAC,
		Netns: r.Netns, NetnsCookie: r.NetnsCookie, NoRedirect: r.NoRedirect,
		Network: r.Network, Chained: r.Chained, PinName: r.Pins,
		Namespace: r.PodNamespace, Name: r.PodName, UID: r.PodUID,
	}
	return out, out.setAddresses(r.Addresses)
}

func (r *Record) setAddresses(texts []string) error {
	for _, text := range texts {
		a, err := netip.ParseAddr(text)
		if err != nil || a.Zone() != "" || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() {
			return fmt.Errorf("addresses: %q is no address that a pod can have", text)
		}
		a = a.Unmap()
		slot := &r.Addr6
		if a.Is4() {
			slot = &r.Addr4
		}
		if slot.IsValid() {
			return fmt.Errorf("addresses: %s and %s are of one family, an endpoint has one of each", *slot, a)
		}
		*slot = a
	}
	if len(texts) == 0 {
		return fmt.Errorf("addresses are missing")
	}
	return nil
}

// Pins is what the links of its interface are pinned below. It is never another device's
// name: IsHostIfName holds for it.
func (r *Record) Pins() string { return cmp.Or(r.PinName, r.HostIfName) }

// Pod is its name.
func (r *Record) Pod() types.NamespacedName {
	return types.NamespacedName{Namespace: r.Namespace, Name: r.Name}
}

// Attachment is what CNI calls the endpoint.
func (r *Record) Attachment() api.Attachment {
	return api.Attachment{ContainerID: r.ContainerID, IfName: r.IfName}
}

// Addresses, IPv4 first.
func (r *Record) Addresses() []netip.Addr {
	return policy.Local{Endpoint: r.endpoint()}.Addresses()
}

// Local is the endpoint as policy.Compile takes it.
func (r *Record) Local() policy.Local {
	return policy.Local{Pod: r.Pod(), Number: r.Number, Endpoint: r.endpoint()}
}

func (r *Record) endpoint() datapath.Endpoint {
	e := datapath.Endpoint{
		Ifindex: r.HostIfindex, Addr4: r.Addr4, Addr6: r.Addr6, NetnsCookie: r.NetnsCookie,
		NoRedirect: r.NoRedirect || r.Chained, Shared: r.Chained,
	}
	mac, _ := net.ParseMAC(r.MAC) // checked in FromRequest
	copy(e.MAC[:], mac)
	return e
}

// Same reports whether two records describe one interface of one pod, numbers and
// last seen objects aside.
func (r *Record) Same(o *Record) bool {
	a, b := *r, *o
	a.Number, a.LastPod, b.Number, b.LastPod = 0, nil, 0, nil
	return a == b
}

// Conflict says what two records cannot both have: an interface or an address.
func (r *Record) Conflict(o *Record) string {
	switch {
	case r.HostIfName == o.HostIfName || r.HostIfindex == o.HostIfindex:
		return "interface " + o.HostIfName
	case r.Addr4.IsValid() && r.Addr4 == o.Addr4:
		return "address " + o.Addr4.String()
	case r.Addr6.IsValid() && r.Addr6 == o.Addr6:
		return "address " + o.Addr6.String()
	}
	return ""
}

// WithPod is the record with another last seen object, or r itself when policy cannot
// tell the two apart.
func (r *Record) WithPod(p *policy.Pod) *Record {
	lasting := *p
	lasting.Addresses, lasting.HostNetwork, lasting.Finished = nil, false, false // it has its interface
	if r.LastPod != nil && r.LastPod.Equal(&lasting) {
		return r
	}
	out := *r
	out.LastPod = &lasting
	return &out
}
