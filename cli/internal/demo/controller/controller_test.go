package controller

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"weir.dev/weir/engine/object"
	"weir.dev/weir/internal/deptest"
)

func TestImports(t *testing.T) {
	deptest.OnlyImports(t, "cmp", "fmt", "hash/fnv", "maps", "net/netip", "slices", "strconv", "strings",
		"k8s.io/api/...", "k8s.io/apimachinery/...", "weir.dev/weir/engine/object")
}

// world is a cluster that takes each decision at once.
type world struct {
	t        *testing.T
	made     int
	given    int // pairs of addresses
	pods     []*corev1.Pod
	services []*corev1.Service
	refused  map[string]string
}

func (w *world) decide(manifests string) Decision {
	w.t.Helper()
	objects, refused := object.Decode("test.yaml", []byte(manifests))
	for _, r := range refused {
		w.t.Fatal(r.Error())
	}
	in := Input{
		Objects: objects, Pods: w.pods, Services: w.services,
		V4: netip.MustParsePrefix("10.96.0.0/16"), V6: netip.MustParsePrefix("fd00:96::/112"),
		Suffix: func() string { w.made++; return fmt.Sprintf("s%d", w.made) },
		UID:    func() types.UID { return types.UID(fmt.Sprintf("uid-%d", w.made)) },
		Now:    metav1.Unix(int64(w.made), 0),
	}
	for _, n := range []string{"n1", "n2", "n3"} {
		in.Nodes = append(in.Nodes, Node{Name: n, Free: func() ([]netip.Addr, bool) {
			w.given++
			return []netip.Addr{netip.MustParseAddr(fmt.Sprintf("10.244.0.%d", w.given)), netip.MustParseAddr(fmt.Sprintf("fd00:244::%d", w.given))}, true
		}, Numbered: func(number int) ([]netip.Addr, bool) {
			a, err := netip.ParseAddr(fmt.Sprintf("10.244.0.%d", number))
			return []netip.Addr{a}, err == nil
		}})
	}
	d := Decide(in)
	for _, p := range d.Delete {
		w.pods = slices.DeleteFunc(w.pods, func(q *corev1.Pod) bool { return q == p })
	}
	w.pods = append(w.pods, d.Create...)
	w.services, w.refused = d.Services, d.Refused
	return d
}

// placed tells owner and node of each pod.
func (w *world) placed() []string {
	var out []string
	for _, p := range w.pods {
		name := Owner(p)
		if name == "" {
			name = p.Name
		}
		out = append(out, name+"@"+p.Spec.NodeName)
	}
	slices.Sort(out)
	return out
}

func deployment(name, replicas, more string) string {
	return fmt.Sprintf(`---
apiVersion: apps/v1
kind: Deployment
metadata: {name: %s}
spec:
  replicas: %s
  selector: {matchLabels: {id: %s}}
  template:
    metadata: {labels: {id: %s}}
    spec:
      containers: [{name: app, image: weir-demo-httpd:v1}]
%s`, name, replicas, name, name, more)
}

func TestReplicasAreSpreadOverNodes(t *testing.T) {
	w := &world{t: t}
	w.decide(deployment("app1", "2", "") + deployment("app2", "1", ""))
	if diff := cmp.Diff([]string{"app1@n1", "app1@n2", "app2@n1"}, w.placed()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if d := w.decide(deployment("app1", "2", "") + deployment("app2", "1", "")); len(d.Create)+len(d.Delete) != 0 {
		t.Errorf("at rest: %d made, %d ended", len(d.Create), len(d.Delete))
	}
	w.decide(deployment("app1", "4", ""))
	if diff := cmp.Diff([]string{"app1@n1", "app1@n1", "app1@n2", "app1@n3"}, w.placed()); diff != "" {
		t.Errorf("four replicas, app2 deleted (-want +got)\n%s", diff)
	}
	w.decide(deployment("app1", "1", ""))
	if got := w.placed(); len(got) != 1 {
		t.Errorf("one replica: %v", got)
	}
}

func TestANewTemplateMakesNewPods(t *testing.T) {
	w := &world{t: t}
	w.decide(deployment("app1", "1", ""))
	old := w.pods[0].Name
	w.decide(deployment("app1", "1", "      nodeSelector: {kubernetes.io/hostname: n3}\n"))
	if len(w.pods) != 1 || w.pods[0].Name == old || w.pods[0].Spec.NodeName != "n3" {
		t.Errorf("pods: %v, the old one was %s", w.placed(), old)
	}
	if !strings.HasPrefix(w.pods[0].Name, "app1-") || w.pods[0].Labels[TemplateHash] == "" {
		t.Errorf("name %s, labels %v", w.pods[0].Name, w.pods[0].Labels)
	}
}

func TestWhatCannotRunIsRefusedByName(t *testing.T) {
	for _, c := range []struct{ name, manifests, key, want string }{
		{"unknown image", strings.Replace(deployment("app1", "1", ""), "weir-demo-httpd:v1", "nginx:1.29", 1), "Deployment/default/app1", `unknown image "nginx:1.29"`},
		{"no such namespace", strings.Replace(deployment("app1", "1", ""), "name: app1}", "name: app1, namespace: far}", 1), "Deployment/far/app1", `namespace "far" does not exist`},
		{"no such node", deployment("app1", "1", "      nodeName: n9\n"), "Deployment/default/app1", "no node fits"},
		{"address of another range", "{apiVersion: v1, kind: Service, metadata: {name: s}, spec: {clusterIP: 192.0.2.1, ports: [{port: 80}]}}", "Service/default/s", "192.0.2.1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := &world{t: t}
			w.decide(c.manifests)
			if !strings.Contains(w.refused[c.key], c.want) || len(w.pods) != 0 {
				t.Errorf("refused %q, pods %v; want %s: %s", w.refused, w.placed(), c.key, c.want)
			}
		})
	}
}

func TestABarePodWithANewSpecIsMadeAnewAfterItsEnd(t *testing.T) {
	const pod = "{apiVersion: v1, kind: Pod, metadata: {name: p, labels: {v: %q}}, spec: {containers: [{name: app, image: weir-demo-client:v1}]}}"
	w := &world{t: t}
	w.decide(fmt.Sprintf(pod, "1"))
	if d := w.decide(fmt.Sprintf(pod, "1")); len(d.Create)+len(d.Delete) != 0 {
		t.Errorf("at rest: %d made, %d ended", len(d.Create), len(d.Delete))
	}
	if d := w.decide(fmt.Sprintf(pod, "2")); len(d.Create) != 0 || len(d.Delete) != 1 {
		t.Errorf("changed: %d made, %d ended; want the old one ended first", len(d.Create), len(d.Delete))
	}
	w.decide(fmt.Sprintf(pod, "2"))
	if len(w.pods) != 1 || w.pods[0].Labels["v"] != "2" {
		t.Errorf("after its end: %v", w.placed())
	}
}

func TestAPodGetsTheAddressesOfItsNumber(t *testing.T) {
	pod := func(name, number string) string {
		return fmt.Sprintf("---\n{apiVersion: v1, kind: Pod, metadata: {name: %s, annotations: {%s: '%s'}}, spec: {nodeName: n1, containers: [{name: app, image: weir-demo-client:v1}]}}\n", name, Number, number)
	}
	w := &world{t: t}
	w.decide(pod("a", "77") + pod("b", "77") + pod("c", "1000") + pod("d", "x"))
	if len(w.pods) != 1 || w.pods[0].Status.PodIP != "10.244.0.77" {
		t.Errorf("pods %v, want one with the addresses of number 77", w.pods)
	}
	if len(w.refused) != 3 {
		t.Errorf("refused: %v, want the three others", w.refused)
	}
}

func TestServicesKeepTheirAddresses(t *testing.T) {
	const service = "---\n{apiVersion: v1, kind: Service, metadata: {name: %s}, spec: {selector: {id: app1}, ports: [{port: 80}]%s}}\n"
	w := &world{t: t}
	w.decide(fmt.Sprintf(service, "b", ""))
	w.decide(fmt.Sprintf(service, "a", "") + fmt.Sprintf(service, "b", "") + fmt.Sprintf(service, "c", ", clusterIP: 10.96.0.9") +
		fmt.Sprintf(service, "d", ", clusterIP: None") + fmt.Sprintf(service, "e", ", ipFamilyPolicy: SingleStack"))
	got := map[string][]string{}
	for _, s := range w.services {
		got[s.Name] = s.Spec.ClusterIPs
	}
	want := map[string][]string{
		"b": {"10.96.0.2", "fd00:96::2"}, "a": {"10.96.0.3", "fd00:96::3"}, "c": {"10.96.0.9"}, "d": {"None"}, "e": {"10.96.0.4"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestTranslationsLeadToReadyPodsOfTheSameFamily(t *testing.T) {
	w := &world{t: t}
	w.decide(deployment("app1", "2", "") + "---\n{apiVersion: v1, kind: Service, metadata: {name: s}, spec: {selector: {id: app1}, ports: [{port: 80, targetPort: 8080}]}}\n")
	w.pods[0].Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	got := Translations(w.services, w.pods)
	want := []Translation{
		{Address: netip.MustParseAddr("10.96.0.2"), Protocol: "TCP", Port: 80, Backends: []Backend{{netip.MustParseAddr("10.244.0.1"), 8080}}},
		{Address: netip.MustParseAddr("fd00:96::2"), Protocol: "TCP", Port: 80, Backends: []Backend{{netip.MustParseAddr("fd00:244::1"), 8080}}},
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}
