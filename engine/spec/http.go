package spec

import (
	"regexp"
	"strings"

	"weir.dev/weir/engine/rule"
)

// Request is an HTTP request as rules see it.
type Request struct {
	Method string
	Target string // with its query string
	Host   string // with its port, if it has one
	Header []Header
}

// Header is one header field.
type Header struct{ Name, Value string }

// Permits tells whether a request passes on a flow with this verdict.
func (v Verdict) Permits(q Request) bool {
	switch v.Kind {
	case Allow, NotJudged:
		return true
	case HTTP:
		for _, r := range v.Rules {
			if matches(r, q) {
				return true
			}
		}
	}
	return false
}

func matches(r rule.HTTPRule, q Request) bool {
	if !whole(r.Method, q.Method) || !whole(r.Path, q.Target) || !whole(r.Host, q.Host) {
		return false
	}
	for _, want := range r.Headers {
		found := false
		for _, h := range q.Header {
			found = found || strings.EqualFold(h.Name, want.Name) && (want.Value == nil || *want.Value == h.Value)
		}
		if !found {
			return false
		}
	}
	return true
}

// whole tells whether an expression matches all of a value. One that does not
// compile matches nothing.
func whole(expr *string, value string) bool {
	if expr == nil {
		return true
	}
	re, err := regexp.Compile(`\A(?:` + *expr + `)\z`)
	return err == nil && re.MatchString(value)
}
