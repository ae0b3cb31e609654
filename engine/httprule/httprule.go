// Package httprule decides which HTTP rule of a rule set a request matches.
//
// A Matcher is one automaton over all rules of a set, so that a decision costs
// the length of the request and not the number of rules:
//
//	method ─ end ─ path ─ end ─ host ─ end ─ header conditions that hold
//
// It is a deterministic automaton built while it is used, in a bounded cache
// (cache.go), over the rules' programs from regexp/syntax (tree.go, set.go).
// When the cache is full the rest of that one request is simulated thread by
// thread, which costs what the rules' regular expressions cost, and an empty
// cache is begun.
//
// Regular expressions are RE2 as in package regexp and match the whole value.
// As with Cilium and Envoy the path is matched with its query string, and the
// host is the Host header's value as it was sent: with its port, and in its
// letter case. Who wants a host in any case writes (?i). Several header lines
// of one name are one value, joined by commas, as Envoy compares them.
//
// The package is pure and imports the standard library and engine/rule only. A
// Matcher may be used by any number of goroutines.
package httprule

import (
	"fmt"
	"regexp/syntax"
	"slices"
	"strings"
	"sync/atomic"

	"weir.dev/weir/engine/rule"
)

// A Request is what of an HTTP request rules can see.
type Request struct {
	Method  string
	Path    string // the target as it is forwarded, with its query string
	Host    string // the Host header's value
	Headers []Header
}

// Header is one header line.
type Header struct {
	Name  string // lower case
	Value string // without surrounding blanks
}

// A Matcher decides requests by the rules it was compiled from. Its zero value
// matches nothing.
type Matcher struct {
	tree  tree
	names map[string]*headerName // what rules say of headers, by lower-case name
	cache atomic.Pointer[cache]
	limit int // of a cache, in threads
}

// headerName holds the conditions on one header; a number is that of a
// condition, from 1; present is 0 if no rule asks for mere presence.
type headerName struct {
	present uint32
	values  map[string]uint32
}

// RuleError says which rule of a set cannot be compiled.
type RuleError struct {
	Index int
	Field string // method, path, host or headers
	Err   error
}

func (e *RuleError) Error() string {
	return fmt.Sprintf("HTTP rule %d: %s: %v", e.Index, e.Field, e.Err)
}

func (e *RuleError) Unwrap() error { return e.Err }

// cacheThreads bounds a Matcher's cache: 8 bytes a thread, 32 MiB.
const cacheThreads = 4 << 20

// Compile makes the Matcher of a rule set's rules. Without rules it matches
// nothing. An error is a *RuleError.
func Compile(rules []rule.HTTPRule) (*Matcher, error) {
	m := &Matcher{names: map[string]*headerName{}, limit: cacheThreads}
	b := builder{programs: map[string]*syntax.Prog{}, index: map[childKey]uint32{}, m: m}
	for i, r := range rules {
		if err := b.add(uint32(i), r); err != nil {
			return nil, err
		}
	}
	m.tree = b.finish()
	m.cache.Store(newCache(&m.tree))
	return m, nil
}

// Match returns the index of the first rule that matches the request.
func (m *Matcher) Match(r Request) (index int, ok bool) {
	var w work
	return m.match(r, &w)
}

// work counts what a decision took.
type work struct {
	symbols int // read by the automaton
	threads int // of the rules' programs, stepped one by one: not on a warm path
}

func (m *Matcher) match(r Request, w *work) (int, bool) {
	c := m.cache.Load()
	if c == nil {
		return 0, false
	}
	run := run{m: m, cache: c, at: c.start, work: w}
	for _, field := range [...]string{r.Method, r.Path, r.Host} {
		if !run.field(field) {
			return 0, false
		}
	}
	if len(m.names) > 0 {
		for _, cond := range m.conditions(r.Headers) {
			run.step(m.tree.conditionSymbol(cond))
		}
	}
	index, ok := run.accepted()
	return int(index), ok
}

// conditions returns the numbers of the header conditions that hold, ascending.
func (m *Matcher) conditions(headers []Header) []uint32 {
	type line struct {
		name *headerName
		at   int
	}
	var lines []line
	for i, h := range headers {
		if n := m.names[h.Name]; n != nil {
			lines = append(lines, line{n, i})
		}
	}
	if len(lines) == 0 {
		return nil
	}
	slices.SortStableFunc(lines, func(a, b line) int {
		return strings.Compare(headers[a.at].Name, headers[b.at].Name)
	})
	var conds []uint32
	for len(lines) > 0 {
		n := 1
		for n < len(lines) && lines[n].name == lines[0].name {
			n++
		}
		value := headers[lines[0].at].Value
		if n > 1 {
			all := make([]string, n)
			for i, l := range lines[:n] {
				all[i] = headers[l.at].Value
			}
			value = strings.Join(all, ",")
		}
		if p := lines[0].name.present; p != 0 {
			conds = append(conds, p)
		}
		if v, ok := lines[0].name.values[value]; ok {
			conds = append(conds, v)
		}
		lines = lines[n:]
	}
	slices.Sort(conds)
	return conds
}
