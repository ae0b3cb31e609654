package kubelet

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func TestServiceNamesResolveByNamespace(t *testing.T) {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "p"}, Status: corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: "10.244.1.2"}, {IP: "fd00:244:1::2"}}}}
	service := func(namespace, name string, ips ...string) *corev1.Service {
		return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: corev1.ServiceSpec{ClusterIPs: ips}}
	}
	got := Hosts(pod, []*corev1.Service{
		service("default", "web", "10.96.0.2", "fd00:96::2"), service("far", "web", "10.96.0.3"), service("default", "headless", "None"),
	})
	want := "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" +
		"10.244.1.2\tp\nfd00:244:1::2\tp\n" +
		"10.96.0.2\tweb web.default web.default.svc web.default.svc.cluster.local\n" +
		"10.96.0.3\tweb.far web.far.svc web.far.svc.cluster.local\n" +
		"fd00:96::2\tweb web.default web.default.svc web.default.svc.cluster.local\n"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestHostLinksFitTheKernelAndDiffer(t *testing.T) {
	seen := map[string]bool{}
	for _, uid := range []types.UID{"a", "b", "c"} {
		name := hostLink(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: uid}})
		if len(name) > 15 || seen[name] {
			t.Errorf("link %q has %d letters, or is there twice", name, len(name))
		}
		seen[name] = true
	}
}
