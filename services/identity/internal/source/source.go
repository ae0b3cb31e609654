// Package source reads the objects that identity needs: pods, namespaces,
// services and nodes. It joins the engine's decoder to the kit's sources and
// decides nothing.
package source

import (
	"weir.dev/weir/engine/object"
	kit "weir.dev/weir/internal/source"
)

// Decode reads the documents of a file with the engine's decoder.
func Decode(file string, data []byte) ([]kit.Object, []kit.Refused) {
	objects, refusals := object.Decode(file, data)
	out := make([]kit.Object, 0, len(objects))
	for _, o := range objects {
		out = append(out, kit.Object{
			Key:  kit.Key{Kind: o.Kind, Namespace: o.Namespace, Name: o.Name},
			File: o.Source.File, Line: o.Source.Line, JSON: o.JSON, Lines: o.Lines, Value: o.Value,
		})
	}
	refused := make([]kit.Refused, 0, len(refusals))
	for _, r := range refusals {
		refused = append(refused, kit.Refused{
			Key:  kit.Key{Kind: r.Kind, Namespace: r.Namespace, Name: r.Name},
			File: r.Source.File, Line: r.Source.Line, Reason: r.Reason(),
		})
	}
	return out, refused
}

// Kinds that identity reads.
var kinds = map[string]bool{
	object.KindNamespace: true, object.KindPod: true, object.KindNode: true,
	object.KindService: true, object.KindEndpointSlice: true,
}

// Concerns tells whether identity reads objects of the kind.
func Concerns(kind string) bool { return kinds[kind] }
