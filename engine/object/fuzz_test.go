package object_test

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"weir.dev/weir/engine/object"
)

// Whatever bytes come, Decode ends, and what it takes it takes again from its
// own JSON, and equally.
func FuzzDecode(f *testing.F) {
	f.Add(readFile(f, "testdata/policy-v1.yaml"))
	for _, s := range []string{in("{fromEndpoints: [{}]}"), out("{toCIDR: [10.0.0.0/8]}"), peers("{from: [{ipBlock: {cidr: 10.0.0.0/8}}]}"),
		"a: &a [*a]\n---\n---\n...\n", "apiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: Namespace, metadata: {name: a}}]\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		objs, refused := object.Decode("x.yaml", data)
		for _, r := range refused {
			if len(r.Problems) == 0 || r.Error() == "" {
				t.Errorf("a refusal without a reason: %+v", r)
			}
		}
		for _, o := range objs {
			if o.Value == nil || o.Name == "" || o.Kind == "" {
				t.Errorf("an object without a name or value: %+v", o)
			}
			if _, ok := o.Value.(*object.Policy); !ok {
				continue
			}
			again, r := object.DecodePolicyJSON(o.JSON, o.Source.File, o.Source.Line, o.Lines)
			if r != nil {
				t.Fatalf("%s: %v", o.JSON, r)
			}
			if diff := cmp.Diff(o.Value, again, cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
				t.Errorf("%s (-first +second):\n%s", o.JSON, diff)
			}
		}
	})
}
