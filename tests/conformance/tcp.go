package conformance

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// pollTime is how long a thread waits for its connections before it looks whether the wave
// is over, ms.
const pollTime = 2

// call is a connection that a question is put by.
type call struct {
	token token
	fd    int
	asked bool // it is made and the token is on its way
}

// callAll connects for each of the questions that tokens name and returns when the wave is
// over. It runs in the pod's thread.
func (p *pod) callAll(w *wave, tokens []token) error {
	var open []*call
	defer func() {
		for _, c := range open {
			unix.Close(c.fd)
		}
	}()
	for _, t := range tokens {
		fd, err := connect(w.expected[t.index()].question)
		if fd >= 0 {
			open = append(open, &call{token: t, fd: fd})
		}
		if err != nil {
			return fmt.Errorf("connect from %s: %w", p.Name, err)
		}
	}
	for w.going() {
		left, err := step(w, open)
		if open = left; err != nil {
			return fmt.Errorf("calls from %s: %w", p.Name, err)
		}
	}
	return nil
}

// connect begins to. Closing the connection resets it, so that nothing of it is left for the
// next step's policies.
func connect(q question) (int, error) {
	domain, to := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: q.port, Addr: q.toAddr.As16()})
	if q.toAddr.Is4() {
		domain, to = unix.AF_INET, &unix.SockaddrInet4{Port: q.port, Addr: q.toAddr.As4()}
	}
	fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return fd, err
	}
	if err := unix.Connect(fd, to); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return fd, err
	}
	return fd, nil
}

// step waits a moment and takes each open call as far as it goes. It returns those that are
// still open.
func step(w *wave, open []*call) ([]*call, error) {
	fds := make([]unix.PollFd, len(open))
	for i, c := range open {
		fds[i] = unix.PollFd{Fd: int32(c.fd), Events: unix.POLLOUT}
		if c.asked {
			fds[i].Events = unix.POLLIN
		}
	}
	if _, err := unix.Poll(fds, pollTime); err != nil && !errors.Is(err, unix.EINTR) {
		return open, err
	}
	var left []*call
	for i, c := range open {
		if fds[i].Revents == 0 || !c.proceed(w) {
			left = append(left, c)
			continue
		}
		unix.Close(c.fd)
	}
	return left, nil
}

// proceed reports whether the call is over: answered, or refused.
func (c *call) proceed(w *wave) bool {
	if !c.asked {
		c.asked = true
		if errno, err := unix.GetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_ERROR); err != nil || errno != 0 {
			w.refuse(c.token)
			return true
		}
		_, err := unix.Write(c.fd, binary.BigEndian.AppendUint32(nil, uint32(c.token)))
		return err != nil
	}
	var b [tokenSize]byte
	n, err := unix.Read(c.fd, b[:])
	if errors.Is(err, unix.EAGAIN) {
		return false
	}
	if n == tokenSize && token(binary.BigEndian.Uint32(b[:])) == c.token {
		w.answer(c.token)
	} else {
		w.refuse(c.token)
	}
	return true
}
