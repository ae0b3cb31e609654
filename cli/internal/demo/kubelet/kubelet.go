// Package kubelet runs pods: it makes a pod's namespaces, has weir-cni judge
// them as a container runtime does, brings the interface up only after that and
// starts the containers' programs. It decides nothing about which pods run.
package kubelet

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weir.dev/weir/cli/internal/demo/controller"
	"weir.dev/weir/cli/internal/demo/fabric"
	"weir.dev/weir/cli/internal/demo/layout"
	"weir.dev/weir/cli/internal/demo/proc"
	"weir.dev/weir/cli/internal/parts"
)

// Waits of a pod's life.
const (
	firstRetry = 200 * time.Millisecond // between two calls of weir-cni for one pod
	lastRetry  = 2 * time.Second
	probeEvery = 10 * time.Millisecond
	probeLimit = 10 * time.Second
)

// Kubelet runs the pods of all nodes. Its methods may be called by any
// goroutine.
type Kubelet struct {
	Fabric *fabric.Fabric
	Demo   parts.Demo
	Bin    string   // folder of the binaries
	Env    []string // of every process
	// CNISocket is the enforcer's socket on a node. Nil: no weir-cni is called,
	// pods are open.
	CNISocket func(node string) string
	Log       *slog.Logger

	mu       sync.Mutex
	services []*corev1.Service
	hosts    map[string]*corev1.Pod // by the file that is the pod's /etc/hosts
}

// ErrLeaving is the cause of a context that ends because the whole demo does:
// the pod is left as it is, for all processes are killed anyway.
var ErrLeaving = errors.New("the demo is going down")

// Report tells the pod's status whenever it changes.
type Report func(corev1.PodStatus)

// Run runs the pod until ctx ends, then ends it: containers, weir-cni DEL,
// namespaces. It returns when nothing of the pod is left.
func (k *Kubelet) Run(ctx context.Context, pod *corev1.Pod, report Report) {
	r := &run{k: k, pod: pod, status: *pod.Status.DeepCopy(), report: report, dir: k.Demo.Pod(pod.Namespace, pod.Name)}
	log := k.Log.With("pod", pod.Namespace+"/"+pod.Name, "node", pod.Spec.NodeName)
	if err := r.start(ctx, log); err != nil && ctx.Err() == nil {
		log.Error("the pod does not start", "err", err)
		r.tell(corev1.PodFailed, "StartError", err.Error())
	}
	if ctx.Err() == nil {
		r.watch(ctx)
	}
	<-ctx.Done()
	if errors.Is(context.Cause(ctx), ErrLeaving) {
		return
	}
	if err := r.end(context.WithoutCancel(ctx)); err != nil {
		log.Warn("the pod's end is not clean", "err", err)
	}
}

// run is one pod's life; only the goroutine of Run touches it.
type run struct {
	k          *Kubelet
	pod        *corev1.Pod
	status     corev1.PodStatus
	report     Report
	dir        string
	net        *fabric.Pod
	added      bool // weir-cni ADD was tried
	containers []*proc.Process
}

func (r *run) tell(phase corev1.PodPhase, reason, message string) {
	ready := corev1.ConditionFalse
	if phase == corev1.PodRunning {
		ready = corev1.ConditionTrue
	}
	r.status.Phase, r.status.Reason, r.status.Message = phase, reason, message
	r.status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: ready, LastTransitionTime: metav1.Now(), Reason: reason, Message: message}}
	r.report(*r.status.DeepCopy())
}

func (r *run) start(ctx context.Context, log *slog.Logger) error {
	r.tell(corev1.PodPending, "ContainerCreating", "")
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return fmt.Errorf("make the pod's folder: %w", err)
	}
	if err := r.namespaces(ctx); err != nil {
		return err
	}
	if err := r.add(ctx, log); err != nil {
		return err
	}
	if err := r.net.Up(); err != nil {
		return err
	}
	for _, c := range r.pod.Spec.Containers {
		if err := r.container(c); err != nil {
			return err
		}
	}
	if err := r.probe(ctx); err != nil {
		return err
	}
	now := metav1.Now()
	r.status.StartTime = &now
	r.tell(corev1.PodRunning, "", "")
	return nil
}

func (r *run) namespaces(ctx context.Context) error {
	hosts, resolv := filepath.Join(r.dir, "hosts"), filepath.Join(r.dir, "resolv.conf")
	text := "search " + r.pod.Namespace + ".svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5 attempts:1 timeout:1\n"
	if err := os.WriteFile(resolv, []byte(text), 0o644); err != nil {
		return fmt.Errorf("write the pod's resolv.conf: %w", err)
	}
	if err := r.k.register(hosts, r.pod); err != nil {
		return err
	}
	node, err := nodeOf(r.pod)
	if err != nil {
		return err
	}
	spec := fabric.PodSpec{
		Node: node, Hostname: r.pod.Name, HostLink: hostLink(r.pod), Hosts: hosts, Resolv: resolv,
	}
	for _, ip := range r.pod.Status.PodIPs {
		a, err := netip.ParseAddr(ip.IP)
		if err != nil {
			return fmt.Errorf("read the pod's address: %w", err)
		}
		spec.Addresses = append(spec.Addresses, a)
	}
	if r.net, err = r.k.Fabric.NewPod(ctx, spec); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(r.dir, parts.HolderFile), []byte(strconv.Itoa(r.net.PID)+"\n"), 0o600); err != nil {
		return fmt.Errorf("note the pod's process: %w", err)
	}
	return nil
}

// add has weir-cni take the pod's interface, as often as it needs.
func (r *run) add(ctx context.Context, log *slog.Logger) error {
	if r.k.CNISocket == nil {
		return nil
	}
	pause := firstRetry
	for {
		r.added = true
		err := r.cni(ctx, "ADD")
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		log.Warn("weir-cni ADD is tried again", "err", err, "in", pause)
		r.tell(corev1.PodPending, "ContainerCreating", err.Error())
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		}
		pause = min(2*pause, lastRetry)
	}
}

func (r *run) container(c corev1.Container) error {
	program, ok := controller.ProgramOf(c)
	if !ok {
		return fmt.Errorf("unknown image %q", c.Image)
	}
	env := append(slices.Clone(r.k.Env), "HOSTNAME="+r.pod.Name)
	for _, v := range c.Env {
		env = append(env, v.Name+"="+v.Value)
	}
	p := proc.New(proc.Spec{
		Name: c.Name, Path: filepath.Join(r.k.Bin, program.Binary), Args: program.Args, Env: env,
		Space: r.net.Space, Dir: filepath.Join(r.dir, c.Name),
	})
	if err := p.Start(); err != nil {
		return err
	}
	r.containers = append(r.containers, p)
	now := metav1.Now()
	r.status.ContainerStatuses = append(r.status.ContainerStatuses, corev1.ContainerStatus{
		Name: c.Name, Image: c.Image, Ready: true,
		State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: now}},
	})
	return nil
}

// watch tells when a container ends by itself. It returns when ctx ends or a
// container has.
func (r *run) watch(ctx context.Context) {
	if len(r.containers) == 0 {
		return
	}
	ended := make(chan int, len(r.containers))
	var g sync.WaitGroup
	defer g.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for i, c := range r.containers {
		g.Go(func() {
			select {
			case <-c.Ended():
				ended <- i
			case <-ctx.Done():
			}
		})
	}
	select {
	case i := <-ended:
		s := r.containers[i].Status()
		r.status.ContainerStatuses[i].Ready = false
		r.status.ContainerStatuses[i].State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{Reason: "Error", Message: s.Detail}}
		r.tell(corev1.PodFailed, "Error", fmt.Sprintf("container %s has ended: %s", s.Name, s.Detail))
	case <-ctx.Done():
	}
}

func (r *run) end(ctx context.Context) error {
	var errs []error
	for _, c := range r.containers {
		if err := c.Stop(ctx); err != nil && !errors.Is(err, proc.ErrNotRunning) {
			errs = append(errs, err)
		}
	}
	if r.added {
		if err := r.cni(ctx, "DEL"); err != nil {
			errs = append(errs, err)
		}
	}
	if r.net != nil {
		errs = append(errs, r.net.Close())
	}
	r.k.unregister(filepath.Join(r.dir, "hosts"))
	errs = append(errs, os.RemoveAll(r.dir))
	return errors.Join(errs...)
}

func nodeOf(pod *corev1.Pod) (layout.Node, error) {
	for _, n := range layout.AllNodes() {
		if n.Name == pod.Spec.NodeName {
			return n, nil
		}
	}
	return layout.Node{}, fmt.Errorf("node %q is not one of the demo's", pod.Spec.NodeName)
}

// hostLink is the name of the pod's link in its node.
func hostLink(pod *corev1.Pod) string { return "weir" + containerID(pod)[:10] }

// containerID names the pod's sandbox.
func containerID(pod *corev1.Pod) string {
	sum := sha256.Sum256([]byte(pod.UID))
	return hex.EncodeToString(sum[:])
}

// SetServices makes the names of these Services resolve in every pod.
func (k *Kubelet) SetServices(services []*corev1.Service) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.services = services
	var errs []error
	for file, pod := range k.hosts {
		errs = append(errs, k.writeHosts(file, pod))
	}
	return errors.Join(errs...)
}

func (k *Kubelet) register(file string, pod *corev1.Pod) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.hosts == nil {
		k.hosts = map[string]*corev1.Pod{}
	}
	k.hosts[file] = pod
	return k.writeHosts(file, pod)
}

func (k *Kubelet) unregister(file string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.hosts, file)
}

// writeHosts writes in place: the pod has this very file bound over its own.
func (k *Kubelet) writeHosts(file string, pod *corev1.Pod) error {
	if err := os.WriteFile(file, []byte(Hosts(pod, k.services)), 0o644); err != nil {
		return fmt.Errorf("write the hosts of %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return nil
}

// Hosts is the text of a pod's /etc/hosts.
func Hosts(pod *corev1.Pod, services []*corev1.Service) string {
	text := "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
	for _, ip := range pod.Status.PodIPs {
		text += ip.IP + "\t" + pod.Name + "\n"
	}
	names := map[string]string{}
	for _, s := range services {
		long := s.Name + "." + s.Namespace
		line := long + " " + long + ".svc " + long + ".svc.cluster.local"
		if s.Namespace == pod.Namespace {
			line = s.Name + " " + line
		}
		for _, ip := range s.Spec.ClusterIPs {
			if ip != corev1.ClusterIPNone {
				names[ip] = line
			}
		}
	}
	for _, ip := range slices.Sorted(maps.Keys(names)) {
		text += ip + "\t" + names[ip] + "\n"
	}
	return text
}
