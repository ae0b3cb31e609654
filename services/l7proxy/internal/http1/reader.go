package http1

import (
	"errors"
	"io"
	"sync"
)

// Buffers lends buffers to Readers, so that an idle connection holds none that
// another could use. It may be used by any number of goroutines.
type Buffers struct{ small, large sync.Pool }

const (
	smallBuffer = 4 << 10
	largeBuffer = MaxHead
)

func (b *Buffers) get(size int) []byte {
	pool := &b.small
	if size > smallBuffer {
		pool, size = &b.large, largeBuffer
	}
	if p, ok := pool.Get().(*[]byte); ok {
		return *p
	}
	return make([]byte, size)
}

func (b *Buffers) put(buf []byte) {
	buf = buf[:cap(buf)]
	switch cap(buf) {
	case smallBuffer:
		b.small.Put(&buf)
	case largeBuffer:
		b.large.Put(&buf)
	}
}

// A Reader buffers what one end of a connection sends. It is one goroutine's.
type Reader struct {
	src     io.Reader
	buffers *Buffers
	buf     []byte // nil while nothing is buffered
	r, w    int    // buf[r:w] has been read and not been taken
}

// NewReader returns a Reader of src.
func NewReader(src io.Reader, buffers *Buffers) *Reader {
	return &Reader{src: src, buffers: buffers}
}

// Buffered returns what has been read and not been taken. It is valid until
// the next call.
func (r *Reader) Buffered() []byte { return r.buf[r.r:r.w] }

// Take drops n buffered bytes.
func (r *Reader) Take(n int) {
	r.r += n
	if r.r == r.w {
		r.Release()
	}
}

// Release gives the buffer back. What it holds is lost.
func (r *Reader) Release() {
	if r.buf != nil {
		r.buffers.put(r.buf)
		r.buf, r.r, r.w = nil, 0, 0
	}
}

// errFull: the buffer has its greatest size and nothing has been taken.
var errFull = errors.New("the buffer is full")

// Fill reads once from the source. At its end it returns io.EOF.
func (r *Reader) Fill() error {
	switch {
	case r.buf == nil:
		r.buf = r.buffers.get(smallBuffer)
	case r.w < len(r.buf):
	case r.r > 0:
		r.w = copy(r.buf, r.buf[r.r:r.w])
		r.r = 0
	case len(r.buf) < largeBuffer:
		large := r.buffers.get(largeBuffer)
		copy(large, r.buf)
		r.buffers.put(r.buf)
		r.buf = large
	default:
		return errFull
	}
	n, err := r.src.Read(r.buf[r.w:])
	r.w += n
	if n > 0 {
		return nil
	}
	if r.r == r.w {
		r.Release()
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

// Head waits for a complete head and returns it; it stays buffered. At the end
// of the source it returns io.EOF if nothing is buffered, else
// io.ErrUnexpectedEOF.
func (r *Reader) Head() ([]byte, error) {
	seen := 0
	for {
		b := r.Buffered()
		n, err := HeadLen(b, seen)
		if err != nil {
			return nil, err
		}
		if n > 0 {
			return b[:n], nil
		}
		seen = len(b)
		switch err := r.Fill(); {
		case errors.Is(err, errFull):
			return nil, &Error{431, ReasonTooLarge, "the head is longer than 64 KiB"}
		case errors.Is(err, io.EOF) && seen > 0:
			return nil, io.ErrUnexpectedEOF
		case err != nil:
			return nil, err
		}
	}
}
