package httprule

import (
	"strings"
	"unicode/utf8"
)

// Ambiguous reports whether servers read a target's path in more than one way:
// dot segments in any spelling, escaped slashes, backslashes, escaped control
// characters, escapes of escapes, broken escapes and broken UTF-8. A pattern
// that lets such a path pass has judged another path than the server may
// serve, so only rules that name no pattern may allow it. The query string is
// no path.
func Ambiguous(target string) bool {
	path, _, _ := strings.Cut(target, "?")
	if !strings.ContainsAny(path, `%\.;`) {
		return false
	}
	decoded, ok := unescape(path)
	if !ok {
		return true
	}
	for segment := range strings.SplitSeq(decoded, "/") {
		segment, _, _ = strings.Cut(segment, ";")
		if dots(segment) {
			return true
		}
	}
	return false
}

// unescape decodes a path once; false says that an escape in it is ambiguous.
func unescape(path string) (string, bool) {
	if strings.Contains(path, `\`) {
		return "", false
	}
	if !strings.Contains(path, "%") {
		return path, true
	}
	b := make([]byte, 0, len(path))
	for i := 0; i < len(path); i++ {
		if path[i] != '%' {
			b = append(b, path[i])
			continue
		}
		c, ok := escape(path[i:])
		if !ok {
			return "", false
		}
		if _, again := escape("%" + path[i+3:]); c == '%' && again {
			return "", false
		}
		if c < ' ' || c == 0x7f || c == '/' || c == '\\' {
			return "", false
		}
		b = append(b, c)
		i += 2
	}
	s := string(b)
	if !utf8.ValidString(s) || strings.ContainsAny(s, lookAlikes) {
		return "", false
	}
	return s, true
}

// lookAlikes are what some servers fold into a dot, a slash or a backslash.
const lookAlikes = "\uff0e\uff0f\uff3c\u2024\u2044\u2215\u2216\ufe68\u3002"

// escape decodes the escape that s begins with.
func escape(s string) (byte, bool) {
	if len(s) < 3 {
		return 0, false
	}
	hi, ok1 := hex(s[1])
	lo, ok2 := hex(s[2])
	return hi<<4 | lo, ok1 && ok2
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

// dots reports whether a segment is made of dots alone, or of dots and the
// blanks that some file systems drop.
func dots(segment string) bool {
	return strings.Contains(segment, ".") && strings.Trim(segment, ". ") == ""
}

// unescapeUnreserved decodes the escapes in a target's path that stand for a
// letter, a digit, or one of -._~, and reports whether there was one.
func unescapeUnreserved(target string) (string, bool) {
	path, query, hasQuery := strings.Cut(target, "?")
	if !strings.Contains(path, "%") {
		return target, false
	}
	b := make([]byte, 0, len(target))
	for i := 0; i < len(path); i++ {
		if c, ok := escape(path[i:]); path[i] == '%' && ok && unreserved(c) {
			b = append(b, c)
			i += 2
			continue
		}
		b = append(b, path[i])
	}
	if len(b) == len(path) {
		return target, false
	}
	if hasQuery {
		b = append(append(b, '?'), query...)
	}
	return string(b), true
}

func unreserved(c byte) bool {
	switch {
	case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		return true
	}
	return strings.IndexByte("-._~", c) >= 0
}
