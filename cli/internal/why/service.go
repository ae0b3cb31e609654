package why

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"weir.dev/weir/cli/internal/observe"
	identityv1 "weir.dev/weir/proto/weir/identity/v1"
)

// target is a far end of the question, and its port.
type target struct {
	party
	port uint32
}

// targets are what a client reaches by what a person wrote: one end, or each
// backend of a Service, at the port that the Service's leads to.
func targets(text, namespace string, port, protocol uint32, records []*identityv1.AddressRecord, services []*identityv1.Service) ([]target, error) {
	s, err := serviceOf(text, namespace, services)
	if err != nil {
		return nil, err
	}
	if s == nil {
		to, err := find(text, namespace, records)
		if !errors.Is(err, errNoPod) {
			return []target{{to, port}}, err
		}
		if s, _ = serviceOf("svc/"+text, namespace, services); s == nil {
			return nil, err
		}
	}
	var there []string
	for _, p := range s.GetPorts() {
		if p.GetPort() == port && p.GetProtocol() == protocol {
			return backends(s, p, records, family(text, s))
		}
		there = append(there, fmt.Sprintf("%d/%s", p.GetPort(), observe.Protocol(p.GetProtocol())))
	}
	return nil, fmt.Errorf("service %s/%s has no port %d/%s: it has %s",
		s.GetNamespace(), s.GetName(), port, observe.Protocol(protocol), strings.Join(there, ", "))
}

// serviceOf is the Service of svc/NAME, svc/NAMESPACE/NAME or an address that
// clients use; nil if the text says something else.
func serviceOf(text, namespace string, services []*identityv1.Service) (*identityv1.Service, error) {
	if a, err := netip.ParseAddr(text); err == nil {
		is := func(b []byte) bool { other, ok := netip.AddrFromSlice(b); return ok && other.Unmap() == a.Unmap() }
		for _, s := range services {
			if slices.ContainsFunc(s.GetAddresses(), is) {
				return s, nil
			}
		}
		return nil, nil
	}
	kind, name, ok := strings.Cut(text, "/")
	if !ok || kind != "svc" && kind != "service" {
		return nil, nil
	}
	if ns, after, ok := strings.Cut(name, "/"); ok {
		namespace, name = ns, after
	}
	for _, s := range services {
		if s.GetNamespace() == namespace && s.GetName() == name {
			return s, nil
		}
	}
	return nil, fmt.Errorf("no service %q in namespace %q; weir get svc -A lists them", name, namespace)
}

// family is the length of the addresses that are asked about: of the one that was
// written, or of the Service's first.
func family(text string, s *identityv1.Service) int {
	a, err := netip.ParseAddr(text)
	if err != nil && len(s.GetAddresses()) > 0 {
		a, _ = netip.AddrFromSlice(s.GetAddresses()[0])
	}
	return a.Unmap().BitLen()
}

// backends are those of a Service's port, each pod once. An address leads to
// backends of its own family.
func backends(s *identityv1.Service, p *identityv1.ServicePort, records []*identityv1.AddressRecord, family int) ([]target, error) {
	var out []target
	for _, b := range p.GetBackends() {
		a, ok := netip.AddrFromSlice(b.GetAddress())
		if a = a.Unmap(); !ok || a.BitLen() != family {
			continue
		}
		to := byAddress(a, records)
		if !slices.ContainsFunc(out, func(t target) bool { return t.name == to.name && t.port == b.GetPort() }) {
			out = append(out, target{to, b.GetPort()})
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("service %s/%s has no backend for port %d: no running pod that it selects has the port, so nothing can connect",
			s.GetNamespace(), s.GetName(), p.GetPort())
	}
	return out, nil
}
