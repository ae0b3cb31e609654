package http1

import "strings"

// A Field is one line of a head.
type Field struct {
	Name  string // lower case
	Value string // without surrounding blanks
	line  string // as received, with its CRLF
}

// HeadLen returns the length of the head that b begins with, empty line
// included, or 0 if its end is not there yet. It looks at b from from on,
// where an earlier call has seen all before.
func HeadLen(b []byte, from int) (int, error) {
	// The end is at most 3 bytes before what has been seen.
	for i := max(from-3, 0); i < len(b); i++ {
		if b[i] != '\n' {
			continue
		}
		if i == 0 || b[i-1] != '\r' {
			return 0, malformed("a line ends without a carriage return")
		}
		if i >= 3 && b[i-2] == '\n' && b[i-3] == '\r' {
			if i+1 > MaxHead {
				break
			}
			return i + 1, nil
		}
	}
	if len(b) >= MaxHead {
		return 0, &Error{431, ReasonTooLarge, "the head is longer than 64 KiB"}
	}
	return 0, nil
}

// parseFields reads field lines up to the empty line that must end s. lower is
// s in lower case.
func parseFields(fields []Field, s, lower string) ([]Field, error) {
	for s != "\r\n" {
		end := strings.IndexByte(s, '\n')
		if end < 1 || s[end-1] != '\r' {
			return fields, malformed("a line ends without a carriage return")
		}
		line := s[:end+1]
		if len(fields) == maxFields {
			return fields, &Error{431, ReasonTooLarge, "more than 256 field lines"}
		}
		colon := strings.IndexByte(line, ':')
		if colon < 1 || !isToken(line[:colon]) {
			return fields, malformed("a field line without a name")
		}
		value := line[colon+1 : end-1]
		if !isValue(value) {
			return fields, malformed("a control character in the value of %s", lower[:colon])
		}
		fields = append(fields, Field{Name: lower[:colon], Value: strings.Trim(value, " \t"), line: line})
		s, lower = s[end+1:], lower[end+1:]
	}
	return fields, nil
}

// one returns the value of the only line with that name.
func one(fields []Field, name string) (value string, n int) {
	for i := range fields {
		if fields[i].Name == name {
			value = fields[i].Value
			n++
		}
	}
	return value, n
}

// options calls yield for every element of a field that is a list of tokens.
func options(fields []Field, name string, yield func(string) error) error {
	for i := range fields {
		if fields[i].Name != name {
			continue
		}
		for _, o := range strings.Split(fields[i].Value, ",") {
			if o = strings.Trim(o, " \t"); o == "" {
				continue
			}
			if err := yield(o); err != nil {
				return err
			}
		}
	}
	return nil
}

func isToken(s string) bool {
	for i := 0; i < len(s); i++ {
		if !tokenChar[s[i]] {
			return false
		}
	}
	return len(s) > 0
}

func isValue(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

var tokenChar = func() (t [256]bool) {
	for _, c := range "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ" {
		t[c] = true
	}
	return t
}()

// lowerASCII returns s with its ASCII letters in lower case, byte for byte.
func lowerASCII(s string) string {
	var b strings.Builder
	b.Grow(len(s))
	for i := 0; i < len(s); i++ {
		c := s[i]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		b.WriteByte(c)
	}
	return b.String()
}

// parseLength reads a Content-Length.
func parseLength(s string) (int64, bool) {
	if s == "" || len(s) > 18 {
		return 0, false
	}
	n := int64(0)
	for i := 0; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
		n = n*10 + int64(s[i]-'0')
	}
	return n, true
}

// bodyOf reads the framing fields of a message, and says whether there are any.
func bodyOf(fields []Field, minor int) (kind Kind, length int64, framed bool, err error) {
	coding, codings := one(fields, "transfer-encoding")
	size, sizes := one(fields, "content-length")
	switch {
	case codings > 0 && sizes > 0:
		return 0, 0, false, framing("both Transfer-Encoding and Content-Length")
	case codings > 0 && minor == 0:
		return 0, 0, false, framing("Transfer-Encoding in HTTP/1.0")
	case codings > 1 || codings == 1 && !strings.EqualFold(coding, "chunked"):
		return 0, 0, false, &Error{501, ReasonFraming, "a Transfer-Encoding other than chunked"}
	case codings == 1:
		return Chunked, 0, true, nil
	case sizes > 1:
		return 0, 0, false, framing("more than one Content-Length")
	case sizes == 0:
		return NoBody, 0, false, nil
	}
	n, ok := parseLength(size)
	switch {
	case !ok:
		return 0, 0, false, framing("a Content-Length that is no number")
	case n == 0:
		return NoBody, 0, true, nil
	default:
		return Length, n, true, nil
	}
}

// connection reads the Connection field.
func connection(fields []Field) (closes, keeps, upgrades bool, err error) {
	err = options(fields, "connection", func(o string) error {
		switch strings.ToLower(o) {
		case "close":
			closes = true
		case "keep-alive":
			keeps = true
		case "upgrade":
			upgrades = true
		case "te", "http2-settings", "proxy-connection", "trailer", "transfer-encoding":
		default:
			// It would have to be taken out after it was judged.
			return malformed("Connection names the field %q", o)
		}
		return nil
	})
	return closes, keeps, upgrades, err
}

// hopByHop says whether a field stays between two neighbours. Framing fields
// pass, as the framing does.
func hopByHop(name string) bool {
	switch name {
	case "connection", "keep-alive", "proxy-connection", "te", "upgrade", "http2-settings":
		return true
	}
	return false
}
