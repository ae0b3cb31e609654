// Command standalone builds each module of the repository alone, as someone who
// requires it would: without go.work, its siblings served by a module proxy of
// files. With -write it puts the tidied go.mod and go.sum back into the tree;
// without, a module that is not tidy is an error.
//
// Run it at the root of the repository.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/mod/module"
	"golang.org/x/mod/zip"
)

const (
	prefix  = "weir.dev/weir/"
	version = "v0.1.0"
)

// order: a module stands behind those that it requires.
var order = []string{
	"proto", "engine", "internal", "bpf",
	"services/identity", "services/policy", "services/enforcer", "services/l7proxy",
	"cli", "integration",
}

func main() {
	write := flag.Bool("write", false, "put the tidied go.mod and go.sum into the tree")
	flag.Parse()
	if err := run(*write); err != nil {
		fmt.Fprintln(os.Stderr, "standalone:", err)
		os.Exit(1)
	}
}

func run(write bool) error {
	dir, err := os.MkdirTemp("", "weir-standalone-")
	if err != nil {
		return err
	}
	// The module cache is written without write bits.
	defer func() { _ = exec.Command("chmod", "-R", "u+w", dir).Run(); _ = os.RemoveAll(dir) }()
	w := &workshop{tree: filepath.Join(dir, "tree"), proxy: filepath.Join(dir, "proxy"), cache: filepath.Join(dir, "cache")}
	if err := w.copyTree(); err != nil {
		return err
	}
	if err := w.environment(); err != nil {
		return err
	}
	var untidy []string
	for _, m := range order {
		changed, err := w.module(m, write)
		if err != nil {
			return fmt.Errorf("module %s: %w", m, err)
		}
		if changed && !write {
			untidy = append(untidy, m)
		}
	}
	if len(untidy) > 0 {
		return fmt.Errorf("not tidy: %s; run: make tidy", strings.Join(untidy, ", "))
	}
	return nil
}

// workshop is a copy of the tree with a proxy and a module cache of its own.
type workshop struct {
	tree, proxy, cache string
	env                []string
}

// copyTree copies what git would commit.
func (w *workshop) copyTree() error {
	out, err := exec.Command("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").Output()
	if err != nil {
		return fmt.Errorf("list the tree's files: %w", err)
	}
	for name := range strings.SplitSeq(strings.TrimRight(string(out), "\x00"), "\x00") {
		b, err := os.ReadFile(name)
		if errors.Is(err, os.ErrNotExist) {
			continue // deleted, and not committed yet
		}
		if err != nil {
			return err
		}
		to := filepath.Join(w.tree, name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(to, b, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// environment makes siblings come from our proxy, the rest from what this
// machine has downloaded already, and only then from where it usually does.
func (w *workshop) environment() error {
	out, err := exec.Command("go", "env", "GOMODCACHE", "GOPROXY").Output()
	if err != nil {
		return fmt.Errorf("go env: %w", err)
	}
	had, usual, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	w.env = append(os.Environ(),
		"GOWORK=off",
		"GOFLAGS=-mod=mod -trimpath",
		"GOMODCACHE="+w.cache,
		"GOPROXY=file://"+w.proxy+",file://"+filepath.Join(had, "cache/download")+","+usual,
		"GONOSUMDB="+prefix+"*",
		"CGO_ENABLED=0",
	)
	return nil
}

func (w *workshop) module(m string, write bool) (changed bool, err error) {
	dir := filepath.Join(w.tree, m)
	if err := w.goRun(dir, "mod", "tidy"); err != nil {
		return false, err
	}
	if changed, err = compare(m, dir, write); err != nil {
		return false, err
	}
	for _, args := range [][]string{{"build", "./..."}, {"vet", "./..."}} {
		if err := w.goRun(dir, args...); err != nil {
			return false, err
		}
	}
	fmt.Println("ok", m)
	return changed, w.publish(m, dir)
}

func (w *workshop) goRun(dir string, args ...string) error {
	cmd := exec.Command("go", args...)
	cmd.Dir, cmd.Env = dir, w.env
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// compare reports whether tidying changed go.mod or go.sum. Sums of siblings do
// not count: they change with every commit, and a release writes them.
func compare(m, dir string, write bool) (bool, error) {
	changed := false
	for _, name := range []string{"go.mod", "go.sum"} {
		is, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return false, err
		}
		was, err := os.ReadFile(filepath.Join(m, name))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return false, err
		}
		if name == "go.sum" {
			is = withoutSiblings(is)
		}
		if bytes.Equal(was, is) {
			continue
		}
		changed = true
		if write {
			if err := os.WriteFile(filepath.Join(m, name), is, 0o644); err != nil {
				return false, err
			}
		}
	}
	return changed, nil
}

func withoutSiblings(sum []byte) []byte {
	lines := slices.DeleteFunc(bytes.SplitAfter(sum, []byte("\n")), func(l []byte) bool { return bytes.HasPrefix(l, []byte(prefix)) })
	return bytes.Join(lines, nil)
}

// publish puts the module into the proxy for those behind it.
func (w *workshop) publish(m, dir string) error {
	at := filepath.Join(w.proxy, prefix+m, "@v")
	if err := os.MkdirAll(at, 0o755); err != nil {
		return err
	}
	mod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
	if err != nil {
		return err
	}
	for name, content := range map[string][]byte{
		"list":            []byte(version + "\n"),
		version + ".info": []byte(`{"Version":"` + version + `"}`),
		version + ".mod":  mod,
	} {
		if err := os.WriteFile(filepath.Join(at, name), content, 0o644); err != nil {
			return err
		}
	}
	f, err := os.Create(filepath.Join(at, version+".zip"))
	if err != nil {
		return err
	}
	if err := zip.CreateFromDir(f, module.Version{Path: prefix + m, Version: version}, dir); err != nil {
		return errors.Join(err, f.Close())
	}
	return f.Close()
}
