package plan

import (
	"fmt"
	"slices"
)

// extents gives places to lists of entries, by content: equal lists have one
// place, which both sides use. A place that is given back is free at once, so
// that must happen after the old side has been brought up.
type extents[T comparable] struct {
	what   string // for errors: the map
	limit  uint32
	encode func(list []T) string
	byKey  map[string]*extent
	free   []Extent // sorted, no two adjacent
}

type extent struct {
	Extent
	refs int
}

func newExtents[T comparable](what string, limit int, encode func([]T) string) *extents[T] {
	x := &extents[T]{what: what, limit: uint32(limit), encode: encode, byKey: map[string]*extent{}}
	if limit > 0 {
		x.free = []Extent{{First: 0, N: x.limit}}
	}
	return x
}

// take returns the place of a list, and whether it is a new one, to be written.
func (x *extents[T]) take(list []T) (at Extent, isNew bool, err error) {
	if len(list) == 0 {
		return Extent{}, false, nil
	}
	key := x.encode(list)
	if e, ok := x.byKey[key]; ok {
		e.refs++
		return e.Extent, false, nil
	}
	n := uint32(len(list))
	for i, f := range x.free {
		if f.N < n {
			continue
		}
		at = Extent{First: f.First, N: n}
		x.free[i] = Extent{First: f.First + n, N: f.N - n}
		if x.free[i].N == 0 {
			x.free = slices.Delete(x.free, i, i+1)
		}
		x.byKey[key] = &extent{Extent: at, refs: 1}
		return at, true, nil
	}
	return Extent{}, false, fmt.Errorf("%s has no %d free neighbours of %d entries: raise its size", x.what, n, x.limit)
}

// give gives the place of a list back.
func (x *extents[T]) give(list []T) {
	if len(list) == 0 {
		return
	}
	key := x.encode(list)
	e := x.byKey[key]
	if e == nil {
		panic("plan: a place is given back that nobody has: " + x.what)
	}
	if e.refs--; e.refs > 0 {
		return
	}
	delete(x.byKey, key)
	x.addFree(e.Extent)
}

func (x *extents[T]) addFree(e Extent) {
	i, _ := slices.BinarySearchFunc(x.free, e, func(a, b Extent) int { return int(a.First) - int(b.First) })
	x.free = slices.Insert(x.free, i, e)
	if i+1 < len(x.free) && x.free[i].First+x.free[i].N == x.free[i+1].First {
		x.free[i].N += x.free[i+1].N
		x.free = slices.Delete(x.free, i+1, i+2)
	}
	if i > 0 && x.free[i-1].First+x.free[i-1].N == x.free[i].First {
		x.free[i-1].N += x.free[i].N
		x.free = slices.Delete(x.free, i, i+1)
	}
}

// adopt takes over a place that the kernel holds. Two places of equal content
// happen only in a kernel state of another writer; the second is moved by the
// caller, who gets false.
func (x *extents[T]) adopt(list []T, at Extent) bool {
	if len(list) == 0 {
		return true
	}
	key := x.encode(list)
	if e, ok := x.byKey[key]; ok {
		e.refs++
		return e.Extent == at
	}
	for i, f := range x.free {
		if at.First < f.First || at.First+at.N > f.First+f.N {
			continue
		}
		left := Extent{First: f.First, N: at.First - f.First}
		right := Extent{First: at.First + at.N, N: f.First + f.N - at.First - at.N}
		x.free = slices.Delete(x.free, i, i+1)
		for _, part := range []Extent{right, left} {
			if part.N > 0 {
				x.free = slices.Insert(x.free, i, part)
			}
		}
		x.byKey[key] = &extent{Extent: at, refs: 1}
		return true
	}
	return false
}

// used is how many entries are taken.
func (x *extents[T]) used() int {
	n := int(x.limit)
	for _, f := range x.free {
		n -= int(f.N)
	}
	return n
}
