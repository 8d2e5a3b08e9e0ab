package bypass

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/tests/lab"
)

// errNoDevice is a packet socket's whose interface went.
var errNoDevice = unix.ENXIO

// patience is how long something is waited for that has to come.
var patience = 20 * time.Second

// end is a pod, or the outside, that has a packet socket on its interface: it sends any
// frame, and sees all that arrive.
type end struct {
	*lab.Host
	pod    bool
	gate   net.HardwareAddr // of the node's side
	socket *os.File

	mu  sync.Mutex
	got [][]byte
}

func openEnd(t *testing.T, h *lab.Host, device string, pod bool, gate net.HardwareAddr) *end {
	t.Helper()
	e := &end{Host: h, pod: pod, gate: gate}
	err := h.Do(func() (err error) {
		e.socket, err = packetSocket(device)
		return err
	})
	if err != nil {
		t.Fatalf("packet socket of %s: %v", h.Name, err)
	}
	t.Cleanup(func() { e.socket.Close() })
	go e.listen()
	return e
}

// packetSocket sends by the device and receives what it receives.
func packetSocket(device string) (*os.File, error) {
	link, err := net.InterfaceByName(device)
	if err != nil {
		return nil, err
	}
	const all = unix.ETH_P_ALL>>8 | unix.ETH_P_ALL<<8&0xffff // big-endian
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("ignore what is sent: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("receive buffer: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Index}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("bind to %s: %w", device, err)
	}
	return os.NewFile(uintptr(fd), "packet"), nil
}

func (e *end) listen() {
	for {
		b := make([]byte, 65536)
		n, err := e.socket.Read(b)
		if err != nil {
			return
		}
		e.mu.Lock()
		e.got = append(e.got, b[:n:n])
		e.mu.Unlock()
	}
}

// send puts a frame on the wire, to the node's side of it.
func (e *end) send(frame []byte) error {
	f := bytes.Clone(frame)
	copy(f, e.gate)
	_, err := e.socket.Write(f)
	return err
}

// offload is struct virtio_net_hdr: what the kernel is to believe of a frame's segments.
type offload struct {
	flags, kind               byte
	header, size, start, sums uint16
}

// sendOffloaded is send with a word of what the frame is made of, true or not.
func (e *end) sendOffloaded(o offload, frame []byte) error {
	f := binary.NativeEndian.AppendUint16([]byte{o.flags, o.kind}, o.header)
	for _, n := range []uint16{o.size, o.start, o.sums} {
		f = binary.NativeEndian.AppendUint16(f, n)
	}
	f = append(f, frame...)
	copy(f[10:], e.gate)
	return e.Do(func() error {
		s, err := packetSocket("eth0")
		if err != nil {
			return err
		}
		defer s.Close()
		raw, err := s.SyscallConn()
		if err != nil {
			return err
		}
		var failed error
		err = raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1) })
		if err := errors.Join(err, failed); err != nil {
			return err
		}
		_, err = s.Write(f)
		return err
	})
}

// forget empties what was received.
func (e *end) forget() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.got = nil
}

// received are the frames to single hosts, less what neighbours say of themselves.
func (e *end) received() [][]byte {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out [][]byte
	for _, f := range e.got {
		if !isChatter(f) {
			out = append(out, f)
		}
	}
	return out
}

// find waits for a frame that is as told, nil if none comes.
func (e *end) find(is func([]byte) bool) []byte {
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(time.Millisecond) {
		for _, f := range e.received() {
			if is(f) {
				return f
			}
		}
	}
	return nil
}

// await reports whether the frame arrives, as it was sent.
func (e *end) await(frame []byte) bool {
	return e.find(func(f []byte) bool { return bytes.Equal(packetOf(f), packetOf(frame)) }) != nil
}

// isChatter is multicast of the link and neighbour discovery, which the node's side has, too.
func isChatter(f []byte) bool {
	if len(f) < 54 {
		return len(f) >= 14 && f[12] == 8 && f[13] == 6 // ARP
	}
	if f[12] == 8 && f[13] == 6 {
		return true
	}
	v6 := f[12] == 0x86 && f[13] == 0xdd
	return v6 && (f[38] == 0xff || f[20] == 58 && f[54] >= 133 && f[54] <= 137)
}

// packetOf is the packet in a frame as it is at both ends: without what a hop changes, and
// without padding.
func packetOf(f []byte) []byte {
	p, n := bytes.Clone(f[14:]), len(f)-14
	switch {
	case len(p) >= 20 && p[0]>>4 == 4:
		p[8], p[10], p[11] = 0, 0, 0
		n = int(binary.BigEndian.Uint16(p[2:]))
	case len(p) >= 40 && p[0]>>4 == 6:
		p[7] = 0
		n = 40 + int(binary.BigEndian.Uint16(p[4:]))
	}
	return p[:min(n, len(p))]
}
