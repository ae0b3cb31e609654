package policytest

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"weir.dev/weir/engine/object"
	"weir.dev/weir/engine/rule"
	"weir.dev/weir/engine/spec"
)

// cluster is the name of the cluster that scenarios play in.
const clusterName = "default"

// world is what a scenario's objects say.
type world struct {
	namespaces map[string]map[string]string
	pods       map[string]pod // by namespace/name
	policies   []*object.Policy
	refused    []object.Refusal
}

type pod struct {
	identity rule.Identity
	node     string
	ofNode   bool // hostNetwork: it has its node's address and no identity
	addrs    []netip.Addr
}

func newWorld(s scenario, cidrSelectsPods bool) world {
	w := world{namespaces: map[string]map[string]string{}, pods: map[string]pod{}}
	objects, refused := object.Decode(s.dir+"/"+objectsFile, s.objects)
	w.refused = refused
	for _, o := range objects {
		switch v := o.Value.(type) {
		case *corev1.Namespace:
			w.namespaces[v.Name] = v.Labels
		case *corev1.Pod:
			w.pods[v.Namespace+"/"+v.Name] = pod{
				identity: object.PodIdentity(clusterName, v),
				node:     v.Spec.NodeName,
				ofNode:   v.Spec.HostNetwork,
				addrs:    object.PodAddresses(v),
			}
		case *object.Policy:
			if !cidrSelectsPods {
				v.LimitCIDRs()
			}
			w.policies = append(w.policies, v)
		}
	}
	return w
}

// peers that Cilium knows and Weir does not: nothing can be asked of them.
var unknownEntities = []string{"health", "ingress", "init", "unmanaged"}

// flow is a query's flow. ok is false if it is of an entity that Weir does not
// have.
func (w world) flow(q query) (f spec.Flow, ok bool, err error) {
	f.Port = q.Port
	switch q.Protocol {
	case "TCP":
		f.Protocol = rule.TCP
	case "UDP":
		f.Protocol = rule.UDP
	case "SCTP":
		f.Protocol = rule.SCTP
	case "ICMP":
		f.Protocol, f.Port = rule.ICMP, q.ICMPType
	case "ICMPv6":
		f.Protocol, f.Port = rule.ICMPv6, q.ICMPType
	default:
		return f, false, fmt.Errorf("protocol %q is unknown", q.Protocol)
	}
	for _, s := range []struct {
		name, other string
		side        *spec.Side
	}{{q.From, q.To, &f.From}, {q.To, q.From, &f.To}} {
		if name, is := strings.CutPrefix(s.name, "entity:"); is && slices.Contains(unknownEntities, name) {
			return f, false, nil
		}
		if *s.side, err = w.side(s.name, s.other); err != nil {
			return f, false, err
		}
	}
	return f, true, nil
}

// side is one end of a flow, as the other end sees it.
func (w world) side(name, other string) (spec.Side, error) {
	if entity, is := strings.CutPrefix(name, "entity:"); is {
		switch entity {
		case "host":
			return spec.Side{Entity: rule.Host}, nil
		case "remote-node", "kube-apiserver": // an API server that is a node
			return spec.Side{Entity: rule.RemoteNode}, nil
		}
		return spec.Side{}, fmt.Errorf("entity %q is unknown", entity)
	}
	if text := strings.TrimPrefix(name, "ip:"); !strings.Contains(text, "/") {
		a, err := netip.ParseAddr(text)
		return spec.Side{Entity: rule.World, Addr: a}, err
	}
	p, ok := w.pods[name]
	if !ok {
		return spec.Side{}, fmt.Errorf("there is no pod %s", name)
	}
	side := spec.Side{Addr: p.addrFor(other)}
	switch {
	case !p.ofNode:
		side.Identity = &p.identity
	case w.pods[other].node == p.node:
		side.Entity = rule.Host
	default:
		side.Entity = rule.RemoteNode
	}
	return side, nil
}

// addrFor is the address that the other side sees: one of its family.
func (p pod) addrFor(other string) netip.Addr {
	a, err := netip.ParseAddr(strings.TrimPrefix(other, "ip:"))
	for _, own := range p.addrs {
		if err != nil || own.Is4() == a.Is4() {
			return own
		}
	}
	return netip.Addr{}
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
