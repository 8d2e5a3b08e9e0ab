package sockets

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Numbers of linux/sock_diag.h and linux/inet_diag.h.
const (
	sockDiagByFamily = 20
	sockDestroy      = 21
	stateEstablished = 1 << 1
)

// socketID is inet_diag_sockid: which socket, in wire order, with its cookie.
type socketID [48]byte

// request is inet_diag_req_v2.
type request struct {
	family, protocol, ext, pad uint8
	states                     uint32
	id                         socketID
}

// messageHead is what of inet_diag_msg comes before the id, messageSize all of it.
const (
	messageHead = 4
	messageSize = 72
)

// cookie is what programs know the socket by.
func (id socketID) cookie() uint64 { return binary.NativeEndian.Uint64(id[40:]) }

// remote is who the socket is connected to.
func (id socketID) remote(family uint8) netip.AddrPort {
	port := binary.BigEndian.Uint16(id[2:])
	if family == unix.AF_INET {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(id[20:])), port)
	}
	return netip.AddrPortFrom(netip.AddrFrom16([16]byte(id[20:])).Unmap(), port)
}

// diag asks the kernel about the sockets of the namespace it was opened in.
type diag struct{ fd int }

func openDiag() (*diag, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, fmt.Errorf("open sock_diag: %w", err)
	}
	patience := unix.Timeval{Sec: 10}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience); err != nil {
		return nil, errors.Join(fmt.Errorf("set sock_diag's timeout: %w", err), unix.Close(fd))
	}
	return &diag{fd}, nil
}

func (d *diag) close() { _ = unix.Close(d.fd) }

// connectedUDP lists the connected UDP sockets of a family.
func (d *diag) connectedUDP(family uint8) (out []socketID, err error) {
	err = d.talk(sockDiagByFamily, unix.NLM_F_DUMP, request{family: family, protocol: unix.IPPROTO_UDP, states: stateEstablished}, func(m []byte) {
		if len(m) >= messageSize {
			out = append(out, socketID(m[messageHead:]))
		}
	})
	if err != nil {
		return nil, fmt.Errorf("list UDP sockets: %w", err)
	}
	return out, nil
}

// destroy ends a socket: its owner's calls fail with ECONNABORTED.
func (d *diag) destroy(family uint8, id socketID) error {
	err := d.talk(sockDestroy, unix.NLM_F_ACK, request{family: family, protocol: unix.IPPROTO_UDP, states: stateEstablished, id: id}, func([]byte) {})
	if err != nil {
		return fmt.Errorf("end UDP socket: %w", err)
	}
	return nil
}

// talk sends a request and hands on what comes, until the kernel says that it is done.
func (d *diag) talk(kind uint16, flags uint16, r request, message func([]byte)) error {
	body := unsafe.Slice((*byte)(unsafe.Pointer(&r)), unsafe.Sizeof(r))
	head := unix.NlMsghdr{Len: uint32(unix.NLMSG_HDRLEN + len(body)), Type: kind, Flags: unix.NLM_F_REQUEST | flags, Seq: 1}
	out := append(unsafe.Slice((*byte)(unsafe.Pointer(&head)), unix.NLMSG_HDRLEN), body...)
	if err := unix.Sendto(d.fd, out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	in := make([]byte, 1<<16)
	for {
		n, _, err := unix.Recvfrom(d.fd, in, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		for b := in[:n]; len(b) >= unix.NLMSG_HDRLEN; {
			head := (*unix.NlMsghdr)(unsafe.Pointer(&b[0]))
			if head.Len < unix.NLMSG_HDRLEN || int(head.Len) > len(b) {
				return errors.New("the answer is cut short")
			}
			body := b[unix.NLMSG_HDRLEN:head.Len]
			switch {
			case head.Type == unix.NLMSG_DONE:
				return nil
			case head.Type == unix.NLMSG_ERROR && len(body) >= 4:
				if code := int32(binary.NativeEndian.Uint32(body)); code != 0 {
					return unix.Errno(-code)
				}
				return nil
			}
			message(body)
			b = b[min(len(b), aligned(int(head.Len))):]
		}
	}
}

func aligned(n int) int { return (n + 3) &^ 3 }
