// Package stream tells nodes their policy: it turns a node's state into items,
// into a stricter form if the node does not understand them, finds the
// difference to what the node holds, and speaks the WatchPolicy protocol.
//
// All but Session is pure. A Session runs in one goroutine beside the one that
// it receives in.
package stream

import (
	"fmt"
	"net/netip"

	"google.golang.org/protobuf/proto"

	"weir.dev/weir/engine/resolve"
	"weir.dev/weir/engine/rule"
	"weir.dev/weir/internal/policyitem"
	identityv1 "weir.dev/weir/proto/weir/identity/v1"
	policyv1 "weir.dev/weir/proto/weir/policy/v1"
)

// Item is one item with its name and fingerprint.
type Item struct {
	Key     policyitem.Key
	Version uint64
	Size    int
	Proto   *policyv1.Item
}

// Items are a node's state as items, sorted as the state's lists are.
func Items(n resolve.NodeState) ([]Item, error) {
	var out []Item
	add := func(p *policyv1.Item) error {
		key, err := policyitem.KeyOf(p)
		if err != nil {
			return err
		}
		version, err := policyitem.Version(p)
		if err != nil {
			return fmt.Errorf("fingerprint %s %x: %w", key.Kind, key.Key, err)
		}
		out = append(out, Item{key, version, proto.Size(p), p})
		return nil
	}
	for _, s := range n.Subjects {
		if err := add(&policyv1.Item{Item: &policyv1.Item_Subject{Subject: subject(s)}}); err != nil {
			return nil, err
		}
	}
	for _, s := range n.Selectors {
		if err := add(&policyv1.Item{Item: &policyv1.Item_Selector{Selector: selector(s)}}); err != nil {
			return nil, err
		}
	}
	for _, r := range n.Rules {
		if err := add(&policyv1.Item{Item: &policyv1.Item_Rule{Rule: ruleItem(r)}}); err != nil {
			return nil, err
		}
	}
	for _, s := range n.RuleSets {
		if err := add(&policyv1.Item{Item: &policyv1.Item_RuleSet{RuleSet: ruleSet(s)}}); err != nil {
			return nil, err
		}
	}
	for _, s := range n.Services {
		if err := add(&policyv1.Item{Item: &policyv1.Item_Service{Service: service(s)}}); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func subject(s rule.Subject) *policyv1.Subject {
	out := &policyv1.Subject{Identity: s.Identity[:], IdentityRevision: uint64(s.Revision)}
	for _, id := range s.Selectors {
		out.Selectors = append(out.Selectors, id[:])
	}
	return out
}

func selector(s rule.Selector) *policyv1.Selector {
	out := &policyv1.Selector{
		Id: s.ID[:], Names: s.Names, Text: s.Text,
		PrefixesMatchPods: s.PrefixesMatchPods, PrefixesMatchNodes: s.PrefixesMatchNodes, Within: s.Within,
	}
	for _, r := range s.Identities {
		out.Identities = append(out.Identities, uint64(r))
	}
	for _, p := range s.Prefixes {
		set := &policyv1.PrefixSet{Prefix: prefix(p.Prefix)}
		for _, e := range p.Except {
			set.Except = append(set.Except, prefix(e))
		}
		out.Prefixes = append(out.Prefixes, set)
	}
	for _, e := range s.Entities {
		out.Entities = append(out.Entities, policyv1.Entity(e))
	}
	return out
}

func prefix(p netip.Prefix) *policyv1.Prefix {
	return &policyv1.Prefix{Address: p.Addr().AsSlice(), Length: uint32(p.Bits())}
}

func ruleItem(r rule.Rule) *policyv1.Rule {
	out := &policyv1.Rule{
		Id: r.ID[:], Subject: r.Subject[:], Direction: policyv1.Direction(r.Direction), Tier: policyv1.Tier(r.Tier),
		Priority: r.Priority, Action: policyv1.Action(r.Action), Origin: Origin(r.Origin),
	}
	if r.Peer != (rule.ID{}) {
		out.Peer = r.Peer[:]
	}
	for _, p := range r.Ports {
		out.Ports = append(out.Ports, &policyv1.PortRange{
			Protocol: uint32(p.Protocol), First: uint32(p.Lo), Last: uint32(p.Hi), Any: p.Any,
		})
	}
	if r.RuleSet != (rule.ID{}) {
		out.RuleSet = r.RuleSet[:]
	}
	return out
}

// Origin is an origin as messages name it.
func Origin(o rule.Origin) *policyv1.Origin {
	return &policyv1.Origin{
		Kind: o.Kind, ApiVersion: o.APIVersion, Namespace: o.Namespace, Name: o.Name,
		Path: o.Path, File: o.File, Line: uint32(o.Line),
	}
}

func ruleSet(s rule.RuleSet) *policyv1.RuleSet {
	out := &policyv1.RuleSet{Id: s.ID[:]}
	for _, r := range s.Rules {
		h := &policyv1.HTTPRule{Method: r.Method, Path: r.Path, Host: r.Host, Origin: Origin(r.Origin)}
		for _, hd := range r.Headers {
			h.Headers = append(h.Headers, &policyv1.HeaderRule{Name: hd.Name, Value: hd.Value})
		}
		out.Rules = append(out.Rules, h)
	}
	return out
}

func service(s rule.Service) *policyv1.ServiceItem {
	a := s.Addr.As16()
	out := &policyv1.ServiceItem{
		Address: a[:], Protocol: uint32(s.Protocol), Port: uint32(s.Port), Namespace: s.Namespace, Name: s.Name,
	}
	for _, b := range s.Backends {
		out.Backends = append(out.Backends, &identityv1.Backend{Address: b.Addr.AsSlice(), Port: uint32(b.Port)})
	}
	return out
}
