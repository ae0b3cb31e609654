package http1

import "strings"

// A Response is the head of a response.
type Response struct {
	Status int
	Minor  int
	line   string // the status line with its CRLF
	Fields []Field

	Kind   Kind
	Length int64 // with Kind Length
	Close  bool  // the server closes the connection after it
	// WebSocket: status 101, and it names websocket.
	WebSocket bool
}

// ParseResponse reads the head that HeadLen has found, of a response to a
// request with that method. The response's Fields are used again. An error is
// an *Error whose status is not meant for anyone.
func (r *Response) ParseResponse(head []byte, method string) error {
	s := string(head)
	lower := lowerASCII(s)
	*r = Response{Fields: r.Fields[:0]}
	line, _, _ := strings.Cut(s, "\r\n")
	if err := r.statusLine(line); err != nil {
		return err
	}
	rest := len(line) + 2
	r.line = s[:rest]
	var err error
	if r.Fields, err = parseFields(r.Fields, s[rest:], lower[rest:]); err != nil {
		return err
	}
	kind, length, framed, err := bodyOf(r.Fields, r.Minor)
	if err != nil {
		return err
	}
	closes, keeps, upgrades, err := connection(r.Fields)
	if err != nil {
		// Whatever a server names there is no business of the client's.
		closes = true
	}
	r.Close = closes || r.Minor == 0 && !keeps
	switch {
	case r.Status < 200:
		if v, n := one(r.Fields, "upgrade"); r.Status == 101 {
			r.WebSocket = n == 1 && upgrades && strings.EqualFold(v, "websocket")
		}
	case r.Status == 204 || r.Status == 304 || method == "HEAD":
	case framed:
		r.Kind, r.Length = kind, length
	default:
		r.Kind, r.Close = UntilEOF, true
	}
	return nil
}

func (r *Response) statusLine(line string) error {
	if len(line) < 12 || !strings.HasPrefix(line, "HTTP/1.") || line[8] != ' ' || len(line) > 12 && line[12] != ' ' {
		return malformed("no status line")
	}
	switch line[7] {
	case '1':
		r.Minor = 1
	case '0':
	default:
		return malformed("a version other than HTTP/1.0 and HTTP/1.1")
	}
	n, ok := parseLength(line[9:12])
	if !ok || n < 100 || n > 599 || !isValue(line[12:]) {
		return malformed("no status")
	}
	r.Status = int(n)
	return nil
}

// AppendHead appends the head that is passed on to b. closes says that the
// client's connection ends after this response; minor is the version of its
// request.
func (r *Response) AppendHead(b []byte, closes bool, minor int) []byte {
	b = append(b, r.line...)
	b = appendFields(b, r.Fields)
	switch {
	case r.WebSocket:
		b = append(b, "Connection: Upgrade\r\nUpgrade: websocket\r\n"...)
	case r.Status < 200:
	case closes:
		b = append(b, "Connection: close\r\n"...)
	case minor == 0:
		b = append(b, "Connection: keep-alive\r\n"...)
	}
	return append(b, "\r\n"...)
}
