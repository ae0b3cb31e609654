// Package registry turns pods into identities and commits them, with their
// addresses, to the state log and the address stream. Any replica registers;
// the one that holds the lease also copies namespaces and services into the
// log, rewrites the records of relabelled pods and removes what is no more.
//
// It imports engine, proto and the kit.
package registry

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"

	"weir.dev/weir/engine/object"
	"weir.dev/weir/engine/rule"
	"weir.dev/weir/internal/source"
	"weir.dev/weir/internal/statelog"
	identityv1 "weir.dev/weir/proto/weir/identity/v1"
	"weir.dev/weir/services/identity/internal/address"
	"weir.dev/weir/services/identity/internal/service"
)

// podWait is how long Register waits for a pod that the source does not have
// yet, or a namespace that the log does not: the runtime may be faster.
const podWait = 2 * time.Second

// tries bounds how often Register begins again because the identity left the
// log meanwhile.
const tries = 4

// Errors that callers tell apart.
var (
	ErrPod       = errors.New("the pod is not known or not bound to this node")
	ErrNamespace = errors.New("the pod's namespace is not in the state log")
	ErrMalformed = errors.New("the request is malformed")
)

// Registry is one replica's. It must be made by New and is safe for concurrent
// use.
type Registry struct {
	cluster string
	source  *source.Store
	log     *statelog.Writer
	view    *statelog.View
	writer  *address.Writer
	book    *address.Book
	logger  *slog.Logger
}

// Config is what a Registry works on.
type Config struct {
	Cluster string // name of the cluster, part of every identity
	Source  *source.Store
	Log     *statelog.Writer
	View    *statelog.View
	Writer  *address.Writer
	Book    *address.Book
	Logger  *slog.Logger
}

// New returns a registry.
func New(c Config) *Registry {
	return &Registry{
		cluster: c.Cluster, source: c.Source, log: c.Log, view: c.View,
		writer: c.Writer, book: c.Book, logger: c.Logger,
	}
}

// Ready tells what has not been replayed yet.
func (r *Registry) Ready() error {
	if err := r.view.Ready(); err != nil {
		return err
	}
	if _, complete := r.book.Head(); !complete {
		return errBook
	}
	return nil
}

var errBook = fmt.Errorf("addresses: %w", statelog.ErrNotReplayed)

// Encode turns an identity into the log's value and its hash.
func Encode(id rule.Identity) (*identityv1.Identity, []byte, error) {
	content := &identityv1.Identity{
		Cluster: id.Cluster, Namespace: id.Namespace, ServiceAccount: id.ServiceAccount,
	}
	for _, l := range id.Labels {
		content.Labels = append(content.Labels, &identityv1.Label{Key: l.Key, Value: l.Value})
	}
	for _, p := range id.NamedPorts {
		content.NamedPorts = append(content.NamedPorts, &identityv1.NamedPort{
			Name: p.Name, Protocol: uint32(p.Protocol), Port: uint32(p.Port),
		})
	}
	text, err := proto.MarshalOptions{Deterministic: true}.Marshal(content)
	if err != nil {
		return nil, nil, fmt.Errorf("encode the identity of %v: %w", id, err)
	}
	hash := sha256.Sum256(text)
	return content, hash[:], nil
}

// Register commits the identity and the addresses of a pod of the node.
func (r *Registry) Register(ctx context.Context, node string, req *identityv1.RegisterRequest) (*identityv1.RegisterResponse, error) {
	addrs, err := parseAddresses(req.GetAddresses())
	if err != nil {
		return nil, err
	}
	if len(addrs) == 0 {
		return nil, fmt.Errorf("%w: a pod without addresses", ErrMalformed)
	}
	pod, err := r.podOf(ctx, node, req.GetNamespace(), req.GetName(), req.GetPodUid())
	if err != nil {
		return nil, err
	}
	if err := r.awaitNamespace(ctx, pod.Namespace); err != nil {
		return nil, err
	}
	content, hash, err := Encode(object.PodIdentity(r.cluster, pod))
	if err != nil {
		return nil, err
	}
	for range tries {
		resp, err := r.register(ctx, pod, addrs, content, hash)
		if err != nil || resp != nil {
			return resp, err
		}
	}
	return nil, fmt.Errorf("register %s/%s: its identity leaves the log each time: %w", pod.Namespace, pod.Name, address.ErrContended)
}

// register is one attempt; nothing and no error says that the identity left the
// log before the addresses named it.
func (r *Registry) register(ctx context.Context, pod *corev1.Pod, addrs []netip.Addr, content *identityv1.Identity, hash []byte) (*identityv1.RegisterResponse, error) {
	key := statelog.IdentityKey(hash)
	revision, generation, err := r.ensure(ctx, key, content)
	if err != nil {
		return nil, err
	}
	resp := &identityv1.RegisterResponse{
		Identity: hash, Content: content, IdentityRevision: revision, Generation: generation,
	}
	for _, a := range addrs {
		seq, err := r.writer.Claim(ctx, record(pod, a, hash, revision, generation))
		if err != nil {
			return nil, err
		}
		resp.AddressSequence = max(resp.AddressSequence, seq)
	}
	now, err := r.log.Revision(ctx, key)
	if err != nil {
		return nil, err
	}
	if now != revision {
		return nil, nil
	}
	return resp, nil
}

// ensure returns the revision of an identity in the log, which it enters if it
// is not there.
func (r *Registry) ensure(ctx context.Context, key statelog.Key, content *identityv1.Identity) (revision, generation uint64, err error) {
	if err := r.Ready(); err != nil {
		return 0, 0, err
	}
	generation = r.view.Position().Generation
	revision, err = r.log.Revision(ctx, key)
	if err == nil && revision == 0 {
		revision, _, err = r.log.Put(ctx, key, content)
	}
	return revision, generation, err
}

func record(pod *corev1.Pod, a netip.Addr, hash []byte, revision, generation uint64) *identityv1.AddressRecord {
	b := a.As16()
	return &identityv1.AddressRecord{
		Address: b[:], PodUid: string(pod.UID), PodNamespace: pod.Namespace, PodName: pod.Name,
		Node: pod.Spec.NodeName, Identity: hash, IdentityRevision: revision, Generation: generation,
	}
}

// podOf finds a pod, waiting a moment for a source that lags, and checks that
// it is bound to the node.
func (r *Registry) podOf(ctx context.Context, node, namespace, name, uid string) (*corev1.Pod, error) {
	ctx, cancel := context.WithTimeout(ctx, podWait)
	defer cancel()
	for {
		changed := r.source.Changed()
		pod, ok := r.pod(namespace, name)
		switch {
		case ok && string(pod.UID) == uid && pod.Spec.NodeName == node:
			return pod, nil
		case ok && string(pod.UID) == uid && pod.Spec.NodeName != "":
			return nil, fmt.Errorf("%w: pod %s/%s is bound to node %s, not to %s", ErrPod, namespace, name, pod.Spec.NodeName, node)
		}
		select {
		case <-changed:
			continue
		case <-ctx.Done():
		}
		switch {
		case !ok:
			return nil, fmt.Errorf("%w: the source has no pod %s/%s", ErrPod, namespace, name)
		case string(pod.UID) != uid:
			return nil, fmt.Errorf("%w: pod %s/%s has uid %q, not %q", ErrPod, namespace, name, pod.UID, uid)
		}
		return nil, fmt.Errorf("%w: pod %s/%s is bound to no node yet", ErrPod, namespace, name)
	}
}

// awaitNamespace returns when the log has the namespace: an identity in one
// without labels could not be judged, so its pod would stay closed.
func (r *Registry) awaitNamespace(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, podWait)
	defer cancel()
	for {
		changed := r.view.Changed()
		if err := r.view.Ready(); err != nil {
			return err
		}
		if _, ok := r.view.Get(statelog.NamespaceKey(name)); ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%w: %s; does the source have a Namespace of that name?", ErrNamespace, name)
		}
	}
}

func (r *Registry) pod(namespace, name string) (*corev1.Pod, bool) {
	o, ok := r.source.Get(podKey(namespace, name))
	if !ok {
		return nil, false
	}
	pod, ok := o.Value.(*corev1.Pod)
	return pod, ok
}

func podKey(namespace, name string) source.Key {
	return source.Key{Kind: object.KindPod, Namespace: cmp.Or(namespace, "default"), Name: name}
}

// Release removes the addresses of a pod of the node, and tells how many.
func (r *Registry) Release(ctx context.Context, node string, req *identityv1.ReleaseRequest) (uint32, error) {
	if req.GetPodUid() == "" {
		return 0, fmt.Errorf("%w: pod_uid is missing", ErrMalformed)
	}
	if err := r.Ready(); err != nil {
		return 0, err
	}
	if err := r.writer.CatchUp(ctx); err != nil {
		return 0, err
	}
	owner := &identityv1.AddressRecord{PodUid: req.GetPodUid(), Node: node}
	var released uint32
	for _, a := range r.book.OfPod(req.GetPodUid()) {
		ok, err := r.writer.Release(ctx, a, owner)
		if err != nil {
			return released, err
		}
		if ok {
			released++
		}
	}
	return released, nil
}

// RegisterNode replaces the set of addresses that a node itself has, and returns
// those that its Node object does not vouch for: a node may not say that the
// world's addresses, a Service's or another node's pods' are its own. What it
// may have it gets even if others are refused.
func (r *Registry) RegisterNode(ctx context.Context, node string, req *identityv1.RegisterNodeRequest) (refused []netip.Addr, err error) {
	all, err := parseAddresses(req.GetAddresses())
	if err != nil {
		return nil, err
	}
	if err := r.Ready(); err != nil {
		return nil, err
	}
	if err := r.writer.CatchUp(ctx); err != nil {
		return nil, err
	}
	var addrs []netip.Addr
	for _, a := range all {
		if r.vouched(node, a) {
			addrs = append(addrs, a)
		} else {
			refused = append(refused, a)
		}
	}
	var errs []error
	for _, a := range addrs {
		b := a.As16()
		_, err := r.writer.Claim(ctx, &identityv1.AddressRecord{
			Address: b[:], Node: node, NodeAddress: true, Generation: r.view.Position().Generation,
		})
		errs = append(errs, err)
	}
	owner := &identityv1.AddressRecord{Node: node, NodeAddress: true}
	for _, a := range r.book.OfNode(node) {
		if !slices.Contains(addrs, a) {
			_, err := r.writer.Release(ctx, a, owner)
			errs = append(errs, err)
		}
	}
	return refused, errors.Join(errs...)
}

// vouched tells whether the source's Node object names the address, or has it in
// one of its pod ranges. A node that the source does not know has none.
func (r *Registry) vouched(node string, a netip.Addr) bool {
	o, _ := r.source.Get(source.Key{Kind: object.KindNode, Name: node})
	n, ok := o.Value.(*corev1.Node)
	if !ok {
		return false
	}
	for _, s := range n.Status.Addresses {
		if b, err := netip.ParseAddr(s.Address); err == nil && b.Unmap() == a {
			return true
		}
	}
	return slices.ContainsFunc(append(n.Spec.PodCIDRs, n.Spec.PodCIDR), func(s string) bool {
		p, err := netip.ParsePrefix(s)
		return err == nil && p.Contains(a)
	})
}

func parseAddresses(raw [][]byte) ([]netip.Addr, error) {
	var out []netip.Addr
	for _, b := range raw {
		a, ok := netip.AddrFromSlice(b)
		a = a.Unmap()
		if !ok || a.IsUnspecified() || a.IsMulticast() {
			return nil, fmt.Errorf("%w: %x is not an address of a pod or node", ErrMalformed, b)
		}
		out = append(out, a)
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out), nil
}

// Alive tells whether the owner of a record still is, as far as the source
// knows. Without a complete list everybody is, and so is every node while the
// source has no nodes at all.
func Alive(src *source.Store, rec *identityv1.AddressRecord) bool {
	if rec.GetNodeAddress() {
		k := source.Key{Kind: object.KindNode, Name: rec.GetNode()}
		_, there := src.Get(k)
		return there || !src.Gone(k, "") || len(src.List(object.KindNode)) == 0
	}
	k := podKey(rec.GetPodNamespace(), rec.GetPodName())
	o, there := src.Get(k)
	if !there {
		return !src.Gone(k, "")
	}
	pod, ok := o.Value.(*corev1.Pod)
	return !ok || string(pod.UID) == rec.GetPodUid() && !service.Ended(pod)
}
