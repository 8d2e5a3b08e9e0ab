package traffic

import (
	"encoding/hex"
	"fmt"
	"net"
	"unsafe"

	"golang.org/x/sys/unix"
)

// many packets go with one call.
const many = 64

// message is struct mmsghdr.
type message struct {
	header unix.Msghdr
	_      [2]uint32 // its length, as sent
}

// batch sends a packet many times.
type batch struct {
	vectors  [many]unix.Iovec
	messages [many]message
}

func newBatch(packet []byte) *batch {
	b := &batch{}
	for i := range many {
		b.vectors[i] = unix.Iovec{Base: &packet[0], Len: uint64(len(packet))}
		b.messages[i].header.Iov = &b.vectors[i]
		b.messages[i].header.Iovlen = 1
	}
	return b
}

func (b *batch) send(fd uintptr) (int, error) {
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&b.messages)), many, 0, 0, 0)
	switch errno {
	case 0:
		return int(n), nil
	case unix.ENOBUFS, unix.EPERM, unix.ECONNREFUSED, unix.EAGAIN: // full, or dropped on the way out
		return 0, nil
	}
	return 0, errno
}

// Ports of the two ends of datagrams.
const (
	udpFrom = 7003
	udpTo   = 7001
)

// udp sends datagrams of 22 bytes.
func udp(args []string) error {
	c, fd, err := datagrams(args, udpFrom)
	if err != nil {
		return err
	}
	return send(fd, make([]byte, 22), c.burst.Nanoseconds())
}

// opening is one datagram, and waits for the answer.
func opening(args []string) error {
	c, fd, err := datagrams(args, udpFrom)
	if err != nil {
		return err
	}
	wait := unix.NsecToTimeval(c.burst.Nanoseconds())
	if err := unix.SetsockoptTimeval(int(fd), unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
		return err
	}
	b := make([]byte, 22)
	if _, err := write(fd, b); err != nil {
		return err
	}
	if _, err := read(fd, b); err != nil {
		return fmt.Errorf("no answer: %w", err)
	}
	fmt.Println(1)
	return nil
}

// answer is one datagram the other way.
func answer(args []string) error {
	_, fd, err := datagrams(args, udpTo)
	if err != nil {
		return err
	}
	_, err = write(fd, make([]byte, 22))
	fmt.Println(1)
	return err
}

func datagrams(args []string, from int) (c client, fd uintptr, err error) {
	if c, err = newClient(args); err != nil {
		return c, 0, err
	}
	if fd, err = socket(c.inet, unix.SOCK_DGRAM); err != nil {
		return c, 0, err
	}
	var own unix.Sockaddr = &unix.SockaddrInet4{Port: from}
	if c.inet == unix.AF_INET6 {
		own = &unix.SockaddrInet6{Port: from}
	}
	if err := unix.Bind(int(fd), own); err != nil {
		return c, 0, fmt.Errorf("port %d: %w", from, err)
	}
	return c, fd, c.connect(fd)
}

func send(fd uintptr, packet []byte, ns int64) error {
	b, n := newBatch(packet), uint64(0)
	began := now()
	for end := began + ns; now() < end; {
		sent, err := b.send(fd)
		if err != nil {
			return fmt.Errorf("after %d: %w", n, err)
		}
		n += uint64(sent)
	}
	rate(n, began)
	return nil
}

// raw sends frames by a device, past its queue.
func raw(args []string) error {
	frame, err := hex.DecodeString(args[1])
	if err != nil || len(frame) < 14 {
		return fmt.Errorf("frame %q: %w", args[1], err)
	}
	d, err := burst(args[2])
	if err != nil {
		return err
	}
	device, err := net.InterfaceByName(args[0])
	if err != nil {
		return err
	}
	fd, err := socket(unix.AF_PACKET, unix.SOCK_RAW)
	if err != nil {
		return err
	}
	if err := unix.SetsockoptInt(int(fd), unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1); err != nil {
		return err
	}
	if err := unix.Bind(int(fd), &unix.SockaddrLinklayer{Protocol: 0, Ifindex: device.Index}); err != nil {
		return err
	}
	return send(fd, frame, d.Nanoseconds())
}
