package sockets

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/bpf"
)

// Numbers of linux/sock_diag.h and linux/inet_diag.h.
const (
	sockDiagByFamily = 20
	sockDestroy      = 21
	attrStorages     = 2  // INET_DIAG_REQ_SK_BPF_STORAGES
	attrMapFD        = 1  // SK_DIAG_BPF_STORAGE_REQ_MAP_FD
	replyStorages    = 20 // INET_DIAG_SK_BPF_STORAGES
	replyStorage     = 1  // SK_DIAG_BPF_STORAGE
	replyValue       = 3  // SK_DIAG_BPF_STORAGE_MAP_VALUE
	stateEstablished = 1 << 1
	typeMask         = 1<<14 - 1 // of an attribute, without its flags
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

// socket is a connected one that was translated.
type socket struct {
	id          socketID
	translation bpf.SockTranslation
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

// connectedUDP lists the connected UDP sockets of a family that have a value in the map.
func (d *diag) connectedUDP(family uint8, mapFD int) (out []socket, err error) {
	fd := binary.NativeEndian.AppendUint32(nil, uint32(mapFD))
	ask := attribute(attrStorages|unix.NLA_F_NESTED, attribute(attrMapFD, fd))
	err = d.talk(sockDiagByFamily, unix.NLM_F_DUMP, request{family: family, protocol: unix.IPPROTO_UDP, states: stateEstablished}, ask, func(m []byte) {
		if len(m) < messageSize {
			return
		}
		s := socket{id: socketID(m[messageHead:])}
		storage := find(find(m[messageSize:], replyStorages), replyStorage)
		var ok bool
		if s.translation, ok = decode(find(storage, replyValue)); ok {
			out = append(out, s)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("list UDP sockets: %w", err)
	}
	return out, nil
}

// destroy ends a socket: its owner's calls fail with ECONNABORTED.
func (d *diag) destroy(family uint8, id socketID) error {
	err := d.talk(sockDestroy, unix.NLM_F_ACK, request{family: family, protocol: unix.IPPROTO_UDP, states: stateEstablished, id: id}, nil, func([]byte) {})
	if err != nil {
		return fmt.Errorf("end UDP socket: %w", err)
	}
	return nil
}

// talk sends a request and hands on what comes, until the kernel says that it is done.
func (d *diag) talk(kind uint16, flags uint16, r request, attributes []byte, message func([]byte)) error {
	body := append(unsafe.Slice((*byte)(unsafe.Pointer(&r)), unsafe.Sizeof(r)), attributes...)
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

func attribute(kind uint16, value []byte) []byte {
	out := binary.NativeEndian.AppendUint16(nil, uint16(unix.SizeofNlAttr+len(value)))
	out = append(binary.NativeEndian.AppendUint16(out, kind), value...)
	return append(out, make([]byte, aligned(len(out))-len(out))...)
}

// find is the value of the first attribute of a kind; nil if there is none.
func find(attributes []byte, kind uint16) []byte {
	for len(attributes) >= unix.SizeofNlAttr {
		length := int(binary.NativeEndian.Uint16(attributes))
		if length < unix.SizeofNlAttr || length > len(attributes) {
			return nil
		}
		if binary.NativeEndian.Uint16(attributes[2:])&typeMask == kind {
			return attributes[unix.SizeofNlAttr:length]
		}
		attributes = attributes[min(len(attributes), aligned(length)):]
	}
	return nil
}
