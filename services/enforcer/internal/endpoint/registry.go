// Package endpoint holds this node's endpoints and serves weir-cni: it attaches
// a pod's interface while it is closed, registers the pod's identity, and
// answers only when a policy that knows the identity is in force.
//
// A Registry may be used by several goroutines. It keeps a file, so that a
// restarted enforcer finds its endpoints again. The package imports proto,
// engine/rule, logkey, plan, desired, gRPC and netlink.
package endpoint

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"weir.dev/weir/engine/rule"
	"weir.dev/weir/services/enforcer/internal/desired"
)

// ErrUnknown says that an endpoint is not on this node.
var ErrUnknown = errors.New("no such endpoint on this node")

// Key names an endpoint as the container runtime does.
type Key struct {
	ContainerID string
	Interface   string // inside of the pod
}

// Endpoint is one pod's interface on this node. As JSON it is what the file holds.
type Endpoint struct {
	Key
	ID            uint32 // on this node, never zero, never reused
	Namespace     string
	Pod           string
	PodUID        string
	Netns         string // path; empty: unknown
	HostInterface string
	Ifindex       uint32 // of HostInterface
	PodMAC        [6]byte
	HostMAC       [6]byte
	Addrs         []netip.Addr
	Identity      rule.IdentityHash // zero: not registered yet
	Entered       desired.Position
	Next          rule.IdentityHash // since a relabelling that is not in force yet
	NextEntered   desired.Position
	Labels        []string // key=value, of the identity LabelsOf; for people
	LabelsOf      rule.IdentityHash
}

// Release is a pod whose addresses are still to be given back.
type Release struct{ Namespace, Pod, PodUID string }

// Registry holds the endpoints.
type Registry struct {
	path    string
	changed func() // called without the lock after each change

	mu       sync.Mutex
	file     file
	judgedBy map[uint32]desired.Judged // by ID, in force now
	moved    chan struct{}             // closed and replaced when judgedBy changes
}

// file is what a restart needs.
type file struct {
	LastID    uint32
	Endpoints []Endpoint // sorted by ID
	Releases  []Release
}

// Load reads the endpoints of the last run from path, which need not be there.
// changed is called after each change of the endpoints.
func Load(path string, changed func()) (*Registry, error) {
	r := &Registry{path: path, changed: changed, moved: make(chan struct{})}
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read endpoints: %w", err)
	}
	if err := json.Unmarshal(b, &r.file); err != nil {
		return nil, fmt.Errorf("read endpoints from %s (remove it and restart the node's pods): %w", path, err)
	}
	return r, nil
}

// save writes the file; r.mu is held.
func (r *Registry) save() error {
	b, err := json.MarshalIndent(r.file, "", "\t")
	if err != nil {
		return fmt.Errorf("encode endpoints: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(r.path), 0o700); err != nil {
		return fmt.Errorf("write endpoints: %w", err)
	}
	next := r.path + ".next"
	if err := os.WriteFile(next, b, 0o600); err != nil {
		return fmt.Errorf("write endpoints: %w", err)
	}
	if err := os.Rename(next, r.path); err != nil {
		return fmt.Errorf("write endpoints: %w", err)
	}
	return nil
}

// List is all endpoints, by ID.
func (r *Registry) List() []Endpoint {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.file.Endpoints)
}

// Find is the endpoint that key names.
func (r *Registry) Find(key Key) (Endpoint, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := r.find(key)
	if i < 0 {
		return Endpoint{}, false
	}
	return r.file.Endpoints[i], true
}

func (r *Registry) find(key Key) int {
	return slices.IndexFunc(r.file.Endpoints, func(e Endpoint) bool { return e.Key == key })
}

// Netns is the path of an endpoint's network namespace; empty: unknown.
func (r *Registry) Netns(id uint32) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.file.Endpoints {
		if e.ID == id {
			return e.Netns
		}
	}
	return ""
}

// Put adds e, or replaces the endpoint of its key. A new endpoint gets an ID.
func (r *Registry) Put(e Endpoint) (Endpoint, error) {
	r.mu.Lock()
	if i := r.find(e.Key); i >= 0 {
		e.ID = r.file.Endpoints[i].ID
		r.file.Endpoints[i] = e
	} else {
		r.file.LastID++
		e.ID = r.file.LastID
		r.file.Endpoints = append(r.file.Endpoints, e)
	}
	err := r.save()
	r.mu.Unlock()
	r.changed()
	return e, err
}

// Remove takes the endpoint out; its addresses are then to be released.
func (r *Registry) Remove(e Endpoint) error {
	r.mu.Lock()
	if i := r.find(e.Key); i >= 0 {
		r.file.Endpoints = slices.Delete(slices.Clone(r.file.Endpoints), i, i+1)
		if e.Identity != (rule.IdentityHash{}) {
			r.file.Releases = append(r.file.Releases, Release{e.Namespace, e.Pod, e.PodUID})
		}
		delete(r.judgedBy, e.ID)
	}
	err := r.save()
	r.mu.Unlock()
	r.changed()
	return err
}

// Releases are the pods whose addresses are still to be given back.
func (r *Registry) Releases() []Release {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.file.Releases)
}

// Released forgets a release that is done.
func (r *Registry) Released(done Release) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.file.Releases = slices.DeleteFunc(r.file.Releases, func(x Release) bool { return x == done })
	return r.save()
}

// Relabel takes note that the pod has another identity than it had. The old one
// governs until the policy in force knows the new one.
func (r *Registry) Relabel(podUID string, id rule.IdentityHash, entered desired.Position) error {
	r.mu.Lock()
	change := false
	for i := range r.file.Endpoints {
		e := &r.file.Endpoints[i]
		if e.PodUID != podUID || e.Identity == (rule.IdentityHash{}) {
			continue
		}
		next, nextEntered := id, entered
		if e.Identity == id && e.Entered == entered {
			next, nextEntered = rule.IdentityHash{}, desired.Position{}
		}
		if e.Next != next || e.NextEntered != nextEntered {
			r.file.Endpoints = slices.Clone(r.file.Endpoints)
			e = &r.file.Endpoints[i]
			e.Next, e.NextEntered, change = next, nextEntered, true
		}
	}
	var err error
	if change {
		err = r.save()
	}
	r.mu.Unlock()
	if change {
		r.changed()
	}
	return err
}

// Identities are all that the endpoints have or are to have, sorted.
func (r *Registry) Identities() []rule.IdentityHash {
	r.mu.Lock()
	defer r.mu.Unlock()
	var ids []rule.IdentityHash
	for _, e := range r.file.Endpoints {
		for _, id := range []rule.IdentityHash{e.Identity, e.Next} {
			if id != (rule.IdentityHash{}) {
				ids = append(ids, id)
			}
		}
	}
	slices.SortFunc(ids, func(a, b rule.IdentityHash) int { return slices.Compare(a[:], b[:]) })
	return slices.Compact(ids)
}

// InForce says as whom the endpoints are judged from now on.
func (r *Registry) InForce(judgedBy map[uint32]desired.Judged) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.judgedBy = judgedBy
	close(r.moved)
	r.moved = make(chan struct{})
	promoted := false
	for i, e := range r.file.Endpoints {
		if e.Next != (rule.IdentityHash{}) && judgedBy[e.ID] == (desired.Judged{Identity: e.Next, Entered: e.NextEntered}) {
			r.file.Endpoints = slices.Clone(r.file.Endpoints)
			e.Identity, e.Entered = e.Next, e.NextEntered
			e.Next, e.NextEntered = rule.IdentityHash{}, desired.Position{}
			e.Labels = nil
			r.file.Endpoints[i], promoted = e, true
		}
	}
	if !promoted {
		return nil
	}
	return r.save()
}

// SetLabels takes note of an identity's labels for the endpoint that has it.
func (r *Registry) SetLabels(id uint32, of rule.IdentityHash, labels []string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, e := range r.file.Endpoints {
		if e.ID == id && e.Identity == of {
			r.file.Endpoints = slices.Clone(r.file.Endpoints)
			r.file.Endpoints[i].Labels, r.file.Endpoints[i].LabelsOf = labels, of
			return r.save()
		}
	}
	return nil
}

// Ready says whether the endpoint is judged by a policy that knows its identity.
func (r *Registry) Ready(id uint32) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.judgedBy[id] != desired.Judged{}
}

// Wait returns when the endpoint is judged by the policy of its identity.
func (r *Registry) Wait(ctx context.Context, e Endpoint) error {
	for {
		r.mu.Lock()
		ready, moved := r.judgedBy[e.ID].Identity == e.Identity, r.moved
		r.mu.Unlock()
		if ready {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for a policy that knows identity %x: %w", e.Identity[:6], context.Cause(ctx))
		case <-moved:
		}
	}
}

// Desired is the endpoint as package desired wants it.
func (e Endpoint) Desired() desired.Endpoint {
	return desired.Endpoint{
		ID: e.ID, Ifindex: e.Ifindex, PodUID: e.PodUID, Identity: e.Identity, Entered: e.Entered,
		Next: e.Next, NextEntered: e.NextEntered, PodMAC: e.PodMAC, HostMAC: e.HostMAC, Addrs: e.Addrs,
	}
}

func compareKeys(a, b Key) int {
	return cmp.Or(cmp.Compare(a.ContainerID, b.ContainerID), cmp.Compare(a.Interface, b.Interface))
}
