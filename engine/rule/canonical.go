package rule

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strconv"
)

// NewID names what the canonical text says.
func NewID(canonical []byte) ID {
	sum := sha256.Sum256(canonical)
	return ID(sum[:len(ID{})])
}

// String is the ID in hexadecimal.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// Compare orders IDs by their bytes.
func (id ID) Compare(other ID) int { return bytes.Compare(id[:], other[:]) }

// CompareOrigin orders origins as attribution prefers them: by kind, namespace,
// name and path, then by the rest, so that only equal origins compare equal.
func CompareOrigin(a, b Origin) int {
	return cmp.Or(
		cmp.Compare(a.Kind, b.Kind),
		cmp.Compare(a.Namespace, b.Namespace),
		cmp.Compare(a.Name, b.Name),
		comparePath(a.Path, b.Path),
		cmp.Compare(a.APIVersion, b.APIVersion),
		cmp.Compare(a.File, b.File),
		cmp.Compare(a.Line, b.Line),
	)
}

// comparePath orders field paths so that spec.ingress[2] is before spec.ingress[10].
func comparePath(a, b string) int {
	for a != "" && b != "" {
		na, nb := digits(a), digits(b)
		if na == 0 || nb == 0 {
			if a[0] != b[0] {
				return cmp.Compare(a[0], b[0])
			}
			a, b = a[1:], b[1:]
			continue
		}
		if c := cmp.Or(cmp.Compare(na, nb), cmp.Compare(a[:na], b[:nb])); c != 0 {
			return c
		}
		a, b = a[na:], b[nb:]
	}
	return cmp.Compare(len(a), len(b))
}

// digits is the length of the number that s begins with.
func digits(s string) int {
	n := 0
	for n < len(s) && s[n] >= '0' && s[n] <= '9' {
		n++
	}
	return n
}

// NewRuleSet makes a rule set of rules in any order. Rules that say the same
// are one, with the least of their origins.
func NewRuleSet(rules []HTTPRule) RuleSet {
	type keyed struct {
		text []byte
		rule HTTPRule
	}
	all := make([]keyed, 0, len(rules))
	for _, r := range rules {
		r.Headers = canonicalHeaders(r.Headers)
		all = append(all, keyed{httpText(r), r})
	}
	slices.SortFunc(all, func(a, b keyed) int {
		return cmp.Or(bytes.Compare(a.text, b.text), CompareOrigin(a.rule.Origin, b.rule.Origin))
	})
	all = slices.CompactFunc(all, func(a, b keyed) bool { return bytes.Equal(a.text, b.text) })
	text := []byte("rule set\n")
	set := RuleSet{Rules: make([]HTTPRule, 0, len(all))}
	for _, k := range all {
		text = append(append(text, k.text...), '\n')
		set.Rules = append(set.Rules, k.rule)
	}
	set.ID = NewID(text)
	return set
}

func canonicalHeaders(headers []HeaderRule) []HeaderRule {
	if len(headers) == 0 {
		return nil
	}
	sorted := slices.Clone(headers)
	slices.SortFunc(sorted, compareHeader)
	return slices.CompactFunc(sorted, func(a, b HeaderRule) bool { return compareHeader(a, b) == 0 })
}

func compareHeader(a, b HeaderRule) int {
	return cmp.Or(cmp.Compare(a.Name, b.Name), compareOptional(a.Value, b.Value))
}

func compareOptional(a, b *string) int {
	switch {
	case a == nil && b == nil:
		return 0
	case a == nil:
		return -1
	case b == nil:
		return 1
	}
	return cmp.Compare(*a, *b)
}

// httpText is one line that only rules with the same conditions share.
func httpText(r HTTPRule) []byte {
	text := appendOptional(nil, "method", r.Method)
	text = appendOptional(text, "path", r.Path)
	text = appendOptional(text, "host", r.Host)
	for _, h := range r.Headers {
		text = append(text, " header="...)
		text = strconv.AppendQuote(text, h.Name)
		text = appendOptional(text, "value", h.Value)
	}
	return text
}

func appendOptional(text []byte, name string, value *string) []byte {
	if value == nil {
		return text
	}
	text = append(text, ' ')
	text = append(text, name...)
	text = append(text, '=')
	return strconv.AppendQuote(text, *value)
}
