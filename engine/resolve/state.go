// Package resolve turns policies, identities, namespaces and services into
// resolved rules: rules whose selectors have members instead of labels. It is
// incremental: an event costs what it touches, found by inverted indexes from
// labels to selectors to policies.
//
// What a State answers is a pure function of its content; the order of events
// that led to it does not show. There is no clock, no I/O and no goroutine. A
// State is not safe for concurrent use, but what Node returns is never changed
// afterwards, so it may be read beside later events.
//
// It imports engine/object, engine/rule and the standard library.
package resolve

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"weir.dev/weir/engine/object"
	"weir.dev/weir/engine/rule"
)

// State is the cluster's policy with all that it speaks of, at one revision.
type State struct {
	index
	// Entries whose namespace is not known, by it and by hash.
	waiting    map[string]map[*entry]struct{}
	waitingFor map[rule.IdentityHash]*entry

	policies map[partKey]*policy
	services map[string][]rule.Service
	folds    map[rule.ID]*fold
	// Named ports that identities have, with how many have them, and the policies
	// that ask for a name.
	ports  map[string]map[namedPort]int
	byName map[string]map[*policy]struct{}

	dirtyIdentities map[rule.IdentityHash]struct{}
	dirtySelectors  map[rule.ID]struct{}
	dirtyServices   bool
}

// partKey names one part of a policy object: each of its specs is one.
type partKey struct {
	policy string
	part   int
}

func (k partKey) compare(o partKey) int {
	return cmp.Or(cmp.Compare(k.policy, o.policy), cmp.Compare(k.part, o.part))
}

// New is an empty state.
func New() *State {
	return &State{
		index:           newIndex(),
		waiting:         make(map[string]map[*entry]struct{}),
		waitingFor:      make(map[rule.IdentityHash]*entry),
		policies:        make(map[partKey]*policy),
		services:        make(map[string][]rule.Service),
		folds:           make(map[rule.ID]*fold),
		ports:           make(map[string]map[namedPort]int),
		byName:          make(map[string]map[*policy]struct{}),
		dirtyIdentities: make(map[rule.IdentityHash]struct{}),
		dirtySelectors:  make(map[rule.ID]struct{}),
	}
}

// Changes say which answers of Node may be others than they were. Node gives
// what it gave before, unless it is asked of an identity in Identities, its
// answer holds a selector in Selectors, or Services is set and its answer has
// services.
type Changes struct {
	Identities []rule.IdentityHash // sorted: came, went, or governed by other rules
	Selectors  []rule.ID           // sorted: have other members
	Services   bool
}

// Empty says that every answer of Node is what it was.
func (c Changes) Empty() bool {
	return len(c.Identities) == 0 && len(c.Selectors) == 0 && !c.Services
}

// Take returns what changed since it was called last.
func (s *State) Take() Changes {
	c := Changes{
		Identities: slices.SortedFunc(maps.Keys(s.dirtyIdentities), compareHash),
		Selectors:  slices.SortedFunc(maps.Keys(s.dirtySelectors), rule.ID.Compare),
		Services:   s.dirtyServices,
	}
	// Not cleared: a map keeps the room that it once needed, and clearing pays
	// for all of it each time.
	s.dirtyIdentities = make(map[rule.IdentityHash]struct{})
	s.dirtySelectors = make(map[rule.ID]struct{})
	s.dirtyServices = false
	return c
}

// touch marks an identity whose rules may have changed.
func (s *State) touch(e *entry) {
	s.dirtyIdentities[e.hash] = struct{}{}
	s.dropFold(e)
}

// touchMembers marks all identities that a selector has.
func (s *State) touchMembers(sel *selector) {
	for _, r := range sel.members {
		s.touch(s.byRevision[r])
	}
}

// SetIdentity puts an identity in force that entered the log at revision. One
// whose namespace is not known waits for it: what policies say of namespaces'
// labels cannot be judged before. Revision zero is none: such an identity is not
// resolved.
func (s *State) SetIdentity(revision rule.Revision, hash rule.IdentityHash, id rule.Identity) {
	if old := s.entries[hash]; old != nil && old.revision == revision {
		return // the hash says what is in it
	}
	s.DeleteIdentity(hash)
	if revision == 0 {
		return
	}
	if other := s.byRevision[revision]; other != nil {
		s.DeleteIdentity(other.hash)
	}
	s.enter(newEntry(revision, hash, id))
}

// enter puts an entry in force, if its namespace is known.
func (s *State) enter(e *entry) {
	if _, known := s.namespaces[e.namespace]; !known {
		put(s.waiting, e.namespace, e)
		s.waitingFor[e.hash] = e
		return
	}
	s.addEntry(e)
	s.touch(e)
	s.matching(e, func(sel *selector) {
		sel.addMember(e.revision)
		s.dirtySelectors[sel.id] = struct{}{}
	})
	s.countPorts(e, +1)
}

// DeleteIdentity takes an identity out of force.
func (s *State) DeleteIdentity(hash rule.IdentityHash) {
	if e := s.waitingFor[hash]; e != nil {
		delete(s.waitingFor, hash)
		drop(s.waiting, e.namespace, e)
	}
	if e := s.entries[hash]; e != nil {
		s.leave(e)
	}
}

func (s *State) leave(e *entry) {
	s.touch(e)
	s.matching(e, func(sel *selector) {
		sel.removeMember(e.revision)
		s.dirtySelectors[sel.id] = struct{}{}
	})
	s.removeEntry(e)
	s.countPorts(e, -1)
}

// countPorts keeps the numbers of named ports; policies that ask for a name are
// expanded again when its numbers change.
func (s *State) countPorts(e *entry, by int) {
	again := make(map[*policy]struct{})
	for _, p := range e.ports {
		numbers := s.ports[p.name]
		if numbers == nil {
			numbers = make(map[namedPort]int)
			s.ports[p.name] = numbers
		}
		before := numbers[p]
		numbers[p] = before + by
		if numbers[p] == 0 {
			delete(numbers, p)
		}
		if before == 0 || numbers[p] == 0 {
			maps.Copy(again, s.byName[p.name])
		}
		if len(numbers) == 0 {
			delete(s.ports, p.name)
		}
	}
	for p := range again {
		s.replace(p, s.mustExpand(p.key, p.source))
	}
}

// SetNamespace sets a namespace's labels. Its name is always one of them. What
// waited for it comes in force.
func (s *State) SetNamespace(name string, labels map[string]string) {
	own := make(map[string]string, len(labels)+1)
	maps.Copy(own, labels)
	own[object.NamespaceNameLabel] = name
	if before, known := s.namespaces[name]; known && !maps.Equal(before, own) {
		s.relabel(name, own)
	}
	s.namespaces[name] = own
	for e := range s.waiting[name] {
		delete(s.waitingFor, e.hash)
		s.enter(e)
	}
	delete(s.waiting, name)
}

// DeleteNamespace forgets a namespace. Its identities are out of force until it
// is known again.
func (s *State) DeleteNamespace(name string) {
	for e := range s.byNamespace[name] {
		s.leave(e)
		put(s.waiting, name, e)
		s.waitingFor[e.hash] = e
	}
	delete(s.namespaces, name)
}

func (s *State) relabel(name string, labels map[string]string) {
	before := s.namespaces[name]
	for sel := range s.ofNamespace {
		was, is := hold(sel.conjunction.ofNamespace, before), hold(sel.conjunction.ofNamespace, labels)
		if was == is {
			continue
		}
		for e := range s.byNamespace[name] {
			if !sel.matches(e, labels) && !sel.matches(e, before) {
				continue
			}
			if is {
				sel.addMember(e.revision)
			} else {
				sel.removeMember(e.revision)
			}
			s.dirtySelectors[sel.id] = struct{}{}
			if len(sel.subjectOf) > 0 {
				s.touch(e)
			}
		}
	}
}

// SetPolicy puts a policy in force, in place of what had the key. p must not be
// changed afterwards. On an error the state is as it was.
func (s *State) SetPolicy(key string, p *object.Policy) error {
	parts := p.Parts()
	next := make([]*policy, len(parts))
	for i, part := range parts {
		var err error
		if next[i], err = s.expand(partKey{key, i}, part); err != nil {
			for _, done := range next[:i] {
				s.releaseAll(done.held)
			}
			return fmt.Errorf("resolve %s %s/%s: %w", p.Origin.Kind, p.Origin.Namespace, p.Origin.Name, err)
		}
	}
	for i, part := range next {
		s.replace(s.policies[partKey{key, i}], part)
	}
	s.deleteParts(key, len(next))
	return nil
}

// DeletePolicy takes a policy out of force.
func (s *State) DeletePolicy(key string) { s.deleteParts(key, 0) }

// deleteParts takes a policy's parts from the given one on out of force.
func (s *State) deleteParts(key string, from int) {
	for i := from; ; i++ {
		old := s.policies[partKey{key, i}]
		if old == nil {
			return
		}
		s.replace(old, nil)
	}
}

// replace puts next in the place of old; either may be nil.
func (s *State) replace(old, next *policy) {
	if old != nil {
		s.touchMembers(old.subject)
		delete(s.policies, old.key)
		for sel := range old.rules {
			delete(sel.subjectOf, old.key)
		}
		for _, name := range old.names {
			drop(s.byName, name, old)
		}
	}
	if next != nil {
		s.policies[next.key] = next
		for sel := range next.rules {
			if sel.subjectOf == nil {
				sel.subjectOf = make(map[partKey]*policy)
			}
			sel.subjectOf[next.key] = next
		}
		for _, name := range next.names {
			put(s.byName, name, next)
		}
		s.touchMembers(next.subject)
	}
	if old != nil {
		s.releaseAll(old.held)
	}
}

func (s *State) releaseAll(held []*selector) {
	for _, sel := range held {
		s.release(sel)
	}
}

// SetService sets the addresses of the services that one key stands for.
func (s *State) SetService(key string, services []rule.Service) {
	s.services[key] = services
	s.dirtyServices = true
}

// DeleteService forgets what a key stands for.
func (s *State) DeleteService(key string) {
	if _, ok := s.services[key]; ok {
		delete(s.services, key)
		s.dirtyServices = true
	}
}
