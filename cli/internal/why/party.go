package why

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	identityv1 "weir.dev/weir/proto/weir/identity/v1"
	policyv1 "weir.dev/weir/proto/weir/policy/v1"
)

// party is one end of the question: how it is called, and what policy asks.
type party struct {
	name   string
	msg    *policyv1.Party
	node   string // where it is, or whose address it is; "": elsewhere
	isNode bool
}

// seenFrom is p as policy names it at the other end: the address of a node is
// the host to that node's own pods.
func (p party) seenFrom(other party) party {
	if !p.isNode {
		return p
	}
	entity := policyv1.Entity_ENTITY_REMOTE_NODE
	if p.node == other.node {
		entity = policyv1.Entity_ENTITY_HOST
	}
	p.msg = &policyv1.Party{Party: &policyv1.Party_Entity{Entity: entity}, Addresses: p.msg.GetAddresses()}
	return p
}

var entities = map[string]policyv1.Entity{
	"world":       policyv1.Entity_ENTITY_WORLD,
	"host":        policyv1.Entity_ENTITY_HOST,
	"remote-node": policyv1.Entity_ENTITY_REMOTE_NODE,
}

var errNoPod = errors.New("no pod with an address is called so")

// find resolves what a person wrote: an entity, an address, a pod, or a
// workload whose pods' names start with it (deploy/app1, app1). Of several
// pods of one identity it takes the first by name; several identities are an
// error that names them.
func find(text, namespace string, records []*identityv1.AddressRecord) (party, error) {
	if e, ok := entities[text]; ok {
		return party{name: text, msg: &policyv1.Party{Party: &policyv1.Party_Entity{Entity: e}}}, nil
	}
	if a, err := netip.ParseAddr(text); err == nil {
		return byAddress(a, records), nil
	}
	name := text
	if _, after, ok := strings.Cut(name, "deploy/"); ok {
		name = after
	}
	name = strings.TrimPrefix(name, "pod/")
	if ns, after, ok := strings.Cut(name, "/"); ok {
		namespace, name = ns, after
	}
	for _, match := range []func(pod string) bool{
		func(pod string) bool { return pod == name },
		func(pod string) bool { return strings.HasPrefix(pod, name+"-") },
	} {
		if p, ok, err := byName(namespace, records, match); ok || err != nil {
			return p, err
		}
	}
	return party{}, fmt.Errorf("%q in namespace %q: %w; give a pod, deploy/NAME, NAMESPACE/POD, an address, world, host or remote-node", text, namespace, errNoPod)
}

func byAddress(a netip.Addr, records []*identityv1.AddressRecord) party {
	b := a.As16()
	for _, r := range records {
		switch {
		case !slices.Equal(r.GetAddress(), b[:]):
		case r.GetNodeAddress():
			return party{name: a.String(), msg: &policyv1.Party{Addresses: [][]byte{b[:]}}, node: r.GetNode(), isNode: true}
		case len(r.GetIdentity()) > 0:
			return ofPod(r, records)
		}
	}
	return party{name: a.String(), msg: &policyv1.Party{Party: &policyv1.Party_Address{Address: a.Unmap().AsSlice()}}}
}

func byName(namespace string, records []*identityv1.AddressRecord, match func(pod string) bool) (party, bool, error) {
	var found []*identityv1.AddressRecord
	for _, r := range records {
		if r.GetPodNamespace() == namespace && len(r.GetIdentity()) > 0 && match(r.GetPodName()) {
			found = append(found, r)
		}
	}
	if len(found) == 0 {
		return party{}, false, nil
	}
	slices.SortFunc(found, func(a, b *identityv1.AddressRecord) int {
		return cmp.Or(strings.Compare(a.GetPodName(), b.GetPodName()), bytes.Compare(a.GetAddress(), b.GetAddress()))
	})
	var others []string
	for _, r := range found {
		if !slices.Equal(r.GetIdentity(), found[0].GetIdentity()) {
			others = append(others, r.GetPodName())
		}
	}
	if len(others) > 0 {
		return party{}, false, fmt.Errorf("%s and %s have different labels: name one of them", found[0].GetPodName(), strings.Join(slices.Compact(others), ", "))
	}
	return ofPod(found[0], records), true, nil
}

// ofPod has r's address first: it is the one that prefixes are looked up by.
func ofPod(r *identityv1.AddressRecord, records []*identityv1.AddressRecord) party {
	p := &policyv1.Party{Party: &policyv1.Party_Identity{Identity: r.GetIdentity()}, Addresses: [][]byte{r.GetAddress()}}
	for _, other := range records {
		if other.GetPodUid() == r.GetPodUid() && !bytes.Equal(other.GetAddress(), r.GetAddress()) {
			p.Addresses = append(p.Addresses, other.GetAddress())
		}
	}
	return party{name: r.GetPodNamespace() + "/" + r.GetPodName(), msg: p, node: r.GetNode()}
}
