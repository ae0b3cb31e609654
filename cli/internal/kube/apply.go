package kube

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"weir.dev/weir/cli/internal/atomicfile"
	"weir.dev/weir/cli/internal/demo/control"
	"weir.dev/weir/cli/internal/demo/controller"
	"weir.dev/weir/cli/internal/exit"
	"weir.dev/weir/cli/internal/parts"
	"weir.dev/weir/engine/object"
)

func applyCommand(verb, short string) *cobra.Command {
	cmd := &cobra.Command{
		Use: verb + " -f FILE|DIR|-", Short: short, Args: cobra.NoArgs,
		Example: "  weir " + verb + " -f examples/tutorial/demo.yaml\n  weir " + verb + " -f - < policy.yaml",
		RunE: func(cmd *cobra.Command, _ []string) error {
			d, err := demoOf(cmd)
			if err != nil {
				return err
			}
			files, err := cmd.Flags().GetStringArray("filename")
			if err != nil {
				return err
			}
			docs, err := documents(files, cmd.InOrStdin(), cmd.Flag("namespace").Value.String())
			if err != nil {
				return err
			}
			return writeAll(cmd, d, docs, verb == "create")
		},
	}
	filenameFlag(cmd)
	namespaceFlag(cmd)
	return cmd
}

func filenameFlag(cmd *cobra.Command) {
	cmd.Flags().StringArrayP("filename", "f", nil, "file or folder to read, or - for stdin; may be repeated")
	_ = cmd.MarkFlagRequired("filename") // the flag was just made
}

// document is one object as somebody wrote it, or why it cannot be taken.
type document struct {
	object  object.Object
	text    []byte // what is kept: the very text, wherever possible
	refused error
}

// documents reads files, and folders' files, one document after the other.
func documents(files []string, stdin io.Reader, namespace string) ([]document, error) {
	var out []document
	for _, name := range files {
		paths := []string{name}
		if info, err := os.Stat(name); err == nil && info.IsDir() {
			paths = nil
			for _, pattern := range []string{"*.yaml", "*.yml", "*.json"} {
				found, err := filepath.Glob(filepath.Join(name, pattern))
				if err != nil {
					return nil, fmt.Errorf("list %s: %w", name, err)
				}
				paths = append(paths, found...)
			}
			slices.Sort(paths)
		}
		for _, path := range paths {
			var text []byte
			var err error
			if path == "-" {
				text, err = io.ReadAll(stdin)
				path = "stdin"
			} else {
				text, err = os.ReadFile(path)
			}
			if err != nil {
				return nil, fmt.Errorf("read %s: %w", path, err)
			}
			out = append(out, split(path, text, namespace)...)
		}
	}
	if len(out) == 0 {
		return nil, errors.New("no objects passed")
	}
	return out, nil
}

// split decodes a text and keeps each document's own words.
func split(path string, text []byte, namespace string) []document {
	var out []document
	line := 1
	for _, part := range parted(text) {
		// Empty lines in front keep the line numbers of messages right.
		objects, refused := object.Decode(path, append(bytes.Repeat([]byte("\n"), line-1), part...))
		for _, r := range refused {
			out = append(out, document{refused: &r})
		}
		for _, o := range objects {
			doc := document{object: o, text: part}
			if len(objects)+len(refused) > 1 || namespace != "" {
				doc = rewritten(o, namespace)
			}
			out = append(out, doc)
		}
		line += bytes.Count(part, []byte("\n")) + 1
	}
	return out
}

// parted cuts at lines that begin with a document marker; the marker's line
// belongs to neither.
func parted(text []byte) [][]byte {
	var out [][]byte
	var cur []byte
	for l := range bytes.Lines(text) {
		if bytes.Equal(bytes.TrimRight(l, " \t\r\n"), []byte("---")) {
			out = append(out, cur)
			cur = nil
			continue
		}
		cur = append(cur, l...)
	}
	return append(out, cur)
}

// rewritten is the object as a document of its own, in the namespace if it
// names none itself.
func rewritten(o object.Object, namespace string) document {
	var tree map[string]any
	if err := yaml.Unmarshal(o.JSON, &tree); err != nil {
		return document{refused: fmt.Errorf("%s: %w", o.Source, err)}
	}
	meta, _ := tree["metadata"].(map[string]any)
	k, err := kindOf(o.Kind)
	if namespace != "" && meta != nil && err == nil && !k.cluster {
		switch in, _ := meta["namespace"].(string); in {
		case "":
			meta["namespace"] = namespace
		case namespace:
		default:
			return document{refused: fmt.Errorf("the namespace from the provided object %q does not match the namespace %q: pass '--namespace=%s'", in, namespace, in)}
		}
	}
	text, err := yaml.Marshal(tree)
	if err != nil {
		return document{refused: fmt.Errorf("%s: %w", o.Source, err)}
	}
	objects, refused := object.Decode(o.Source.File, text)
	if len(refused) > 0 {
		return document{refused: &refused[0]}
	}
	return document{object: objects[0], text: text}
}

// writeAll writes every document that is good, and fails if one was not.
func writeAll(cmd *cobra.Command, d parts.Demo, docs []document, create bool) error {
	failed := false
	for _, doc := range docs {
		err := doc.refused
		if err == nil {
			var done string
			if done, err = writeOne(d, doc, create); err == nil {
				k, kerr := kindOf(doc.object.Kind)
				if kerr != nil {
					return kerr
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s %s\n", k.full(doc.object.Name), done)
				continue
			}
		}
		failed = true
		fmt.Fprintf(cmd.ErrOrStderr(), "error: %v\n", err)
	}
	if failed {
		return exit.Silent(exit.Failed)
	}
	return nil
}

func writeOne(d parts.Demo, doc document, create bool) (done string, err error) {
	o := doc.object
	k, err := kindOf(o.Kind)
	if err != nil {
		return "", err
	}
	if k.name == object.KindNode {
		return "", errors.New("nodes are the demo's own: it has n1, n2 and n3")
	}
	if reason := unrunnable(o); reason != "" {
		return "", fmt.Errorf("%s: %s refused: %s", o.Source, k.full(o.Name), reason)
	}
	written, err := read(d.Manifests())
	if err != nil {
		return "", err
	}
	if err := hasNamespace(d, written, o, k); err != nil {
		return "", err
	}
	path := filepath.Join(d.Manifests(), fileName(o))
	done = "created"
	for _, e := range written {
		if e.Key() != o.Key() {
			continue
		}
		switch {
		case create:
			return "", fmt.Errorf("%s %q already exists", k.pluralGroup(), o.Name)
		case e.Source.File != path:
			return "", fmt.Errorf("%s is in %s, which weir did not write: change it there", k.full(o.Name), e.Source)
		case bytes.Equal(e.JSON, o.JSON) && e.APIVersion == o.APIVersion:
			return "unchanged", nil
		}
		done = "configured"
	}
	return done, atomicfile.Write(path, doc.text)
}

// unrunnable says why the demo cannot run what the object asks for, or nothing.
func unrunnable(o object.Object) string {
	switch v := o.Value.(type) {
	case *corev1.Pod:
		return controller.Runnable(v)
	case *appsv1.Deployment:
		if reason := controller.Runnable(&corev1.Pod{Spec: v.Spec.Template.Spec}); reason != "" {
			return "spec.template." + reason
		}
	}
	return ""
}

func (k kind) pluralGroup() string {
	if k.group == "" {
		return k.plural
	}
	return k.plural + "." + k.group
}

// hasNamespace refuses an object of a namespace that is not there.
func hasNamespace(d parts.Demo, written []entry, o object.Object, k kind) error {
	if k.cluster || o.Namespace == "default" {
		return nil
	}
	for _, e := range written {
		if e.Kind == object.KindNamespace && e.Name == o.Namespace {
			return nil
		}
	}
	return fmt.Errorf("namespaces %q not found: create it in demo %q first", o.Namespace, d.Name)
}

func fileName(o object.Object) string {
	return strings.ToLower(o.Kind) + "." + o.Namespace + "." + o.Name + ".yaml"
}

func deleteCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "delete (-f FILE|DIR|- | KIND NAME... | KIND/NAME)", Short: "Delete objects", Args: cobra.ArbitraryArgs,
		Example: "  weir delete cnp rule1\n  weir delete -f examples/tutorial/policy-v1.yaml",
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := demoOf(cmd)
			if err != nil {
				return err
			}
			files, err := cmd.Flags().GetStringArray("filename")
			if err != nil {
				return err
			}
			var wanted []object.Object
			var bad error
			switch {
			case len(files) > 0 && len(args) == 0:
				docs, err := documents(files, cmd.InOrStdin(), cmd.Flag("namespace").Value.String())
				if err != nil {
					return err
				}
				for _, doc := range docs {
					if doc.refused != nil { // it was never written
						bad = exit.Silent(exit.Failed)
						fmt.Fprintf(cmd.ErrOrStderr(), "error: %v\n", doc.refused)
						continue
					}
					wanted = append(wanted, doc.object)
				}
			case len(files) == 0 && len(args) > 0:
				k, names, err := target(args)
				if err != nil {
					return err
				}
				if len(names) == 0 {
					return exit.With(exit.Usage, fmt.Errorf("name the %s to delete", k.plural))
				}
				for _, n := range names {
					o := object.Object{Kind: k.name, Name: n}
					if !k.cluster {
						o.Namespace = namespaceOf(cmd)
					}
					wanted = append(wanted, o)
				}
			default:
				return exit.With(exit.Usage, errors.New("name objects, or give -f, but not both"))
			}
			if err := deleteAll(cmd, d, wanted); err != nil {
				return err
			}
			return bad
		},
	}
	cmd.Flags().StringArrayP("filename", "f", nil, "file or folder with the objects, or - for stdin; may be repeated")
	namespaceFlag(cmd)
	return cmd
}

func deleteAll(cmd *cobra.Command, d parts.Demo, wanted []object.Object) error {
	failed := false
	for _, o := range wanted {
		k, err := kindOf(o.Kind)
		if err != nil {
			return err
		}
		if err := deleteOne(cmd.Context(), d, o, k); err != nil {
			failed = true
			fmt.Fprintf(cmd.ErrOrStderr(), "error: %v\n", err)
			continue
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%s \"%s\" deleted\n", k.typeName(), o.Name)
	}
	if failed {
		return exit.Silent(exit.Failed)
	}
	return nil
}

func deleteOne(ctx context.Context, d parts.Demo, o object.Object, k kind) error {
	written, err := read(d.Manifests())
	if err != nil {
		return err
	}
	found := false
	for _, e := range written {
		inside := k.name == object.KindNamespace && e.Namespace == o.Name
		if e.Key() != o.Key() && !inside {
			continue
		}
		if e.documents > 1 {
			return fmt.Errorf("%s stands in %s with other objects: delete it there", k.full(o.Name), e.Source)
		}
		found = found || !inside
		if err := os.Remove(e.Source.File); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("delete %s: %w", k.full(o.Name), err)
		}
	}
	if found {
		return nil
	}
	if k.name == object.KindPod {
		if _, err := podOf(d, o.Namespace, o.Name); err == nil {
			return control.NewClient(d).DeletePod(ctx, o.Namespace, o.Name)
		}
	}
	return notFound(k, o.Name)
}
