package traffic

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// bye asks the echo to close.
const bye = 'q'

// listen opens a TCP port of both families.
func listen(port string) (uintptr, error) {
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return 0, err
	}
	fd, err := socket(unix.AF_INET6, unix.SOCK_STREAM)
	if err != nil {
		return 0, err
	}
	if err := unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return 0, err
	}
	if err := unix.Bind(int(fd), &unix.SockaddrInet6{Port: int(n)}); err != nil {
		return 0, fmt.Errorf("port %s: %w", port, err)
	}
	if err := unix.Listen(int(fd), 512); err != nil {
		return 0, err
	}
	fmt.Println("listening")
	return fd, nil
}

func accept(fd uintptr) (uintptr, error) {
	conn, _, errno := unix.RawSyscall6(unix.SYS_ACCEPT4, fd, 0, 0, 0, 0, 0)
	return conn, failed(errno)
}

// echo sends back what comes, one connection at a time.
func echo(args []string) error {
	fd, err := listen(args[0])
	if err != nil {
		return err
	}
	b := make([]byte, 64)
	for {
		conn, err := accept(fd)
		if err != nil {
			continue
		}
		_ = noDelay(conn)
		for {
			n, err := read(conn, b)
			if n <= 0 || err != nil {
				break
			}
			if _, err := write(conn, b[:n]); err != nil || b[0] == bye {
				break
			}
		}
		closeFD(conn)
	}
}

// take reads to the end and says how much it was.
func take(args []string) error {
	fd, err := listen(args[0])
	if err != nil {
		return err
	}
	b, total := make([]byte, 128<<10), make([]byte, 8)
	for {
		conn, err := accept(fd)
		if err != nil {
			continue
		}
		sum := uint64(0)
		for {
			n, err := read(conn, b)
			if n <= 0 || err != nil {
				break
			}
			sum += uint64(n)
		}
		binary.LittleEndian.PutUint64(total, sum)
		_, _ = write(conn, total)
		closeFD(conn)
	}
}

// client is a target and until when to send to it.
type client struct {
	*target
	burst time.Duration
}

func newClient(args []string) (c client, err error) {
	if c.target, err = parseTarget(args[0], args[1]); err != nil {
		return c, err
	}
	c.burst, err = burst(args[2])
	return c, err
}

func (c client) open() (uintptr, error) {
	fd, err := socket(c.inet, unix.SOCK_STREAM)
	if err != nil {
		return 0, err
	}
	// Past a SYN that is dropped the burst is over.
	if err := unix.SetsockoptTimeval(int(fd), unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Sec: 1}); err != nil {
		return 0, err
	}
	if err := unix.SetsockoptTimeval(int(fd), unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 2}); err != nil {
		return 0, err
	}
	if err := c.connect(fd); err != nil {
		closeFD(fd)
		return 0, fmt.Errorf("connect: %w", err)
	}
	return fd, noDelay(fd)
}

// pingpong has a byte go there and back.
func pingpong(args []string) error {
	c, err := newClient(args)
	if err != nil {
		return err
	}
	fd, err := c.open()
	if err != nil {
		return err
	}
	b, n := []byte{'x'}, uint64(0)
	began := now()
	for end := began + c.burst.Nanoseconds(); now() < end; n++ {
		if _, err := write(fd, b); err != nil {
			return err
		}
		if got, err := read(fd, b); got != 1 || err != nil {
			return fmt.Errorf("after %d: no answer: %w", n, err)
		}
	}
	rate(n, began)
	return nil
}

// connect opens, has a byte go there and back, and closes after the other end.
func connect(args []string) error {
	began := now()
	n, err := connections(args)
	if err == nil {
		rate(n, began)
	}
	return err
}

// churn is connect, counted.
func churn(args []string) error {
	n, err := connections(args)
	if err == nil {
		fmt.Println(n)
	}
	return err
}

func connections(args []string) (n uint64, err error) {
	c, err := newClient(args)
	if err != nil {
		return 0, err
	}
	b, began := make([]byte, 1), now()
	for end := began + c.burst.Nanoseconds(); now() < end; n++ {
		fd, err := c.open()
		if err != nil {
			return n, fmt.Errorf("after %d: %w", n, err)
		}
		b[0] = bye
		if _, err := write(fd, b); err != nil {
			return n, fmt.Errorf("after %d: %w", n, err)
		}
		if got, err := read(fd, b); got != 1 || err != nil {
			return n, fmt.Errorf("after %d: no answer: %w", n, err)
		}
		_, _ = read(fd, b)
		closeFD(fd)
	}
	return n, nil
}

// bulk writes without end; bytes are those that the other end had.
func bulk(args []string) error {
	c, err := newClient(args)
	if err != nil {
		return err
	}
	fd, err := c.open()
	if err != nil {
		return err
	}
	b := make([]byte, 128<<10)
	began := now()
	for end := began + c.burst.Nanoseconds(); now() < end; {
		if _, err := write(fd, b); err != nil {
			return err
		}
	}
	if err := unix.Shutdown(int(fd), unix.SHUT_WR); err != nil {
		return err
	}
	if n, err := read(fd, b[:8]); n != 8 || err != nil {
		return fmt.Errorf("the other end did not say how much came: %w", err)
	}
	rate(binary.LittleEndian.Uint64(b), began)
	return nil
}
