package integration

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestPapersNameTestsThatExist: a claim that names a test is held by one.
func TestPapersNameTestsThatExist(t *testing.T) {
	declared := map[string]bool{}
	function := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark)\w+)\(`)
	err := filepath.WalkDir(the.root, func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.IsDir() && strings.HasPrefix(e.Name(), ".") && path != the.root:
			return fs.SkipDir
		case !strings.HasSuffix(path, "_test.go"):
			return nil
		}
		text, err := os.ReadFile(path)
		for _, m := range function.FindAllStringSubmatch(string(text), -1) {
			declared[m[1]] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	papers, err := filepath.Glob(filepath.Join(the.root, "docs", "adr", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"README.md", "ARCHITECTURE.md", "HACKING.md", "docs/threats.md", "docs/policies.md"} {
		papers = append(papers, filepath.Join(the.root, p))
	}
	named := regexp.MustCompile("`((?:Test|Fuzz|Benchmark)[A-Z]\\w+)`")
	count := 0
	for _, p := range papers {
		text, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range named.FindAllStringSubmatch(string(text), -1) {
			count++
			if !declared[m[1]] {
				t.Errorf("%s names %s, which is no test", strings.TrimPrefix(p, the.root+"/"), m[1])
			}
		}
	}
	if count < 40 {
		t.Errorf("the papers name %d tests, want at least 40: is the pattern right?", count)
	}
}
