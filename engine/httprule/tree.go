package httprule

import (
	"errors"
	"fmt"
	"regexp/syntax"
	"slices"
	"strings"
	"unicode"

	"weir.dev/weir/engine/rule"
)

// A tree holds the rules by their fields: below the root the distinct methods,
// below each its distinct paths, then hosts, and there the rules with their
// header conditions. Rules that begin alike share threads until they differ.
type tree struct {
	nodes []node
	roots []uint32 // of nodes: the methods
	alphabet
}

// A node is one field's expression on one path through the tree, or a rule
// (program nil and any false).
type node struct {
	program  *syntax.Prog // nil with any: every value matches
	any      bool
	children []uint32
	rule     uint32   // of a rule: its index
	conds    []uint32 // of a rule: its header conditions, ascending
}

func (n *node) isRule() bool { return n.program == nil && !n.any }

// An alphabet numbers what the automaton reads: classes of runes that no
// program tells apart, then the end of a field, then the header conditions.
type alphabet struct {
	bounds []rune     // first rune of each class, ascending from 0
	ascii  [128]int32 // class of each
	empty  syntax.EmptyOp
}

func (a *alphabet) class(r rune) int32 {
	if r < 128 {
		return a.ascii[r]
	}
	i, found := slices.BinarySearch(a.bounds, r)
	if !found {
		i--
	}
	return int32(i)
}

func (a *alphabet) end() int32 { return int32(len(a.bounds)) }

func (a *alphabet) conditionSymbol(cond uint32) int32 { return a.end() + int32(cond) }

// builder makes a tree from rules.
type builder struct {
	m          *Matcher
	programs   map[string]*syntax.Prog
	conditions uint32
	nodes      []node
	roots      []uint32
	index      map[childKey]uint32
}

type childKey struct {
	parent uint32 // number of the node + 1; 0: the root
	text   string // of the field, tagged
}

func (b *builder) add(index uint32, r rule.HTTPRule) error {
	parent := uint32(0)
	fields := [...]struct {
		name string
		expr *string
	}{{"method", r.Method}, {"path", r.Path}, {"host", r.Host}}
	for _, f := range fields {
		if f.expr == nil {
			parent = b.child(parent, "any", node{any: true})
			continue
		}
		p, err := b.program(*f.expr)
		if err != nil {
			return &RuleError{int(index), f.name, err}
		}
		parent = b.child(parent, "="+*f.expr, node{program: p})
	}
	conds, err := b.headers(r.Headers)
	if err != nil {
		return &RuleError{int(index), "headers", err}
	}
	// Of equal rules the first stays.
	b.child(parent, fmt.Sprint(conds), node{rule: index, conds: conds})
	return nil
}

// child returns the number + 1 of the parent's child with that text.
func (b *builder) child(parent uint32, text string, n node) uint32 {
	key := childKey{parent, text}
	if c, ok := b.index[key]; ok {
		return c
	}
	b.nodes = append(b.nodes, n)
	c := uint32(len(b.nodes))
	b.index[key] = c
	if parent == 0 {
		b.roots = append(b.roots, c-1)
	} else {
		b.nodes[parent-1].children = append(b.nodes[parent-1].children, c-1)
	}
	return c
}

func (b *builder) program(expr string) (*syntax.Prog, error) {
	if p, ok := b.programs[expr]; ok {
		return p, nil
	}
	re, err := syntax.Parse(expr, syntax.Perl)
	if err != nil {
		return nil, err
	}
	p, err := syntax.Compile(re.Simplify())
	if err != nil {
		return nil, err
	}
	b.programs[expr] = p
	return p, nil
}

func (b *builder) headers(rules []rule.HeaderRule) ([]uint32, error) {
	var conds []uint32
	for _, h := range rules {
		if h.Name == "" {
			return nil, errors.New("a header without a name")
		}
		name := strings.ToLower(h.Name)
		n := b.m.names[name]
		if n == nil {
			n = &headerName{values: map[string]uint32{}}
			b.m.names[name] = n
		}
		if h.Value == nil {
			if n.present == 0 {
				b.conditions++
				n.present = b.conditions
			}
			conds = append(conds, n.present)
			continue
		}
		c, ok := n.values[*h.Value]
		if !ok {
			b.conditions++
			c = b.conditions
			n.values[*h.Value] = c
		}
		conds = append(conds, c)
	}
	slices.Sort(conds)
	return slices.Compact(conds), nil
}

func (b *builder) finish() tree {
	t := tree{nodes: b.nodes, roots: b.roots}
	bounds := map[rune]struct{}{0: {}}
	split := func(lo, hi rune) {
		bounds[lo] = struct{}{}
		if hi < unicode.MaxRune {
			bounds[hi+1] = struct{}{}
		}
	}
	for _, p := range b.programs {
		for i := range p.Inst {
			t.empty |= splitAt(&p.Inst[i], split)
		}
	}
	if t.empty&(syntax.EmptyBeginLine|syntax.EmptyEndLine) != 0 {
		split('\n', '\n')
	}
	if t.empty&(syntax.EmptyWordBoundary|syntax.EmptyNoWordBoundary) != 0 {
		split('0', '9')
		split('A', 'Z')
		split('a', 'z')
		split('_', '_')
	}
	for r := range bounds {
		t.bounds = append(t.bounds, r)
	}
	slices.Sort(t.bounds)
	class := int32(-1)
	for r := rune(0); r < 128; r++ {
		if _, ok := bounds[r]; ok {
			class++
		}
		t.ascii[r] = class
	}
	return t
}

// splitAt calls split for every range of runes that an instruction tells from
// the others, and returns the assertions it makes.
func splitAt(in *syntax.Inst, split func(lo, hi rune)) syntax.EmptyOp {
	switch in.Op {
	case syntax.InstEmptyWidth:
		return syntax.EmptyOp(in.Arg)
	case syntax.InstRuneAnyNotNL:
		split('\n', '\n')
	case syntax.InstRune1, syntax.InstRune:
		if len(in.Rune) == 1 {
			r := in.Rune[0]
			split(r, r)
			if syntax.Flags(in.Arg)&syntax.FoldCase != 0 {
				for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
					split(f, f)
				}
			}
			return 0
		}
		for i := 0; i+1 < len(in.Rune); i += 2 {
			split(in.Rune[i], in.Rune[i+1])
		}
	}
	return 0
}
