package installed

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/weirnet/weir/tests/lab"
)

// ask a server for the address that it sees its client at, which is in what it says.
func ask(from *lab.Host, protocol, addr string, port int) (client string, answer lab.Answer, err error) {
	err = from.Do(func() error {
		conn, err := net.DialTimeout(protocol, net.JoinHostPort(addr, strconv.Itoa(port)), lab.Patience)
		if err == nil {
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(lab.Patience))
			client, err = askClient(conn, protocol)
		}
		answer, err = lab.Judge(err)
		return err
	})
	return client, answer, err
}

func askClient(conn net.Conn, protocol string) (string, error) {
	said := make([]byte, 256)
	var n int
	if protocol == "udp" {
		if _, err := conn.Write([]byte("clientip")); err != nil {
			return "", err
		}
		var err error
		if n, err = conn.Read(said); err != nil {
			return "", err
		}
	} else {
		if _, err := fmt.Fprintf(conn, "GET /clientip HTTP/1.0\r\nHost: x\r\n\r\n"); err != nil {
			return "", err
		}
		r, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			return "", err
		}
		defer r.Body.Close()
		if n, err = r.Body.Read(said); n == 0 {
			return "", err
		}
	}
	at, err := netip.ParseAddrPort(strings.TrimSpace(string(said[:n])))
	if err != nil {
		return "", fmt.Errorf("a server says of its client: %q", said[:n])
	}
	return at.Addr().Unmap().String(), nil
}

// asking is a question and what has to come of it.
type asking struct {
	from *lab.Host
	what string // who is asked, for people
	to   string
	want lab.Answer
	as   string // the client's address that the server sees; "": any
}

// askAll over TCP and UDP, each at its port.
func (w *world) askAll(all []asking, tcp, udp int) {
	w.Helper()
	for _, a := range all {
		for protocol, port := range map[string]int{"tcp": tcp, "udp": udp} {
			if port == 0 {
				continue
			}
			client, got, err := ask(a.from, protocol, a.to, port)
			for try := 0; try < 2 && a.want == lab.Answered && got == lab.Silent && err == nil; try++ { // on a machine that is busy
				w.Logf("%s asks %s at %s over %s again", a.from.Name, a.what, net.JoinHostPort(a.to, strconv.Itoa(port)), protocol)
				client, got, err = ask(a.from, protocol, a.to, port)
			}
			if got != a.want || err != nil || got == lab.Answered && a.as != "" && client != a.as {
				w.Errorf("%s asks %s at %s over %s: %s as %q, want %s as %q (%v)", a.from.Name, a.what, net.JoinHostPort(a.to, strconv.Itoa(port)), protocol, got, client, a.want, a.as, err)
			}
		}
	}
}
