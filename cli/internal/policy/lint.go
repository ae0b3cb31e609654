package policy

import (
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"weir.dev/weir/cli/internal/exit"
	"weir.dev/weir/engine/object"
)

// finding is a refused document, or a warning about an accepted one.
type finding struct {
	File    string `json:"file"`
	Line    int    `json:"line"`
	Object  string `json:"object,omitempty"`
	Refused bool   `json:"refused"`
	Message string `json:"message"`
}

// report of a run of lint.
type report struct {
	Objects  int       `json:"objects"` // accepted
	Refused  int       `json:"refused"`
	Warnings int       `json:"warnings"`
	Findings []finding `json:"findings"`
}

func newLint() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "lint FILE|DIR|-...",
		Short: "Tell which documents would be refused, and which policies say what they hardly mean",
		Long: `Tell which documents would be refused, with field and line, and which policies
say what their authors hardly mean. Files are decoded as a running Weir does.

The exit code is 1 if a document would be refused; warnings alone do not fail.`,
		Example: "  weir policy lint examples/tutorial/\n  kubectl get cnp -A -o yaml | weir policy lint -",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if output != "text" && output != "json" {
				return exit.With(exit.Usage, fmt.Errorf("output %q: want text or json", output))
			}
			r := report{Findings: []finding{}}
			for _, a := range args {
				if err := r.read(a, cmd.InOrStdin()); err != nil {
					return exit.With(exit.Usage, err)
				}
			}
			if err := r.print(cmd.OutOrStdout(), output); err != nil {
				return err
			}
			if r.Refused > 0 {
				return exit.Silent(exit.Failed)
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return cmd
}

var extensions = []string{".yaml", ".yml", ".json"}

// read lints a file, the documents below a folder, or standard input for "-".
func (r *report) read(name string, stdin io.Reader) error {
	if name == "-" {
		text, err := io.ReadAll(stdin)
		if err != nil {
			return fmt.Errorf("read standard input: %w", err)
		}
		r.lint("stdin", text)
		return nil
	}
	return filepath.WalkDir(name, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || path != name && !slices.Contains(extensions, filepath.Ext(path)) {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		r.lint(path, text)
		return nil
	})
}

func (r *report) lint(file string, text []byte) {
	objects, refused := object.Decode(file, text)
	r.Objects += len(objects)
	for _, ref := range refused {
		r.Refused++
		f := finding{File: file, Line: ref.Source.Line, Refused: true, Message: ref.Reason()}
		if ref.Kind != "" {
			f.Object = ref.Key()
		}
		r.Findings = append(r.Findings, f)
	}
	for _, o := range objects {
		p, ok := o.Value.(*object.Policy)
		if !ok {
			continue
		}
		for _, w := range object.Lint(p) {
			r.Warnings++
			r.Findings = append(r.Findings, finding{File: file, Line: o.Source.Line, Object: o.Key(), Message: w})
		}
	}
}

func (r *report) print(out io.Writer, format string) error {
	if format == "json" {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	for _, f := range r.Findings {
		word, object := "warning", f.Object
		if f.Refused {
			word = "refused"
		}
		if object == "" {
			object = "document"
		}
		if _, err := fmt.Fprintf(out, "%s:%d: %s %s: %s\n", f.File, f.Line, object, word, f.Message); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(out, "%d objects accepted, %d refused, %d warnings\n", r.Objects, r.Refused, r.Warnings)
	return err
}
