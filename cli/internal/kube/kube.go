// Package kube is the part of weir's commands that people know from kubectl:
// apply, create, delete, get, describe, exec and logs, on the folders of a
// running demo. Words and exit codes are kubectl's where it has them.
package kube

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"weir.dev/weir/cli/internal/exit"
	"weir.dev/weir/cli/internal/parts"
	"weir.dev/weir/engine/object"
)

// Commands are all commands of this package.
func Commands() []*cobra.Command {
	return []*cobra.Command{
		applyCommand("apply", "Write objects, or change them"),
		applyCommand("create", "Write objects that are not there yet"),
		deleteCommand(), getCommand(), describeCommand(), execCommand(), logsCommand(),
	}
}

// kind is one kind of object that the demo keeps.
type kind struct {
	name    string   // Deployment
	group   string   // apps; empty for v1
	plural  string   // deployments
	short   []string // deploy
	cluster bool     // it has no namespace
}

// kinds are all of them.
func kinds() []kind {
	return []kind{
		{name: object.KindNode, plural: "nodes", short: []string{"no"}, cluster: true},
		{name: object.KindNamespace, plural: "namespaces", short: []string{"ns"}, cluster: true},
		{name: object.KindPod, plural: "pods", short: []string{"po"}},
		{name: object.KindService, plural: "services", short: []string{"svc"}},
		{name: object.KindDeployment, group: "apps", plural: "deployments", short: []string{"deploy"}},
		{name: object.KindNetworkPolicy, group: "networking.k8s.io", plural: "networkpolicies", short: []string{"netpol"}},
		{name: object.KindCiliumNetworkPolicy, group: "cilium.io", plural: "ciliumnetworkpolicies", short: []string{"cnp", "ciliumnp"}},
	}
}

// kindOf finds a kind by what people call it.
func kindOf(word string) (kind, error) {
	bare, _, _ := strings.Cut(strings.ToLower(word), ".")
	for _, k := range kinds() {
		if bare == strings.ToLower(k.name) || bare == k.plural || slices.Contains(k.short, bare) {
			return k, nil
		}
	}
	return kind{}, exit.With(exit.Usage, fmt.Errorf("the demo has no resource type %q", word))
}

// full is how kubectl names an object: deployment.apps/app1.
func (k kind) full(name string) string { return k.typeName() + "/" + name }

func (k kind) typeName() string {
	if k.group == "" {
		return strings.ToLower(k.name)
	}
	return strings.ToLower(k.name) + "." + k.group
}

// entry is one object of the demo and where it stands.
type entry struct {
	object.Object
	modified  time.Time // of its file
	documents int       // in its file
}

// read lists what a folder says. Of an object in two files the older counts.
func read(dir string) ([]entry, error) {
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read the demo's objects: %w", err)
	}
	var out []entry
	for _, f := range files {
		if strings.HasPrefix(f.Name(), ".") || !slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(f.Name())) {
			continue
		}
		path := filepath.Join(dir, f.Name())
		text, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read the demo's objects: %w", err)
		}
		info, err := os.Stat(path)
		if err != nil {
			continue // replaced meanwhile
		}
		objects, refused := object.Decode(path, text)
		for _, o := range objects {
			out = append(out, entry{Object: o, modified: info.ModTime(), documents: len(objects) + len(refused)})
		}
	}
	slices.SortStableFunc(out, func(a, b entry) int { return a.modified.Compare(b.modified) })
	seen := map[string]bool{}
	out = slices.DeleteFunc(out, func(e entry) bool {
		twice := seen[e.Key()]
		seen[e.Key()] = true
		return twice
	})
	slices.SortFunc(out, func(a, b entry) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return out, nil
}

// objects lists the demo's objects of a kind: what runs comes from the
// controller, the rest from what was written.
func objects(d parts.Demo, k kind) ([]entry, error) {
	dir := d.Manifests()
	switch k.name {
	case object.KindPod, object.KindService, object.KindNode, object.KindNamespace:
		dir = d.Cluster()
	}
	all, err := read(dir)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(e entry) bool { return e.Kind != k.name }), nil
}

func demoOf(cmd *cobra.Command) (parts.Demo, error) {
	d, err := parts.Find(cmd.Flag("demo").Value.String())
	return d, exit.With(exit.Unreachable, err)
}

// namespaceFlag is -n, with kubectl's default.
func namespaceFlag(cmd *cobra.Command) {
	cmd.Flags().StringP("namespace", "n", "", "namespace (default: default)")
}

func namespaceOf(cmd *cobra.Command) string {
	return cmp.Or(cmd.Flag("namespace").Value.String(), "default")
}

// target splits KIND/NAME and KIND NAME.
func target(args []string) (k kind, names []string, err error) {
	word, name, slash := strings.Cut(args[0], "/")
	if k, err = kindOf(word); err != nil {
		return kind{}, nil, err
	}
	if slash {
		if len(args) > 1 {
			return kind{}, nil, exit.With(exit.Usage, fmt.Errorf("%s names an object already; %q is one too many", args[0], args[1]))
		}
		return k, []string{name}, nil
	}
	return k, args[1:], nil
}

// notFound is what kubectl says.
func notFound(k kind, name string) error {
	plural := k.plural
	if k.group != "" {
		plural += "." + k.group
	}
	return fmt.Errorf("%s %q not found", plural, name)
}

// podOf finds the pod that POD, pod/POD or deploy/NAME means.
func podOf(d parts.Demo, namespace, word string) (*corev1.Pod, error) {
	pods, err := kindOf(object.KindPod)
	if err != nil {
		return nil, err
	}
	k, name := pods, word
	if before, after, ok := strings.Cut(word, "/"); ok {
		if k, err = kindOf(before); err != nil {
			return nil, err
		}
		name = after
	}
	all, err := objects(d, pods)
	if err != nil {
		return nil, err
	}
	if k.name != object.KindPod && k.name != object.KindDeployment {
		return nil, exit.With(exit.Usage, fmt.Errorf("%s has no pods of its own: name a pod or a deployment", word))
	}
	var found *corev1.Pod
	for _, e := range all {
		p := e.Value.(*corev1.Pod)
		called := p.Name
		if k.name == object.KindDeployment {
			called = owner(p)
		}
		if p.Namespace != namespace || called != name {
			continue
		}
		if found == nil || usable(p) && !usable(found) {
			found = p
		}
	}
	if found != nil {
		return found, nil
	}
	return nil, notFound(k, name)
}

// usable tells whether the pod runs and is to stay.
func usable(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodRunning && p.DeletionTimestamp == nil
}

func owner(p *corev1.Pod) string {
	for _, r := range p.OwnerReferences {
		if r.Kind == object.KindDeployment {
			return r.Name
		}
	}
	return ""
}
