package object

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// What one document may cost at most. Aliases count as often as they are used,
// so a few lines cannot grow into gigabytes.
const (
	maxDocument = 16 << 20 // bytes of YAML
	maxValues   = 2 << 20  // mappings, lists and scalars of one document
	maxDepth    = 64
)

// chunk is one document of a file before it is parsed.
type chunk struct {
	text []byte
	line int // of its first line in the file, from 1
}

// split cuts a file at its document markers, so that a document that does not
// parse takes no other with it. YAML allows no line that begins with "---" and
// a blank inside of a document.
func split(data []byte) []chunk {
	var out []chunk
	cur := chunk{line: 1}
	start, line := 0, 1
	for pos := 0; pos < len(data); line++ {
		end := len(data)
		if i := bytes.IndexByte(data[pos:], '\n'); i >= 0 {
			end = pos + i + 1
		}
		switch marker(data[pos:end]) {
		case "---":
			cur.text = data[start:pos]
			out = append(out, cur)
			cur, start = chunk{line: line}, pos+3
		case "...":
			cur.text = data[start:pos]
			out = append(out, cur)
			cur, start = chunk{line: line + 1}, end
		}
		pos = end
	}
	cur.text = data[start:]
	return append(out, cur)
}

func marker(line []byte) string {
	for _, m := range []string{"---", "..."} {
		rest, ok := bytes.CutPrefix(line, []byte(m))
		if ok && (len(rest) == 0 || strings.ContainsRune(" \t\r\n", rune(rest[0]))) {
			return m
		}
	}
	return ""
}

// tree is a parsed document: plain values as encoding/json has them, and where
// each stood.
type tree struct {
	value any
	root  *yaml.Node
	shift int // what to add to a node's line
}

var errMergeKey = errors.New("YAML merge keys (<<) are not supported: write the fields out")

// parse reads one document. A document without content is no tree and no error.
func (c chunk) parse() (*tree, error) {
	if len(bytes.TrimSpace(c.text)) == 0 {
		return nil, nil
	}
	if len(c.text) > maxDocument {
		return nil, fmt.Errorf("document has %d bytes, more than %d: split it", len(c.text), maxDocument)
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(c.text, &doc); err != nil {
		return nil, c.syntaxError(err)
	}
	if doc.Kind != yaml.DocumentNode || len(doc.Content) != 1 {
		return nil, nil // only comments
	}
	root := doc.Content[0]
	if root.Kind == yaml.ScalarNode && root.ShortTag() == "!!null" {
		return nil, nil
	}
	w := converter{shift: c.line - 1}
	v, err := w.convert(root, 0)
	if err != nil {
		return nil, err
	}
	return &tree{value: v, root: root, shift: c.line - 1}, nil
}

var yamlLine = regexp.MustCompile(`^(?:yaml: )?(?:line (\d+): )?`)

// syntaxError says where in the file it is: the parser counts lines of the
// document, some from 0 and some from 1.
func (c chunk) syntaxError(err error) error {
	m := yamlLine.FindStringSubmatch(err.Error())
	n, _ := strconv.Atoi(m[1]) // no line: the first
	return fmt.Errorf("not YAML, near line %d: %s", c.line+n, err.Error()[len(m[0]):])
}

// converter turns YAML nodes into JSON's values, strictly: no key twice, keys
// are strings, no values that JSON cannot say.
type converter struct {
	shift int
	seen  int
}

func (w *converter) convert(n *yaml.Node, depth int) (any, error) {
	if w.seen++; w.seen > maxValues || depth > maxDepth {
		return nil, fmt.Errorf("line %d: document has more than %d values or is nested deeper than %d",
			n.Line+w.shift, maxValues, maxDepth)
	}
	switch n.Kind {
	case yaml.AliasNode:
		return w.convert(n.Alias, depth+1)
	case yaml.SequenceNode:
		list := make([]any, 0, len(n.Content))
		for _, c := range n.Content {
			v, err := w.convert(c, depth+1)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		return list, nil
	case yaml.MappingNode:
		return w.mapping(n, depth)
	case yaml.ScalarNode:
		v, err := scalar(n)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n.Line+w.shift, err)
		}
		return v, nil
	}
	return nil, fmt.Errorf("line %d: unexpected YAML node", n.Line+w.shift)
}

func (w *converter) mapping(n *yaml.Node, depth int) (any, error) {
	m := make(map[string]any, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		if key.Kind == yaml.AliasNode {
			key = key.Alias
		}
		switch {
		case key.ShortTag() == "!!merge":
			return nil, fmt.Errorf("line %d: %w", key.Line+w.shift, errMergeKey)
		case key.Kind != yaml.ScalarNode || key.ShortTag() == "!!null":
			return nil, fmt.Errorf("line %d: a key must be a string", key.Line+w.shift)
		}
		if _, ok := m[key.Value]; ok {
			return nil, fmt.Errorf("line %d: key %q is there twice", key.Line+w.shift, key.Value)
		}
		v, err := w.convert(n.Content[i+1], depth+1)
		if err != nil {
			return nil, err
		}
		m[key.Value] = v
	}
	return m, nil
}

func scalar(n *yaml.Node) (any, error) {
	switch n.ShortTag() {
	case "!!str", "!!timestamp":
		return n.Value, nil
	case "!!null":
		return nil, nil
	case "!!bool", "!!int", "!!float":
	default:
		return nil, fmt.Errorf("YAML tag %s is not supported", n.Tag)
	}
	var v any
	if err := n.Decode(&v); err != nil {
		return nil, fmt.Errorf("value %q: %w", n.Value, err)
	}
	switch v := v.(type) {
	case bool:
		return v, nil
	case int:
		return json.Number(strconv.Itoa(v)), nil
	case int64:
		return json.Number(strconv.FormatInt(v, 10)), nil
	case uint64:
		return json.Number(strconv.FormatUint(v, 10)), nil
	case float64:
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return nil, fmt.Errorf("value %q is not a number that JSON knows", n.Value)
		}
		text, err := json.Marshal(v)
		return json.Number(text), err
	}
	return nil, fmt.Errorf("value %q has an unknown type", n.Value)
}

// item is an entry of a List's items.
func (t *tree) item(i int) *tree {
	list := t.value.(map[string]any)["items"].([]any)
	node := t.root
	for k := 0; k+1 < len(node.Content); k += 2 {
		if node.Content[k].Value == "items" {
			return &tree{value: list[i], root: resolveAlias(resolveAlias(node.Content[k+1]).Content[i]), shift: t.shift}
		}
	}
	return &tree{value: list[i], root: node, shift: t.shift}
}

func resolveAlias(n *yaml.Node) *yaml.Node {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return n
}

// line of the document's first field in its file.
func (t *tree) line() int { return t.root.Line + t.shift }

// lines tells where each field and list entry stands, by field path.
func (t *tree) lines() map[string]int {
	out := map[string]int{}
	t.collect(out, t.root, "")
	return out
}

func (t *tree) collect(out map[string]int, n *yaml.Node, path string) {
	n = resolveAlias(n)
	switch n.Kind {
	case yaml.SequenceNode:
		for i, c := range n.Content {
			p := index(path, i)
			out[p] = c.Line + t.shift
			t.collect(out, c, p)
		}
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			p := join(path, n.Content[i].Value)
			out[p] = n.Content[i].Line + t.shift
			t.collect(out, n.Content[i+1], p)
		}
	}
}

// Field paths look as Kubernetes writes them: spec.ingress[0].toPorts[1],
// metadata.labels[app.kubernetes.io/name].
func join(path, key string) string {
	switch {
	case path == "":
		return key
	case strings.ContainsAny(key, "./[]:"):
		return path + "[" + key + "]"
	}
	return path + "." + key
}

func index(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }
