package httprule

import (
	"encoding/binary"
	"regexp/syntax"
	"slices"
)

// A thread is a place in the tree: node << 32 | instruction of its program; of
// a rule, how many of its header conditions have been met.
type thread uint64

func at(node, pc uint32) thread { return thread(node)<<32 | thread(pc) }

func (t thread) node() uint32 { return uint32(t >> 32) }
func (t thread) pc() uint32   { return uint32(t) }

// before says what was read last, as far as some assertion asks for it.
type before uint8

const (
	beforeStart before = iota
	beforeOther
	beforeWord
	beforeNewline
)

// A set is the threads alive at a point of the input, ascending, before any
// empty instruction has been followed: which of these hold depends on what
// comes next.
type set struct {
	threads []thread
	before  before
}

// start returns the set that reads a request's first symbol.
func (t *tree) start() set {
	var s set
	for _, n := range t.roots {
		s.threads = append(s.threads, t.entry(n))
	}
	slices.Sort(s.threads)
	return s
}

func (t *tree) entry(n uint32) thread {
	if p := t.nodes[n].program; p != nil {
		return at(n, uint32(p.Start))
	}
	return at(n, 0)
}

// step returns the set after one symbol.
func (t *tree) step(s set, symbol int32, w *work) set {
	st := stepper{tree: t, symbol: symbol, end: t.end(), seen: map[thread]struct{}{}}
	if symbol < st.end {
		st.rune = t.bounds[symbol]
	}
	st.holds = t.assertions(s.before, st.rune, symbol == st.end)
	for _, th := range s.threads {
		n := &t.nodes[th.node()]
		switch {
		case n.any:
			st.any(th, n)
		case n.isRule():
			st.condition(th, n)
		default:
			st.follow(th.node(), n, th.pc())
		}
	}
	w.threads += len(s.threads) + len(st.seen)
	slices.Sort(st.out)
	next := set{threads: slices.Compact(st.out), before: t.kind(st.rune)}
	if symbol >= st.end {
		next.before = beforeStart
	}
	return next
}

// A stepper makes one step of a set.
type stepper struct {
	tree   *tree
	symbol int32
	end    int32
	rune   rune // representative of the symbol's class
	holds  syntax.EmptyOp
	seen   map[thread]struct{}
	out    []thread
}

func (s *stepper) any(th thread, n *node) {
	switch {
	case s.symbol < s.end:
		s.out = append(s.out, th)
	case s.symbol == s.end:
		s.leave(n)
	}
}

// condition advances a rule whose next condition is the one read. Conditions
// come in ascending order, so a rule whose next one is passed over is dead.
func (s *stepper) condition(th thread, n *node) {
	met := th.pc()
	if s.symbol <= s.end || int(met) == len(n.conds) {
		if s.symbol > s.end {
			s.out = append(s.out, th)
		}
		return
	}
	switch want := s.tree.conditionSymbol(n.conds[met]); {
	case want == s.symbol:
		s.out = append(s.out, at(th.node(), met+1))
	case want > s.symbol:
		s.out = append(s.out, th)
	}
}

// leave enters what follows a field that matched.
func (s *stepper) leave(n *node) {
	for _, c := range n.children {
		s.out = append(s.out, s.tree.entry(c))
	}
}

// follow walks the empty instructions from pc and takes the symbol where one
// wants it.
func (s *stepper) follow(num uint32, n *node, pc uint32) {
	stack := []uint32{pc}
	for len(stack) > 0 {
		pc := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		th := at(num, pc)
		if _, ok := s.seen[th]; ok {
			continue
		}
		s.seen[th] = struct{}{}
		in := &n.program.Inst[pc]
		switch in.Op {
		case syntax.InstAlt, syntax.InstAltMatch:
			stack = append(stack, in.Arg, in.Out)
		case syntax.InstCapture, syntax.InstNop:
			stack = append(stack, in.Out)
		case syntax.InstEmptyWidth:
			if syntax.EmptyOp(in.Arg)&^s.holds == 0 {
				stack = append(stack, in.Out)
			}
		case syntax.InstMatch:
			if s.symbol == s.end {
				s.leave(n)
			}
		case syntax.InstRune, syntax.InstRune1, syntax.InstRuneAny, syntax.InstRuneAnyNotNL:
			if s.symbol < s.end && matches(in, s.rune) {
				s.out = append(s.out, at(num, in.Out))
			}
		}
	}
}

func matches(in *syntax.Inst, r rune) bool {
	switch in.Op {
	case syntax.InstRuneAny:
		return true
	case syntax.InstRuneAnyNotNL:
		return r != '\n'
	default:
		return in.MatchRune(r)
	}
}

// assertions returns the empty-width assertions that hold between what was
// read last and the next symbol.
func (t *tree) assertions(b before, next rune, end bool) syntax.EmptyOp {
	if t.empty == 0 {
		return 0
	}
	r1, r2 := rune(-1), next
	switch b {
	case beforeOther:
		r1 = ' '
	case beforeWord:
		r1 = 'a'
	case beforeNewline:
		r1 = '\n'
	}
	if end {
		r2 = -1
	}
	return syntax.EmptyOpContext(r1, r2)
}

// kind returns what a later assertion may need to know of a rune.
func (t *tree) kind(r rune) before {
	const words = syntax.EmptyWordBoundary | syntax.EmptyNoWordBoundary
	const lines = syntax.EmptyBeginLine | syntax.EmptyEndLine
	switch {
	case t.empty == 0:
		return beforeStart
	case t.empty&words != 0 && syntax.IsWordChar(r):
		return beforeWord
	case t.empty&lines != 0 && r == '\n':
		return beforeNewline
	default:
		return beforeOther
	}
}

// accepted returns the least rule whose conditions have all been met.
func (t *tree) accepted(s set) (uint32, bool) {
	best, ok := uint32(0), false
	for _, th := range s.threads {
		n := &t.nodes[th.node()]
		if n.isRule() && int(th.pc()) == len(n.conds) && (!ok || n.rule < best) {
			best, ok = n.rule, true
		}
	}
	return best, ok
}

// key returns a string that equal sets, and no others, share.
func (s set) key() string {
	b := make([]byte, 1, 1+8*len(s.threads))
	b[0] = byte(s.before)
	for _, th := range s.threads {
		b = binary.LittleEndian.AppendUint64(b, uint64(th))
	}
	return string(b)
}
