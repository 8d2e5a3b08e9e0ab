package identity

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
)

// Labels is what policy can tell pods apart by: pods with equal Labels share an
// identity.
type Labels struct {
	Namespace       string            `json:"namespace"`
	NamespaceLabels map[string]string `json:"namespaceLabels,omitempty"` // keys that namespace selectors mention
	PodLabels       map[string]string `json:"podLabels,omitempty"`       // keys that pod selectors mention
	Ports           []NamedPort       `json:"ports,omitempty"`           // sorted by String, names that policies mention
}

// NamedPort is a container port that has a name.
type NamedPort struct {
	Name     string `json:"name"`
	Protocol uint8  `json:"protocol"` // IP protocol number
	Port     uint16 `json:"port"`
}

func (p NamedPort) String() string {
	return fmt.Sprintf("%s=%d/%s", p.Name, p.Port, ProtocolName(p.Protocol))
}

// ProtocolName is Kubernetes' name of an IP protocol, or its number.
func ProtocolName(protocol uint8) string {
	switch protocol {
	case 6:
		return "TCP"
	case 17:
		return "UDP"
	case 132:
		return "SCTP"
	}
	return fmt.Sprint(protocol)
}

// Strings lists the labels as "key=value", sorted: the pod's bare, the namespace's
// with the prefix "namespace:", ports as "port:name=80/TCP".
func (l *Labels) Strings() []string {
	out := make([]string, 0, len(l.NamespaceLabels)+len(l.PodLabels)+len(l.Ports))
	for k, v := range l.NamespaceLabels {
		out = append(out, "namespace:"+k+"="+v)
	}
	for k, v := range l.PodLabels {
		out = append(out, k+"="+v)
	}
	for _, p := range l.Ports {
		out = append(out, "port:"+p.String())
	}
	slices.Sort(out)
	return out
}

// String is canonical: equal texts, equal Labels. Label keys and values have no comma
// and no colon, so the text is unambiguous.
func (l *Labels) String() string {
	return l.Namespace + "," + strings.Join(l.Strings(), ",")
}

// Preferred is the number that the canonical text of labels asks for; nodes agree on
// it unless two texts collide.
func Preferred(text string) Number {
	sum := sha256.Sum256([]byte(text))
	return First + Number(binary.BigEndian.Uint64(sum[:8])%uint64(Block-First))
}
