// Package service computes where a Service's addresses lead: from Kubernetes'
// Services, EndpointSlices and Pods to the value that the state log holds.
//
// It is pure: equal objects give equal values, in whatever order they come.
package service

import (
	"bytes"
	"cmp"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"weir.dev/weir/engine/object"
	identityv1 "weir.dev/weir/proto/weir/identity/v1"
)

// Resolve returns what the log shall hold of a Service, or nil if no address of
// it can be used. The slices are those of the Service; if there are none, its
// backends are the ready ones among pods, which are those of its namespace.
func Resolve(svc *corev1.Service, slices []*discoveryv1.EndpointSlice, pods []*corev1.Pod) *identityv1.Service {
	out := &identityv1.Service{
		Namespace: svc.Namespace, Name: svc.Name, ResourceVersion: svc.ResourceVersion,
		Addresses: addresses(svc),
	}
	usable := len(out.Addresses) > 0
	for _, p := range svc.Spec.Ports {
		proto, ok := object.ProtocolNumber(p.Protocol)
		if !ok {
			continue
		}
		port := &identityv1.ServicePort{
			Name: p.Name, Protocol: uint32(proto), Port: uint32(p.Port), NodePort: uint32(p.NodePort),
		}
		if len(slices) > 0 {
			port.Backends = fromSlices(slices, p)
		} else {
			port.Backends = fromPods(svc, p, pods)
		}
		usable = usable || port.NodePort != 0
		out.Ports = append(out.Ports, port)
	}
	if !usable {
		return nil
	}
	return out
}

func addresses(svc *corev1.Service) [][]byte {
	ips := slices.Clone(svc.Spec.ClusterIPs)
	ips = append(append(ips, svc.Spec.ClusterIP), svc.Spec.ExternalIPs...)
	for _, in := range svc.Status.LoadBalancer.Ingress {
		ips = append(ips, in.IP)
	}
	var out [][]byte
	for _, ip := range ips {
		if a, err := netip.ParseAddr(ip); err == nil { // "", "None"
			out = append(out, a.Unmap().AsSlice())
		}
	}
	slices.SortFunc(out, bytes.Compare)
	return slices.CompactFunc(out, bytes.Equal)
}

func fromSlices(all []*discoveryv1.EndpointSlice, p corev1.ServicePort) []*identityv1.Backend {
	var out []*identityv1.Backend
	for _, s := range all {
		number := slicePort(s, p)
		if number == 0 {
			continue
		}
		for _, e := range s.Endpoints {
			if e.Conditions.Ready != nil && !*e.Conditions.Ready {
				continue
			}
			for _, ip := range e.Addresses {
				out = appendBackend(out, ip, number)
			}
		}
	}
	return sorted(out)
}

// slicePort is the number that a slice has for a Service's port; 0: none.
func slicePort(s *discoveryv1.EndpointSlice, p corev1.ServicePort) uint32 {
	for _, sp := range s.Ports {
		name, proto := "", corev1.ProtocolTCP
		if sp.Name != nil {
			name = *sp.Name
		}
		if sp.Protocol != nil {
			proto = *sp.Protocol
		}
		if name == p.Name && proto == cmp.Or(p.Protocol, corev1.ProtocolTCP) && sp.Port != nil {
			return uint32(*sp.Port)
		}
	}
	return 0
}

func fromPods(svc *corev1.Service, p corev1.ServicePort, pods []*corev1.Pod) []*identityv1.Backend {
	if len(svc.Spec.Selector) == 0 {
		return nil
	}
	var out []*identityv1.Backend
	for _, pod := range pods {
		if pod.Namespace != svc.Namespace || !selects(svc.Spec.Selector, pod.Labels) ||
			!(Ready(pod) || svc.Spec.PublishNotReadyAddresses) {
			continue
		}
		number := podPort(pod, p)
		if number == 0 {
			continue
		}
		for _, a := range object.PodAddresses(pod) {
			out = append(out, &identityv1.Backend{Address: a.AsSlice(), Port: number})
		}
	}
	return sorted(out)
}

func selects(selector, labels map[string]string) bool {
	for k, v := range selector {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// podPort is the number of a Service's target port on a pod; 0: it has none.
func podPort(pod *corev1.Pod, p corev1.ServicePort) uint32 {
	if p.TargetPort.Type == intstr.Int {
		return uint32(cmp.Or(p.TargetPort.IntVal, p.Port))
	}
	proto, _ := object.ProtocolNumber(p.Protocol)
	for _, named := range object.NamedPorts(pod) {
		if named.Name == p.TargetPort.StrVal && named.Protocol == proto {
			return uint32(named.Port)
		}
	}
	return 0
}

// Ready tells whether a pod takes requests. A pod without a Ready condition
// (its source has no kubelet) does while it runs.
func Ready(pod *corev1.Pod) bool {
	if pod.DeletionTimestamp != nil || Ended(pod) {
		return false
	}
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return pod.Status.Phase == corev1.PodRunning || pod.Status.Phase == ""
}

// Ended tells whether all of a pod's containers have ended for good.
func Ended(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

func appendBackend(out []*identityv1.Backend, ip string, port uint32) []*identityv1.Backend {
	a, err := netip.ParseAddr(ip)
	if err != nil {
		return out
	}
	return append(out, &identityv1.Backend{Address: a.Unmap().AsSlice(), Port: port})
}

func sorted(out []*identityv1.Backend) []*identityv1.Backend {
	compare := func(a, b *identityv1.Backend) int {
		return cmp.Or(bytes.Compare(a.GetAddress(), b.GetAddress()), cmp.Compare(a.GetPort(), b.GetPort()))
	}
	slices.SortFunc(out, compare)
	return slices.CompactFunc(out, func(a, b *identityv1.Backend) bool { return compare(a, b) == 0 })
}
