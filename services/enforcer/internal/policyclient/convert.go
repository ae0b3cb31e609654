package policyclient

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	identityv1 "weir.dev/weir/proto/weir/identity/v1"

	"weir.dev/weir/engine/rule"
	policyv1 "weir.dev/weir/proto/weir/policy/v1"
)

// errMalformed says that an item breaks its contract. The whole difference is
// refused then, because leaving out a part may widen what is allowed.
var errMalformed = errors.New("malformed")

func valueOf(it *policyv1.Item) (any, error) {
	switch v := it.GetItem().(type) {
	case *policyv1.Item_Subject:
		return subjectOf(v.Subject)
	case *policyv1.Item_Selector:
		return selectorOf(v.Selector)
	case *policyv1.Item_Rule:
		return rulesOf(v.Rule)
	case *policyv1.Item_RuleSet:
		return ruleSetOf(v.RuleSet)
	case *policyv1.Item_Service:
		return serviceOf(v.Service)
	}
	return nil, fmt.Errorf("%w: unknown kind %T", errMalformed, it.GetItem())
}

func idOf(b []byte) (rule.ID, error) {
	if len(b) != len(rule.ID{}) {
		return rule.ID{}, fmt.Errorf("%w: an id of %d bytes, want 16", errMalformed, len(b))
	}
	return rule.ID(b), nil
}

func subjectOf(p *policyv1.Subject) (rule.Subject, error) {
	if len(p.GetIdentity()) != len(rule.IdentityHash{}) {
		return rule.Subject{}, fmt.Errorf("%w: an identity of %d bytes, want 32", errMalformed, len(p.GetIdentity()))
	}
	s := rule.Subject{Identity: rule.IdentityHash(p.GetIdentity()), Revision: rule.Revision(p.GetIdentityRevision())}
	for _, b := range p.GetSelectors() {
		id, err := idOf(b)
		if err != nil {
			return rule.Subject{}, err
		}
		s.Selectors = append(s.Selectors, id)
	}
	return s, nil
}

func selectorOf(p *policyv1.Selector) (rule.Selector, error) {
	id, err := idOf(p.GetId())
	if err != nil {
		return rule.Selector{}, err
	}
	s := rule.Selector{
		ID: id, Names: p.GetNames(), Text: p.GetText(),
		PrefixesMatchPods: p.GetPrefixesMatchPods(), PrefixesMatchNodes: p.GetPrefixesMatchNodes(), Within: p.GetWithin(),
	}
	for _, r := range p.GetIdentities() {
		s.Identities = append(s.Identities, rule.Revision(r))
	}
	for _, ps := range p.GetPrefixes() {
		set, err := prefixSetOf(ps)
		if err != nil {
			return rule.Selector{}, err
		}
		s.Prefixes = append(s.Prefixes, set)
	}
	for _, e := range p.GetEntities() {
		if e <= policyv1.Entity_ENTITY_UNSPECIFIED || e > policyv1.Entity_ENTITY_ENDPOINTS {
			return rule.Selector{}, fmt.Errorf("%w: selector %q names the unknown entity %d", errMalformed, p.GetText(), e)
		}
		s.Entities = append(s.Entities, rule.Entity(e))
	}
	return s, nil
}

func prefixSetOf(p *policyv1.PrefixSet) (rule.PrefixSet, error) {
	prefix, err := prefixOf(p.GetPrefix())
	if err != nil {
		return rule.PrefixSet{}, err
	}
	s := rule.PrefixSet{Prefix: prefix}
	for _, e := range p.GetExcept() {
		except, err := prefixOf(e)
		if err != nil {
			return rule.PrefixSet{}, err
		}
		s.Except = append(s.Except, except)
	}
	return s, nil
}

func prefixOf(p *policyv1.Prefix) (netip.Prefix, error) {
	addr, ok := netip.AddrFromSlice(p.GetAddress())
	if !ok || int(p.GetLength()) > addr.BitLen() {
		return netip.Prefix{}, fmt.Errorf("%w: prefix %x/%d", errMalformed, p.GetAddress(), p.GetLength())
	}
	return netip.PrefixFrom(addr, int(p.GetLength())).Masked(), nil
}

// rulesOf is one rule, or one for each direction if the direction is unknown.
// What is unknown denies everything that the rule could have touched.
func rulesOf(p *policyv1.Rule) ([]rule.Rule, error) {
	r := rule.Rule{
		Direction: rule.Direction(p.GetDirection()), Tier: rule.Tier(p.GetTier()), Priority: p.GetPriority(),
		Action: rule.Action(p.GetAction()), Origin: originOf(p.GetOrigin()),
	}
	var err error
	if r.ID, err = idOf(p.GetId()); err != nil {
		return nil, err
	}
	if r.Subject, err = idOf(p.GetSubject()); err != nil {
		return nil, err
	}
	if p.GetAction() != policyv1.Action_ACTION_ISOLATE {
		if r.Peer, err = idOf(p.GetPeer()); err != nil {
			return nil, err
		}
	}
	if p.RuleSet != nil {
		if r.RuleSet, err = idOf(p.GetRuleSet()); err != nil {
			return nil, err
		}
	}
	if r.Ports, err = portsOf(p.GetPorts()); err != nil {
		return nil, err
	}
	knownAction := p.GetAction() > policyv1.Action_ACTION_UNSPECIFIED && p.GetAction() <= policyv1.Action_ACTION_ISOLATE
	knownTier := p.GetTier() > policyv1.Tier_TIER_UNSPECIFIED && p.GetTier() <= policyv1.Tier_TIER_BASELINE
	if !knownAction || !knownTier {
		r.Action, r.Tier, r.Priority, r.Ports, r.RuleSet = rule.Deny, rule.Admin, 0, rule.Everything(), rule.ID{}
	}
	if p.GetDirection() == policyv1.Direction_DIRECTION_INGRESS || p.GetDirection() == policyv1.Direction_DIRECTION_EGRESS {
		return []rule.Rule{r}, nil
	}
	if r.Action != rule.Isolate {
		r.Action, r.Tier, r.Priority, r.Ports, r.RuleSet = rule.Deny, rule.Admin, 0, rule.Everything(), rule.ID{}
	}
	in, out := r, r
	in.Direction, out.Direction = rule.Ingress, rule.Egress
	return []rule.Rule{in, out}, nil
}

func portsOf(ps []*policyv1.PortRange) ([]rule.PortRange, error) {
	var out []rule.PortRange
	for _, p := range ps {
		if p.GetAny() {
			out = append(out, rule.PortRange{Any: true})
			continue
		}
		if p.GetProtocol() > 255 || p.GetLast() > 65535 || p.GetFirst() > p.GetLast() {
			return nil, fmt.Errorf("%w: ports %d-%d of protocol %d", errMalformed, p.GetFirst(), p.GetLast(), p.GetProtocol())
		}
		out = append(out, rule.PortRange{Protocol: uint8(p.GetProtocol()), Lo: uint16(p.GetFirst()), Hi: uint16(p.GetLast())})
	}
	return out, nil
}

func originOf(p *policyv1.Origin) rule.Origin {
	return rule.Origin{
		Kind: p.GetKind(), APIVersion: p.GetApiVersion(), Namespace: p.GetNamespace(), Name: p.GetName(),
		Path: p.GetPath(), File: p.GetFile(), Line: int(p.GetLine()),
	}
}

func ruleSetOf(p *policyv1.RuleSet) (rule.RuleSet, error) {
	id, err := idOf(p.GetId())
	if err != nil {
		return rule.RuleSet{}, err
	}
	s := rule.RuleSet{ID: id}
	for _, h := range p.GetRules() {
		r := rule.HTTPRule{Method: h.Method, Path: h.Path, Host: h.Host, Origin: originOf(h.GetOrigin())}
		for _, hd := range h.GetHeaders() {
			r.Headers = append(r.Headers, rule.HeaderRule{Name: hd.GetName(), Value: hd.Value})
		}
		s.Rules = append(s.Rules, r)
	}
	return s, nil
}

func serviceOf(p *policyv1.ServiceItem) (rule.Service, error) {
	addr, ok := netip.AddrFromSlice(p.GetAddress())
	if !ok || p.GetProtocol() > 255 || p.GetPort() > 65535 {
		return rule.Service{}, fmt.Errorf("%w: service address %x port %d/%d", errMalformed, p.GetAddress(), p.GetPort(), p.GetProtocol())
	}
	s := rule.Service{
		Addr: addr.Unmap(), Protocol: uint8(p.GetProtocol()), Port: uint16(p.GetPort()),
		Namespace: p.GetNamespace(), Name: p.GetName(),
	}
	for _, b := range p.GetBackends() {
		backend, err := backendOf(b)
		if err != nil {
			return rule.Service{}, err
		}
		s.Backends = append(s.Backends, backend)
	}
	slices.SortFunc(s.Backends, compareBackends)
	return s, nil
}

func backendOf(p *identityv1.Backend) (rule.Backend, error) {
	addr, ok := netip.AddrFromSlice(p.GetAddress())
	if !ok || p.GetPort() > 65535 {
		return rule.Backend{}, fmt.Errorf("%w: backend %x port %d", errMalformed, p.GetAddress(), p.GetPort())
	}
	return rule.Backend{Addr: addr.Unmap(), Port: uint16(p.GetPort())}, nil
}

func compareBackends(a, b rule.Backend) int {
	if c := a.Addr.Compare(b.Addr); c != 0 {
		return c
	}
	return int(a.Port) - int(b.Port)
}
