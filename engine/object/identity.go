package object

import (
	"cmp"
	"maps"
	"net/netip"
	"regexp"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"weir.dev/weir/engine/rule"
)

// What cilium.io selectors call the parts of an identity that are no labels of
// the pod. A pod's own labels with such keys are never part of an identity.
const (
	LabelServiceAccount = "io.cilium.k8s.policy.serviceaccount"
	LabelCluster        = "io.cilium.k8s.policy.cluster"

	labelNamespace       = "io.kubernetes.pod.namespace"
	labelNamespaceLabels = "io.cilium.k8s.namespace.labels."
	reservedLabels       = "io.cilium.k8s."
)

// irrelevant are the labels that say which instance a pod is, not what it is:
// they would give every pod an identity of its own. It is Cilium's default
// filter: regular expressions for the beginning of the key.
var irrelevant = regexp.MustCompile(`^(?:` +
	`io\.kubernetes|kubernetes\.io|.*beta\.kubernetes\.io|k8s\.io|` +
	`statefulset\.kubernetes\.io/pod-name|apps\.kubernetes\.io/pod-index|` +
	`batch\.kubernetes\.io/job-completion-index|batch\.kubernetes\.io/controller-uid|` +
	`pod-template-generation|pod-template-hash|controller-revision-hash|controller-uid|` +
	`annotation.*|etcd_node|io\.cilium\.k8s\.)`)

// SecurityRelevant tells whether a pod's label with this key is part of its
// identity. A selector on another label meets no pod that has it.
func SecurityRelevant(key string) bool { return !irrelevant.MatchString(key) }

// PodIdentity is the canonical set that a pod is judged by.
func PodIdentity(cluster string, pod *corev1.Pod) rule.Identity {
	id := rule.Identity{
		Cluster:        cluster,
		Namespace:      cmp.Or(pod.Namespace, "default"),
		ServiceAccount: cmp.Or(pod.Spec.ServiceAccountName, "default"),
		Labels:         SecurityLabels(pod.Labels),
		NamedPorts:     NamedPorts(pod),
	}
	return id
}

// SecurityLabels are those labels that are part of an identity, sorted by key.
func SecurityLabels(labels map[string]string) []rule.Label {
	var out []rule.Label
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		if SecurityRelevant(k) {
			out = append(out, rule.Label{Key: k, Value: labels[k]})
		}
	}
	return out
}

// NamedPorts are the container ports of a pod that have a name, sorted by name,
// protocol, number. Ports of sidecars (init containers that go on) count.
func NamedPorts(pod *corev1.Pod) []rule.NamedPort {
	var out []rule.NamedPort
	add := func(c corev1.Container) {
		for _, p := range c.Ports {
			proto, ok := ProtocolNumber(p.Protocol)
			if p.Name == "" || !ok || p.ContainerPort < 1 || p.ContainerPort > 65535 {
				continue
			}
			out = append(out, rule.NamedPort{Name: p.Name, Protocol: proto, Port: uint16(p.ContainerPort)})
		}
	}
	for _, c := range pod.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			add(c)
		}
	}
	for _, c := range pod.Spec.Containers {
		add(c)
	}
	slices.SortFunc(out, func(a, b rule.NamedPort) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port))
	})
	return slices.Compact(out)
}

// ProtocolNumber is the IP protocol number of a Kubernetes protocol; absent
// means TCP.
func ProtocolNumber(p corev1.Protocol) (uint8, bool) {
	switch p {
	case corev1.ProtocolTCP, "":
		return rule.TCP, true
	case corev1.ProtocolUDP:
		return rule.UDP, true
	case corev1.ProtocolSCTP:
		return rule.SCTP, true
	}
	return 0, false
}

// PodAddresses are the addresses that a pod has, sorted, without duplicates.
func PodAddresses(pod *corev1.Pod) []netip.Addr {
	var out []netip.Addr
	add := func(ip string) {
		if a, err := netip.ParseAddr(ip); err == nil {
			out = append(out, a.Unmap())
		}
	}
	add(pod.Status.PodIP)
	for _, ip := range pod.Status.PodIPs {
		add(ip.IP)
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// SelectorLabels are an identity's labels as a Selector's Labels see them: its
// own, and its service account and cluster under LabelServiceAccount and
// LabelCluster.
func SelectorLabels(id rule.Identity) map[string]string {
	out := make(map[string]string, len(id.Labels)+2)
	for _, l := range id.Labels {
		out[l.Key] = l.Value
	}
	out[LabelServiceAccount] = id.ServiceAccount
	out[LabelCluster] = id.Cluster
	return out
}
