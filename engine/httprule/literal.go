package httprule

import "regexp/syntax"

// Literal reports whether an expression matches exactly one value, as ^/public$
// does, so that no two spellings of a value can both match it.
func Literal(expr string) bool {
	re, err := syntax.Parse(expr, syntax.Perl)
	return err == nil && literal(re.Simplify())
}

func literal(re *syntax.Regexp) bool {
	switch re.Op {
	case syntax.OpEmptyMatch, syntax.OpBeginText, syntax.OpEndText:
		return true
	case syntax.OpLiteral:
		return re.Flags&syntax.FoldCase == 0
	case syntax.OpConcat, syntax.OpCapture:
		for _, sub := range re.Sub {
			if !literal(sub) {
				return false
			}
		}
		return true
	default:
		return false
	}
}
