package proxy

import (
	"errors"
	"io"
	"net"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// errWoken: the other goroutine of the connection has ended it.
var errWoken = errors.New("the other end is gone")

// errPaused: nothing was read, because the connection is given away.
var errPaused = errors.New("the connection is given away")

// A side is one end of a proxied connection, with limits on how long a read or
// a write may take. One goroutine reads it, another may write it.
type side struct {
	tcp   *net.TCPConn
	write time.Duration // for one write
	woken atomic.Bool
	// paused ends a read that has read nothing yet.
	paused atomic.Bool
	// How a read found the connection ended: reset by the peer, or by the node.
	wasReset, wasCut atomic.Bool
	// For the next reads: until then, or, if each is set, that long for each.
	until time.Time
	each  time.Duration
}

func (s *side) Read(b []byte) (int, error) {
	if err := s.arm(); err != nil {
		return 0, err
	}
	n, err := s.tcp.Read(b)
	switch {
	case errors.Is(err, syscall.ECONNRESET):
		s.wasReset.Store(true)
	case errors.Is(err, syscall.ECONNABORTED):
		s.wasCut.Store(true)
	}
	if err != nil && s.woken.Load() {
		return n, errWoken
	}
	if err != nil && s.paused.Load() && isTimeout(err) {
		return n, errPaused
	}
	return n, err
}

func (s *side) arm() error {
	deadline := s.until
	if s.each > 0 {
		deadline = time.Now().Add(s.each)
	}
	if err := s.tcp.SetReadDeadline(deadline); err != nil {
		return err
	}
	if s.woken.Load() { // after the deadline was set, which may have hidden a wake's
		return errWoken
	}
	if s.paused.Load() {
		return errPaused
	}
	return nil
}

// pause makes reads under way and to come return errPaused, until resume.
func (s *side) pause() {
	s.paused.Store(true)
	_ = s.tcp.SetReadDeadline(time.Unix(1, 0)) // an error: closed, which ends reads too
}

func (s *side) resume() { s.paused.Store(false) }

// wake makes reads under way and to come return errWoken.
func (s *side) wake() {
	s.woken.Store(true)
	// An error says that the connection is closed, which wakes as well.
	_ = s.tcp.SetReadDeadline(time.Unix(1, 0))
}

func (s *side) Write(b []byte) (int, error) {
	if err := s.tcp.SetWriteDeadline(time.Now().Add(s.write)); err != nil {
		return 0, err
	}
	return s.tcp.Write(b)
}

// What a look at a connection finds that nobody reads.
type found uint8

const (
	quiet found = iota // nothing, or bytes
	ended              // the peer has closed its half, and all before it was read
	gone               // a reset
)

func (s *side) look() found {
	raw, err := s.tcp.SyscallConn()
	if err != nil {
		return gone
	}
	f := gone
	err = raw.Control(func(fd uintptr) {
		var b [1]byte
		n, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		switch {
		case n > 0 || errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR):
			f = quiet
		case err == nil:
			f = ended
		}
	})
	if err != nil {
		return gone
	}
	return f
}

// spliceAtOnce bounds what one deadline is for.
const spliceAtOnce = 256 << 10

// SpliceTo moves n bytes to another side within the kernel. It returns early
// without an error at the connection's end.
func (s *side) SpliceTo(dst io.Writer, n int64) (int64, error) {
	d, ok := dst.(*side)
	if !ok {
		return 0, errors.ErrUnsupported
	}
	done := int64(0)
	for done < n {
		if err := s.arm(); err != nil {
			return done, err
		}
		if err := d.tcp.SetWriteDeadline(time.Now().Add(max(s.each, d.write))); err != nil {
			return done, err
		}
		want := min(n-done, spliceAtOnce)
		got, err := d.tcp.ReadFrom(&io.LimitedReader{R: s.tcp, N: want})
		done += got
		if err != nil || got < want {
			return done, err
		}
	}
	return done, nil
}

// finish ends the sending half and reads on for a moment, so that what was
// written is not lost to a reset by bytes that nobody will read.
func (s *side) finish() {
	s.each, s.until = 0, time.Now().Add(time.Second)
	if err := s.tcp.CloseWrite(); err != nil || s.arm() != nil {
		return
	}
	// What comes is of no interest, nor why it ends.
	_, _ = io.CopyN(io.Discard, onlyReader{s.tcp}, 256<<10)
}

// onlyReader hides what else a connection can do.
type onlyReader struct{ io.Reader }

// reset closes a connection so that the peer sees a reset.
func reset(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		// An error says that the connection is gone already.
		_ = t.SetLinger(0)
	}
	_ = c.Close()
}

// isTransient reports whether accept may succeed when tried again.
func isTransient(err error) bool {
	for _, e := range []syscall.Errno{
		syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED, syscall.EPROTO,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
