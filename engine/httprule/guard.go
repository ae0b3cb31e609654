package httprule

import "weir.dev/weir/engine/rule"

// A Guard matches requests as they are enforced: an ambiguous path is matched
// only by rules that name no path, or exactly one. A pattern would have judged
// another path than the server may serve. A path with escapes that nobody needs
// is ambiguous unless it is let pass without them too.
type Guard struct {
	all *Matcher
	// exact has the rules that may match an ambiguous path; numbers their
	// indices in all.
	exact   *Matcher
	numbers []int
}

// NewGuard makes the Guard of a rule set's rules. An error is a *RuleError.
func NewGuard(rules []rule.HTTPRule) (*Guard, error) {
	g := &Guard{}
	var err error
	if g.all, err = Compile(rules); err != nil {
		return nil, err
	}
	var exact []rule.HTTPRule
	for i, r := range rules {
		if r.Path == nil || Literal(*r.Path) {
			exact = append(exact, r)
			g.numbers = append(g.numbers, i)
		}
	}
	g.exact, err = Compile(exact)
	return g, err
}

// Match returns the index of the first rule that lets the request pass. If none
// does, ambiguous says that a pattern would, were the path not ambiguous.
func (g *Guard) Match(r Request) (index int, ok, ambiguous bool) {
	if !Ambiguous(r.Path) {
		index, ok = g.all.Match(r)
		if !ok || g.matchesUnescaped(r) {
			return index, ok, false
		}
	}
	if index, ok = g.exact.Match(r); ok {
		return g.numbers[index], true, false
	}
	_, ambiguous = g.all.Match(r)
	return 0, false, ambiguous
}

// matchesUnescaped reports whether a request that matches also does with its
// path as a server reads it that resolves needless escapes (RFC 3986, section
// 2.3: /%70rivate is /private).
func (g *Guard) matchesUnescaped(r Request) bool {
	path, changed := unescapeUnreserved(r.Path)
	if !changed {
		return true
	}
	r.Path = path
	_, ok := g.all.Match(r)
	return ok
}
