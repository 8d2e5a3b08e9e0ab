package maps

import (
	"fmt"
	"strings"
	"sync"

	"github.com/cilium/ebpf/btf"
)

// kernelReasons are the names of enum skb_drop_reason, from the kernel's BTF.
var kernelReasons = sync.OnceValue(func() map[uint32]string {
	out := map[uint32]string{}
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		return out
	}
	var reasons *btf.Enum
	if spec.TypeByName("skb_drop_reason", &reasons) != nil {
		return out
	}
	for _, v := range reasons.Values {
		out[uint32(v.Value)] = strings.TrimPrefix(v.Name, "SKB_DROP_REASON_")
	}
	return out
})

// KernelReason is the running kernel's own name of why it drops packets, "" for none.
func KernelReason(n uint32) string {
	if n == 0 {
		return ""
	}
	if name, ok := kernelReasons()[n]; ok {
		return name
	}
	return fmt.Sprintf("reason %d", n)
}
