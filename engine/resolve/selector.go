package resolve

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"weir.dev/weir/engine/object"
	"weir.dev/weir/engine/rule"
)

// ErrRefused says that an object cannot be resolved; the state stays as it was.
var ErrRefused = errors.New("refused")

// conjunction is a canonical selector of pods: all its parts must hold.
type conjunction struct {
	namespaces   []string // sorted; not used with anyNamespace
	anyNamespace bool
	ofNamespace  []object.Requirement
	ofPod        []object.Requirement
	port         namedPort // zero: no condition
	// Prefixes that the pod's address must be in; empty: no condition. Which
	// address a pod has is asked on the node, not when members are counted.
	within []rule.PrefixSet
}

// namedPort is a condition on a pod's named ports: that name and protocol stand
// for number. Protocol 0 does not occur: "any" is written out.
type namedPort struct {
	portName
	number uint16
}

type portName struct {
	name     string
	protocol uint8
}

// newConjunction makes a selector canonical.
func newConjunction(s object.Selector) (conjunction, error) {
	c := conjunction{anyNamespace: s.AnyNamespace}
	if !s.AnyNamespace {
		c.namespaces = sortedSet(s.Namespaces)
	}
	var err error
	if c.ofNamespace, err = canonicalRequirements(s.NamespaceLabels); err != nil {
		return conjunction{}, err
	}
	if c.ofPod, err = canonicalRequirements(s.Labels); err != nil {
		return conjunction{}, err
	}
	return c, nil
}

// and is the selector that both c and o must hold for.
func (c conjunction) and(o conjunction) conjunction {
	both := conjunction{
		ofNamespace: joinRequirements(c.ofNamespace, o.ofNamespace),
		ofPod:       joinRequirements(c.ofPod, o.ofPod),
		port:        c.port,
		within:      c.within,
	}
	switch {
	case c.anyNamespace:
		both.anyNamespace, both.namespaces = o.anyNamespace, o.namespaces
	case o.anyNamespace:
		both.namespaces = c.namespaces
	default:
		for _, ns := range c.namespaces {
			if slices.Contains(o.namespaces, ns) {
				both.namespaces = append(both.namespaces, ns)
			}
		}
	}
	return both
}

// withPort is c for the pods whose named port has the number.
func (c conjunction) withPort(p namedPort) conjunction {
	c.port = p
	return c
}

func canonicalRequirements(rs []object.Requirement) ([]object.Requirement, error) {
	out := make([]object.Requirement, 0, len(rs))
	for _, r := range rs {
		switch r.Operator {
		case object.In, object.NotIn:
			r.Values = sortedSet(r.Values)
		case object.Exists, object.DoesNotExist:
			r.Values = nil
		default:
			return nil, fmt.Errorf("operator %d on label %q: %w", r.Operator, r.Key, ErrRefused)
		}
		out = append(out, r)
	}
	return joinRequirements(out, nil), nil
}

// joinRequirements is the sorted union of canonical requirements.
func joinRequirements(a, b []object.Requirement) []object.Requirement {
	all := slices.Concat(a, b)
	slices.SortFunc(all, compareRequirement)
	return slices.CompactFunc(all, func(a, b object.Requirement) bool { return compareRequirement(a, b) == 0 })
}

func compareRequirement(a, b object.Requirement) int {
	return cmp.Or(
		cmp.Compare(a.Key, b.Key),
		cmp.Compare(a.Operator, b.Operator),
		slices.Compare(a.Values, b.Values),
	)
}

func sortedSet(s []string) []string {
	s = slices.Clone(s)
	slices.Sort(s)
	return slices.Compact(s)
}

// canonical is a text that only equal selectors share.
func (c conjunction) canonical() []byte {
	text := []byte("pods")
	if c.anyNamespace {
		text = append(text, " of any namespace"...)
	}
	for _, ns := range c.namespaces {
		text = strconv.AppendQuote(append(text, " namespace="...), ns)
	}
	for _, r := range c.ofNamespace {
		text = appendRequirement(append(text, "\nnamespace label "...), r)
	}
	for _, r := range c.ofPod {
		text = appendRequirement(append(text, "\nlabel "...), r)
	}
	if c.port != (namedPort{}) {
		text = fmt.Appendf(text, "\nport %q/%d=%d", c.port.name, c.port.protocol, c.port.number)
	}
	for _, p := range c.within {
		text = append(append(text, "\nwithin "...), prefixText(p)...)
	}
	return text
}

func appendRequirement(text []byte, r object.Requirement) []byte {
	text = strconv.AppendQuote(text, r.Key)
	text = fmt.Appendf(text, " operator %d", r.Operator)
	for _, v := range r.Values {
		text = strconv.AppendQuote(append(text, ' '), v)
	}
	return text
}

// matches says whether a pod of the labels, in a namespace of the labels, is
// meant.
func (c *conjunction) matches(e *entry, namespace map[string]string) bool {
	if !c.anyNamespace && !slices.Contains(c.namespaces, e.namespace) {
		return false
	}
	return hold(c.ofPod, e.labels) && hold(c.ofNamespace, namespace) && c.portMatches(e)
}

func (c *conjunction) portMatches(e *entry) bool {
	if c.port == (namedPort{}) {
		return true
	}
	return slices.Contains(e.ports, c.port)
}

func hold(rs []object.Requirement, labels map[string]string) bool {
	for _, r := range rs {
		if !r.Holds(labels) {
			return false
		}
	}
	return true
}

// text is the selector for people: "id=app2 in default".
func (c conjunction) text() string {
	var b strings.Builder
	b.WriteString("pods")
	if len(c.ofPod) > 0 {
		b.Reset()
		b.WriteString(requirementsText(c.ofPod))
	}
	switch {
	case !c.anyNamespace && len(c.namespaces) == 0:
		b.WriteString(" in no namespace")
	case !c.anyNamespace:
		b.WriteString(" in " + strings.Join(c.namespaces, " or "))
	case len(c.ofNamespace) == 0:
		b.WriteString(" in any namespace")
	default:
		b.WriteString(" in namespaces")
	}
	if len(c.ofNamespace) > 0 {
		b.WriteString(" with " + requirementsText(c.ofNamespace))
	}
	if c.port != (namedPort{}) {
		fmt.Fprintf(&b, " where port %s is %d", c.port.name, c.port.number)
	}
	for i, p := range c.within {
		b.WriteString([]string{" at ", ", "}[min(i, 1)] + prefixText(p))
	}
	return b.String()
}

func requirementsText(rs []object.Requirement) string {
	texts := make([]string, len(rs))
	for i, r := range rs {
		texts[i] = r.String()
	}
	return strings.Join(texts, ", ")
}
