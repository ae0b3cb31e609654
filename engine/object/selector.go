package object

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"weir.dev/weir/engine/rule"
)

// role is what a selector is for. It decides what a label may mean that no
// identity has.
type role uint8

const (
	_         role = iota
	subjectOf      // whom a policy governs
	allows         // a peer that is allowed, or that has to be
	denies         // a peer that is denied
)

// condition is one requirement as it was written.
type condition struct {
	at field
	Requirement
}

// conditions reads a label selector: fields matchLabels and matchExpressions.
func (f field) conditions() []condition {
	m := f.members([]string{"matchLabels", "matchExpressions"}, nil)
	labels := m["matchLabels"].stringMap()
	var out []condition
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		at := field{f.r, join(m["matchLabels"].path, k), labels[k]}
		out = append(out, condition{at, Requirement{Key: k, Operator: In, Values: []string{labels[k]}}})
	}
	for _, e := range m["matchExpressions"].list(maxPeers) {
		em := e.members([]string{"key", "operator", "values"}, nil)
		c := condition{at: e, Requirement: Requirement{Key: em["key"].str()}}
		for _, v := range em["values"].list(maxPeers) {
			c.Values = append(c.Values, v.str())
		}
		if c.Key == "" {
			e.fail("key is required")
			continue
		}
		c.setOperator(em["operator"].str())
		out = append(out, c)
	}
	return out
}

func (c *condition) setOperator(name string) {
	slices.Sort(c.Values)
	c.Values = slices.Compact(c.Values)
	wantValues := true
	switch metav1.LabelSelectorOperator(name) {
	case metav1.LabelSelectorOpIn:
		c.Operator = In
	case metav1.LabelSelectorOpNotIn:
		c.Operator = NotIn
	case metav1.LabelSelectorOpExists:
		c.Operator, wantValues = Exists, false
	case metav1.LabelSelectorOpDoesNotExist:
		c.Operator, wantValues = DoesNotExist, false
	default:
		c.at.fail("operator %q is none of In, NotIn, Exists, DoesNotExist", name)
		return
	}
	if wantValues && len(c.Values) == 0 {
		c.at.fail("operator %s needs values", name)
	}
	if !wantValues && len(c.Values) > 0 {
		c.at.fail("operator %s takes no values: remove them", name)
	}
}

// check refuses keys and values that no label can have, and keys that mean
// something else here than their author thinks.
func (c *condition) check(role role) {
	if errs := validation.IsQualifiedName(c.Key); len(errs) > 0 {
		c.at.fail("label key %q: %s", c.Key, errs[0])
	}
	for _, v := range c.Values {
		if errs := validation.IsValidLabelValue(v); len(errs) > 0 {
			c.at.fail("label value %q: %s", v, errs[0])
		}
	}
	if SecurityRelevant(c.Key) || c.Key == LabelServiceAccount || c.Key == LabelCluster {
		return
	}
	// Identities do not have this label. Nobody matches In and Exists, which is
	// narrower than written for an allowed peer and wider for all else.
	if role != allows || c.Operator == NotIn || c.Operator == DoesNotExist {
		c.at.unsupported("label %s says which instance a pod is and is no part of identities: select by another label", c.Key)
		return
	}
	c.at.warn("label %s says which instance a pod is and is no part of identities: nobody is selected", c.Key)
}

// canonical sorts requirements and drops repeated ones.
func canonical(reqs []Requirement) []Requirement {
	slices.SortFunc(reqs, func(a, b Requirement) int {
		return cmp.Or(cmp.Compare(a.Key, b.Key), cmp.Compare(a.Operator, b.Operator), slices.Compare(a.Values, b.Values))
	})
	return slices.CompactFunc(reqs, func(a, b Requirement) bool {
		return a.Key == b.Key && a.Operator == b.Operator && slices.Equal(a.Values, b.Values)
	})
}

// finish makes a selector canonical and describes it.
func (s Selector) finish() Selector {
	s.Labels, s.NamespaceLabels = canonical(s.Labels), canonical(s.NamespaceLabels)
	slices.Sort(s.Namespaces)
	s.Namespaces = slices.Compact(s.Namespaces)
	s.Text = s.describe()
	return s
}

func (s Selector) describe() string {
	pods := "pods"
	if len(s.Labels) > 0 {
		pods = describeAll(s.Labels)
	}
	switch {
	case len(s.NamespaceLabels) > 0:
		return pods + " in namespaces with " + describeAll(s.NamespaceLabels)
	case s.AnyNamespace:
		return pods + " in any namespace"
	}
	return pods + " in " + strings.Join(s.Namespaces, " or ")
}

func describeAll(reqs []Requirement) string {
	var parts []string
	for _, r := range reqs {
		parts = append(parts, r.String())
	}
	return strings.Join(parts, ",")
}

// String is as kubectl writes it: app=web, tier in (a,b), !debug.
func (r Requirement) String() string {
	switch r.Operator {
	case In:
		if len(r.Values) == 1 {
			return r.Key + "=" + r.Values[0]
		}
		return r.Key + " in (" + strings.Join(r.Values, ",") + ")"
	case NotIn:
		if len(r.Values) == 1 {
			return r.Key + "!=" + r.Values[0]
		}
		return r.Key + " notin (" + strings.Join(r.Values, ",") + ")"
	case Exists:
		return r.Key
	case DoesNotExist:
		return "!" + r.Key
	}
	return r.Key + " ?"
}

// Holds tells whether the labels meet the requirement. A requirement with an
// unknown operator holds for nobody.
func (r Requirement) Holds(labels map[string]string) bool {
	v, ok := labels[r.Key]
	switch r.Operator {
	case In:
		return ok && slices.Contains(r.Values, v)
	case NotIn:
		return !ok || !slices.Contains(r.Values, v)
	case Exists:
		return ok
	case DoesNotExist:
		return !ok
	}
	return false
}

// everything is every peer there is, as entities.
func everything() []rule.Entity {
	return []rule.Entity{rule.World, rule.Host, rule.RemoteNode, rule.Endpoints}
}

// checkNamespaceLabel is check for a requirement on a namespace's labels.
func (c *condition) checkNamespaceLabel() {
	if errs := validation.IsQualifiedName(c.Key); len(errs) > 0 {
		c.at.fail("label key %q: %s", c.Key, errs[0])
	}
	for _, v := range c.Values {
		if errs := validation.IsValidLabelValue(v); len(errs) > 0 {
			c.at.fail("label value %q: %s", v, errs[0])
		}
	}
}
