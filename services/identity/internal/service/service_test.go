package service_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"weir.dev/weir/internal/deptest"
	identityv1 "weir.dev/weir/proto/weir/identity/v1"
	"weir.dev/weir/services/identity/internal/service"
)

// Where a Service leads is a pure function of the objects.
func TestImports(t *testing.T) {
	deptest.OnlyImports(t, "bytes", "cmp", "net/netip", "slices", "k8s.io/api/core/v1", "k8s.io/api/discovery/v1",
		"k8s.io/apimachinery/pkg/util/intstr", "weir.dev/weir/engine/object", "weir.dev/weir/proto/weir/identity/v1")
}

func ptr[T any](v T) *T { return &v }

func pod(name, ip string, change func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", Labels: map[string]string{"id": "app1"}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{
			Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}},
		}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: ip}}},
	}
	if change != nil {
		change(p)
	}
	return p
}

func svc(change func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "s", Namespace: "default"},
		Spec: corev1.ServiceSpec{
			ClusterIP: "10.96.0.1", ClusterIPs: []string{"10.96.0.1"}, Selector: map[string]string{"id": "app1"},
			Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromString("http")}},
		},
	}
	if change != nil {
		change(s)
	}
	return s
}

// text is a value as a reader can compare it.
func text(v *identityv1.Service) string {
	if v == nil {
		return "none"
	}
	var out string
	for _, a := range v.GetAddresses() {
		ip, _ := netip.AddrFromSlice(a)
		out += ip.String() + " "
	}
	for _, p := range v.GetPorts() {
		out += fmt.Sprintf("%d/%d:", p.GetPort(), p.GetProtocol())
		if p.GetNodePort() != 0 {
			out += fmt.Sprintf("(node %d)", p.GetNodePort())
		}
		for _, b := range p.GetBackends() {
			ip, _ := netip.AddrFromSlice(b.GetAddress())
			out += " " + netip.AddrPortFrom(ip, uint16(b.GetPort())).String()
		}
	}
	return out
}

func TestResolve(t *testing.T) {
	ready := func(s corev1.ConditionStatus) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: s}}
		}
	}
	pods := []*corev1.Pod{
		pod("b", "10.244.1.3", nil),
		pod("a", "10.244.1.2", ready(corev1.ConditionTrue)),
		pod("not-ready", "10.244.1.4", ready(corev1.ConditionFalse)),
		pod("pending", "10.244.1.5", func(p *corev1.Pod) { p.Status.Phase = corev1.PodPending }),
		pod("ended", "10.244.1.6", func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }),
		pod("going", "10.244.1.7", func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{} }),
		pod("other", "10.244.1.8", func(p *corev1.Pod) { p.Labels = map[string]string{"id": "app2"} }),
		pod("far", "10.244.1.9", func(p *corev1.Pod) { p.Namespace = "far" }),
		pod("no-such-port", "10.244.1.10", func(p *corev1.Pod) { p.Spec.Containers[0].Ports = nil }),
	}
	slice := []*discoveryv1.EndpointSlice{{
		Ports: []discoveryv1.EndpointPort{{Name: ptr(""), Protocol: ptr(corev1.ProtocolTCP), Port: ptr(int32(9000))}},
		Endpoints: []discoveryv1.Endpoint{
			{Addresses: []string{"10.0.0.2"}},
			{Addresses: []string{"10.0.0.1"}, Conditions: discoveryv1.EndpointConditions{Ready: ptr(true)}},
			{Addresses: []string{"10.0.0.3"}, Conditions: discoveryv1.EndpointConditions{Ready: ptr(false)}},
		},
	}}
	for _, test := range []struct {
		name   string
		svc    *corev1.Service
		slices []*discoveryv1.EndpointSlice
		want   string
	}{
		{"ready pods by a named port", svc(nil), nil, "10.96.0.1 80/6: 10.244.1.2:8080 10.244.1.3:8080"},
		{"a number is taken as it is", svc(func(s *corev1.Service) { s.Spec.Ports[0].TargetPort = intstr.FromInt32(0) }), nil,
			"10.96.0.1 80/6: 10.244.1.2:80 10.244.1.3:80 10.244.1.10:80"},
		{"slices count before pods", svc(nil), slice, "10.96.0.1 80/6: 10.0.0.1:9000 10.0.0.2:9000"},
		{"no selector, no slices", svc(func(s *corev1.Service) { s.Spec.Selector = nil }), nil, "10.96.0.1 80/6:"},
		{"a headless one has no address", svc(func(s *corev1.Service) {
			s.Spec.ClusterIP, s.Spec.ClusterIPs = "None", []string{"None"}
		}), nil, "none"},
		{"external addresses and node ports", svc(func(s *corev1.Service) {
			s.Spec.ExternalIPs = []string{"192.0.2.1"}
			s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.2"}}
			s.Spec.Ports[0].NodePort = 30080
			s.Spec.Selector = nil
		}), nil, "10.96.0.1 192.0.2.1 192.0.2.2 80/6:(node 30080)"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, text(service.Resolve(test.svc, test.slices, pods))); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
