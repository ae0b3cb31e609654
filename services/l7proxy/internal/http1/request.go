package http1

import "strings"

// A Request is the head of a request.
type Request struct {
	Method string
	// Target is the origin-form, or "*", that is judged and passed on. Of an
	// absolute-form it is the path with its query.
	Target string
	Host   string // the Host field's value; empty if there is none (HTTP/1.0)
	Minor  int    // of the version: 0 or 1
	Fields []Field

	Kind     Kind
	Length   int64 // with Kind Length
	Close    bool  // the client wants the connection closed after the response
	Continue bool  // it waits for 100 before it sends the body
	// WebSocket: it wants to leave HTTP for a WebSocket. Every other upgrade is
	// dropped, which RFC 9110 7.8 lets a server do.
	WebSocket bool
}

// ParseRequest reads the head that HeadLen has found. The request's Fields are
// used again; everything else is new. An error is an *Error.
func (r *Request) ParseRequest(head []byte) error {
	s := string(head)
	lower := lowerASCII(s)
	*r = Request{Fields: r.Fields[:0]}
	line, _, ok := strings.Cut(s, "\r\n")
	if !ok {
		return malformed("no request line")
	}
	target, err := r.requestLine(line)
	if err != nil {
		return err
	}
	rest := len(line) + 2
	if r.Fields, err = parseFields(r.Fields, s[rest:], lower[rest:]); err != nil {
		return err
	}
	if err := r.hostAndTarget(target); err != nil {
		return err
	}
	if r.Kind, r.Length, _, err = bodyOf(r.Fields, r.Minor); err != nil {
		return err
	}
	return r.options()
}

func (r *Request) requestLine(line string) (target string, err error) {
	method, rest, ok := strings.Cut(line, " ")
	if !ok || !isToken(method) {
		return "", malformed("no method")
	}
	target, version, ok := strings.Cut(rest, " ")
	switch {
	case !ok:
		return "", malformed("a request line without a version")
	case version == "HTTP/1.1":
		r.Minor = 1
	case version == "HTTP/1.0":
	case len(version) == 8 && strings.HasPrefix(version, "HTTP/") && version[6] == '.':
		return "", &Error{505, ReasonVersion, "a version other than HTTP/1.0 and HTTP/1.1"}
	default:
		return "", malformed("a request line without a version")
	}
	for i := 0; i < len(target); i++ {
		if c := target[i]; c <= ' ' || c >= 0x7f || c == '#' {
			return "", malformed("the byte %#02x in the target", c)
		}
	}
	r.Method = method
	return target, nil
}

func (r *Request) hostAndTarget(target string) error {
	host, hosts := one(r.Fields, "host")
	switch {
	case hosts > 1:
		return malformed("more than one Host")
	case hosts == 0 && r.Minor == 1:
		return malformed("no Host")
	case !isHost(host):
		return malformed("a Host that is none")
	}
	r.Host = host
	switch {
	case r.Method == "CONNECT":
		return &Error{405, ReasonConnect, "CONNECT"}
	case strings.HasPrefix(target, "/"):
		r.Target = target
	case target == "*" && r.Method == "OPTIONS":
		r.Target = target
	default:
		return r.absolute(target, hosts)
	}
	return nil
}

// absolute takes the absolute-form of a target apart. Its authority must be
// the Host, so that both readings of the request are one.
func (r *Request) absolute(target string, hosts int) error {
	const scheme = "http://"
	if len(target) < len(scheme) || !strings.EqualFold(target[:len(scheme)], scheme) {
		return malformed("a target that is neither a path nor an http URI")
	}
	rest := target[len(scheme):]
	end := strings.IndexAny(rest, "/?")
	if end < 0 {
		end = len(rest)
	}
	authority, path := rest[:end], rest[end:]
	if authority == "" || !isHost(authority) {
		return malformed("a target without an authority")
	}
	if hosts == 0 || !strings.EqualFold(authority, r.Host) {
		return malformed("the target's authority is not the Host")
	}
	if !strings.HasPrefix(path, "/") {
		path = "/" + path
	}
	r.Target = path
	return nil
}

func (r *Request) options() error {
	closes, keeps, upgrades, err := connection(r.Fields)
	if err != nil {
		return err
	}
	r.Close = closes || r.Minor == 0 && !keeps
	if v, n := one(r.Fields, "expect"); n > 0 {
		if n > 1 || !strings.EqualFold(v, "100-continue") {
			return &Error{417, ReasonExpect, "an expectation other than 100-continue"}
		}
		r.Continue = r.Minor == 1 && r.Kind != NoBody
	}
	v, n := one(r.Fields, "upgrade")
	if n == 1 && upgrades && strings.EqualFold(v, "websocket") {
		if r.Method != "GET" || r.Minor != 1 || r.Kind != NoBody {
			return &Error{400, ReasonUpgrade, "a WebSocket that is not asked for by a GET without a body"}
		}
		r.WebSocket = true
	}
	return nil
}

// AppendHead appends the head that is passed on to b.
func (r *Request) AppendHead(b []byte) []byte {
	b = append(b, r.Method...)
	b = append(b, ' ')
	b = append(b, r.Target...)
	b = append(b, " HTTP/1."...)
	b = append(b, '0'+byte(r.Minor))
	b = append(b, "\r\n"...)
	b = appendFields(b, r.Fields)
	switch {
	case r.WebSocket:
		b = append(b, "Connection: Upgrade\r\nUpgrade: websocket\r\n"...)
	case r.Close && r.Minor == 1:
		b = append(b, "Connection: close\r\n"...)
	case !r.Close && r.Minor == 0:
		b = append(b, "Connection: keep-alive\r\n"...)
	}
	return append(b, "\r\n"...)
}

func appendFields(b []byte, fields []Field) []byte {
	for i := range fields {
		if !hopByHop(fields[i].Name) {
			b = append(b, fields[i].line...)
		}
	}
	return b
}

// isHost accepts what may stand in a Host field: a name or an address with an
// optional port, in ASCII, without user information.
func isHost(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; !hostChar[c] {
			return false
		}
	}
	return true
}

var hostChar = func() (t [256]bool) {
	for _, c := range "-._~!$&'()*+;=%:[]0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ" {
		t[c] = true
	}
	return t
}()
