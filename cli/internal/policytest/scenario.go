// Package policytest runs recorded policy scenarios against the engine: each
// question is asked of the engine that runs in a cluster (resolve, merge,
// httprule) and of the naive specification (spec), and both must answer as
// recorded. It needs no cluster, no network and no rights.
package policytest

import (
	"archive/tar"
	"bufio"
	"cmp"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ulikunitz/xz"
)

// Names of the files of a scenario, which is one folder.
const (
	objectsFile = "objects.yaml"
	expectFile  = "expect.json"
	metaFile    = "meta.json"
)

// What an archive may unpack to at most: it may come from strangers.
const (
	maxFile    = 64 << 20
	maxArchive = 1 << 30
)

// scenario is one folder: objects, and what to ask of them.
type scenario struct {
	name    string
	dir     string // for messages
	objects []byte
	expect  expect
	// fromCilium: recorded from Cilium, where a CIDR never selects pods.
	fromCilium bool
}

type expect struct {
	Scenario string            `json:"scenario"`
	Rejected map[string]string `json:"rejected"`
	Queries  []query           `json:"queries"`
}

// query is one question and its recorded answer. Of verdict, egress and ingress
// those that are not empty count.
type query struct {
	From     string    `json:"from"`
	To       string    `json:"to"`
	Protocol string    `json:"protocol"`
	Port     uint16    `json:"port"`
	ICMPType uint16    `json:"icmpType"`
	Egress   string    `json:"egress"`
	Ingress  string    `json:"ingress"`
	Verdict  string    `json:"verdict"`
	HTTPAll  bool      `json:"httpAll"`
	Requests []request `json:"requests"`
}

type request struct {
	Method  string            `json:"method"`
	Path    string            `json:"path"`
	Host    string            `json:"host"`
	Headers map[string]string `json:"headers"`
	Allow   bool              `json:"allow"`
}

func (q query) String() string {
	port := fmt.Sprintf("%d/%s", q.Port, q.Protocol)
	if strings.HasPrefix(q.Protocol, "ICMP") {
		port = fmt.Sprintf("%s type %d", q.Protocol, q.ICMPType)
	}
	return fmt.Sprintf("%s to %s %s", q.From, q.To, port)
}

func (r request) String() string {
	text := r.Method + " " + r.Path + " of " + r.Host
	for _, k := range sortedKeys(r.Headers) {
		text += fmt.Sprintf(" (%s: %s)", k, r.Headers[k])
	}
	return text
}

var errNoScenarios = errors.New("no scenarios found: a scenario is a folder with objects.yaml and expect.json")

// load reads the scenarios of a folder, or of a tar file packed with xz or gzip,
// sorted by name.
func load(name string) ([]scenario, error) {
	stat, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	var files map[string][]byte
	if stat.IsDir() {
		files, err = readDir(name)
	} else {
		files, err = readArchive(name)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	var out []scenario
	for _, p := range sortedKeys(files) {
		dir, base := path.Split(p)
		if base != expectFile {
			continue
		}
		objects, ok := files[dir+objectsFile]
		if !ok {
			return nil, fmt.Errorf("read %s: %s has no %s", name, path.Clean(dir), objectsFile)
		}
		s := scenario{dir: path.Clean(dir), name: path.Base(dir), objects: objects}
		if err := json.Unmarshal(files[p], &s.expect); err != nil {
			return nil, fmt.Errorf("read %s: %s: %w", name, p, err)
		}
		_, hasMeta := files[dir+metaFile]
		s.fromCilium = s.expect.Scenario != "" && !hasMeta
		out = append(out, s)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("read %s: %w", name, errNoScenarios)
	}
	slices.SortStableFunc(out, func(a, b scenario) int { return cmp.Compare(a.dir, b.dir) })
	return out, nil
}

func wanted(base string) bool {
	return base == objectsFile || base == expectFile || base == metaFile
}

func readDir(root string) (map[string][]byte, error) {
	out := map[string][]byte{}
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !wanted(d.Name()) {
			return err
		}
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		// The folder's own name, too: DIR may be a scenario itself.
		out[filepath.ToSlash(filepath.Join(filepath.Base(root), rel))] = b
		return nil
	})
	return out, err
}

func readArchive(name string) (map[string][]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var plain io.Reader
	switch {
	case strings.HasSuffix(name, ".tar.xz"):
		plain, err = xz.NewReader(bufio.NewReader(f))
	case strings.HasSuffix(name, ".tar.gz"), strings.HasSuffix(name, ".tgz"):
		plain, err = gzip.NewReader(f)
	default:
		err = errors.New("neither a folder nor a .tar.xz or .tar.gz file")
	}
	if err != nil {
		return nil, err
	}
	return readTar(plain)
}

func readTar(plain io.Reader) (map[string][]byte, error) {
	out := map[string][]byte{}
	total := int64(0)
	r := tar.NewReader(plain)
	for {
		h, err := r.Next()
		if err == io.EOF {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		if h.Typeflag != tar.TypeReg || !wanted(path.Base(h.Name)) {
			continue
		}
		if total += h.Size; h.Size > maxFile || total > maxArchive {
			return nil, fmt.Errorf("%s: too large", h.Name)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			return nil, err
		}
		out[path.Clean(h.Name)] = b
	}
}
