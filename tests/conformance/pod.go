package conformance

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync/atomic"

	corev1 "k8s.io/api/core/v1"

	"github.com/weirnet/weir/tests/lab"
)

// pod is an attached pod with its servers and clients. UDP and SCTP go by the same sockets
// for the pod's whole life, so what a step forbids has to stop, and to come back; TCP
// connects anew for each question.
type pod struct {
	*lab.Pod
	udp, sctp map[int]net.PacketConn // by family
	thread    chan func()            // run in the pod's network namespace, one after the other
	wave      atomic.Pointer[wave]   // whom answers are for
	close     func()
}

// newPod starts what a pod runs. Close ends it; it must not be used after that.
func newPod(p *lab.Pod) (*pod, error) {
	ctx, cancel := context.WithCancel(context.Background())
	out := &pod{Pod: p, udp: map[int]net.PacketConn{}, sctp: map[int]net.PacketConn{}, thread: make(chan func())}
	out.close = func() {
		cancel()
		close(out.thread)
		for _, family := range []int{4, 6} {
			for _, conn := range []net.PacketConn{out.udp[family], out.sctp[family]} {
				if conn != nil {
					conn.Close()
				}
			}
		}
	}
	if err := errors.Join(p.Serve(ctx, ports...), p.Do(out.open)); err != nil {
		out.close()
		return nil, fmt.Errorf("start servers of %s: %w", p.Name, err)
	}
	go func() {
		_ = p.Do(func() error { // fails only where Serve above does
			for f := range out.thread {
				f()
			}
			return nil
		})
	}()
	return out, nil
}

// open makes the sockets that last.
func (p *pod) open() (err error) {
	for _, family := range []int{4, 6} {
		if p.udp[family], err = net.ListenPacket(fmt.Sprint("udp", family), ":0"); err != nil {
			return err
		}
		if p.sctp[family], err = net.ListenPacket(fmt.Sprintf("ip%d:%d", family, numbers[corev1.ProtocolSCTP]), ""); err != nil {
			return err
		}
		go p.readUDP(p.udp[family])
		go p.readSCTP(p.sctp[family])
	}
	return nil
}

func (p *pod) readUDP(conn net.PacketConn) {
	b := make([]byte, 64)
	for {
		n, _, err := conn.ReadFrom(b)
		if err != nil {
			return
		}
		if n == tokenSize {
			p.answered(token(binary.BigEndian.Uint32(b)))
		}
	}
}

// answered notes an answer, if somebody still waits for it.
func (p *pod) answered(t token) {
	if w := p.wave.Load(); w != nil {
		w.answer(t)
	}
}

// sendUDP puts the question's token in a datagram; it comes back as it is.
func (p *pod) sendUDP(t token, q question) error {
	b := binary.BigEndian.AppendUint32(nil, uint32(t))
	_, err := p.udp[q.family()].WriteTo(b, &net.UDPAddr{IP: q.toAddr.AsSlice(), Port: q.port})
	return err
}

// sendSCTP puts the question's token in a handshake; it comes back as the answer's tag.
func (p *pod) sendSCTP(t token, q question) error {
	b := sctpPacket(sctpClient, uint16(q.port), 0, sctpInit, uint32(t))
	_, err := p.sctp[q.family()].WriteTo(b, &net.IPAddr{IP: q.toAddr.AsSlice()})
	return err
}
