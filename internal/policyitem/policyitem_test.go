package policyitem_test

import (
	"bytes"
	"testing"

	"weir.dev/weir/internal/policyitem"
	policyv1 "weir.dev/weir/proto/weir/policy/v1"
)

func TestVersionFollowsContent(t *testing.T) {
	item := func(text string) *policyv1.Item {
		return &policyv1.Item{Item: &policyv1.Item_Selector{Selector: &policyv1.Selector{Id: []byte("a"), Text: text}}}
	}
	a, err := policyitem.Version(item("one"))
	if err != nil {
		t.Fatal(err)
	}
	again, _ := policyitem.Version(item("one"))
	other, _ := policyitem.Version(item("two"))
	if a != again || a == other {
		t.Errorf("versions: same content %x and %x, other content %x", a, again, other)
	}
}

func TestDigestTellsWhatIsHeld(t *testing.T) {
	k := func(kind policyv1.ItemKind, key string) policyitem.Key { return policyitem.Key{Kind: kind, Key: key} }
	rule, selector := policyv1.ItemKind_ITEM_KIND_RULE, policyv1.ItemKind_ITEM_KIND_SELECTOR
	sets := []map[policyitem.Key]uint64{
		{},
		{k(rule, "a"): 1},
		{k(rule, "a"): 2},
		{k(selector, "a"): 1},
		{k(rule, "a"): 1, k(rule, "b"): 1},
	}
	for i, a := range sets {
		for j, b := range sets {
			if got := bytes.Equal(policyitem.Digest(a), policyitem.Digest(b)); got != (i == j) {
				t.Errorf("digests of set %d and set %d equal: got %v", i, j, got)
			}
		}
	}
}

func TestKeyOfUnknownItemIsAnError(t *testing.T) {
	if k, err := policyitem.KeyOf(&policyv1.Item{}); err == nil {
		t.Errorf("key of an empty item: got %v, want an error", k)
	}
}
