package merge_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	corev1 "k8s.io/api/core/v1"

	"weir.dev/weir/engine/merge"
	"weir.dev/weir/engine/object"
	"weir.dev/weir/engine/resolve"
	"weir.dev/weir/engine/rule"
)

var rewrite = flag.Bool("rewrite", false, "write what came out into the golden files")

// TestMain asks each property more often than rapid's default, unless a flag
// says how often.
func TestMain(m *testing.M) {
	if err := flag.Set("rapid.checks", "3000"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// TestGolden reads objects and compares the cells of every pod's rows. Peers are
// the pods, the nodes, and the addresses in the file "outside".
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("golden files: %d, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			part := func(name string) []byte {
				i := slices.IndexFunc(archive.Files, func(f txtar.File) bool { return f.Name == name })
				if i < 0 {
					return nil
				}
				return archive.Files[i].Data
			}
			got := cells(t, part("objects.yaml"), strings.Fields(string(part("outside"))))
			if *rewrite {
				archive.Files = slices.DeleteFunc(archive.Files, func(f txtar.File) bool { return f.Name == "cells" })
				archive.Files = append(archive.Files, txtar.File{Name: "cells", Data: got})
				if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := gocmp.Diff(string(part("cells")), string(got)); diff != "" {
				t.Errorf("cells (-want +got):\n%s", diff)
			}
		})
	}
}

// cells prints, for each row that is not open, the peers of each port map.
func cells(t *testing.T, yaml []byte, outside []string) []byte {
	t.Helper()
	objects, refused := object.Decode("objects.yaml", yaml)
	for _, r := range refused {
		t.Fatal(r.Error())
	}
	state := resolve.New()
	state.SetNamespace("default", nil)
	var pods []rule.IdentityHash
	podNames := map[rule.IdentityHash]string{}
	peers := map[string]merge.PeerDesc{"the node": {Entity: rule.Host}, "other nodes": {Entity: rule.RemoteNode}}
	for _, o := range objects {
		switch v := o.Value.(type) {
		case *corev1.Namespace:
			state.SetNamespace(v.Name, v.Labels)
		case *corev1.Pod:
			hash := rule.IdentityHash(sha256.Sum256([]byte(o.Key())))
			pods, podNames[hash] = append(pods, hash), v.Name
			state.SetIdentity(rule.Revision(len(pods)), hash, object.PodIdentity("weir", v))
			peers[v.Name] = merge.PeerDesc{Entity: rule.Endpoints, Identity: rule.Revision(len(pods))}
			if v.Status.PodIP != "" {
				addr := netip.MustParseAddr(v.Status.PodIP)
				peers[v.Name] = merge.PeerDesc{
					Entity: rule.Endpoints, Identity: rule.Revision(len(pods)), Prefix: netip.PrefixFrom(addr, addr.BitLen()),
				}
			}
		case *object.Policy:
			if err := state.SetPolicy(o.Key(), v); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, text := range outside {
		addr := netip.MustParseAddr(text)
		peers[text] = merge.PeerDesc{Entity: rule.World, Prefix: netip.PrefixFrom(addr, addr.BitLen())}
	}
	node := state.Node(pods)
	x, err := merge.New(merge.Policy{Selectors: node.Selectors, Rules: node.Rules, RuleSets: node.RuleSets})
	if err != nil {
		t.Fatal(err)
	}
	origins := map[rule.ID]string{}
	for _, r := range node.Rules {
		origins[r.ID] = r.Origin.Name + " " + r.Origin.Path
	}
	var blocks []string
	for _, s := range node.Subjects {
		for _, d := range []rule.Direction{rule.Ingress, rule.Egress} {
			row := merge.RowKey{Subjects: s.Selectors, Direction: d}
			title := fmt.Sprintf("%s %s", podNames[s.Identity], map[rule.Direction]string{rule.Ingress: "ingress", rule.Egress: "egress"}[d])
			if x.Open(row) {
				blocks = append(blocks, title+": open\n")
				continue
			}
			blocks = append(blocks, title+"\n"+rowText(x, row, peers, origins))
		}
	}
	slices.Sort(blocks)
	return []byte(strings.Join(blocks, ""))
}

func rowText(x *merge.Index, row merge.RowKey, peers map[string]merge.PeerDesc, origins map[rule.ID]string) string {
	same := map[string][]string{}
	for name, d := range peers {
		ports, attribution := x.Judge(row, x.Matches(d), d.Entity)
		text := cellText(x, ports, attribution, origins)
		same[text] = append(same[text], name)
	}
	var out []string
	for text, names := range same {
		slices.Sort(names)
		out = append(out, "  from or to "+strings.Join(names, ", ")+"\n"+text)
	}
	slices.Sort(out)
	return strings.Join(out, "")
}

func cellText(x *merge.Index, ports merge.PortMap, attribution merge.Attribution, origins map[rule.ID]string) string {
	var b bytes.Buffer
	for i, a := range attribution {
		end := "end"
		if i+1 < len(attribution) {
			end = fmt.Sprintf("%d/%d", (attribution[i+1].Start-1)>>16, (attribution[i+1].Start-1)&0xffff)
		}
		v := ports.Verdict(uint8(a.Start>>16), uint16(a.Start))
		verdict := []string{"deny", "allow", "http"}[v.Kind]
		if set, ok := x.RuleSet(v.RuleSet); ok && v.Kind == merge.HTTP {
			for _, r := range set.Rules {
				for _, c := range []*string{r.Method, r.Path, r.Host} {
					if c != nil {
						verdict += " " + *c
					}
				}
				verdict += ";"
			}
		}
		by := origins[a.Rule]
		if by == "" {
			by = "nothing"
		}
		fmt.Fprintf(&b, "    %d/%d to %s %s  # by %s\n", a.Start>>16, a.Start&0xffff, end, verdict, by)
	}
	return b.String()
}

func TestNewRefusesWhatItDoesNotUnderstand(t *testing.T) {
	everybody := rule.Selector{ID: id("everybody"), Entities: []rule.Entity{rule.World}}
	ok := rule.Rule{
		ID: id("rule"), Subject: id("subject"), Direction: rule.Ingress, Tier: rule.Normal,
		Action: rule.Allow, Peer: everybody.ID, Ports: rule.Everything(),
	}
	with := func(f func(*rule.Rule)) merge.Policy {
		r := ok
		f(&r)
		return merge.Policy{Selectors: []rule.Selector{everybody}, Rules: []rule.Rule{r}}
	}
	for _, tc := range []struct {
		name   string
		policy merge.Policy
		want   error // nil: accepted
	}{
		{"a rule that is whole", with(func(*rule.Rule) {}), nil},
		{"no action", with(func(r *rule.Rule) { r.Action = 0 }), merge.ErrUnknown},
		{"an action of a later version", with(func(r *rule.Rule) { r.Action = 9 }), merge.ErrUnknown},
		{"no tier", with(func(r *rule.Rule) { r.Tier = 0 }), merge.ErrUnknown},
		{"a tier of a later version", with(func(r *rule.Rule) { r.Tier = 9 }), merge.ErrUnknown},
		{"no direction", with(func(r *rule.Rule) { r.Direction = 0 }), merge.ErrUnknown},
		{"no subject", with(func(r *rule.Rule) { r.Subject = rule.ID{} }), merge.ErrMissing},
		{"a peer that is not there", with(func(r *rule.Rule) { r.Peer = id("nobody") }), merge.ErrMissing},
		{"a rule set that is not there", with(func(r *rule.Rule) { r.RuleSet = id("none"); r.Ports = nil }), merge.ErrMissing},
		{"ports the wrong way round", with(func(r *rule.Rule) { r.Ports = []rule.PortRange{{Protocol: 6, Lo: 2, Hi: 1}} }), merge.ErrContradictory},
		{"any port, but one", with(func(r *rule.Rule) { r.Ports = []rule.PortRange{{Any: true, Lo: 1}} }), merge.ErrContradictory},
		{"pass in the normal tier", with(func(r *rule.Rule) { r.Action = rule.Pass }), merge.ErrContradictory},
		{"isolation from one peer", with(func(r *rule.Rule) { r.Action = rule.Isolate }), merge.ErrContradictory},
		{"a priority in the normal tier", with(func(r *rule.Rule) { r.Priority = 1 }), merge.ErrContradictory},
		{"two rules of one name", merge.Policy{Selectors: []rule.Selector{everybody}, Rules: []rule.Rule{ok, ok}}, merge.ErrTwice},
		{"two selectors of one name", merge.Policy{Selectors: []rule.Selector{everybody, everybody}}, merge.ErrTwice},
		{"an entity of a later version", merge.Policy{Selectors: []rule.Selector{{ID: id("s"), Entities: []rule.Entity{9}}}}, merge.ErrUnknown},
		{"a prefix with host bits", merge.Policy{Selectors: []rule.Selector{{ID: id("s"), Prefixes: []rule.PrefixSet{{
			Prefix: netip.MustParsePrefix("10.0.0.1/8"),
		}}}}}, merge.ErrContradictory},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := merge.New(tc.policy)
			if !errors.Is(err, tc.want) {
				t.Fatalf("got %v, want %v", err, tc.want)
			}
		})
	}
}

// The zero values of what a cell is made of deny.
func TestZeroValuesDeny(t *testing.T) {
	if v := (merge.PortMap)(nil).Verdict(rule.TCP, 80); v.Kind != merge.Deny {
		t.Errorf("an empty port map: got %v, want deny", v)
	}
	x, err := merge.New(merge.Policy{})
	if err != nil {
		t.Fatal(err)
	}
	if ports, _ := x.Judge(merge.RowKey{Direction: rule.Ingress}, nil, 0); ports.Verdict(rule.TCP, 80).Kind != merge.Deny {
		t.Errorf("an unknown entity: got %v, want deny", ports)
	}
}

// Two pods of one identity on both sides of an except.
func TestS1OneIdentityOnBothSidesOfAnExcept(t *testing.T) {
	x, err := merge.New(merge.Policy{Selectors: []rule.Selector{{
		ID: id("block"), PrefixesMatchPods: true,
		Prefixes: []rule.PrefixSet{{Prefix: prefixes[1], Except: []netip.Prefix{prefixes[2]}}},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	pod := func(addr string) merge.PeerDesc {
		return merge.PeerDesc{Identity: 7, Entity: rule.Endpoints, Prefix: netip.MustParsePrefix(addr + "/32")}
	}
	if got := x.Matches(pod("10.2.0.1")); !slices.Equal(got, []rule.ID{id("block")}) {
		t.Errorf("inside: got %v", got)
	}
	if got := x.Matches(pod("10.1.0.1")); len(got) != 0 {
		t.Errorf("inside the except: got %v", got)
	}
}

// An address that a name led to is still in the prefixes around it.
func TestS2NameDoesNotHideThePrefixesAround(t *testing.T) {
	x, err := merge.New(merge.Policy{Selectors: []rule.Selector{
		{ID: id("denied"), Prefixes: []rule.PrefixSet{{Prefix: netip.MustParsePrefix("192.0.2.0/26")}}},
		{ID: id("wide"), Prefixes: []rule.PrefixSet{{Prefix: netip.MustParsePrefix("192.0.0.0/16")}}},
		{ID: id("named"), Names: []string{"*.example"}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	got := x.Matches(merge.PeerDesc{
		Entity: rule.World, Prefix: netip.MustParsePrefix("192.0.2.1/32"), Names: []string{"a.example"},
	})
	want := []rule.ID{id("denied"), id("named"), id("wide")}
	slices.SortFunc(want, rule.ID.Compare)
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestNamePatterns(t *testing.T) {
	for _, tc := range []struct {
		pattern, name string
		want          bool
	}{
		{"a.example", "a.example", true},
		{"a.example", "b.example", false},
		{"*.example", "a.example", true},
		{"*.example", "a.b.example", false},
		{"*.example", "example", false},
		{"a*b.example", "axyb.example", true},
		{"a*b.example", "ab.example", true},
		{"a*b.example", "ax.example", false},
		{"*", "a.b.example", true},
		{"*", "", false},
		{"**.example", "a.example", true},
		{"**.example", "a.b.example", true},
		{"**.example", "example", false},
		{"**.example", "a.other", false},
		{"*.*", "a.b", true},
		{"*.*", "a.b.c", false},
	} {
		x, err := merge.New(merge.Policy{Selectors: []rule.Selector{{ID: id("s"), Names: []string{tc.pattern}}}})
		if err != nil {
			t.Fatal(err)
		}
		got := len(x.Matches(merge.PeerDesc{Entity: rule.World, Names: []string{tc.name}})) > 0
		if got != tc.want {
			t.Errorf("%q matches %q: got %v, want %v", tc.pattern, tc.name, got, tc.want)
		}
	}
}

func FuzzNamePattern(f *testing.F) {
	f.Add("a*b.**.c", "ab.c")
	f.Fuzz(func(t *testing.T, pattern, name string) {
		x, err := merge.New(merge.Policy{Selectors: []rule.Selector{{ID: id("s"), Names: []string{pattern}}}})
		if err != nil {
			t.Fatal(err)
		}
		x.Matches(merge.PeerDesc{Entity: rule.World, Names: []string{name}})
	})
}
