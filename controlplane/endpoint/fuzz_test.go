package endpoint

import (
	"encoding/json"
	"net"
	"testing"

	"github.com/weirnet/weir/controlplane/api"
)

// FuzzAddRequest: what is taken as an endpoint has one address of a family at most, which a
// pod can have, and is the same record after it was saved and read.
func FuzzAddRequest(f *testing.F) {
	const head = `{"containerID":"c","ifName":"eth0","hostIfName":"weir0123456789a","hostIfindex":4,"podNamespace":"shop","podName":"web","netns":"/run/netns/x",`
	for _, rest := range []string{
		`"mac":"02:00:00:00:00:01","addresses":["10.0.0.1","fd00::1"]}`, `"mac":"0200.0000.0001","addresses":["::ffff:10.0.0.1"],"netnsCookie":18446744073709551615}`,
		`"mac":"02:00:00:00:00:01:02:03","addresses":["10.0.0.1"]}`, `"mac":"02:00:00:00:00:01","addresses":["10.0.0.1","::ffff:10.0.0.2"]}`,
		`"mac":"02:00:00:00:00:01","addresses":["fe80::1%eth0"]}`, `"mac":"02:00:00:00:00:01","addresses":["127.0.0.1"],"hostIfName":"eth0"}`, `"addresses":[]}`,
	} {
		f.Add([]byte(head + rest))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var in api.AddRequest
		if json.Unmarshal(body, &in) != nil {
			return
		}
		r, err := FromRequest(in)
		if err != nil {
			return
		}
		addrs := r.Addresses()
		if len(addrs) == 0 || len(addrs) != len(in.Addresses) {
			t.Errorf("%v are the addresses %v", in.Addresses, addrs)
		}
		for i, a := range addrs {
			if a.Is4In6() || a.Zone() != "" || a.IsLoopback() || a.IsUnspecified() || a.IsMulticast() || i > 0 && a.Is4() {
				t.Errorf("%v are the addresses %v", in.Addresses, addrs)
			}
		}
		e := r.Local().Endpoint
		if mac, err := net.ParseMAC(in.MAC); err != nil || net.HardwareAddr(e.MAC[:]).String() != mac.String() || e.Ifindex == 0 {
			t.Errorf("%+v is the endpoint %+v", in, e)
		}
		saved, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		var again Record
		if err := json.Unmarshal(saved, &again); err != nil || !again.Same(r) || again != *r {
			t.Errorf("%+v was saved as %s and read as %+v, %v", r, saved, again, err)
		}
		if r.Conflict(&again) == "" {
			t.Errorf("%+v may be there twice", r)
		}
	})
}
