package demo

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base32"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"
	"sigs.k8s.io/yaml"

	"weir.dev/weir/cli/internal/atomicfile"
	"weir.dev/weir/cli/internal/demo/control"
	"weir.dev/weir/cli/internal/demo/controller"
	"weir.dev/weir/cli/internal/demo/fabric"
	"weir.dev/weir/cli/internal/demo/kubelet"
	"weir.dev/weir/cli/internal/demo/layout"
	"weir.dev/weir/cli/internal/demo/svcnat"
	"weir.dev/weir/cli/internal/parts"
	"weir.dev/weir/engine/object"
	"weir.dev/weir/internal/source"
)

// Numbers of a node's pod addresses; the first is the gateway's.
const (
	firstPod = 2
	lastPod  = 254
)

// tryAgain is how long the controller waits after an error.
const tryAgain = time.Second

// cluster plays controller, scheduler and kubelet: it follows the manifests and
// writes what it made of them into a folder that only it writes. All fields
// belong to the goroutine of run.
type cluster struct {
	demo    parts.Demo
	fabric  *fabric.Fabric
	kubelet *kubelet.Kubelet
	log     *slog.Logger

	store    *source.Store
	pods     map[types.NamespacedName]*livingPod
	services []*corev1.Service
	lastIP   map[string]int // by node
	refused  map[string]string
	written  map[string]string // file → text
	nat      string            // the translations in force, as text
	names    string            // the Services that resolve, as text

	statuses chan podStatus
	gone     chan types.NamespacedName
	deletes  chan podDelete
}

// podDelete asks for one pod's end; found answers whether there is such a pod.
type podDelete struct {
	name  types.NamespacedName
	found chan bool
}

type livingPod struct {
	pod    *corev1.Pod
	number int // of its addresses on the node
	end    context.CancelFunc
	ending bool
}

type podStatus struct {
	name   types.NamespacedName
	status corev1.PodStatus
}

func newCluster(d parts.Demo, f *fabric.Fabric, k *kubelet.Kubelet, log *slog.Logger) *cluster {
	return &cluster{
		demo: d, fabric: f, kubelet: k, log: log, store: source.NewStore(),
		pods: map[types.NamespacedName]*livingPod{}, lastIP: map[string]int{},
		refused: map[string]string{}, written: map[string]string{},
		statuses: make(chan podStatus), gone: make(chan types.NamespacedName),
		deletes: make(chan podDelete),
	}
}

// run follows the manifests until ctx ends and every pod's goroutine with it.
func (c *cluster) run(ctx context.Context) error {
	var g sync.WaitGroup
	defer g.Wait()
	manifests := source.NewManifests([]string{c.demo.Manifests()}, decode, c.log)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	pods, leave := context.WithCancelCause(context.WithoutCancel(ctx))
	defer leave(kubelet.ErrLeaving)
	again := time.NewTimer(tryAgain)
	again.Stop()
	failed := make(chan error, 1)
	g.Go(func() { failed <- manifests.Run(ctx, c.store.Apply) })
	for {
		changed := c.store.Changed()
		if err := c.reconcile(pods, &g); err != nil {
			c.log.Error("the cluster is not as it should be; it is tried again", "err", err, "in", tryAgain)
			again.Reset(tryAgain)
		}
		select {
		case <-again.C:
		case <-changed:
		case s := <-c.statuses:
			if p := c.pods[s.name]; p != nil {
				p.pod.Status = s.status
			}
		case name := <-c.gone:
			delete(c.pods, name)
		case del := <-c.deletes:
			p := c.pods[del.name]
			if p != nil && !p.ending {
				c.end(p)
			}
			del.found <- p != nil
		case err := <-failed:
			return err
		case <-ctx.Done():
			return nil
		}
	}
}

func decode(file string, text []byte) ([]source.Object, []source.Refused) {
	objects, refusals := object.Decode(file, text)
	var out []source.Object
	for _, o := range objects {
		out = append(out, source.Object{
			Key:  source.Key{Kind: o.Kind, Namespace: o.Namespace, Name: o.Name},
			File: file, Line: o.Source.Line, JSON: o.JSON, Lines: o.Lines, Value: o,
		})
	}
	var refused []source.Refused
	for _, r := range refusals {
		refused = append(refused, source.Refused{
			Key:  source.Key{Kind: r.Kind, Namespace: r.Namespace, Name: r.Name},
			File: file, Line: r.Source.Line, Reason: r.Reason(),
		})
	}
	return out, refused
}

// reconcile makes what runs and what is written agree with the manifests.
func (c *cluster) reconcile(ctx context.Context, g *sync.WaitGroup) error {
	files := map[string]string{}
	if len(c.store.Unsynced()) == 0 {
		in := c.input()
		d := controller.Decide(in)
		if err := c.tellRefused(in.Objects, d.Refused); err != nil {
			return err
		}
		c.services = d.Services
		for _, p := range d.Create {
			c.start(ctx, g, p)
		}
		for _, p := range d.Delete {
			c.end(c.pods[nameOf(p)])
		}
		for _, ns := range d.Namespaces {
			if err := put(files, ns.Kind, "", ns.Name, ns); err != nil {
				return err
			}
		}
	}
	for _, n := range layout.AllNodes() {
		if err := put(files, object.KindNode, "", n.Name, node(n)); err != nil {
			return err
		}
	}
	var pods []*corev1.Pod
	for _, p := range c.pods {
		if !p.ending {
			pods = append(pods, p.pod)
		}
		if err := put(files, p.pod.Kind, p.pod.Namespace, p.pod.Name, p.pod); err != nil {
			return err
		}
	}
	for _, s := range c.services {
		if err := put(files, s.Kind, s.Namespace, s.Name, s); err != nil {
			return err
		}
	}
	if err := c.write(files); err != nil {
		return err
	}
	return c.translate(pods)
}

func (c *cluster) input() controller.Input {
	in := controller.Input{
		Services: c.services, Suffix: suffix, UID: uuid.NewUUID, Now: metav1.Now(),
	}
	in.V4, in.V6 = layout.ServiceRanges()
	for _, kind := range []string{object.KindNamespace, object.KindDeployment, object.KindPod, object.KindService} {
		for _, o := range c.store.List(kind) {
			in.Objects = append(in.Objects, o.Value.(object.Object))
		}
	}
	for name, p := range c.pods {
		if p.ending {
			in.Ending = append(in.Ending, name)
		} else {
			in.Pods = append(in.Pods, p.pod)
		}
	}
	sortPods(in.Pods)
	for _, n := range layout.AllNodes() {
		in.Nodes = append(in.Nodes, controller.Node{Name: n.Name, Free: func() ([]netip.Addr, bool) {
			number, ok := c.free(n.Name)
			c.lastIP[n.Name] = number
			return n.Pod(number), ok
		}, Numbered: func(number int) ([]netip.Addr, bool) {
			if number < firstPod || number > lastPod || c.used(n.Name)[number] {
				return nil, false
			}
			return n.Pod(number), true
		}})
	}
	return in
}

// free is the next address number of the node, so that one that was just given
// back is used last.
func (c *cluster) free(node string) (int, bool) {
	used := c.used(node)
	number := max(c.lastIP[node], firstPod-1)
	for range lastPod - firstPod + 1 {
		if number++; number > lastPod {
			number = firstPod
		}
		if !used[number] {
			return number, true
		}
	}
	return number, false
}

// used are the numbers of the node's pods, also of those that end.
func (c *cluster) used(node string) map[int]bool {
	used := map[int]bool{}
	for _, p := range c.pods {
		if p.pod.Spec.NodeName == node {
			used[p.number] = true
		}
	}
	return used
}

// start runs the pod; its file is written by the same reconciliation, before
// the pod can have told anything.
func (c *cluster) start(all context.Context, g *sync.WaitGroup, pod *corev1.Pod) {
	ctx, end := context.WithCancel(all)
	name := nameOf(pod)
	number := 0
	if a, err := netip.ParseAddr(pod.Status.PodIP); err == nil {
		number = int(a.As4()[3])
	}
	c.pods[name] = &livingPod{pod: pod, number: number, end: end}
	c.log.Info("pod starts", "pod", name, "node", pod.Spec.NodeName, "address", pod.Status.PodIP)
	running := pod.DeepCopy()
	g.Go(func() {
		defer end()
		c.kubelet.Run(ctx, running, func(s corev1.PodStatus) {
			select {
			case c.statuses <- podStatus{name, s}:
			case <-ctx.Done():
			}
		})
		c.log.Info("pod ended", "pod", name)
		select {
		case c.gone <- name:
		case <-all.Done():
		}
	})
}

func (c *cluster) end(p *livingPod) {
	p.ending = true
	now := metav1.Now()
	p.pod.DeletionTimestamp = &now
	p.end()
}

// deletePod ends a pod from any goroutine.
func (c *cluster) deletePod(ctx context.Context, name types.NamespacedName) error {
	del := podDelete{name: name, found: make(chan bool, 1)}
	select {
	case c.deletes <- del:
	case <-ctx.Done():
		return ctx.Err()
	}
	if !<-del.found {
		return fmt.Errorf("%w pod %q", control.ErrUnknown, name)
	}
	return nil
}

// tellRefused keeps what cannot run where status and describe find it.
func (c *cluster) tellRefused(objects []object.Object, now map[string]string) error {
	if maps.Equal(now, c.refused) {
		return nil
	}
	list := []parts.Refused{}
	for _, o := range objects {
		reason, ok := now[o.Key()]
		if !ok {
			continue
		}
		list = append(list, parts.Refused{
			Kind: o.Kind, Namespace: o.Namespace, Name: o.Name, File: o.Source.File, Line: o.Source.Line, Reason: reason,
		})
		if c.refused[o.Key()] != reason {
			c.log.Warn("object refused", "object", o.Key(), "reason", reason)
		}
	}
	text, err := json.Marshal(list)
	if err != nil {
		return fmt.Errorf("encode what is refused: %w", err)
	}
	c.refused = now
	return atomicfile.Write(c.demo.RefusedFile(), text)
}

// write makes the folder hold exactly these files.
func (c *cluster) write(files map[string]string) error {
	for name, text := range files {
		if c.written[name] == text {
			continue
		}
		if err := atomicfile.Write(filepath.Join(c.demo.Cluster(), name), []byte(text)); err != nil {
			return err
		}
	}
	for name := range c.written {
		if _, ok := files[name]; ok {
			continue
		}
		if err := os.Remove(filepath.Join(c.demo.Cluster(), name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove an object's file: %w", err)
		}
	}
	c.written = files
	return nil
}

// translate makes Service names and addresses lead to the ready pods.
func (c *cluster) translate(pods []*corev1.Pod) error {
	sortPods(pods)
	translations := controller.Translations(c.services, pods)
	if text := fmt.Sprint(translations); text != c.nat {
		for _, n := range layout.AllNodes() {
			if err := svcnat.Apply(c.fabric.Node(n.Name), translations); err != nil {
				return fmt.Errorf("translate Service addresses on %s: %w", n.Name, err)
			}
		}
		c.nat = text
	}
	if text := fmt.Sprint(c.services); text != c.names {
		c.names = text
		return c.kubelet.SetServices(c.services)
	}
	return nil
}

func put(files map[string]string, kind, namespace, name string, o any) error {
	text, err := yaml.Marshal(o)
	if err != nil {
		return fmt.Errorf("encode %s %s/%s: %w", kind, namespace, name, err)
	}
	files[strings.ToLower(kind)+"."+namespace+"."+name+".yaml"] = string(text)
	return nil
}

func node(n layout.Node) *corev1.Node {
	out := &corev1.Node{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: object.KindNode},
		ObjectMeta: metav1.ObjectMeta{Name: n.Name, Labels: map[string]string{corev1.LabelHostname: n.Name}},
	}
	for _, r := range n.PodRanges() {
		out.Spec.PodCIDRs = append(out.Spec.PodCIDRs, r.String())
	}
	out.Spec.PodCIDR = out.Spec.PodCIDRs[0]
	addrs := []string{}
	for _, a := range n.Addresses() {
		addrs = append(addrs, a.Addr().String())
	}
	// The gateway of its pods is an address of the node as well.
	for _, a := range n.Gateways() {
		addrs = append(addrs, a.String())
	}
	for _, a := range addrs {
		out.Status.Addresses = append(out.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
	}
	return out
}

func nameOf(p *corev1.Pod) types.NamespacedName {
	return types.NamespacedName{Namespace: p.Namespace, Name: p.Name}
}

func sortPods(pods []*corev1.Pod) {
	slices.SortFunc(pods, func(a, b *corev1.Pod) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
}

// suffix is five letters and digits that make a pod's name its own.
func suffix() string {
	var b [5]byte
	_, _ = rand.Read(b[:]) // never fails
	return strings.ToLower(base32.StdEncoding.EncodeToString(b[:]))[:5]
}
