package resolve

import (
	"slices"

	"weir.dev/weir/engine/object"
	"weir.dev/weir/engine/rule"
)

// entry is one identity in force.
type entry struct {
	hash      rule.IdentityHash
	revision  rule.Revision
	namespace string
	labels    map[string]string // as selectors see them
	ports     []namedPort
	fold      *fold // nil: not asked for since it may have changed
}

func newEntry(revision rule.Revision, hash rule.IdentityHash, id rule.Identity) *entry {
	e := &entry{
		hash:      hash,
		revision:  revision,
		namespace: id.Namespace,
		labels:    object.SelectorLabels(id),
	}
	for _, p := range id.NamedPorts {
		e.ports = append(e.ports, namedPort{portName{p.Name, p.Protocol}, p.Port})
	}
	return e
}

// selector is a conjunction that policies use, with its members. It lives as
// long as it is used.
type selector struct {
	conjunction
	id      rule.ID
	uses    int
	members []rule.Revision // sorted
	lent    bool            // members is in somebody's NodeState: copied before it changes
	// Policies that have rules for it as their subject, by key.
	subjectOf map[partKey]*policy
}

func (s *selector) addMember(r rule.Revision) {
	i, found := slices.BinarySearch(s.members, r)
	if found {
		return
	}
	s.own()
	s.members = slices.Insert(s.members, i, r)
}

func (s *selector) removeMember(r rule.Revision) {
	i, found := slices.BinarySearch(s.members, r)
	if !found {
		return
	}
	s.own()
	s.members = slices.Delete(s.members, i, i+1)
}

func (s *selector) own() {
	if s.lent {
		s.members, s.lent = slices.Clone(s.members), false
	}
}

// lend is the selector as a value that later events do not change.
func (s *selector) lend() rule.Selector {
	out := rule.Selector{ID: s.id, Text: s.text()}
	if len(s.within) > 0 {
		out.Prefixes, out.PrefixesMatchPods, out.Within = s.within, true, true
	}
	if len(s.members) > 0 {
		s.lent = true
		out.Identities = slices.Clip(s.members)
	}
	return out
}

// anyNamespace stands for every namespace in a bucket's name.
const anyNamespace = "*"

// bucket names the selectors that an entry of the namespace with such a label
// may match: each selector stands in buckets of which an entry meets at most one.
type bucket struct {
	namespace string
	kind      object.Operator // In: key and value; Exists: key; 0: no label asked for
	key       string
	value     string
}

// bucketsOf are those that a selector stands in: by its narrowest requirement.
func bucketsOf(c *conjunction) []bucket {
	var by []bucket
	for _, r := range c.ofPod {
		switch {
		case r.Operator == object.In && (len(by) == 0 || by[0].kind != object.In || len(r.Values) < len(by)):
			by = by[:0]
			for _, v := range r.Values {
				by = append(by, bucket{kind: object.In, key: r.Key, value: v})
			}
			if len(r.Values) == 0 {
				return nil
			}
		case r.Operator == object.Exists && len(by) == 0:
			by = append(by, bucket{kind: object.Exists, key: r.Key})
		}
	}
	if len(by) == 0 {
		by = append(by, bucket{})
	}
	namespaces := c.namespaces
	if c.anyNamespace {
		namespaces = []string{anyNamespace}
	}
	all := make([]bucket, 0, len(by)*len(namespaces))
	for _, ns := range namespaces {
		for _, b := range by {
			b.namespace = ns
			all = append(all, b)
		}
	}
	return all
}

// label is a key and value that entries have.
type label struct{ key, value string }

// index finds selectors by entry, and entries by selector.
type index struct {
	entries     map[rule.IdentityHash]*entry
	byRevision  map[rule.Revision]*entry
	byLabel     map[label]map[*entry]struct{}
	byNamespace map[string]map[*entry]struct{}
	namespaces  map[string]map[string]string // labels, with the name; of every entry's namespace

	selectors map[rule.ID]*selector
	buckets   map[bucket]map[*selector]struct{}
	// Selectors that ask for labels of namespaces.
	ofNamespace map[*selector]struct{}
}

func newIndex() index {
	return index{
		entries:     make(map[rule.IdentityHash]*entry),
		byRevision:  make(map[rule.Revision]*entry),
		byLabel:     make(map[label]map[*entry]struct{}),
		byNamespace: make(map[string]map[*entry]struct{}),
		namespaces:  make(map[string]map[string]string),
		selectors:   make(map[rule.ID]*selector),
		buckets:     make(map[bucket]map[*selector]struct{}),
		ofNamespace: make(map[*selector]struct{}),
	}
}

// matching calls f for each selector that e matches.
func (x *index) matching(e *entry, f func(*selector)) {
	namespace := x.namespaces[e.namespace]
	try := func(b bucket) {
		for s := range x.buckets[b] {
			if s.matches(e, namespace) {
				f(s)
			}
		}
	}
	for _, ns := range []string{e.namespace, anyNamespace} {
		try(bucket{namespace: ns})
		for k, v := range e.labels {
			try(bucket{ns, object.In, k, v})
			try(bucket{ns, object.Exists, k, ""})
		}
	}
}

func (x *index) addEntry(e *entry) {
	x.entries[e.hash] = e
	x.byRevision[e.revision] = e
	for k, v := range e.labels {
		put(x.byLabel, label{k, v}, e)
	}
	put(x.byNamespace, e.namespace, e)
}

func (x *index) removeEntry(e *entry) {
	delete(x.entries, e.hash)
	delete(x.byRevision, e.revision)
	for k, v := range e.labels {
		drop(x.byLabel, label{k, v}, e)
	}
	drop(x.byNamespace, e.namespace, e)
}

// acquire is the selector for c, with its members; release it when it is no
// longer used.
func (x *index) acquire(c conjunction) *selector {
	id := rule.NewID(c.canonical())
	if s := x.selectors[id]; s != nil {
		s.uses++
		return s
	}
	s := &selector{conjunction: c, id: id, uses: 1}
	x.selectors[id] = s
	for _, b := range bucketsOf(&s.conjunction) {
		put(x.buckets, b, s)
	}
	if len(s.ofNamespace) > 0 {
		x.ofNamespace[s] = struct{}{}
	}
	x.candidates(&s.conjunction, func(e *entry) {
		if s.matches(e, x.namespaces[e.namespace]) {
			s.members = append(s.members, e.revision)
		}
	})
	slices.Sort(s.members)
	return s
}

func (x *index) release(s *selector) {
	s.uses--
	if s.uses > 0 {
		return
	}
	delete(x.selectors, s.id)
	for _, b := range bucketsOf(&s.conjunction) {
		drop(x.buckets, b, s)
	}
	delete(x.ofNamespace, s)
}

// candidates calls f for the entries that c might match, each once: by the
// rarest of what it asks for.
func (x *index) candidates(c *conjunction, f func(*entry)) {
	best, least := []map[*entry]struct{}(nil), len(x.entries)+1
	consider := func(sets []map[*entry]struct{}) {
		n := 0
		for _, s := range sets {
			n += len(s)
		}
		if n < least {
			best, least = sets, n
		}
	}
	for _, r := range c.ofPod {
		if r.Operator != object.In {
			continue
		}
		var sets []map[*entry]struct{}
		for _, v := range r.Values {
			sets = append(sets, x.byLabel[label{r.Key, v}])
		}
		consider(sets)
	}
	switch {
	case !c.anyNamespace:
		var sets []map[*entry]struct{}
		for _, ns := range c.namespaces {
			sets = append(sets, x.byNamespace[ns])
		}
		consider(sets)
	case len(c.ofNamespace) > 0:
		var sets []map[*entry]struct{}
		for ns, entries := range x.byNamespace {
			if hold(c.ofNamespace, x.namespaces[ns]) {
				sets = append(sets, entries)
			}
		}
		consider(sets)
	}
	if least > len(x.entries) {
		for _, e := range x.entries {
			f(e)
		}
		return
	}
	for _, s := range best {
		for e := range s {
			f(e)
		}
	}
}

func put[K, V comparable](m map[K]map[V]struct{}, key K, value V) {
	set := m[key]
	if set == nil {
		set = make(map[V]struct{})
		m[key] = set
	}
	set[value] = struct{}{}
}

func drop[K, V comparable](m map[K]map[V]struct{}, key K, value V) {
	set := m[key]
	delete(set, value)
	if len(set) == 0 {
		delete(m, key)
	}
}
