package policytest

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"weir.dev/weir/engine/object"
	"weir.dev/weir/engine/rule"
	"weir.dev/weir/engine/spec"
)

type m = map[string]any

// drawPods are a few pods whose labels, ports and addresses policies speak of.
func drawPods(t *rapid.T) []m {
	docs := []m{
		{"apiVersion": "v1", "kind": "Namespace", "metadata": m{"name": "a", "labels": m{"env": "dev"}}},
		{"apiVersion": "v1", "kind": "Namespace", "metadata": m{"name": "b"}},
	}
	for i := range 5 {
		meta := m{"name": fmt.Sprint("p", i), "namespace": rapid.SampledFrom([]string{"a", "b"}).Draw(t, "namespace"),
			"labels": m{"app": rapid.SampledFrom([]string{"x", "y"}).Draw(t, "app")}}
		ports := []m{}
		for _, name := range []string{"web", "dns"} {
			if rapid.Bool().Draw(t, name) {
				ports = append(ports, m{"name": name, "containerPort": rapid.SampledFrom([]int{80, 81}).Draw(t, "number"),
					"protocol": rapid.SampledFrom([]string{"TCP", "UDP"}).Draw(t, "protocol")})
			}
		}
		docs = append(docs, m{"apiVersion": "v1", "kind": "Pod", "metadata": meta,
			"spec":   m{"serviceAccountName": rapid.SampledFrom([]string{"s", "r"}).Draw(t, "account"), "containers": []m{{"name": "c", "ports": ports}}},
			"status": m{"podIP": fmt.Sprintf("10.0.%d.%d", i%2, i+1)}})
	}
	return docs
}

func one[T any](t *rapid.T, label string, of ...T) T { return rapid.SampledFrom(of).Draw(t, label) }

func some(t *rapid.T, label string, most int, draw func() any) []any {
	out := []any{}
	for range rapid.IntRange(0, most).Draw(t, label) {
		out = append(out, draw())
	}
	return out
}

// drawSelector is a label selector, in the words of cilium.io if so.
func drawSelector(t *rapid.T, cilium bool) m {
	keys := []string{"app"}
	if cilium && rapid.IntRange(0, 9).Draw(t, "reserved") == 0 {
		return m{"matchExpressions": []any{m{"key": "reserved:host", "operator": one(t, "operator", "Exists", "DoesNotExist")}}}
	}
	if cilium {
		keys = append(keys, "app", "k8s:app", "io.kubernetes.pod.namespace", "io.cilium.k8s.namespace.labels.env",
			"io.cilium.k8s.policy.serviceaccount")
	}
	values := []any{"x", "y", "a", "b", "dev", "s"}
	switch rapid.IntRange(0, 3).Draw(t, "selector") {
	case 0:
		return m{}
	case 1:
		return m{"matchLabels": m{one(t, "key", keys...): one(t, "value", values...)}}
	}
	return m{"matchExpressions": some(t, "expressions", 2, func() any {
		e := m{"key": one(t, "key", keys...), "operator": one(t, "operator", "In", "NotIn", "Exists", "DoesNotExist")}
		if e["operator"] == "In" || e["operator"] == "NotIn" {
			e["values"] = []any{one(t, "value", values...), one(t, "value", values...)}
		}
		return e
	})}
}

func drawCilium(t *rapid.T, kind, version string, n int) m {
	list := func(dir string) []any {
		return some(t, dir, 2, func() any { return drawCiliumRule(t, dir, version) })
	}
	s := m{"endpointSelector": m{"matchLabels": m{"app": one(t, "subject", "x", "y")}}}
	if rapid.IntRange(0, 3).Draw(t, "any subject") == 0 {
		s["endpointSelector"] = drawSelector(t, true)
	}
	s["ingress"] = []any{drawCiliumRule(t, "ingress", version)}
	for _, f := range []string{"ingress", "egress", "ingressDeny", "egressDeny"} {
		if rapid.Bool().Draw(t, f) && (version == "v2" || len(f) < 8) {
			s[f] = list(f)
		}
	}
	if version == "v2" && rapid.IntRange(0, 3).Draw(t, "default deny") == 0 {
		s["enableDefaultDeny"] = m{"ingress": rapid.Bool().Draw(t, "ingress"), "egress": rapid.Bool().Draw(t, "egress")}
	}
	meta := m{"name": fmt.Sprint("c", n)}
	if kind == object.KindCiliumNetworkPolicy {
		meta["namespace"] = one(t, "policy namespace", "a", "b")
	}
	return m{"apiVersion": "cilium.io/" + version, "kind": kind, "metadata": meta, "spec": s}
}

func drawCiliumRule(t *rapid.T, dir, version string) m {
	side := "from"
	if dir[0] == 'e' {
		side = "to"
	}
	r := m{}
	kinds := []string{"none", "Endpoints", "Endpoints", "CIDR", "Entities", "CIDRSet"}
	if version == "v1" {
		kinds = kinds[:4]
	}
	if version == "v1" && side == "to" {
		kinds = kinds[:1]
	}
	switch one(t, "peers", kinds...) {
	case "Endpoints":
		r[side+"Endpoints"] = some(t, "endpoints", 2, func() any { return drawSelector(t, true) })
	case "Entities":
		r[side+"Entities"] = some(t, "entities", 2, func() any {
			return one(t, "entity", "all", "world", "cluster", "host", "remote-node", "world-ipv4", "none")
		})
	case "CIDR":
		r[side+"CIDR"] = some(t, "cidrs", 2, func() any { return one(t, "cidr", "10.0.0.0/24", "192.0.2.0/24", "0.0.0.0/0", "2001:db8::/32") })
	case "CIDRSet":
		r[side+"CIDRSet"] = some(t, "cidr sets", 2, func() any { return m{"cidr": "192.0.2.0/24", "except": []any{"192.0.2.128/25"}} })
	}
	if version == "v1" && side == "from" && rapid.IntRange(0, 3).Draw(t, "requires") == 0 {
		r["fromRequires"] = some(t, "required", 1, func() any { return drawSelector(t, true) })
	}
	switch rapid.IntRange(0, 3).Draw(t, "ports") {
	case 0:
	case 1:
		if version == "v2" {
			r["icmps"] = some(t, "icmps", 1, func() any { return m{"fields": []any{m{"type": 8}}} })
		}
	default:
		r["toPorts"] = some(t, "toPorts", 2, func() any { return drawToPorts(t, len(dir) < 8) })
	}
	return r
}

func drawToPorts(t *rapid.T, allow bool) m {
	http := allow && rapid.IntRange(0, 2).Draw(t, "http") == 0
	out := m{"ports": some(t, "ports", 2, func() any {
		p := m{"port": one(t, "port", "80", "81", "web", "dns", "79", "0")}
		switch {
		case http:
			p["protocol"] = "TCP"
		default:
			p["protocol"] = one(t, "protocol", "TCP", "UDP", "ANY")
		}
		if rapid.IntRange(0, 3).Draw(t, "range") == 0 {
			p["endPort"] = 81
		}
		return p
	})}
	if http {
		out["rules"] = m{"http": some(t, "http rules", 2, func() any {
			return m{"method": one(t, "method", "GET", "POST"), "path": one(t, "path", "/a", "/.*", "")}
		})}
	}
	return out
}

func drawNetworkPolicy(t *rapid.T, n int) m {
	rules := func(side string) []any {
		return some(t, side, 2, func() any {
			return m{side: some(t, "peers", 2, func() any {
				switch rapid.IntRange(0, 3).Draw(t, "peer") {
				case 0:
					return m{"podSelector": drawSelector(t, false)}
				case 1:
					return m{"namespaceSelector": m{"matchExpressions": []any{m{"key": "env", "operator": one(t, "operator", "Exists", "DoesNotExist")}}}}
				}
				return m{"ipBlock": m{"cidr": one(t, "block", "10.0.0.0/16", "0.0.0.0/0"), "except": []any{"10.0.1.0/24"}}}
			}), "ports": some(t, "ports", 2, func() any {
				return m{"port": one[any](t, "port", 80, 81, "web", "dns"), "protocol": one(t, "protocol", "TCP", "UDP")}
			})}
		})
	}
	s := m{"podSelector": drawSelector(t, false), "policyTypes": some(t, "types", 2, func() any { return one(t, "type", "Ingress", "Egress") }),
		"ingress": rules("from"), "egress": rules("to")}
	return m{"apiVersion": "networking.k8s.io/v1", "kind": object.KindNetworkPolicy,
		"metadata": m{"name": fmt.Sprint("n", n), "namespace": one(t, "policy namespace", "a", "b")}, "spec": s}
}

func drawClusterPolicy(t *rapid.T, n int) m {
	rules := func(side string) []any {
		return some(t, side, 3, func() any {
			peer := m{"namespaces": m{}}
			if rapid.Bool().Draw(t, "by pods") {
				peer = m{"pods": m{"namespaceSelector": m{}, "podSelector": drawSelector(t, false)}}
			} else if side == "to" {
				peer = one(t, "peer", m{"networks": []any{"10.0.0.0/24", "192.0.2.0/24"}}, m{"nodes": m{}}, peer)
			}
			r := m{"action": one(t, "action", "Accept", "Deny", "Pass"), side: []any{peer}}
			if rapid.Bool().Draw(t, "protocols") {
				r["protocols"] = []any{one(t, "protocol", m{"tcp": m{"destinationPort": m{"number": 80}}},
					m{"udp": m{"destinationPort": m{"range": m{"start": 80, "end": 81}}}}, m{"destinationNamedPort": "web"})}
			}
			return r
		})
	}
	return m{"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": object.KindClusterNetworkPolicy, "metadata": m{"name": fmt.Sprint("k", n)},
		"spec": m{"tier": one(t, "tier", "Admin", "Baseline"), "priority": rapid.IntRange(0, 2).Draw(t, "priority"),
			"subject": m{"namespaces": m{}}, "ingress": rules("from"), "egress": rules("to")}}
}

// Whatever policies are written, as documents, the engine judges every flow as
// the specification does.
func TestEngineAgreesWithSpecificationOnDocuments(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		docs := drawPods(t)
		for n := range rapid.IntRange(1, 4).Draw(t, "policies") {
			switch rapid.IntRange(0, 6).Draw(t, "kind") {
			case 0, 1:
				docs = append(docs, drawCilium(t, object.KindCiliumNetworkPolicy, "v1", n))
			case 2, 3:
				docs = append(docs, drawCilium(t, object.KindCiliumNetworkPolicy, "v2", n))
			case 4:
				docs = append(docs, drawCilium(t, object.KindCiliumClusterwideNetworkPolicy, "v2", n))
			case 5:
				docs = append(docs, drawNetworkPolicy(t, n))
			default:
				docs = append(docs, drawClusterPolicy(t, n))
			}
		}
		var text []byte
		for _, d := range docs {
			b, err := json.Marshal(d)
			if err != nil {
				t.Fatal(err)
			}
			text = append(append(text, "\n---\n"...), b...)
		}
		w := newWorld(scenario{objects: text}, rapid.Bool().Draw(t, "CIDRs select pods"))
		compare(t, w)
	})
}

// compare asks both judges about all pairs of sides.
func compare(t *rapid.T, w world) {
	eng, err := newEngine(w)
	if err != nil {
		t.Fatal(err)
	}
	ref := naive{spec.Cluster{Namespaces: w.namespaces, Policies: w.policies}}
	sides := []spec.Side{{Entity: rule.Host}, {Entity: rule.RemoteNode, Addr: netip.MustParseAddr("10.0.0.200")}, {}}
	for _, a := range []string{"192.0.2.1", "192.0.2.200", "2001:db8::1"} {
		sides = append(sides, spec.Side{Entity: rule.World, Addr: netip.MustParseAddr(a)})
	}
	for _, name := range sortedKeys(w.pods) {
		p := w.pods[name]
		sides = append(sides, spec.Side{Identity: &p.identity, Addr: p.addrs[0]})
	}
	requests := []request{{Method: "GET", Path: "/a"}, {Method: "POST", Path: "/b"}}
	for _, from := range sides {
		for _, to := range sides {
			for _, port := range []uint32{0x6004f, 0x60050, 0x60051, 0x110050, 0x840050, 0x10008, 0x10000, 0x2f0000} {
				f := spec.Flow{From: from, To: to, Protocol: uint8(port >> 16), Port: uint16(port)}
				for _, dir := range []rule.Direction{rule.Egress, rule.Ingress} {
					want, _ := ref.judge(dir, f)
					got, err := eng.judge(dir, f)
					if err != nil || got.kind != want.kind {
						t.Fatalf("direction %d, %+v: got %v (%v), want %v", dir, f, got.kind, err, want.kind)
					}
					for _, r := range requests {
						if got.permits(r) != want.permits(r) {
							t.Fatalf("direction %d, %+v, %v: got %v", dir, f, r, got.permits(r))
						}
					}
				}
			}
		}
	}
}
