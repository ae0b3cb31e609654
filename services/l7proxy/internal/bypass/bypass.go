// Package bypass runs a corpus of raw HTTP inputs, each of which tries to reach
// what an allow-list forbids, through a real proxy between real sockets on
// loopback, and compares what came back and what reached the server with what
// the corpus accepts. It is for tests and for the weir-bypass command.
package bypass

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// A Corpus is a file of cases under one policy.
type Corpus struct {
	Policy struct {
		Allow []string `json:"allow"` // METHOD PATH-REGEX [+ NAME: VALUE]…
		Deny  string   `json:"deny"`
	} `json:"policy"`
	Encoding string `json:"encoding"`
	Cases    []Case `json:"cases"`
}

// A Case is one input with the outcomes that are acceptable: a status of the
// proxy's own, "close", or "forward:METHOD TARGET" with what must hold beside.
// No request may reach the server that no acceptable outcome names.
type Case struct {
	ID           string   `json:"id"`
	Class        string   `json:"class"`
	Raw          string   `json:"raw"` // one character, one byte
	Acceptable   []string `json:"acceptable"`
	MustNotReach string   `json:"must_not_reach"`
	Note         string   `json:"note"`
	Ref          string   `json:"ref"`
}

// Parse reads a corpus.
func Parse(b []byte) (*Corpus, error) {
	var c Corpus
	dec := json.NewDecoder(bytes.NewReader(b))
	if err := dec.Decode(&c); err != nil {
		return nil, fmt.Errorf("parse corpus: %w", err)
	}
	if len(c.Cases) == 0 || len(c.Policy.Allow) == 0 {
		return nil, fmt.Errorf("parse corpus: no cases, or no policy")
	}
	return &c, nil
}

// bytes returns the input as bytes.
func (c Case) bytes() ([]byte, error) {
	var b []byte
	for _, r := range c.Raw {
		if r > 0xff {
			return nil, fmt.Errorf("raw: the character %q is no byte", r)
		}
		b = append(b, byte(r))
	}
	return b, nil
}

// A forward is an acceptable outcome in which a request reaches the server.
type forward struct {
	request   string // METHOD TARGET
	noUpgrade bool   // without an Upgrade field
	tunnel    bool   // what follows a 101 is not judged, by design
	second    string // the status of the second response; empty: of no interest
}

// parseForward takes an outcome apart; ok says that it is a forward.
func parseForward(outcome string) (f forward, ok bool) {
	rest, ok := strings.CutPrefix(outcome, "forward:")
	if !ok {
		return forward{}, false
	}
	rest, second, _ := strings.Cut(rest, ";")
	if s, ok := strings.CutPrefix(strings.TrimSpace(second), "second:"); ok {
		f.second = s
	}
	if i := strings.Index(rest, " ("); i >= 0 {
		f.noUpgrade = strings.Contains(rest[i:], "without Upgrade")
		f.tunnel = strings.Contains(rest[i:], "tunnel")
		rest = rest[:i]
	}
	f.request = strings.TrimSpace(rest)
	return f, true
}

// check returns what is wrong with an outcome; empty if nothing is.
func (c Case) check(got outcome) string {
	var allowed []string
	tunnel := false
	for _, a := range c.Acceptable {
		if f, ok := parseForward(a); ok {
			allowed = append(allowed, f.request)
			tunnel = tunnel || f.tunnel
		}
	}
	for _, r := range got.reached {
		if r.tunnelled && tunnel {
			continue
		}
		if r.tunnelled || !slices.Contains(allowed, r.request) {
			return fmt.Sprintf("%q reached the server", r.request)
		}
	}
	for _, a := range c.Acceptable {
		if got.is(a) {
			return ""
		}
	}
	return fmt.Sprintf("%s, want one of %q", got, c.Acceptable)
}

// An outcome is what one input led to.
type outcome struct {
	reached   []request
	responses []response
	closed    bool // the proxy ended the connection
}

type request struct {
	request   string // METHOD TARGET
	upgrade   bool
	tunnelled bool // after a 101: raw bytes
}

type response struct {
	status     int
	fromServer bool
	body       string
	head       bool // to a HEAD: it has no body
}

// is says whether the outcome is the one that a corpus names so.
func (o outcome) is(want string) bool {
	f, ok := parseForward(want)
	switch {
	case ok:
		if len(o.reached) == 0 || o.reached[0].request != f.request || f.noUpgrade && o.reached[0].upgrade {
			return false
		}
		if f.second == "" {
			return len(o.responses) > 0
		}
		return len(o.responses) > 1 && !o.responses[1].fromServer && fmt.Sprint(o.responses[1].status) == f.second &&
			o.responses[1].bodyFits()
	case want == "close":
		return o.closed && len(o.responses) == 0
	default:
		return len(o.responses) > 0 && !o.responses[0].fromServer && fmt.Sprint(o.responses[0].status) == want &&
			o.responses[0].bodyFits()
	}
}

// bodyFits: a denial's body is the one that users know.
func (r response) bodyFits() bool {
	return r.status != 403 || r.body == "Access denied" || r.head && r.body == ""
}

func (o outcome) String() string {
	var b strings.Builder
	for _, r := range o.reached {
		fmt.Fprintf(&b, "forward:%s ", r.request)
	}
	for _, r := range o.responses {
		fmt.Fprintf(&b, "%d ", r.status)
	}
	if o.closed {
		b.WriteString("close")
	}
	return strings.TrimSpace(b.String())
}
