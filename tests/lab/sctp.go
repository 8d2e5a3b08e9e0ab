package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// ConnectSCTP opens an SCTP association of one stream from within the namespace.
func (h *Host) ConnectSCTP(addr string, port int) (net.Conn, error) {
	ip, err := netip.ParseAddr(addr)
	if err != nil {
		return nil, err
	}
	var conn net.Conn
	err = h.Do(func() error {
		conn, err = dialSCTP(netip.AddrPortFrom(ip, uint16(port)))
		return err
	})
	return conn, err
}

// dialSCTP connects from the thread's namespace. The net package takes the socket for TCP's,
// which it is like.
func dialSCTP(to netip.AddrPort) (net.Conn, error) {
	family, at := sctpAddr(to)
	s, err := socketSCTP(family)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	patience := unix.NsecToTimeval(Patience.Nanoseconds())
	if err := unix.SetsockoptTimeval(int(s.Fd()), unix.SOL_SOCKET, unix.SO_SNDTIMEO, &patience); err != nil {
		return nil, fmt.Errorf("set the connect timeout: %w", err)
	}
	err = unix.Connect(int(s.Fd()), at)
	if errors.Is(err, unix.EINPROGRESS) {
		err = os.ErrDeadlineExceeded
	}
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", to, err)
	}
	return net.FileConn(s)
}

func sctpAddr(to netip.AddrPort) (family int, at unix.Sockaddr) {
	if to.Addr().Is4() {
		return unix.AF_INET, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	}
	return unix.AF_INET6, &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
}

func socketSCTP(family int) (*os.File, error) {
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	if err != nil {
		return nil, fmt.Errorf("open an SCTP socket: %w", err)
	}
	return os.NewFile(uintptr(fd), "sctp"), nil
}

// probeSCTP wants an answer by the association, as a handshake tells only of itself.
func probeSCTP(to netip.AddrPort) (Answer, error) {
	conn, err := dialSCTP(to)
	if err != nil {
		return judge(err)
	}
	defer conn.Close()
	return exchange(conn)
}

// ServeSCTP is Serve for SCTP.
func (h *Host) ServeSCTP(ctx context.Context, ports ...int) error {
	return h.Do(func() error {
		for _, port := range ports {
			if err := serveSCTP(ctx, port); err != nil {
				return fmt.Errorf("serve SCTP port %d in %s: %w", port, h.Name, err)
			}
		}
		return nil
	})
}

func serveSCTP(ctx context.Context, port int) error {
	s, err := socketSCTP(unix.AF_INET6)
	if err != nil {
		return err
	}
	defer s.Close()
	if err := unix.Bind(int(s.Fd()), &unix.SockaddrInet6{Port: port}); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	if err := unix.Listen(int(s.Fd()), 16); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	l, err := net.FileListener(s)
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { l.Close() })
	go accept(ctx, l)
	return nil
}
