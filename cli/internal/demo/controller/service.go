package controller

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"weir.dev/weir/engine/object"
)

// services gives every Service its cluster addresses and keeps those it has.
func (d *decider) services() {
	had := map[types.NamespacedName]*corev1.Service{}
	for _, s := range d.in.Services {
		had[nameOf(s)] = s
	}
	var all []*corev1.Service
	keys := map[*corev1.Service]string{}
	for _, o := range d.in.Objects {
		svc, ok := o.Value.(*corev1.Service)
		if !ok || !d.inNamespace(o) {
			continue
		}
		if svc.Spec.Type == corev1.ServiceTypeExternalName {
			d.out.Refused[o.Key()] = "spec.type: ExternalName is not supported in the demo"
			continue
		}
		svc = svc.DeepCopy()
		svc.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: object.KindService}
		svc.Spec.Type = cmp.Or(svc.Spec.Type, corev1.ServiceTypeClusterIP)
		for i := range svc.Spec.Ports {
			p := &svc.Spec.Ports[i]
			p.Protocol = cmp.Or(p.Protocol, corev1.ProtocolTCP)
			if p.TargetPort == (intstr.IntOrString{}) {
				p.TargetPort = intstr.FromInt32(p.Port)
			}
		}
		keys[svc] = o.Key()
		all = append(all, svc)
	}
	slices.SortStableFunc(all, byKey)
	d.allot(all, had, keys)
}

func (d *decider) allot(all []*corev1.Service, had map[types.NamespacedName]*corev1.Service, keys map[*corev1.Service]string) {
	taken := map[string]bool{}
	take := func(svc *corev1.Service, ips []string) bool {
		for _, ip := range ips {
			a, err := netip.ParseAddr(ip)
			if err != nil || taken[ip] || !d.in.V4.Contains(a) && !d.in.V6.Contains(a) {
				d.out.Refused[keys[svc]] = fmt.Sprintf("spec.clusterIP: %q is taken, or not an address of %s or %s", ip, d.in.V4, d.in.V6)
				return false
			}
		}
		for _, ip := range ips {
			taken[ip] = true
		}
		svc.Spec.ClusterIP, svc.Spec.ClusterIPs = ips[0], ips
		return true
	}
	var waiting []*corev1.Service
	for _, svc := range all {
		asked := svc.Spec.ClusterIPs
		if len(asked) == 0 && svc.Spec.ClusterIP != "" {
			asked = []string{svc.Spec.ClusterIP}
		}
		old := had[nameOf(svc)]
		switch {
		case len(asked) > 0 && asked[0] == corev1.ClusterIPNone:
			svc.Spec.ClusterIP, svc.Spec.ClusterIPs = corev1.ClusterIPNone, asked
		case len(asked) > 0:
			if !take(svc, asked) {
				continue
			}
		case old != nil && len(old.Spec.ClusterIPs) > 0 && old.Spec.ClusterIP != corev1.ClusterIPNone && families(svc) == len(old.Spec.ClusterIPs):
			if !take(svc, old.Spec.ClusterIPs) {
				continue
			}
		default:
			waiting = append(waiting, svc)
		}
		d.out.Services = append(d.out.Services, svc)
	}
	for _, svc := range waiting {
		ips := []string{next(d.in.V4, taken)}
		if families(svc) == 2 {
			ips = append(ips, next(d.in.V6, taken))
		}
		take(svc, ips)
	}
	for _, svc := range d.out.Services {
		svc.Spec.IPFamilies = nil
		for _, ip := range svc.Spec.ClusterIPs {
			family := corev1.IPv4Protocol
			if a, err := netip.ParseAddr(ip); err == nil && a.Is6() {
				family = corev1.IPv6Protocol
			}
			svc.Spec.IPFamilies = append(svc.Spec.IPFamilies, family)
		}
	}
}

// families is how many addresses the Service gets: both, unless it asks for one.
func families(svc *corev1.Service) int {
	if p := svc.Spec.IPFamilyPolicy; p != nil && *p == corev1.IPFamilyPolicySingleStack {
		return 1
	}
	return 2
}

// next is the first free address of the range; .0 and .1 stay unused.
func next(r netip.Prefix, taken map[string]bool) string {
	a := r.Addr().Next().Next()
	for taken[a.String()] {
		a = a.Next()
	}
	return a.String()
}

// Backend is one place that a Service's port leads to.
type Backend struct {
	Address netip.Addr
	Port    uint16
}

// Translation is one address and port of a Service, and where it leads.
type Translation struct {
	Address  netip.Addr
	Protocol corev1.Protocol
	Port     uint16
	Backends []Backend
}

// Translations lists the addresses of all Services with the ready pods behind
// them.
func Translations(services []*corev1.Service, pods []*corev1.Pod) []Translation {
	var out []Translation
	for _, svc := range services {
		for _, ip := range svc.Spec.ClusterIPs {
			addr, err := netip.ParseAddr(ip)
			if err != nil {
				continue // headless
			}
			for _, port := range svc.Spec.Ports {
				out = append(out, Translation{
					Address: addr, Protocol: port.Protocol, Port: uint16(port.Port),
					Backends: backends(svc, port, addr, pods),
				})
			}
		}
	}
	return out
}

func backends(svc *corev1.Service, port corev1.ServicePort, addr netip.Addr, pods []*corev1.Pod) []Backend {
	if len(svc.Spec.Selector) == 0 {
		return nil
	}
	var out []Backend
	for _, p := range pods {
		if p.Namespace != svc.Namespace || !Ready(p) || !labels.SelectorFromSet(svc.Spec.Selector).Matches(labels.Set(p.Labels)) {
			continue
		}
		target := targetPort(p, port)
		for _, ip := range p.Status.PodIPs {
			if a, err := netip.ParseAddr(ip.IP); err == nil && a.Is4() == addr.Is4() && target != 0 {
				out = append(out, Backend{Address: a, Port: target})
			}
		}
	}
	return out
}

func targetPort(p *corev1.Pod, port corev1.ServicePort) uint16 {
	if port.TargetPort.Type == intstr.Int {
		return uint16(port.TargetPort.IntVal)
	}
	for _, c := range p.Spec.Containers {
		for _, cp := range c.Ports {
			if cp.Name == port.TargetPort.StrVal && cmp.Or(cp.Protocol, corev1.ProtocolTCP) == port.Protocol {
				return uint16(cp.ContainerPort)
			}
		}
	}
	return 0
}

// Ready tells whether the pod's containers run.
func Ready(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}
