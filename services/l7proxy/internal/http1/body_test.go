package http1

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func reader(src io.Reader) *Reader { return NewReader(src, &Buffers{}) }

// Bodies come out the same however their bytes arrive.
func TestCopyBody(t *testing.T) {
	large := strings.Repeat("0123456789abcdef", 10_000)
	tests := []struct {
		name, in   string
		kind       Kind
		length     int64
		want, rest string
	}{
		{"none", "next", NoBody, 0, "", "next"},
		{"a length", "bodynext", Length, 4, "body", "next"},
		{"a large length", large + "next", Length, int64(len(large)), large, "next"},
		{"until the end", large, UntilEOF, 0, large, ""},
		{"chunks", "3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\nnext", Chunked, 0, "3\r\nabc\r\na\r\n0123456789\r\n0\r\n\r\n", "next"},
		{"no chunk", "0\r\n\r\nnext", Chunked, 0, "0\r\n\r\n", "next"},
		{"a large chunk", "27100\r\n" + large + "\r\n0\r\n\r\nnext", Chunked, 0, "27100\r\n" + large + "\r\n0\r\n\r\n", "next"},
		{"many chunks", strings.Repeat("1\r\nx\r\n", 20_000) + "0\r\n\r\nnext", Chunked, 0, strings.Repeat("1\r\nx\r\n", 20_000) + "0\r\n\r\n", "next"},
		{"extensions go", "3;a=\"b\";c\r\nabc\r\n0;d\r\n\r\n", Chunked, 0, "3\r\nabc\r\n0\r\n\r\n", ""},
		{"trailers", "0\r\nX-Sum: 1\r\nY:2\r\n\r\nnext", Chunked, 0, "0\r\nX-Sum: 1\r\nY:2\r\n\r\n", "next"},
	}
	arrivals := map[string]func(io.Reader) io.Reader{
		"at once":      func(r io.Reader) io.Reader { return r },
		"byte by byte": iotest.OneByteReader,
		"in halves":    iotest.HalfReader,
		"with its end": iotest.DataErrReader,
	}
	for _, tt := range tests {
		for how, arrive := range arrivals {
			t.Run(tt.name+" "+how, func(t *testing.T) {
				r := reader(arrive(strings.NewReader(tt.in)))
				var out bytes.Buffer
				if err := CopyBody(&out, r, tt.kind, tt.length); err != nil {
					t.Fatal(err)
				}
				if got := out.String(); got != tt.want {
					t.Errorf("%d bytes come out, want %d: %.100q", len(got), len(tt.want), got)
				}
				rest := string(r.Buffered())
				for {
					if err := r.Fill(); err != nil {
						break
					}
					rest = string(r.Buffered())
				}
				if rest != tt.rest {
					t.Errorf("%q is left, want %q", rest, tt.rest)
				}
			})
		}
	}
}

// A head goes out with what is there of its body, in one piece.
func TestSend(t *testing.T) {
	for _, tt := range []struct {
		name, in     string
		kind         Kind
		length       int64
		first, whole string
	}{
		{"no body", "next", NoBody, 0, "HEAD", "HEAD"},
		{"a length", "bodynext", Length, 4, "HEADbody", "HEADbody"},
		{"half a body", "bo", Length, 4, "HEADbo", "HEADbo"},
		{"until the end", "body", UntilEOF, 0, "HEADbody", "HEADbody"},
		{"chunks", "2;x\r\nbo\r\n0\r\n\r\nnext", Chunked, 0, "HEAD2\r\nbo\r\n0\r\n\r\n", "HEAD2\r\nbo\r\n0\r\n\r\n"},
		{"half a chunk", "2\r\nb", Chunked, 0, "HEAD2\r\nb", "HEAD2\r\nb"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := reader(strings.NewReader(tt.in))
			if err := r.Fill(); err != nil {
				t.Fatal(err)
			}
			var out pieces
			err := Send(&out, []byte("HEAD"), r, tt.kind, tt.length)
			if half := strings.HasPrefix(tt.name, "half"); half != errors.Is(err, io.ErrUnexpectedEOF) || !half && err != nil {
				t.Errorf("Send: %v", err)
			}
			if len(out) == 0 || out[0] != tt.first || strings.Join(out, "") != tt.whole {
				t.Errorf("sent in pieces %q, want %q first, of %q", out, tt.first, tt.whole)
			}
		})
	}
}

type pieces []string

func (p *pieces) Write(b []byte) (int, error) {
	*p = append(*p, string(b))
	return len(b), nil
}

func TestBodiesThatAreRefused(t *testing.T) {
	for name, in := range map[string]string{
		"no size":                           "\r\n",
		"a size that is no number":          "g\r\n",
		"a size with a blank":               "3 \r\nabc\r\n0\r\n\r\n",
		"a size with a sign":                "+3\r\nabc\r\n0\r\n\r\n",
		"a size with a prefix":              "0x3\r\nabc\r\n0\r\n\r\n",
		"a size beyond counting":            "FFFFFFFFFFFFFFFF1\r\nx",
		"a size of 16 digits":               "FFFFFFFFFFFFFFFF\r\nx",
		"a bare line feed after the size":   "3\nabc\r\n0\r\n\r\n",
		"a bare line feed in an extension":  "3;a\nb\r\nabc\r\n0\r\n\r\n",
		"a carriage return in an extension": "3;a\rb\r\nabc\r\n0\r\n\r\n",
		"a chunk that is longer":            "3\r\nabcd\r\n0\r\n\r\n",
		"a chunk that is shorter":           "3\r\nab\r\n0\r\n\r\n",
		"a chunk's end without CR":          "3\r\nabc\n0\r\n\r\n",
		"a trailer that frames":             "0\r\nContent-Length: 3\r\n\r\n",
		"a trailer that is folded":          "0\r\nX: y\r\n z\r\n\r\n",
		"a trailer with a bare line feed":   "0\r\nX: y\n\r\n",
		"a size line without an end":        strings.Repeat("0", 2000),
		"trailers without an end":           "0\r\n" + strings.Repeat("a: b\r\n", 20_000),
	} {
		t.Run(name, func(t *testing.T) {
			err := CopyBody(io.Discard, reader(strings.NewReader(in)), Chunked, 0)
			var refused *Error
			if !errors.As(err, &refused) {
				t.Errorf("%v, want a refusal", err)
			}
		})
	}
}

func TestBodiesThatEndTooSoon(t *testing.T) {
	for in, kind := range map[string]Kind{"abc": Length, "5\r\nab": Chunked, "5": Chunked, "0\r\n": Chunked, "": Chunked} {
		if err := CopyBody(io.Discard, reader(strings.NewReader(in)), kind, 5); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%q of kind %d: %v, want an unexpected end", in, kind, err)
		}
	}
}

type broken struct{ error }

func (b broken) Write([]byte) (int, error) { return 0, b.error }

func TestWhoFailedIsKnown(t *testing.T) {
	bad := errors.New("bad")
	for in, kind := range map[string]Kind{"abc": Length, "3\r\nabc\r\n0\r\n\r\n": Chunked, "x": UntilEOF} {
		err := CopyBody(broken{bad}, reader(strings.NewReader(in)), kind, 3)
		var we *WriteError
		if !errors.As(err, &we) || !errors.Is(err, bad) {
			t.Errorf("kind %d: %v, want a WriteError", kind, err)
		}
		if err := CopyBody(io.Discard, reader(iotest.ErrReader(bad)), kind, 3); errors.As(err, &we) || !errors.Is(err, bad) {
			t.Errorf("kind %d: %v, want the source's error", kind, err)
		}
	}
}

func TestHead(t *testing.T) {
	const one, two = "GET / HTTP/1.1\r\nHost: a\r\n\r\n", "GET /b HTTP/1.1\r\n\r\n"
	for name, src := range map[string]io.Reader{
		"at once": strings.NewReader(one + two), "byte by byte": iotest.OneByteReader(strings.NewReader(one + two)),
	} {
		r := reader(src)
		for _, want := range []string{one, two} {
			head, err := r.Head()
			if err != nil || string(head) != want {
				t.Fatalf("%s: %q, %v, want %q", name, head, err, want)
			}
			r.Take(len(head))
		}
		if _, err := r.Head(); !errors.Is(err, io.EOF) {
			t.Errorf("%s: %v, want the end", name, err)
		}
	}
	if _, err := reader(strings.NewReader("GET")).Head(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("half a head: %v", err)
	}
	var refused *Error
	long := "GET / HTTP/1.1\r\nX: " + strings.Repeat("a", MaxHead) + "\r\n\r\n"
	if _, err := reader(strings.NewReader(long)).Head(); !errors.As(err, &refused) || refused.Status != 431 {
		t.Errorf("a long head: %v, want 431", err)
	}
	most := "GET / HTTP/1.1\r\nX: "
	most += strings.Repeat("a", MaxHead-len(most)-4) + "\r\n\r\n"
	if head, err := reader(strings.NewReader(most)).Head(); err != nil || len(head) != MaxHead {
		t.Errorf("the longest head: %d, %v", len(head), err)
	}
}

func TestChunksAreCheckedBeforeTheyAreTaken(t *testing.T) {
	for in, ok := range map[string]bool{
		"3\r\nabc\r\n0\r\n\r\nnext":        true,
		"3\r\nabc\r\n":                     true,
		"3\r\na":                           true,
		"3\r\nabc\r\n0\r\nX: y\r\n":        true,
		"3\r\nabcd\r\n":                    false,
		"3\r\nabc\r\nx\r\n":                false,
		"3\r\nabc\r\n0\r\nHost: a\r\n\r\n": false,
		"3\r\nabc\r\n0\r\nX: y\n\r\n":      false,
		"3\nabc\r\n":                       false,
	} {
		r := reader(strings.NewReader(in))
		if err := CheckChunks(r); (err == nil) != ok {
			t.Errorf("%q: %v", in, err)
		}
		if string(r.Buffered()) != in {
			t.Errorf("%q is buffered of %q", r.Buffered(), in)
		}
	}
}

func TestFirstChunkIsCheckedAndStays(t *testing.T) {
	r := reader(strings.NewReader("3\r\nabc\r\n0\r\n\r\n"))
	if err := CheckChunks(r); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := CopyBody(&out, r, Chunked, 0); err != nil || out.String() != "3\r\nabc\r\n0\r\n\r\n" {
		t.Errorf("%q, %v", out.String(), err)
	}
}

// A buffer that was lent is lent again whole, whatever its borrower did with it.
func TestBuffersAreLentWhole(t *testing.T) {
	var b Buffers
	for _, size := range []int{smallBuffer, largeBuffer} {
		for range 10 { // a pool may forget
			b.put(b.get(size)[:0])
			if got := len(b.get(size)); got != size {
				t.Fatalf("a buffer of %d bytes, want %d", got, size)
			}
		}
	}
}
