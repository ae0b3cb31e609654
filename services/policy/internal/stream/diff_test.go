package stream_test

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"weir.dev/weir/engine/resolve"
	"weir.dev/weir/engine/rule"
	"weir.dev/weir/internal/policyitem"
	policyv1 "weir.dev/weir/proto/weir/policy/v1"
	"weir.dev/weir/services/policy/internal/catalog"
	"weir.dev/weir/services/policy/internal/stream"
)

// apply is what a client makes of the parts of a difference.
func apply(t *rapid.T, held map[policyitem.Key]*policyv1.Item, parts []*policyv1.WatchPolicyResponse) map[policyitem.Key]*policyv1.Item {
	next := map[policyitem.Key]*policyv1.Item{}
	if !parts[0].GetFull() {
		for k, v := range held {
			next[k] = v
		}
	}
	for i, p := range parts {
		if p.GetEnd() != (i == len(parts)-1) || p.GetNonce() != parts[0].GetNonce() {
			t.Fatalf("part %d of %d: end %v, nonce %d", i, len(parts), p.GetEnd(), p.GetNonce())
		}
		for _, k := range p.GetRemovals() {
			delete(next, policyitem.Key{Kind: k.GetKind(), Key: string(k.GetKey())})
		}
		for _, c := range p.GetSelectorChanges() {
			k := policyitem.Key{Kind: policyv1.ItemKind_ITEM_KIND_SELECTOR, Key: string(c.GetId())}
			sel := proto.CloneOf(next[k].GetSelector())
			sel.Identities = slices.DeleteFunc(sel.Identities, func(m uint64) bool { return slices.Contains(c.GetRemoved(), m) })
			sel.Identities = append(sel.Identities, c.GetAdded()...)
			slices.Sort(sel.Identities)
			next[k] = &policyv1.Item{Item: &policyv1.Item_Selector{Selector: sel}}
		}
		for _, it := range p.GetUpserts() {
			k, err := policyitem.KeyOf(it)
			if err != nil {
				t.Fatal(err)
			}
			next[k] = it
		}
	}
	return next
}

func TestDifferencesLeadToTheSame(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		held := stream.NewHeld(nil)
		client := map[policyitem.Key]*policyv1.Item{}
		for i := range rapid.IntRange(1, 4).Draw(t, "states") {
			items, err := stream.Items(drawState(t))
			if err != nil {
				t.Fatal(err)
			}
			d := stream.Diff(held, items, rapid.IntRange(0, 4).Draw(t, "full") == 0)
			parts := d.Parts(catalog.Position{Generation: 1, Revision: uint64(i)}, uint64(i))
			client = apply(t, client, parts)
			held = d.After
			want := map[policyitem.Key]uint64{}
			for _, it := range items {
				want[it.Key] = it.Version
			}
			got := map[policyitem.Key]uint64{}
			for k, it := range client {
				if got[k], err = policyitem.Version(it); err != nil {
					t.Fatal(err)
				}
			}
			if !bytes.Equal(policyitem.Digest(got), policyitem.Digest(want)) || !bytes.Equal(d.Digest, policyitem.Digest(want)) {
				t.Fatalf("the client holds %v, want %v", got, want)
			}
			if again := stream.Diff(held, items, false); !again.Empty() {
				t.Fatalf("the same state again is a difference: %+v", again)
			}
		}
	})
}

func TestLargeStatesAreSentInParts(t *testing.T) {
	var n resolve.NodeState
	for i := range 40_000 {
		n.Rules = append(n.Rules, rule.Rule{
			ID: id(fmt.Sprint("rule ", i)), Subject: id("one"), Direction: rule.Ingress, Tier: rule.Normal,
			Action: rule.Allow, Peer: id("peer"), Ports: rule.Everything(),
			Origin: rule.Origin{Kind: "NetworkPolicy", Namespace: "default", Name: fmt.Sprint("policy-", i)},
		})
	}
	items, err := stream.Items(n)
	if err != nil {
		t.Fatal(err)
	}
	d := stream.Diff(stream.NewHeld(nil), items, true)
	parts := d.Parts(catalog.Position{Generation: 1, Revision: 1}, 7)
	if len(parts) < 3 {
		t.Fatalf("%d parts, want several", len(parts))
	}
	total := 0
	for i, p := range parts {
		if size := proto.Size(p); size > 1<<20+100 {
			t.Errorf("part %d has %d bytes, want 1 MiB at most", i, size)
		}
		total += len(p.GetUpserts())
		if p.GetNonce() != 7 || !p.GetFull() || p.GetEnd() != (i == len(parts)-1) {
			t.Errorf("part %d: nonce %d, full %v, end %v", i, p.GetNonce(), p.GetFull(), p.GetEnd())
		}
	}
	if total != len(items) {
		t.Errorf("%d items sent, want %d", total, len(items))
	}
}
