package plan

import "errors"

// ErrNumbers says that an allocator has no number left.
var ErrNumbers = errors.New("no number left")

// Numbers gives out peer, class, row and rule set numbers. It goes round: a
// number that was given back comes last, so that a stale one is noticed as
// missing for long before it means something else. Not safe for concurrent use.
type Numbers struct {
	first, limit uint32 // [first, limit)
	next         uint32
	used         map[uint32]struct{}
}

// NewNumbers returns an allocator of the numbers from first up to, without, limit.
func NewNumbers(first, limit uint32) *Numbers {
	return &Numbers{first: first, limit: limit, next: first, used: map[uint32]struct{}{}}
}

// Reserve marks a number as used: after adoption, each that the kernel names.
func (n *Numbers) Reserve(v uint32) { n.used[v] = struct{}{} }

// Take returns a number that is not used.
func (n *Numbers) Take() (uint32, error) {
	if n.first >= n.limit {
		return 0, ErrNumbers
	}
	for range n.limit - n.first {
		v := n.next
		n.next++
		if n.next >= n.limit {
			n.next = n.first
		}
		if _, taken := n.used[v]; !taken {
			n.used[v] = struct{}{}
			return v, nil
		}
	}
	return 0, ErrNumbers
}

// Release gives a number back. The plan that takes it out of the kernel must be
// done before.
func (n *Numbers) Release(v uint32) { delete(n.used, v) }
