// Package policyitem names and fingerprints the items of a WatchPolicy stream,
// so that its two ends agree on what a client holds.
//
// A version is the first 8 bytes, big endian, of the SHA-256 of the
// deterministic encoding of the Item message. A digest is the SHA-256 over all
// held items, sorted by kind and key: kind (4 bytes), length of the key (4
// bytes), key, version (8 bytes), numbers big endian.
//
// It imports proto and the standard library only, and is safe for concurrent
// use: nothing here has state.
package policyitem

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	policyv1 "weir.dev/weir/proto/weir/policy/v1"
)

// Key names one item among all that a client may hold. It is comparable.
type Key struct {
	Kind policyv1.ItemKind
	Key  string // raw bytes, as ItemKey.key
}

// KeyOf is the key of an item. An item of a kind that this build does not know
// is an error, not an item without a key.
func KeyOf(item *policyv1.Item) (Key, error) {
	switch it := item.GetItem().(type) {
	case *policyv1.Item_Subject:
		return Key{policyv1.ItemKind_ITEM_KIND_SUBJECT, string(it.Subject.GetIdentity())}, nil
	case *policyv1.Item_Selector:
		return Key{policyv1.ItemKind_ITEM_KIND_SELECTOR, string(it.Selector.GetId())}, nil
	case *policyv1.Item_Rule:
		return Key{policyv1.ItemKind_ITEM_KIND_RULE, string(it.Rule.GetId())}, nil
	case *policyv1.Item_RuleSet:
		return Key{policyv1.ItemKind_ITEM_KIND_RULE_SET, string(it.RuleSet.GetId())}, nil
	case *policyv1.Item_Service:
		return Key{policyv1.ItemKind_ITEM_KIND_SERVICE, ServiceKey(it.Service)}, nil
	}
	return Key{}, fmt.Errorf("policy item of kind %T is not known to this build", item.GetItem())
}

// ServiceKey is address, protocol and port as 16+1+2 bytes, network byte order.
func ServiceKey(s *policyv1.ServiceItem) string {
	key := make([]byte, 0, 19)
	key = append(key, s.GetAddress()...)
	key = append(key, byte(s.GetProtocol()))
	key = binary.BigEndian.AppendUint16(key, uint16(s.GetPort()))
	return string(key)
}

// Version fingerprints one item's content.
func Version(item *policyv1.Item) (uint64, error) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(item)
	if err != nil {
		return 0, fmt.Errorf("encode policy item: %w", err)
	}
	sum := sha256.Sum256(b)
	return binary.BigEndian.Uint64(sum[:8]), nil
}

// Digest fingerprints everything a client holds. An empty set has a digest too.
func Digest(held map[Key]uint64) []byte {
	keys := slices.SortedFunc(maps.Keys(held), func(a, b Key) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Key, b.Key))
	})
	h := sha256.New()
	var buf []byte
	for _, k := range keys {
		buf = binary.BigEndian.AppendUint32(buf[:0], uint32(k.Kind))
		buf = binary.BigEndian.AppendUint32(buf, uint32(len(k.Key)))
		buf = append(buf, k.Key...)
		buf = binary.BigEndian.AppendUint64(buf, held[k])
		h.Write(buf) // never errs
	}
	return h.Sum(nil)
}
