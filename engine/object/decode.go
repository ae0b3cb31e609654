package object

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"weir.dev/weir/engine/rule"
)

// maxPolicy is how large one policy object may be: a value of the state log.
const maxPolicy = 1 << 20

// DecodePolicyJSON decodes and validates one policy object. The file, the line
// and the lines of field paths say where it was written, if anywhere. A policy
// that is refused is nil, and the refusal says why; a policy with any problem
// is never taken in part.
func DecodePolicyJSON(text []byte, file string, line int, lines map[string]int) (*Policy, *Refusal) {
	ref := &Refusal{Source: Source{File: file, Line: line}}
	if len(text) > maxPolicy {
		ref.Problems = []Problem{{Reason: fmt.Sprintf("policy has %d bytes of JSON, more than %d: split it", len(text), maxPolicy)}}
		return nil, ref
	}
	root, err := decodeJSON(text)
	if err != nil {
		ref.Problems = []Problem{{Reason: "not a Kubernetes object: " + err.Error()}}
		return nil, ref
	}
	h, err := headerOf(root)
	if err != nil {
		ref.Problems = []Problem{{Reason: err.Error()}}
		return nil, ref
	}
	r := &reader{lines: lines}
	switch cluster := h.kind == KindClusterNetworkPolicy || h.kind == KindCiliumClusterwideNetworkPolicy; {
	case cluster && h.namespace != "":
		r.add("metadata.namespace", false, "a "+h.kind+" has no namespace: remove the field")
	case !cluster && unsupportedKinds[h.kind] == "":
		h.namespace = cmp.Or(h.namespace, "default")
	}
	ref.APIVersion, ref.Kind, ref.Namespace, ref.Name = h.apiVersion, h.kind, h.namespace, h.name
	origin := rule.Origin{Kind: h.kind, APIVersion: h.apiVersion, Namespace: h.namespace,
		Name: h.name, File: file, Line: line}
	checkName(r, origin.Namespace, origin.Name)
	p := decodePolicy(r, origin, field{r: r, v: root}, text)
	if len(r.problems) > 0 {
		ref.Problems = r.problems
		return nil, ref
	}
	for _, part := range p.Parts() {
		part.Lines = lines
	}
	p.Warnings = append(r.warnings, lint(p)...)
	return p, nil
}

func decodePolicy(r *reader, origin rule.Origin, root field, text []byte) *Policy {
	switch at := origin.APIVersion + "/" + origin.Kind; at {
	case networkingv1.SchemeGroupVersion.String() + "/" + KindNetworkPolicy:
		root.noNulls()
		v, problems := strict(text)
		np, ok := v.(*networkingv1.NetworkPolicy)
		for _, p := range problems {
			r.add(p.Path, false, p.Reason)
		}
		if !ok {
			if len(problems) == 0 {
				r.add("", false, "not a NetworkPolicy")
			}
			return nil
		}
		return networkPolicy(r, origin, &np.Spec)
	case "cilium.io/v1/" + KindCiliumNetworkPolicy:
		r.fold = true
		return ciliumPolicy(origin, SemanticsV1, root)
	case "cilium.io/v2/" + KindCiliumNetworkPolicy, "cilium.io/v2/" + KindCiliumClusterwideNetworkPolicy:
		return ciliumPolicy(origin, SemanticsV2, root)
	case "policy.networking.k8s.io/v1alpha2/" + KindClusterNetworkPolicy:
		return clusterPolicy(origin, root)
	}
	if reason := unsupportedKinds[origin.Kind]; reason != "" {
		r.add("kind", true, origin.Kind+": "+reason)
		return nil
	}
	r.add("kind", true, fmt.Sprintf("%s of %s is not a policy that Weir reads: it takes NetworkPolicy of networking.k8s.io/v1, "+
		"CiliumNetworkPolicy of cilium.io/v2 and cilium.io/v1, CiliumClusterwideNetworkPolicy of cilium.io/v2, "+
		"ClusterNetworkPolicy of policy.networking.k8s.io/v1alpha2", origin.Kind, origin.APIVersion))
	return nil
}

// noNulls refuses nulls in lists and labels, which the types read as an empty
// rule, peer or value: more than was written.
func (f field) noNulls() {
	switch v := f.v.(type) {
	case []any:
		for i, e := range v {
			sub := field{f.r, index(f.path, i), e}
			if e == nil {
				sub.fail("must not be null: remove the entry")
			}
			sub.noNulls()
		}
	case map[string]any:
		for _, k := range slices.Sorted(maps.Keys(v)) {
			sub := field{f.r, join(f.path, k), v[k]}
			if v[k] == nil && strings.HasSuffix(f.path, ".matchLabels") {
				sub.fail("must be a string, not null")
			}
			sub.noNulls()
		}
	}
}

func checkName(r *reader, namespace, name string) {
	if name == "" {
		r.add("metadata.name", false, "is required")
	} else if errs := validation.IsDNS1123Subdomain(name); len(errs) > 0 {
		r.add("metadata.name", false, errs[0])
	}
	if namespace != "" {
		if errs := validation.IsDNS1123Label(namespace); len(errs) > 0 {
			r.add("metadata.namespace", false, errs[0])
		}
	}
}

var errTrailing = errors.New("more after the end of the object")

func decodeJSON(text []byte) (any, error) {
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, errTrailing
	}
	if _, ok := v.(map[string]any); !ok {
		return nil, errors.New("must be an object with fields")
	}
	return v, nil
}

// isolates tells whether rules of a direction close the subject by default.
func isolates(decided *bool, lists ...[]field) bool {
	if decided != nil {
		return *decided
	}
	return slices.ContainsFunc(lists, func(l []field) bool { return len(l) > 0 })
}
