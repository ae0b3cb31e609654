package object

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	fieldpath "k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/client-go/kubernetes/scheme"

	corev1 "k8s.io/api/core/v1"
)

// Kinds of objects that Decode knows.
const (
	KindNamespace           = "Namespace"
	KindPod                 = "Pod"
	KindNode                = "Node"
	KindDeployment          = "Deployment"
	KindService             = "Service"
	KindEndpointSlice       = "EndpointSlice"
	KindNetworkPolicy       = "NetworkPolicy"
	KindCiliumNetworkPolicy = "CiliumNetworkPolicy"

	KindCiliumClusterwideNetworkPolicy = "CiliumClusterwideNetworkPolicy"
	KindClusterNetworkPolicy           = "ClusterNetworkPolicy"
)

// PolicyKinds are the kinds whose values are policies, sorted. The last two
// belong to no namespace.
func PolicyKinds() []string {
	return []string{KindCiliumNetworkPolicy, KindNetworkPolicy, KindCiliumClusterwideNetworkPolicy, KindClusterNetworkPolicy}
}

// NamespaceNameLabel is the label with its name that the API server gives every
// namespace, and Decode gives one that lacks it.
const NamespaceNameLabel = corev1.LabelMetadataName

// Source says where a document stands.
type Source struct {
	File string
	Line int // of its first field, from 1; 0: unknown
}

func (s Source) String() string {
	switch {
	case s.File == "":
		return "object"
	case s.Line == 0:
		return s.File
	}
	return fmt.Sprintf("%s:%d", s.File, s.Line)
}

// Object is one decoded document.
type Object struct {
	APIVersion string
	Kind       string
	Namespace  string // "default" if a namespaced object names none
	Name       string
	Source     Source
	// JSON is the document as it was written, with sorted keys and without
	// what Decode filled in.
	JSON []byte
	// Lines in Source.File by field path. Nil for all but policies.
	Lines map[string]int
	// Value is *Policy for policies, else the Kubernetes type: *corev1.Namespace,
	// *corev1.Pod, *corev1.Node, *appsv1.Deployment, *corev1.Service,
	// *discoveryv1.EndpointSlice.
	Value any
}

// Key names an object in its cluster: kind/namespace/name.
func (o Object) Key() string { return key(o.Kind, o.Namespace, o.Name) }

func key(kind, namespace, name string) string {
	if namespace == "" {
		return kind + "/" + name
	}
	return kind + "/" + namespace + "/" + name
}

// A Problem is one reason why a document is refused.
type Problem struct {
	Path   string // field path; empty: the document
	Line   int    // in the file; 0: unknown
	Reason string // what is wrong, and what to do
	// Unsupported: what is written is valid, Weir does not do it.
	Unsupported bool
}

// Refusal is a document that has no effect, and why. It is an error.
type Refusal struct {
	APIVersion string
	Kind       string // as far as it could be read, like the next two
	Namespace  string
	Name       string
	Source     Source
	Problems   []Problem // at least one
}

// Key names the refused object: kind/namespace/name.
func (r *Refusal) Key() string { return key(r.Kind, r.Namespace, r.Name) }

// Unsupported tells whether the document is refused, among others, for
// something that is valid but not supported.
func (r *Refusal) Unsupported() bool {
	return slices.ContainsFunc(r.Problems, func(p Problem) bool { return p.Unsupported })
}

// Reason is all problems in one line.
func (r *Refusal) Reason() string {
	var parts []string
	for _, p := range r.Problems {
		text := p.Reason
		if p.Path != "" {
			text = p.Path + ": " + text
		}
		if p.Line != 0 && p.Line != r.Source.Line {
			text = fmt.Sprintf("line %d: %s", p.Line, text)
		}
		parts = append(parts, text)
	}
	return strings.Join(parts, "; ")
}

func (r *Refusal) Error() string {
	name := r.Key()
	if r.Kind == "" {
		name = "document"
	}
	return fmt.Sprintf("%s: %s refused: %s", r.Source, name, r.Reason())
}

// unsupportedKinds are the policy kinds that Weir knows of and refuses, and what
// to do about it. Every other kind that is not served is refused as unknown.
var unsupportedKinds = map[string]string{
	"AdminNetworkPolicy":         "is superseded and not supported: write a ClusterNetworkPolicy of policy.networking.k8s.io/v1alpha2",
	"BaselineAdminNetworkPolicy": "is superseded and not supported: write a ClusterNetworkPolicy of policy.networking.k8s.io/v1alpha2",
	"CiliumCIDRGroup":            "CIDR groups are not supported yet: write the CIDRs into the policies",
}

// Decode reads the documents of a file, YAML or JSON. What it cannot take whole
// it refuses whole: a document with an unknown field, an unsupported feature or
// a bad value has no effect, and takes no other document with it.
func Decode(file string, data []byte) ([]Object, []Refusal) {
	var objects []Object
	var refused []Refusal
	for _, c := range split(data) {
		t, err := c.parse()
		if err != nil {
			refused = append(refused, Refusal{
				Source:   Source{File: file, Line: c.line},
				Problems: []Problem{{Reason: err.Error()}},
			})
			continue
		}
		if t == nil {
			continue
		}
		for _, item := range items(t) {
			o, r := decodeTree(file, item)
			if r != nil {
				refused = append(refused, *r)
				continue
			}
			objects = append(objects, *o)
		}
	}
	return objects, refused
}

// items unfolds a v1 List.
func items(t *tree) []*tree {
	m, ok := t.value.(map[string]any)
	if !ok || m["kind"] != "List" || m["apiVersion"] != "v1" {
		return []*tree{t}
	}
	list, ok := m["items"].([]any)
	if !ok {
		return []*tree{t}
	}
	out := make([]*tree, 0, len(list))
	for i := range list {
		out = append(out, t.item(i))
	}
	return out
}

// header is what every object has. Its names are matched in their own case,
// also where others are not.
type header struct{ apiVersion, kind, namespace, name string }

var errNoObject = errors.New("not a Kubernetes object: it must have the fields apiVersion, kind and metadata")

func headerOf(v any) (header, error) {
	m, ok := v.(map[string]any)
	if !ok {
		return header{}, errNoObject
	}
	var h header
	meta, ok := m["metadata"].(map[string]any)
	if !ok && m["metadata"] != nil {
		return header{}, errNoObject
	}
	for _, f := range []struct {
		from map[string]any
		key  string
		to   *string
	}{
		{m, "apiVersion", &h.apiVersion}, {m, "kind", &h.kind}, {meta, "namespace", &h.namespace}, {meta, "name", &h.name},
	} {
		if *f.to, ok = f.from[f.key].(string); !ok && f.from[f.key] != nil {
			return header{}, fmt.Errorf("%w: %s must be a string", errNoObject, f.key)
		}
	}
	return h, nil
}

func decodeTree(file string, t *tree) (*Object, *Refusal) {
	src := Source{File: file, Line: t.line()}
	text, err := json.Marshal(t.value)
	if err != nil {
		return nil, &Refusal{Source: src, Problems: []Problem{{Reason: err.Error()}}}
	}
	h, err := headerOf(t.value)
	if err != nil {
		return nil, &Refusal{Source: src, Problems: []Problem{{Reason: err.Error()}}}
	}
	o := &Object{APIVersion: h.apiVersion, Kind: h.kind, Namespace: h.namespace, Name: h.name, Source: src, JSON: text}
	if isPolicy(h) {
		o.Lines = t.lines()
		p, refusal := DecodePolicyJSON(text, file, src.Line, o.Lines)
		if refusal != nil {
			return nil, refusal
		}
		if size := o.size(); size > maxEntry {
			return nil, &Refusal{APIVersion: h.apiVersion, Kind: h.kind, Namespace: p.Origin.Namespace, Name: h.name, Source: src,
				Problems: []Problem{{Reason: fmt.Sprintf("policy has %d bytes with its field paths, more than %d: split it", size, maxEntry)}}}
		}
		o.Namespace, o.Value = p.Origin.Namespace, p
		return o, nil
	}
	if r := o.decodeTyped(t); r != nil {
		return nil, r
	}
	return o, nil
}

// maxEntry is how large a policy may be with its lines: what the state log can
// take as one value, with room for what is beside them.
const maxEntry = 3 << 20

func (o *Object) size() int {
	n := len(o.JSON)
	for path := range o.Lines {
		n += len(path) + 10 // line number and framing
	}
	return n
}

// isPolicy tells whether an object is a policy, or something like one that must
// not be taken for nothing.
func isPolicy(h header) bool {
	group, _, _ := strings.Cut(h.apiVersion, "/")
	return group == "cilium.io" || group == "policy.networking.k8s.io" ||
		slices.Contains(PolicyKinds(), h.kind) || unsupportedKinds[h.kind] != ""
}

// clusterScoped tells for each kind with a Kubernetes type whether it has no
// namespace.
var clusterScoped = map[string]bool{
	"v1/" + KindNamespace:                      true,
	"v1/" + KindNode:                           true,
	"v1/" + KindPod:                            false,
	"v1/" + KindService:                        false,
	"apps/v1/" + KindDeployment:                false,
	"discovery.k8s.io/v1/" + KindEndpointSlice: false,
}

func (o *Object) decodeTyped(t *tree) *Refusal {
	cluster, known := clusterScoped[o.APIVersion+"/"+o.Kind]
	if known && !cluster {
		o.Namespace = cmp.Or(o.Namespace, "default") // also of a refusal, so that its key is the object's
	}
	r := &reader{}
	switch {
	case o.Kind == "" || o.APIVersion == "":
		r.add("", false, "apiVersion and kind are required")
	case !known:
		r.add("", false, fmt.Sprintf("kind %s of %s is not one that Weir reads: take it out of the folder", o.Kind, o.APIVersion))
	case cluster && o.Namespace != "":
		r.add("metadata.namespace", false, "a "+o.Kind+" has no namespace: remove the field")
	default:
		checkName(r, o.Namespace, o.Name)
		o.Value, r.problems = o.typed(r.problems)
	}
	if len(r.problems) == 0 {
		return nil
	}
	r.lines = t.lines()
	for i, p := range r.problems {
		r.problems[i].Line = r.line(p.Path)
	}
	return &Refusal{APIVersion: o.APIVersion, Kind: o.Kind, Namespace: o.Namespace, Name: o.Name,
		Source: o.Source, Problems: r.problems}
}

// typed is the object as its Kubernetes type, with what the API server would
// fill in of that which Weir reads.
func (o *Object) typed(problems []Problem) (runtime.Object, []Problem) {
	v, more := strict(o.JSON)
	problems = append(problems, more...)
	m, ok := v.(metav1.Object)
	if len(problems) > 0 || !ok {
		return nil, problems
	}
	for _, err := range metav1validation.ValidateLabels(m.GetLabels(), fieldpath.NewPath("metadata", "labels")) {
		problems = append(problems, Problem{Path: err.Field, Reason: err.ErrorBody()})
	}
	m.SetNamespace(o.Namespace)
	if ns, ok := v.(*corev1.Namespace); ok {
		if ns.Labels == nil {
			ns.Labels = map[string]string{}
		}
		ns.Labels[NamespaceNameLabel] = ns.Name
	}
	return v, problems
}

// codecs decodes what client-go's scheme knows, and no field more.
var codecs = sync.OnceValue(func() serializer.CodecFactory {
	return serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict)
})

var quotedField = regexp.MustCompile(`(?:unknown|duplicate) field "([^"]+)"`)

// strict decodes JSON into the type that client-go's scheme has for it, and
// tells every field that the type does not have.
func strict(text []byte) (runtime.Object, []Problem) {
	v, _, err := codecs().UniversalDeserializer().Decode(text, nil, nil)
	if err == nil {
		return v, nil
	}
	s, ok := runtime.AsStrictDecodingError(err)
	if !ok {
		return nil, []Problem{{Reason: firstLine(err.Error())}}
	}
	var out []Problem
	for _, e := range s.Errors() {
		p := Problem{Reason: e.Error()}
		if m := quotedField.FindStringSubmatch(p.Reason); m != nil {
			p = Problem{Path: m[1], Reason: "unknown field: check its spelling and place"}
		}
		out = append(out, p)
	}
	return nil, out
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return string(bytes.TrimSpace([]byte(line)))
}
