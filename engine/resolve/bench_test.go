package resolve_test

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"weir.dev/weir/engine/object"
	"weir.dev/weir/engine/resolve"
	"weir.dev/weir/engine/rule"
)

// A town is a generated cluster: tenants with fifty identities and ten policies
// each, of the forms that clusters have, and two policies for all of it.
type town struct{ tenants int }

const perTenant = 50

func (w town) identity(n int) rule.Identity {
	return rule.Identity{
		Cluster: "weir", Namespace: fmt.Sprintf("tenant-%04d", n/perTenant), ServiceAccount: "default",
		Labels: []rule.Label{
			{Key: "app", Value: fmt.Sprintf("app-%02d", n%20)},
			{Key: "tier", Value: []string{"frontend", "backend", "data"}[n%3]},
			{Key: "version", Value: fmt.Sprint(n % perTenant)},
		},
		NamedPorts: []rule.NamedPort{{Name: "http", Protocol: rule.TCP, Port: uint16(8080 + n%2)}},
	}
}

func townHash(n int) (h rule.IdentityHash) {
	binary.BigEndian.PutUint64(h[:], uint64(n)*0x9e3779b97f4a7c15)
	return h
}

func (w town) fill(b *testing.B, s *resolve.State) {
	b.Helper()
	for t := range w.tenants {
		name := fmt.Sprintf("tenant-%04d", t)
		s.SetNamespace(name, map[string]string{"env": []string{"prod", "staging", "dev"}[t%3], "team": name})
	}
	for n := range w.tenants * perTenant {
		s.SetIdentity(rule.Revision(n+1), townHash(n), w.identity(n))
	}
	for key, p := range w.policies() {
		if err := s.SetPolicy(key, p); err != nil {
			b.Fatal(err)
		}
	}
}

func in(key string, values ...string) object.Requirement {
	return object.Requirement{Key: key, Operator: object.In, Values: values}
}

func labels(reqs ...object.Requirement) *object.Selector {
	return &object.Selector{AnyNamespace: true, Labels: reqs}
}

func namespaces(reqs ...object.Requirement) *object.Selector {
	return &object.Selector{AnyNamespace: true, NamespaceLabels: reqs}
}

func (w town) policies() map[string]*object.Policy {
	all := map[string]*object.Policy{
		"dev to prod": townPolicy("", namespaces(in("env", "prod")), rule.PortRange{Any: true}, object.Peer{Labels: namespaces(in("env", "dev"))}),
		"frontends":   townPolicy("", labels(in("tier", "frontend")), rule.PortRange{Protocol: 6, Lo: 8080, Hi: 8080}, object.Peer{Labels: labels(in("tier", "data"))}),
	}
	private := object.Peer{Prefix: &rule.PrefixSet{
		Prefix: netip.MustParsePrefix("0.0.0.0/0"), Except: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
	}}
	for t := range w.tenants {
		ns := fmt.Sprintf("tenant-%04d", t)
		own := object.Peer{Labels: &object.Selector{Namespaces: []string{ns}}}
		for i := range 10 {
			app := &object.Selector{Labels: []object.Requirement{in("app", fmt.Sprintf("app-%02d", i*2))}}
			port := rule.PortRange{Protocol: rule.TCP, Lo: uint16(8000 + i), Hi: uint16(8000 + i)}
			p := townPolicy(ns, app, port, own)
			switch i {
			case 0:
				p = townPolicy(ns, &object.Selector{}, rule.PortRange{Any: true}, own)
			case 1:
				p = townPolicy(ns, &object.Selector{}, port, object.Peer{Labels: namespaces(in("env", "prod"))})
			case 2, 3:
				p = townPolicy(ns, app, port, private)
				p.Rules[0].Direction = rule.Egress
			case 4, 5:
				p.Rules[0].Ports[0].Ports = []object.Port{{Name: "http"}}
			case 6, 7:
				path := fmt.Sprintf("/v%d/.*", t)
				p.Rules[0].Ports[0].HTTP = []rule.HTTPRule{{Path: &path}}
			}
			p.Origin.Name = fmt.Sprintf("p%d", i)
			all[ns+"/"+p.Origin.Name] = p
		}
	}
	return all
}

func townPolicy(namespace string, subject *object.Selector, port rule.PortRange, peer object.Peer) *object.Policy {
	return &object.Policy{
		Origin:          rule.Origin{Kind: "CiliumNetworkPolicy", Namespace: namespace, Name: "p"},
		Semantics:       object.SemanticsV2,
		Subject:         *subject,
		IsolatesIngress: namespace != "",
		Rules: []object.PolicyRule{{
			Direction: rule.Ingress, Action: rule.Allow, Tier: rule.Normal, Path: "spec.ingress[0]",
			Peers: []object.Peer{peer},
			Ports: []object.PortRule{{Ports: []object.Port{{Range: port}}}},
		}},
	}
}

// sizes are (identities, policies) of 1,000 and 200 and of a whole cluster.
var sizes = []town{{20}, {1000}}

func (w town) String() string { return fmt.Sprintf("%d-identities", w.tenants*perTenant) }

func BenchmarkFill(b *testing.B) {
	for _, w := range sizes {
		b.Run(w.String(), func(b *testing.B) {
			for b.Loop() {
				w.fill(b, resolve.New())
			}
		})
	}
}

// One pod gets another label: an identity goes and one comes.
func BenchmarkRelabelPod(b *testing.B) {
	for _, w := range sizes {
		b.Run(w.String(), func(b *testing.B) {
			s := resolve.New()
			w.fill(b, s)
			n := w.tenants * perTenant
			hash := townHash(n)
			revision := rule.Revision(n + 1)
			for b.Loop() {
				id := w.identity(n / 2)
				id.Labels[0].Value = fmt.Sprintf("app-%02d", revision%20)
				s.DeleteIdentity(hash)
				s.SetIdentity(revision, hash, id)
				s.Take()
				revision++
			}
		})
	}
}

func BenchmarkChangePolicy(b *testing.B) {
	for _, w := range sizes {
		policies := w.policies()
		for _, key := range []string{"tenant-0007/p4", "frontends"} {
			b.Run(w.String()+"/"+key, func(b *testing.B) {
				s := resolve.New()
				w.fill(b, s)
				for b.Loop() {
					if err := s.SetPolicy(key, policies[key]); err != nil {
						b.Fatal(err)
					}
					s.Take()
				}
			})
		}
	}
}

func BenchmarkRelabelNamespace(b *testing.B) {
	for _, w := range sizes {
		b.Run(w.String(), func(b *testing.B) {
			s := resolve.New()
			w.fill(b, s)
			for n := 0; b.Loop(); n++ {
				s.SetNamespace("tenant-0007", map[string]string{"env": []string{"prod", "dev"}[n%2]})
				s.Take()
			}
		})
	}
}

// A node with pods of thirty identities of ten tenants.
func BenchmarkNode(b *testing.B) {
	for _, w := range sizes {
		b.Run(w.String(), func(b *testing.B) {
			s := resolve.New()
			w.fill(b, s)
			var hashes []rule.IdentityHash
			for n := range 30 {
				hashes = append(hashes, townHash(n%10*perTenant+n))
			}
			var node resolve.NodeState
			for b.Loop() {
				node = s.Node(hashes)
			}
			b.ReportMetric(float64(len(node.Rules)), "rules")
		})
	}
}
