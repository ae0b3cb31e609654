// Package controller decides what runs in a demo: it turns the objects that
// somebody wrote into pods on nodes and Services with addresses, as the
// controllers and the scheduler of a cluster do. It is pure: random names and
// identifiers are passed in.
package controller

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"weir.dev/weir/engine/object"
)

// TemplateHash is the label with the hash of the template a pod was made from.
const TemplateHash = appsv1.DefaultDeploymentUniqueLabelKey

// hostname is the label that a node selector names a node by.
const hostname = corev1.LabelHostname

// Node is where pods can be put.
type Node struct {
	Name string
	// Free gives an unused pair of addresses; ok is false if there is none.
	Free func() (addrs []netip.Addr, ok bool)
	// Numbered gives the pair of that number; ok is false if it is used, or none.
	Numbered func(number int) (addrs []netip.Addr, ok bool)
}

// Input is what a decision is made of.
type Input struct {
	Objects  []object.Object        // as written: namespaces, deployments, pods, services
	Pods     []*corev1.Pod          // that run or are being started
	Ending   []types.NamespacedName // pods that are on their way out
	Services []*corev1.Service
	Nodes    []Node
	V4, V6   netip.Prefix // of Services
	// Suffix and UID give new names and identifiers at each call.
	Suffix func() string
	UID    func() types.UID
	Now    metav1.Time
}

// Decision is what should be.
type Decision struct {
	Namespaces []*corev1.Namespace
	Services   []*corev1.Service
	Create     []*corev1.Pod // with node, addresses, identifier
	Delete     []*corev1.Pod
	// Refused tells what cannot run, by object.
	Refused map[string]string
}

// Decide compares what was written with what runs.
func Decide(in Input) Decision {
	d := &decider{in: in, out: Decision{Refused: map[string]string{}}, names: map[string]bool{}}
	d.namespaces()
	d.services()
	d.keep = map[types.NamespacedName]bool{}
	d.pods = slices.Clone(in.Pods)
	for _, o := range in.Objects {
		switch v := o.Value.(type) {
		case *appsv1.Deployment:
			d.deployment(o, v)
		case *corev1.Pod:
			d.bare(o, v)
		}
	}
	for _, p := range in.Pods {
		if !d.keep[nameOf(p)] {
			d.out.Delete = append(d.out.Delete, p)
		}
	}
	return d.out
}

type decider struct {
	in    Input
	out   Decision
	names map[string]bool // of namespaces
	keep  map[types.NamespacedName]bool
	pods  []*corev1.Pod // with those decided upon now
}

func nameOf(o metav1.Object) types.NamespacedName {
	return types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}
}

func (d *decider) namespaces() {
	all := map[string]*corev1.Namespace{"default": {
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: object.KindNamespace},
		ObjectMeta: metav1.ObjectMeta{Name: "default", Labels: map[string]string{object.NamespaceNameLabel: "default"}},
	}}
	for _, o := range d.in.Objects {
		if ns, ok := o.Value.(*corev1.Namespace); ok {
			ns = ns.DeepCopy()
			ns.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: object.KindNamespace}
			all[ns.Name] = ns
		}
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		d.names[name] = true
		d.out.Namespaces = append(d.out.Namespaces, all[name])
	}
}

// inNamespace refuses objects of namespaces that nobody wrote.
func (d *decider) inNamespace(o object.Object) bool {
	if d.names[o.Namespace] {
		return true
	}
	d.out.Refused[o.Key()] = fmt.Sprintf("namespace %q does not exist: create it", o.Namespace)
	return false
}

func (d *decider) deployment(o object.Object, dep *appsv1.Deployment) {
	if !d.inNamespace(o) {
		return
	}
	selector, err := metav1.LabelSelectorAsSelector(dep.Spec.Selector)
	switch {
	case err != nil:
		d.out.Refused[o.Key()] = fmt.Sprintf("spec.selector: %v", err)
		return
	case dep.Spec.Selector == nil || selector.Empty() || !selector.Matches(labels.Set(dep.Spec.Template.Labels)):
		d.out.Refused[o.Key()] = "spec.selector does not match spec.template.metadata.labels"
		return
	}
	want := 1
	if dep.Spec.Replicas != nil {
		want = int(*dep.Spec.Replicas)
	}
	hash := templateHash(&dep.Spec.Template)
	var have []*corev1.Pod
	for _, p := range d.in.Pods {
		if owned(p, dep.Namespace, dep.Name) && p.Labels[TemplateHash] == hash {
			have = append(have, p)
		}
	}
	slices.SortStableFunc(have, func(a, b *corev1.Pod) int { return a.CreationTimestamp.Compare(b.CreationTimestamp.Time) })
	for _, p := range have[:min(want, len(have))] {
		d.keep[nameOf(p)] = true
	}
	for range want - len(have) {
		pod := d.fromTemplate(dep, hash)
		if !d.place(o.Key(), pod) {
			return
		}
	}
}

func (d *decider) fromTemplate(dep *appsv1.Deployment, hash string) *corev1.Pod {
	yes := true
	pod := &corev1.Pod{ObjectMeta: *dep.Spec.Template.ObjectMeta.DeepCopy(), Spec: *dep.Spec.Template.Spec.DeepCopy()}
	pod.Namespace = dep.Namespace
	pod.Name = dep.Name + "-" + hash + "-" + d.in.Suffix()
	pod.Labels = maps.Clone(pod.Labels)
	pod.Labels[TemplateHash] = hash
	pod.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: object.KindDeployment, Name: dep.Name, Controller: &yes}}
	return pod
}

func (d *decider) bare(o object.Object, pod *corev1.Pod) {
	if !d.inNamespace(o) {
		return
	}
	hash := templateHash(&corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: pod.Labels, Annotations: pod.Annotations}, Spec: pod.Spec})
	for _, p := range d.in.Pods {
		if nameOf(p) == nameOf(pod) {
			if p.Annotations[specHash] == hash {
				d.keep[nameOf(p)] = true
			}
			return // another spec: it is deleted first, and made anew after that
		}
	}
	if slices.Contains(d.in.Ending, nameOf(pod)) {
		return
	}
	pod = pod.DeepCopy()
	pod.Annotations = maps.Clone(pod.Annotations)
	if pod.Annotations == nil {
		pod.Annotations = map[string]string{}
	}
	pod.Annotations[specHash] = hash
	d.place(o.Key(), pod)
}

// specHash is the annotation with the hash of what a bare pod was made from.
const specHash = "demo.weir.dev/spec-hash"

// Number is the annotation by which a pod asks for one of its node's pairs of
// addresses.
const Number = "demo.weir.dev/number"

// addresses gives the pod a pair of its node's addresses, or says why not.
func (d *decider) addresses(node Node, pod *corev1.Pod) (addrs []netip.Addr, reason string) {
	if text := pod.Annotations[Number]; text != "" {
		number, err := strconv.Atoi(text)
		if err != nil {
			return nil, fmt.Sprintf("metadata.annotations[%s]: %q is no number", Number, text)
		}
		addrs, ok := node.Numbered(number)
		if !ok || d.given(addrs) {
			return nil, fmt.Sprintf("the pod addresses number %d of node %s are not free", number, node.Name)
		}
		return addrs, ""
	}
	addrs, ok := node.Free()
	for ok && d.given(addrs) {
		addrs, ok = node.Free()
	}
	if !ok {
		return nil, fmt.Sprintf("node %s has no free pod address", node.Name)
	}
	return addrs, ""
}

// given reports whether a pod has been given these addresses.
func (d *decider) given(addrs []netip.Addr) bool {
	return slices.ContainsFunc(d.pods, func(p *corev1.Pod) bool { return p.Status.PodIP == addrs[0].String() })
}

// place puts the pod on a node with addresses and makes it part of the decision.
func (d *decider) place(key string, pod *corev1.Pod) bool {
	if reason := Runnable(pod); reason != "" {
		d.out.Refused[key] = reason
		return false
	}
	node, ok := d.schedule(pod)
	if !ok {
		d.out.Refused[key] = "no node fits spec.nodeName and spec.nodeSelector"
		return false
	}
	addrs, reason := d.addresses(node, pod)
	if reason != "" {
		d.out.Refused[key] = reason
		return false
	}
	pod.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: object.KindPod}
	pod.UID, pod.CreationTimestamp, pod.Spec.NodeName = d.in.UID(), d.in.Now, node.Name
	pod.Status = corev1.PodStatus{Phase: corev1.PodPending, PodIP: addrs[0].String()}
	for _, a := range addrs {
		pod.Status.PodIPs = append(pod.Status.PodIPs, corev1.PodIP{IP: a.String()})
	}
	d.pods = append(d.pods, pod)
	d.out.Create = append(d.out.Create, pod)
	return true
}

// schedule takes the node with the fewest pods of the same owner, the first of
// those.
func (d *decider) schedule(pod *corev1.Pod) (Node, bool) {
	best, least := -1, 0
	for i, n := range d.in.Nodes {
		if pod.Spec.NodeName != "" && pod.Spec.NodeName != n.Name {
			continue
		}
		if !labels.SelectorFromSet(pod.Spec.NodeSelector).Matches(labels.Set{hostname: n.Name}) {
			continue
		}
		count := 0
		for _, p := range d.pods {
			if p.Spec.NodeName == n.Name && sameOwner(p, pod) {
				count++
			}
		}
		if best < 0 || count < least {
			best, least = i, count
		}
	}
	if best < 0 {
		return Node{}, false
	}
	return d.in.Nodes[best], true
}

func owned(p *corev1.Pod, namespace, deployment string) bool {
	return p.Namespace == namespace && slices.ContainsFunc(p.OwnerReferences, func(r metav1.OwnerReference) bool {
		return r.Kind == object.KindDeployment && r.Name == deployment
	})
}

// Owner is the name of the Deployment that the pod belongs to, or empty.
func Owner(p *corev1.Pod) string {
	for _, r := range p.OwnerReferences {
		if r.Kind == object.KindDeployment {
			return r.Name
		}
	}
	return ""
}

func sameOwner(a, b *corev1.Pod) bool {
	return a.Namespace == b.Namespace && Owner(a) != "" && Owner(a) == Owner(b)
}

// templateHash is short, without vowels, and equal for equal templates.
func templateHash(t *corev1.PodTemplateSpec) string {
	text, err := t.Marshal()
	if err != nil {
		panic("controller: a decoded template does not encode: " + err.Error())
	}
	h := fnv.New32a()
	_, _ = h.Write(text) // never fails
	return safe(strconv.FormatUint(uint64(h.Sum32()), 10))
}

// safe replaces digits as Kubernetes does, so that no word arises by chance.
func safe(s string) string {
	const letters = "bcdfghjklm"
	out := []byte(s)
	for i, c := range out {
		if i%2 == 0 {
			out[i] = letters[c-'0']
		}
	}
	return string(out)
}

func byKey[T metav1.Object](a, b T) int {
	return cmp.Or(cmp.Compare(a.GetNamespace(), b.GetNamespace()), cmp.Compare(a.GetName(), b.GetName()))
}
