// Package source reads policy objects: it joins the engine's decoder to the
// kit's sources, and turns an object into the entry of the state log and back.
// It decides nothing about what a policy means.
package source

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"weir.dev/weir/engine/object"
	kit "weir.dev/weir/internal/source"
	policyv1 "weir.dev/weir/proto/weir/policy/v1"
)

// Kinds are the policy kinds, each an object kind of the state log.
func Kinds() []string { return object.PolicyKinds() }

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

// Entry is what the log shall hold of a policy object.
func Entry(o kit.Object, observed time.Time) (*policyv1.PolicyEntry, error) {
	text, err := meaning(o.JSON)
	if err != nil {
		return nil, fmt.Errorf("read %s of %s:%d: %w", o.Key, o.File, o.Line, err)
	}
	e := &policyv1.PolicyEntry{
		Object: text, ResourceVersion: o.ResourceVersion, File: o.File, Line: uint32(o.Line),
		Observed: timestamppb.New(observed),
	}
	for path, line := range o.Lines {
		if strings.HasPrefix(path, "spec") { // spec and specs: what rules are written in
			if e.Lines == nil {
				e.Lines = map[string]uint32{}
			}
			e.Lines[path] = uint32(line)
		}
	}
	return e, nil
}

// meaning is an object without what changes while it says the same: its status,
// and all of its metadata but its name.
func meaning(text []byte) ([]byte, error) {
	var o map[string]json.RawMessage
	if err := json.Unmarshal(text, &o); err != nil {
		return nil, err
	}
	delete(o, "status")
	var name struct {
		Name      string `json:"name,omitempty"`
		Namespace string `json:"namespace,omitempty"`
	}
	if err := json.Unmarshal(o["metadata"], &name); err != nil {
		return nil, err
	}
	meta, err := json.Marshal(name)
	if err != nil {
		return nil, err
	}
	o["metadata"] = meta
	return json.Marshal(o) // keys sorted
}

// Policy reads a policy from an entry of the log.
func Policy(e *policyv1.PolicyEntry) (*object.Policy, *object.Refusal) {
	lines := make(map[string]int, len(e.GetLines()))
	for path, line := range e.GetLines() {
		lines[path] = int(line)
	}
	return object.DecodePolicyJSON(e.GetObject(), e.GetFile(), int(e.GetLine()), lines)
}
