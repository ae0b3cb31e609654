package lead

import (
	"testing"

	"weir.dev/weir/services/policy/internal/catalog"
	"weir.dev/weir/services/policy/internal/status"
)

func TestMajorityIsWhatMoreThanHalfHave(t *testing.T) {
	node := func(generation, revision uint64) status.Node {
		return status.Node{Live: true, Pos: catalog.Position{Generation: generation, Revision: revision}}
	}
	for _, tt := range []struct {
		name  string
		nodes []status.Node
		want  catalog.Position
		there bool
	}{
		{name: "no node"},
		{name: "no live node", nodes: []status.Node{{Pos: catalog.Position{Generation: 1, Revision: 9}}}},
		{name: "one", nodes: []status.Node{node(1, 5)}, want: catalog.Position{Generation: 1, Revision: 5}, there: true},
		{name: "half is not more than half", nodes: []status.Node{node(1, 5), node(1, 7)}, want: catalog.Position{Generation: 1, Revision: 5}, there: true},
		{name: "two of three", nodes: []status.Node{node(1, 7), node(1, 5), node(1, 6)}, want: catalog.Position{Generation: 1, Revision: 6}, there: true},
		{name: "one that lies", nodes: []status.Node{node(9, 1), node(1, 5), node(1, 5)}, want: catalog.Position{Generation: 1, Revision: 5}, there: true},
		{name: "generation before revision", nodes: []status.Node{node(2, 1), node(2, 2), node(1, 9)}, want: catalog.Position{Generation: 2, Revision: 1}, there: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, there := majority(tt.nodes)
			if got != tt.want || there != tt.there {
				t.Errorf("got %+v, %v; want %+v, %v", got, there, tt.want, tt.there)
			}
		})
	}
}
