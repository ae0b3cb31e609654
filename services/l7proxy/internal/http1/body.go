package http1

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// WriteError is an error of the side that a body is copied to.
type WriteError struct{ Err error }

func (e *WriteError) Error() string { return fmt.Sprintf("write body: %v", e.Err) }

func (e *WriteError) Unwrap() error { return e.Err }

// A splicer moves bytes to a writer without their passing through this process.
type splicer interface {
	SpliceTo(dst io.Writer, n int64) (int64, error)
}

// spliceFrom is the least rest of a body that is worth two system calls more.
const spliceFrom = 64 << 10

// CopyBody copies a body from r to dst and takes it. A dst of nil throws it
// away. It returns an *Error if the body is malformed, a *WriteError if dst
// fails, else an error of the source; io.ErrUnexpectedEOF if it ends too soon.
func CopyBody(dst io.Writer, r *Reader, kind Kind, length int64) error {
	if dst == nil {
		dst = io.Discard
	}
	var err error
	switch kind {
	case NoBody:
		return nil
	case Length:
		err = copyN(dst, r, length)
	case Chunked:
		err = copyChunks(dst, r, nil)
	case UntilEOF:
		for err == nil {
			err = copySome(dst, r)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		return err
	default:
		return fmt.Errorf("copy a body of kind %d", kind)
	}
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// withHead is what of a body is worth to be copied to go out with its head.
const withHead = 4 << 10

// Send writes a head, with what is buffered of a body if that is little, and
// then copies the rest of the body as CopyBody does.
func Send(dst io.Writer, head []byte, r *Reader, kind Kind, length int64) error {
	switch kind {
	case Chunked:
		err := copyChunks(dst, r, head)
		if errors.Is(err, io.EOF) {
			return io.ErrUnexpectedEOF
		}
		return err
	case Length, UntilEOF:
		b := r.Buffered()
		if kind == Length {
			b = b[:min(int64(len(b)), length)]
		}
		if len(b) > withHead {
			break
		}
		length -= int64(len(b))
		head = append(head, b...)
		r.Take(len(b))
	}
	if _, err := dst.Write(head); err != nil {
		return &WriteError{err}
	}
	return CopyBody(dst, r, kind, length)
}

// copySome copies what is buffered, or else what one read brings.
func copySome(dst io.Writer, r *Reader) error {
	if len(r.Buffered()) == 0 {
		if err := r.fillLarge(); err != nil {
			return err
		}
	}
	n, err := dst.Write(r.Buffered())
	r.Take(n)
	if err != nil {
		return &WriteError{err}
	}
	return nil
}

// fillLarge is Fill into a large buffer, for bodies.
func (r *Reader) fillLarge() error {
	if r.buf == nil {
		r.buf = r.buffers.get(largeBuffer)
	}
	return r.Fill()
}

func copyN(dst io.Writer, r *Reader, n int64) error {
	for n > 0 {
		if len(r.Buffered()) == 0 {
			if s, ok := r.src.(splicer); ok && n >= spliceFrom && dst != io.Discard {
				done, err := s.SpliceTo(dst, n)
				if n -= done; err != nil || n == 0 {
					return err
				}
				return io.EOF
			}
			if err := r.fillLarge(); err != nil {
				return err
			}
		}
		b := r.Buffered()
		if int64(len(b)) > n {
			b = b[:n]
		}
		done, err := dst.Write(b)
		r.Take(done)
		if err != nil {
			return &WriteError{err}
		}
		n -= int64(done)
	}
	return nil
}

// maxChunkLine bounds a chunk's size with its extensions.
const maxChunkLine = 1 << 10

// chunkLine waits for the line that begins a chunk and returns its size and
// the line's length. It stays buffered.
func chunkLine(r *Reader) (size int64, n int, err error) {
	for {
		b := r.Buffered()
		if end := bytes.IndexByte(b, '\n'); end >= 0 && end < maxChunkLine {
			size, err := parseChunkLine(b[:end+1])
			return size, end + 1, err
		}
		if len(b) >= maxChunkLine {
			return 0, 0, framing("a chunk's size line is longer than 1 KiB")
		}
		if err := r.Fill(); err != nil {
			return 0, 0, err
		}
	}
}

func parseChunkLine(line []byte) (int64, error) {
	if len(line) < 3 || line[len(line)-2] != '\r' {
		return 0, framing("a chunk's size line ends without a carriage return")
	}
	line = line[:len(line)-2]
	digits, extension, extended := bytes.Cut(line, []byte(";"))
	if len(digits) == 0 || len(digits) > 15 {
		return 0, framing("a chunk's size of %d digits", len(digits))
	}
	size := int64(0)
	for _, c := range digits {
		d, ok := hex(c)
		if !ok {
			return 0, framing("a chunk's size that is no number")
		}
		size = size<<4 | int64(d)
	}
	if extended && !isValue(string(extension)) {
		return 0, framing("a control character in a chunk's extension")
	}
	return size, nil
}

// CheckChunks waits for the first line of a chunked body, and checks what is
// buffered of it, so that a head need not be passed on before its body is known
// to begin well. All of it stays buffered.
func CheckChunks(r *Reader) error {
	if _, _, err := chunkLine(r); err != nil {
		return err
	}
	b := r.Buffered()
	for {
		end := bytes.IndexByte(b, '\n')
		if end < 0 {
			return nil
		}
		size, err := parseChunkLine(b[:end+1])
		if err != nil {
			return err
		}
		b = b[end+1:]
		if size == 0 {
			return checkTrailers(b)
		}
		if int64(len(b)) < size+2 {
			return nil
		}
		if string(b[size:size+2]) != "\r\n" {
			return errChunkEnd()
		}
		b = b[size+2:]
	}
}

// checkTrailers checks the trailers at the beginning of b, if they are whole.
func checkTrailers(b []byte) error {
	if len(b) < 2 || string(b[:2]) == "\r\n" {
		return nil
	}
	n, err := HeadLen(b, 0)
	if err != nil || n == 0 {
		return err
	}
	_, err = parseTrailers(b[:n])
	return err
}

func parseTrailers(b []byte) ([]Field, error) {
	s := string(b)
	fields, err := parseFields(nil, s, lowerASCII(s))
	if err != nil {
		return nil, err
	}
	for i := range fields {
		switch name := fields[i].Name; name {
		case "content-length", "transfer-encoding", "host", "trailer", "connection", "upgrade", "expect", "authorization":
			return nil, framing("%s among the trailers", name)
		}
	}
	return fields, nil
}

func errChunkEnd() error { return framing("a chunk that does not end where its size says") }

// copyChunks copies a chunked body after first: the same bytes in the same
// chunks, without their extensions.
func copyChunks(dst io.Writer, r *Reader, first []byte) error {
	out := chunkWriter{dst: dst, buf: append(r.buffers.get(largeBuffer)[:0], first...)}
	defer func() { r.buffers.put(out.buf) }()
	for {
		size, n, err := out.line(r)
		if err != nil {
			return err
		}
		r.Take(n)
		out.buf = strconv.AppendInt(out.buf, size, 16)
		out.buf = append(out.buf, "\r\n"...)
		if size == 0 {
			if err := copyTrailers(&out, r); err != nil {
				return err
			}
			return out.flush()
		}
		if err := out.chunk(r, size); err != nil {
			return err
		}
	}
}

// A chunkWriter gathers chunks while more of them are there to be read.
type chunkWriter struct {
	dst io.Writer
	buf []byte
}

func (w *chunkWriter) flush() error {
	if len(w.buf) == 0 {
		return nil
	}
	_, err := w.dst.Write(w.buf)
	w.buf = w.buf[:0]
	if err != nil {
		return &WriteError{err}
	}
	return nil
}

// line is chunkLine; what has been gathered is written before it waits.
func (w *chunkWriter) line(r *Reader) (size int64, n int, err error) {
	if bytes.IndexByte(r.Buffered(), '\n') < 0 || len(w.buf) > largeBuffer/2 {
		if err := w.flush(); err != nil {
			return 0, 0, err
		}
	}
	return chunkLine(r)
}

// chunk copies a chunk's bytes and its end.
func (w *chunkWriter) chunk(r *Reader, size int64) error {
	for size > 0 {
		if len(r.Buffered()) == 0 {
			if err := w.flush(); err != nil {
				return err
			}
			if err := r.fillLarge(); err != nil {
				return err
			}
		}
		b := r.Buffered()
		b = b[:min(int64(len(b)), size, int64(largeBuffer-len(w.buf)))]
		w.buf = append(w.buf, b...)
		r.Take(len(b))
		size -= int64(len(b))
		if len(w.buf) == largeBuffer {
			if err := w.flush(); err != nil {
				return err
			}
		}
	}
	for len(r.Buffered()) < 2 {
		if err := w.flush(); err != nil {
			return err
		}
		if err := r.Fill(); err != nil {
			return err
		}
	}
	if string(r.Buffered()[:2]) != "\r\n" {
		return errChunkEnd()
	}
	r.Take(2)
	w.buf = append(w.buf, "\r\n"...)
	return nil
}

// copyTrailers copies the field lines after the last chunk, and the empty line.
func copyTrailers(w *chunkWriter, r *Reader) error {
	for len(r.Buffered()) < 2 {
		if err := w.flush(); err != nil {
			return err
		}
		if err := r.Fill(); err != nil {
			return err
		}
	}
	if string(r.Buffered()[:2]) == "\r\n" {
		r.Take(2)
		w.buf = append(w.buf, "\r\n"...)
		return nil
	}
	head, err := r.Head()
	if err != nil {
		return err
	}
	fields, err := parseTrailers(head)
	if err != nil {
		return err
	}
	r.Take(len(head))
	if len(w.buf)+len(head) > largeBuffer {
		if err := w.flush(); err != nil {
			return err
		}
	}
	w.buf = append(appendFields(w.buf, fields), "\r\n"...)
	return nil
}

func hex(c byte) (byte, bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10, true
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}
