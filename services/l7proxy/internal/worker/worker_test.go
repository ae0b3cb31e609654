package worker

import (
	"context"
	"slices"
	"testing"
)

// Two generations may begin to serve at the same moment, when rule sets come
// after an enforcer has started twice: the later one is left, whichever is first.
func TestGenerationRetiresThoseBeforeIt(t *testing.T) {
	for _, tt := range []struct {
		name  string
		order []int // in which the two begin to serve
	}{
		{"in order", []int{0, 1}},
		{"the later one first", []int{1, 0}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var gens []*generation
			var stopped []int
			for i := range 2 {
				done := make(chan struct{})
				close(done)
				gens = append(gens, &generation{stop: func() { stopped = append(stopped, i) }, done: done})
			}
			w := &worker{accepting: slices.Clone(gens)}
			ended, cancel := context.WithCancel(t.Context())
			cancel() // no wait for connections that began on them
			for _, i := range tt.order {
				w.retireOlder(ended, gens[i])
			}
			if !slices.Equal(stopped, []int{0}) || !slices.Equal(w.accepting, gens[1:]) {
				t.Errorf("stopped %v with %d left, want the first stopped and the second left", stopped, len(w.accepting))
			}
		})
	}
}
