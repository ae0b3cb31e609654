package catalog_test

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"testing"

	"google.golang.org/protobuf/proto"

	"weir.dev/weir/engine/rule"
	"weir.dev/weir/internal/statelog"
	identityv1 "weir.dev/weir/proto/weir/identity/v1"
	policyv1 "weir.dev/weir/proto/weir/policy/v1"
	"weir.dev/weir/services/policy/internal/catalog"
)

var app1 = rule.IdentityHash{1}

func event(revision uint64, key statelog.Key, value proto.Message) statelog.Event {
	return statelog.Event{Key: key, Revision: revision, Value: value}
}

// base is a log with one namespace, one identity and one policy.
func base() []statelog.Event {
	return []statelog.Event{
		event(2, statelog.NamespaceKey("default"), &identityv1.Namespace{Name: "default"}),
		event(3, statelog.IdentityKey(app1[:]), &identityv1.Identity{
			Cluster: "test", Namespace: "default", Labels: []*identityv1.Label{{Key: "id", Value: "app1"}},
		}),
		event(4, policyKey, entry(`{"podSelector":{"matchLabels":{"id":"app1"}},"policyTypes":["Ingress","Egress"],"egress":[{}]}`)),
	}
}

var policyKey = statelog.PolicyKey("NetworkPolicy", "default", "p")

func entry(spec string) *policyv1.PolicyEntry {
	return &policyv1.PolicyEntry{
		Object: []byte(`{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"p","namespace":"default"},"spec":` + spec + `}`),
		File:   "p.yaml", Line: 3,
	}
}

func started(t *testing.T) *catalog.Catalog {
	t.Helper()
	c := catalog.New(slog.New(slog.DiscardHandler))
	c.Apply(statelog.Batch{Reset: true, Events: base(), Generation: 1, Revision: 4})
	if err := c.Ready(); err == nil {
		t.Fatal("ready before the replay is complete")
	}
	c.Apply(statelog.Batch{Generation: 1, Revision: 4, Complete: true, Copied: true})
	if err := c.Ready(); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestRefusedEntryLeavesWhatWasInForce(t *testing.T) {
	c := started(t)
	w := c.Watch()
	defer w.Close()
	w.Subscribe([]rule.IdentityHash{app1})
	before, _, fresh, ok := w.Take()
	if !fresh || !ok || len(before.Rules) == 0 {
		t.Fatalf("rules %v, fresh %v, %v", before.Rules, fresh, ok)
	}
	c.Apply(statelog.Batch{
		Events: []statelog.Event{event(5, policyKey, entry(`{"podSelector":{},"of a later version":1}`))}, Generation: 1, Revision: 5, Complete: true, Copied: true,
	})
	_, policies, refused := c.Policies()
	if len(policies) != 1 || policies[0].Revision != 4 || len(refused) != 1 || refused[0].GetFile() != "p.yaml" || refused[0].GetLine() != 3 {
		t.Errorf("policies %v, refused %v; want the one of revision 4, and the refusal", policies, refused)
	}
	if _, pos, fresh, _ := w.Take(); fresh || pos.Revision != 5 {
		t.Errorf("at %v, fresh %v; want revision 5 and nothing new", pos, fresh)
	}
	c.Apply(statelog.Batch{Events: []statelog.Event{event(6, policyKey, nil)}, Generation: 1, Revision: 6, Complete: true, Copied: true})
	after, _, fresh, _ := w.Take()
	if _, policies, refused := c.Policies(); !fresh || len(after.Rules) != 0 || len(policies) != 0 || len(refused) != 0 {
		t.Errorf("after the removal: rules %v, policies %v, refused %v", after.Rules, policies, refused)
	}
}

func TestOldStateIsServedUntilTheNewReplayIsComplete(t *testing.T) {
	c := started(t)
	w := c.Watch()
	defer w.Close()
	w.Subscribe([]rule.IdentityHash{app1})
	if _, _, fresh, _ := w.Take(); !fresh {
		t.Fatal("the first state is not new")
	}
	c.Apply(statelog.Batch{Reset: true, Events: base()[:2], Generation: 2, Revision: 3})
	if pos, ok := c.Position(); !ok || pos != (catalog.Position{Generation: 1, Revision: 4}) {
		t.Errorf("in the middle of a replay: at %v, want what it was", pos)
	}
	if _, policies, _ := c.Policies(); len(policies) != 1 {
		t.Errorf("in the middle of a replay: policies %v, want the old one", policies)
	}
	c.Apply(statelog.Batch{Generation: 2, Revision: 3, Complete: true, Copied: true})
	state, pos, fresh, _ := w.Take()
	if !fresh || pos.Generation != 2 || len(state.Rules) != 0 {
		t.Errorf("after it: %v, fresh %v, rules %v; want the new state", pos, fresh, state.Rules)
	}
}

func TestOnlyWhoIsConcernedIsTold(t *testing.T) {
	c := started(t)
	mine, other := c.Watch(), c.Watch()
	defer mine.Close()
	defer other.Close()
	mine.Subscribe([]rule.IdentityHash{app1})
	other.Subscribe(nil)
	mine.Take()
	other.Take()
	c.Apply(statelog.Batch{Events: []statelog.Event{
		event(5, statelog.ServiceKey("default", "s"), &identityv1.Service{
			Namespace: "default", Name: "s", Addresses: [][]byte{{10, 96, 0, 1}, netip.MustParseAddr("fd00:96::1").AsSlice()},
			Ports: []*identityv1.ServicePort{{Protocol: 6, Port: 80, Backends: []*identityv1.Backend{
				{Address: []byte{10, 244, 1, 3}, Port: 80}, {Address: []byte{10, 244, 1, 2}, Port: 80},
				{Address: netip.MustParseAddr("fd00:244:1::2").AsSlice(), Port: 80},
			}}},
		}),
	}, Generation: 1, Revision: 5, Complete: true, Copied: true})
	state, _, fresh, _ := mine.Take()
	if !fresh || len(state.Services) != 2 {
		t.Fatalf("services %v, fresh %v, want one of each family", state.Services, fresh)
	}
	v4, v6 := state.Services[0], state.Services[1]
	if len(v4.Backends) != 2 || v4.Backends[0].Addr.String() != "10.244.1.2" || len(v6.Backends) != 1 {
		t.Errorf("backends %v and %v, want each of its own family, sorted", v4.Backends, v6.Backends)
	}
	if _, pos, fresh, _ := other.Take(); fresh || pos.Revision != 5 {
		t.Errorf("a node without egress rules: at %v, fresh %v; want only the revision", pos, fresh)
	}
}

// Values of the log come from outside: whatever they are, a replica goes on.
func FuzzEntries(f *testing.F) {
	for _, e := range base() {
		text, err := proto.Marshal(e.Value)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(e.Key.Kind()), text)
	}
	f.Fuzz(func(t *testing.T, kind uint8, text []byte) {
		var key statelog.Key
		var value proto.Message
		switch statelog.Kind(kind) {
		case statelog.Identity:
			key, value = statelog.IdentityKey(app1[:]), &identityv1.Identity{}
		case statelog.Namespace:
			key, value = statelog.NamespaceKey("default"), &identityv1.Namespace{}
		case statelog.Service:
			key, value = statelog.ServiceKey("default", "s"), &identityv1.Service{}
		case statelog.Policy:
			key, value = policyKey, &policyv1.PolicyEntry{}
		default:
			return
		}
		if proto.Unmarshal(text, value) != nil {
			return
		}
		c := catalog.New(slog.New(slog.DiscardHandler))
		c.Apply(statelog.Batch{Reset: true, Events: base(), Generation: 1, Revision: 4, Complete: true, Copied: true})
		c.Apply(statelog.Batch{Events: []statelog.Event{event(5, key, value)}, Generation: 1, Revision: 5, Complete: true, Copied: true})
		w := c.Watch()
		defer w.Close()
		w.Subscribe([]rule.IdentityHash{app1})
		if _, pos, _, ok := w.Take(); !ok || pos.Revision != 5 {
			t.Fatalf("at %v, %v, want revision 5", pos, ok)
		}
	})
}

// A log in which the source's policies were not all written yet allows what they
// forbid: nobody is told of it.
func TestNothingIsServedBeforeAllPoliciesWereCopied(t *testing.T) {
	c := catalog.New(slog.New(slog.DiscardHandler))
	w := c.Watch()
	defer w.Close()
	served := func() bool { _, _, _, ok := w.Take(); return ok }
	c.Apply(statelog.Batch{Reset: true, Events: base(), Generation: 1, Revision: 4, Complete: true})
	if err := c.Ready(); !errors.Is(err, catalog.ErrNotCopied) || served() {
		t.Errorf("ready: %v, served: %v; want %v and not served", err, served(), catalog.ErrNotCopied)
	}
	c.Apply(statelog.Batch{Generation: 1, Revision: 5, Complete: true, Copied: true})
	if err := c.Ready(); err != nil || !served() {
		t.Errorf("copied: ready: %v, served: %v", err, served())
	}
	// Another generation in the same log.
	c.Apply(statelog.Batch{Generation: 2, Revision: 6, Complete: true})
	if err := c.Ready(); !errors.Is(err, catalog.ErrNotCopied) || served() {
		t.Errorf("another generation: ready: %v, served: %v", err, served())
	}
	if err := c.WaitFor(expired(t), catalog.Position{Generation: 2, Revision: 6}); err == nil {
		t.Error("waited for a state that is not served, and got it")
	}
	c.Apply(statelog.Batch{Generation: 2, Revision: 7, Complete: true, Copied: true})
	if err := c.Ready(); err != nil || !served() {
		t.Errorf("copied again: ready: %v, served: %v", err, served())
	}
}

func expired(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}
