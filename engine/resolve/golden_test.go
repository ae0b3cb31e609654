package resolve_test

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	corev1 "k8s.io/api/core/v1"

	"weir.dev/weir/engine/object"
	"weir.dev/weir/engine/resolve"
	"weir.dev/weir/engine/rule"
)

var rewrite = flag.Bool("rewrite", false, "write what came out into the golden files")

// TestMain asks each property more often than rapid's default, unless a flag
// says how often.
func TestMain(m *testing.M) {
	if err := flag.Set("rapid.checks", "300"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// TestGolden resolves the objects of each file in testdata for a node that has
// all the pods, and compares what the node gets.
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
			c := load(t, archive.Files[0].Data)
			got := c.print(c.state.Node(c.hashes()))
			if *rewrite {
				archive.Files = append(archive.Files[:1], txtar.File{Name: "node", Data: got})
				if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := gocmp.Diff(string(archive.Files[1].Data), string(got)); diff != "" {
				t.Errorf("node state (-want +got):\n%s", diff)
			}
		})
	}
}

// cluster is a state made of Kubernetes objects, with the pods' names.
type cluster struct {
	state *resolve.State
	names map[rule.IdentityHash]string
	byRev map[rule.Revision]string
}

func load(t *testing.T, yaml []byte) *cluster {
	t.Helper()
	objects, refused := object.Decode("objects.yaml", yaml)
	for _, r := range refused {
		t.Fatal(r.Error())
	}
	c := &cluster{resolve.New(), map[rule.IdentityHash]string{}, map[rule.Revision]string{}}
	c.state.SetNamespace("default", nil)
	for _, o := range objects {
		switch v := o.Value.(type) {
		case *corev1.Namespace:
			c.state.SetNamespace(v.Name, v.Labels)
		case *corev1.Pod:
			c.addPod(v)
		case *object.Policy:
			if err := c.state.SetPolicy(o.Key(), v); err != nil {
				t.Fatal(err)
			}
		}
	}
	return c
}

func (c *cluster) addPod(pod *corev1.Pod) {
	id := object.PodIdentity("weir", pod)
	hash := rule.IdentityHash(sha256.Sum256(fmt.Appendf(nil, "%+v", id)))
	if _, known := c.names[hash]; !known {
		revision := rule.Revision(len(c.byRev) + 1)
		c.byRev[revision] = pod.Name
		c.state.SetIdentity(revision, hash, id)
	}
	c.names[hash] = strings.TrimPrefix(c.names[hash]+","+pod.Name, ",")
}

func (c *cluster) hashes() []rule.IdentityHash {
	var all []rule.IdentityHash
	for h := range c.names {
		all = append(all, h)
	}
	return all
}

// print writes a node state with names in place of hashes.
func (c *cluster) print(n resolve.NodeState) []byte {
	var b bytes.Buffer
	subjects := map[rule.ID][]string{}
	for _, s := range n.Subjects {
		for _, id := range s.Selectors {
			subjects[id] = append(subjects[id], c.names[s.Identity])
		}
		if len(s.Selectors) == 0 {
			fmt.Fprintf(&b, "%s: no policy\n", c.names[s.Identity])
		}
	}
	peers := map[rule.ID]string{}
	for _, s := range n.Selectors {
		peers[s.ID] = s.Text
		if len(s.Identities) > 0 || len(s.Prefixes)+len(s.Entities)+len(s.Names) == 0 {
			var members []string
			for _, r := range s.Identities {
				members = append(members, c.byRev[r])
			}
			peers[s.ID] += " {" + strings.Join(members, " ") + "}"
		}
	}
	var lines []string
	for _, r := range n.Rules {
		who := subjects[r.Subject]
		slices.Sort(who)
		lines = append(lines, fmt.Sprintf("%s: %s", strings.Join(who, " "), ruleText(r, peers, n.RuleSets)))
	}
	slices.SortFunc(lines, func(a, b string) int { return cmp.Compare(a, b) })
	for _, l := range lines {
		fmt.Fprintln(&b, l)
	}
	return b.Bytes()
}

func ruleText(r rule.Rule, peers map[rule.ID]string, sets []rule.RuleSet) string {
	direction := map[rule.Direction]string{rule.Ingress: "ingress", rule.Egress: "egress"}[r.Direction]
	at := fmt.Sprintf("  # %s %s:%d", r.Origin.Path, r.Origin.File, r.Origin.Line)
	if r.Action == rule.Isolate {
		return direction + " isolate" + at
	}
	action := map[rule.Action]string{rule.Allow: "allow", rule.Deny: "deny", rule.Pass: "pass"}[r.Action]
	var ports []string
	for _, p := range r.Ports {
		switch {
		case p.Any:
			ports = append(ports, "any")
		case p.Lo == p.Hi:
			ports = append(ports, fmt.Sprintf("%d/%d", p.Lo, p.Protocol))
		default:
			ports = append(ports, fmt.Sprintf("%d-%d/%d", p.Lo, p.Hi, p.Protocol))
		}
	}
	text := fmt.Sprintf("%s %s [%s] %s", direction, action, peers[r.Peer], strings.Join(ports, " "))
	if i := slices.IndexFunc(sets, func(s rule.RuleSet) bool { return s.ID == r.RuleSet }); i >= 0 {
		text += " HTTP{"
		for k, h := range sets[i].Rules {
			if k > 0 {
				text += "; "
			}
			text += httpText(h)
		}
		text += "}"
	}
	return text + at
}

func httpText(h rule.HTTPRule) string {
	var words []string
	for _, v := range []*string{h.Method, h.Path, h.Host} {
		if v != nil {
			words = append(words, *v)
		}
	}
	for _, v := range h.Headers {
		words = append(words, v.Name)
	}
	return strings.Join(words, " ")
}
