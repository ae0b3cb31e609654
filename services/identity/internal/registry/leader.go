package registry

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"weir.dev/weir/engine/object"
	"weir.dev/weir/internal/logkey"
	"weir.dev/weir/internal/source"
	"weir.dev/weir/internal/statelog"
	identityv1 "weir.dev/weir/proto/weir/identity/v1"
	"weir.dev/weir/services/identity/internal/service"
)

// How the lease holder goes about it.
const (
	lookEvery = 5 * time.Second
	retry     = 500 * time.Millisecond
	// gather is how long changes are collected before they are looked at.
	gather = 20 * time.Millisecond
	// ownerGrace is how long the addresses of a pod or node that is no more are
	// left to be released in the usual way.
	ownerGrace = 10 * time.Second
	// identityGrace is how long an identity stays in the log after the last
	// address that named it.
	identityGrace = 10 * time.Minute
)

// since remembers for how long something has been so.
type since map[string]time.Time

// passed tells whether it has been so for the grace; no longer so forgets it.
func (s since) passed(key string, so bool, now time.Time, grace time.Duration) bool {
	if !so {
		delete(s, key)
		return false
	}
	first, ok := s[key]
	if !ok {
		s[key] = now
		return grace <= 0
	}
	return now.Sub(first) >= grace
}

// keep forgets what is not among the seen.
func (s since) keep(seen map[string]bool) {
	maps.DeleteFunc(s, func(key string, _ time.Time) bool { return !seen[key] })
}

// Lead does what only the lease holder does, until ctx ends.
func (r *Registry) Lead(ctx context.Context) error {
	if err := r.log.EnsureGeneration(ctx, time.Now()); err != nil {
		return err
	}
	gone, unused := since{}, since{}
	for {
		changes := []<-chan struct{}{r.source.Changed(), r.view.Changed(), r.book.Changed()}
		wait := lookEvery
		if err := r.reconcile(ctx, gone, unused); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			r.logger.Warn("not all of the source is in the log", logkey.Error, err)
			wait = retry
		}
		if err := anyOf(ctx, wait, changes); err != nil {
			return err
		}
	}
}

// anyOf returns soon after one of the channels is closed, or when wait is over.
func anyOf(ctx context.Context, wait time.Duration, changes []<-chan struct{}) error {
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	case <-changes[0]:
	case <-changes[1]:
	case <-changes[2]:
	}
	t.Reset(gather)
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// reconcile writes what differs. What fails does not keep the rest from being
// written.
func (r *Registry) reconcile(ctx context.Context, gone, unused since) error {
	if r.Ready() != nil {
		return nil // it changes when it is
	}
	return errors.Join(
		r.copyNamespaces(ctx),
		r.copyServices(ctx),
		r.reviewRecords(ctx, gone),
		r.forgetIdentities(ctx, unused),
	)
}

func (r *Registry) copyNamespaces(ctx context.Context) error {
	var errs []error
	for _, o := range r.source.List(object.KindNamespace) {
		ns, ok := o.Value.(*corev1.Namespace)
		if !ok {
			continue
		}
		value := &identityv1.Namespace{Name: ns.Name, ResourceVersion: ns.ResourceVersion}
		for _, k := range slices.Sorted(maps.Keys(ns.Labels)) {
			value.Labels = append(value.Labels, &identityv1.Label{Key: k, Value: ns.Labels[k]})
		}
		errs = append(errs, r.put(ctx, statelog.NamespaceKey(ns.Name), value))
	}
	errs = append(errs, r.deleteGone(ctx, statelog.Namespace))
	return errors.Join(errs...)
}

// deleteGone removes entries of a kind whose object is known to be gone.
func (r *Registry) deleteGone(ctx context.Context, kind statelog.Kind) error {
	var gone []statelog.Key
	r.view.Each(kind, func(k statelog.Key, e statelog.Entry) bool {
		var of source.Key
		switch v := e.Value.(type) {
		case *identityv1.Namespace:
			of = source.Key{Kind: object.KindNamespace, Name: v.GetName()}
		case *identityv1.Service:
			of = source.Key{Kind: object.KindService, Namespace: v.GetNamespace(), Name: v.GetName()}
		default:
			return true
		}
		if r.source.Gone(of, "") {
			gone = append(gone, k)
		}
		return true
	})
	var errs []error
	for _, k := range gone {
		errs = append(errs, r.log.Delete(ctx, k))
	}
	return errors.Join(errs...)
}

func (r *Registry) copyServices(ctx context.Context) error {
	endpoints := map[string][]*discoveryv1.EndpointSlice{}
	for _, o := range r.source.List(object.KindEndpointSlice) {
		if s, ok := o.Value.(*discoveryv1.EndpointSlice); ok {
			of := s.Namespace + "/" + s.Labels[discoveryv1.LabelServiceName]
			endpoints[of] = append(endpoints[of], s)
		}
	}
	pods := map[string][]*corev1.Pod{}
	for _, o := range r.source.List(object.KindPod) {
		if p, ok := o.Value.(*corev1.Pod); ok {
			pods[p.Namespace] = append(pods[p.Namespace], p)
		}
	}
	var errs []error
	for _, o := range r.source.List(object.KindService) {
		svc, ok := o.Value.(*corev1.Service)
		if !ok {
			continue
		}
		key := statelog.ServiceKey(svc.Namespace, svc.Name)
		value := service.Resolve(svc, endpoints[svc.Namespace+"/"+svc.Name], pods[svc.Namespace])
		if value == nil {
			if _, there := r.view.Get(key); there {
				errs = append(errs, r.log.Delete(ctx, key))
			}
			continue
		}
		// Backends follow the pods, whose versions are not the Service's.
		value.ResourceVersion = ""
		errs = append(errs, r.put(ctx, key, value))
	}
	errs = append(errs, r.deleteGone(ctx, statelog.Service))
	return errors.Join(errs...)
}

// put writes a value unless the view shows the same already.
func (r *Registry) put(ctx context.Context, key statelog.Key, value proto.Message) error {
	if e, ok := r.view.Get(key); ok && statelog.Same(e.Value, value) {
		return nil
	}
	rev, outcome, err := r.log.Put(ctx, key, value)
	if err == nil && outcome == statelog.Written {
		r.logger.Debug("written to the log", logkey.Name, key, logkey.Revision, rev)
	}
	return err
}

// reviewRecords rewrites the records of pods whose identity is another by now,
// and removes those whose owner is no more.
func (r *Registry) reviewRecords(ctx context.Context, gone since) error {
	var errs []error
	now := time.Now()
	records, _ := r.book.All()
	seen := make(map[string]bool, len(records))
	for _, rec := range records {
		a, ok := netip.AddrFromSlice(rec.GetAddress())
		if !ok {
			continue
		}
		a = a.Unmap()
		key := a.String() + rec.GetPodUid()
		seen[key] = true
		if gone.passed(key, !Alive(r.source, rec.AddressRecord), now, ownerGrace) {
			removed, err := r.writer.Release(ctx, a, rec.AddressRecord)
			if removed {
				r.logger.Info("address of an owner that is no more removed",
					logkey.Address, a, logkey.Node, rec.GetNode(), logkey.Pod, rec.GetPodName())
			}
			errs = append(errs, err)
			continue
		}
		if !rec.GetNodeAddress() {
			errs = append(errs, r.rewrite(ctx, a, rec.AddressRecord))
		}
	}
	gone.keep(seen)
	return errors.Join(errs...)
}

// rewrite gives the record of a pod's address the identity that the pod has.
func (r *Registry) rewrite(ctx context.Context, a netip.Addr, rec *identityv1.AddressRecord) error {
	pod, ok := r.pod(rec.GetPodNamespace(), rec.GetPodName())
	if !ok || string(pod.UID) != rec.GetPodUid() || pod.Spec.NodeName != rec.GetNode() {
		return nil
	}
	content, hash, err := Encode(object.PodIdentity(r.cluster, pod))
	if err != nil {
		return err
	}
	key := statelog.IdentityKey(hash)
	e, inLog := r.view.Get(key)
	pos := r.view.Position()
	if inLog && bytes.Equal(hash, rec.GetIdentity()) && e.Revision == rec.GetIdentityRevision() && pos.Generation == rec.GetGeneration() {
		return nil
	}
	revision, generation, err := r.ensure(ctx, key, content)
	if err != nil {
		return err
	}
	next := record(pod, a, hash, revision, generation)
	if _, err := r.writer.Claim(ctx, next); err != nil {
		return err
	}
	r.logger.Info("address record rewritten", logkey.Address, a, logkey.Namespace, pod.Namespace,
		logkey.Pod, pod.Name, logkey.Identity, hex.EncodeToString(hash[:8]), logkey.Revision, revision)
	return nil
}

// forgetIdentities removes identities that no address has named for a while.
func (r *Registry) forgetIdentities(ctx context.Context, unused since) error {
	named := map[statelog.Key]bool{}
	records, _ := r.book.All()
	for _, rec := range records {
		named[statelog.IdentityKey(rec.GetIdentity())] = true
	}
	now := time.Now()
	old := map[statelog.Key]uint64{}
	seen := map[string]bool{}
	r.view.Each(statelog.Identity, func(k statelog.Key, e statelog.Entry) bool {
		seen[string(k)] = true
		if unused.passed(string(k), !named[k], now, identityGrace) {
			old[k] = e.Revision
		}
		return true
	})
	unused.keep(seen)
	if len(old) == 0 {
		return nil
	}
	if err := r.writer.CatchUp(ctx); err != nil {
		return err
	}
	records, _ = r.book.All()
	for _, rec := range records { // registered meanwhile
		delete(old, statelog.IdentityKey(rec.GetIdentity()))
	}
	var errs []error
	for k, revision := range old {
		// Whoever names it after this finds it gone and enters it again.
		if err := r.log.DeleteAt(ctx, k, revision); err != nil {
			errs = append(errs, fmt.Errorf("forget an identity: %w", err))
			continue
		}
		delete(unused, string(k))
	}
	return errors.Join(errs...)
}
