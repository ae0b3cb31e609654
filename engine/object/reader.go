package object

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// reader walks a policy's fields and gathers every problem on its way.
type reader struct {
	fold     bool // match field names without regard to case
	lines    map[string]int
	problems []Problem
	warnings []string
}

// field is a value with the path that leads to it, as the author spelled it.
// A null is as good as an absent field.
type field struct {
	r    *reader
	path string
	v    any // nil: absent
}

func (f field) present() bool { return f.v != nil }

func (f field) fail(format string, args ...any) {
	f.r.add(f.path, false, fmt.Sprintf(format, args...))
}

func (f field) unsupported(format string, args ...any) {
	f.r.add(f.path, true, fmt.Sprintf(format, args...))
}

// warn of what is taken as it is written, but hardly meant so.
func (f field) warn(format string, args ...any) {
	text := f.path + ": " + fmt.Sprintf(format, args...)
	if n := f.r.line(f.path); n != 0 {
		text = fmt.Sprintf("line %d: %s", n, text)
	}
	f.r.warnings = append(f.r.warnings, text)
}

func (r *reader) add(path string, unsupported bool, reason string) {
	const most = 100
	if len(r.problems) < most {
		r.problems = append(r.problems, Problem{Path: path, Line: r.line(path), Reason: reason, Unsupported: unsupported})
	}
}

// line of the path, or of the nearest field around it.
func (r *reader) line(path string) int {
	for path != "" {
		if n := r.lines[path]; n != 0 {
			return n
		}
		i := strings.LastIndexAny(path, ".[")
		if i < 0 {
			return 0
		}
		path = path[:i]
	}
	return 0
}

// members of an object: all known fields by their proper names, present or not.
// Every other field is a problem, with the reason that refused has for it, if any.
func (f field) members(known []string, refused map[string]string) map[string]field {
	out := make(map[string]field, len(known))
	for _, name := range known {
		out[name] = field{r: f.r, path: join(f.path, name)}
	}
	if !f.present() {
		return out
	}
	m, ok := f.v.(map[string]any)
	if !ok {
		f.fail("must be an object with fields")
		return out
	}
	for _, name := range slices.Sorted(maps.Keys(m)) {
		sub := field{f.r, join(f.path, name), m[name]}
		proper := f.r.proper(name, known, refused)
		switch reason := refused[proper]; {
		case reason != "" && !sub.present():
		case reason != "":
			sub.unsupported("%s", reason)
		case !slices.Contains(known, proper):
			sub.fail("unknown field: check its spelling and place")
		case out[proper].present():
			sub.fail("is there twice, also as %s", out[proper].path)
		default:
			out[proper] = sub
		}
	}
	return out
}

func (r *reader) proper(name string, known []string, refused map[string]string) string {
	if !r.fold {
		return name
	}
	for _, k := range known {
		if strings.EqualFold(k, name) {
			return k
		}
	}
	for k := range refused {
		if strings.EqualFold(k, name) {
			return k
		}
	}
	return name
}

// list of at most so many entries; nil if absent.
func (f field) list(most int) []field {
	if !f.present() {
		return nil
	}
	l, ok := f.v.([]any)
	if !ok {
		f.fail("must be a list")
		return nil
	}
	if len(l) > most {
		f.fail("has %d entries, more than %d: split the policy", len(l), most)
		return nil
	}
	out := make([]field, len(l))
	for i, v := range l {
		out[i] = field{f.r, index(f.path, i), v}
		if v == nil {
			out[i].fail("must not be null: remove the entry")
		}
	}
	return out
}

func (f field) str() string {
	switch v := f.v.(type) {
	case nil:
	case string:
		return v
	case json.Number, bool:
		f.fail("must be a string: write \"%v\" in quotes", v)
	default:
		f.fail("must be a string")
	}
	return ""
}

func (f field) boolean() *bool {
	if !f.present() {
		return nil
	}
	b, ok := f.v.(bool)
	if !ok {
		f.fail("must be true or false")
		return nil
	}
	return &b
}

// integer between lo and hi; ok is false if the field is absent or bad.
func (f field) integer(lo, hi int) (n int, ok bool) {
	if !f.present() {
		return 0, false
	}
	num, isNum := f.v.(json.Number)
	n, err := strconv.Atoi(num.String())
	if !isNum || err != nil || n < lo || n > hi {
		f.fail("must be a number from %d to %d", lo, hi)
		return 0, false
	}
	return n, true
}

// text values of a map, such as labels.
func (f field) stringMap() map[string]string {
	if !f.present() {
		return nil
	}
	m, ok := f.v.(map[string]any)
	if !ok {
		f.fail("must be an object of strings")
		return nil
	}
	out := make(map[string]string, len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		sub := field{f.r, join(f.path, k), m[k]}
		if m[k] == nil {
			sub.fail("must be a string, not null")
			continue
		}
		out[k] = sub.str()
	}
	return out
}
