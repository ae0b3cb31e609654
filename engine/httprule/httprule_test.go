package httprule

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"weir.dev/weir/engine/rule"
)

func str(s string) *string { return &s }

// reference decides a request rule by rule with package regexp.
func reference(rules []rule.HTTPRule, r Request) (int, bool) {
	full := func(expr *string, value string) bool {
		return expr == nil || regexp.MustCompile(`\A(?:`+*expr+`)\z`).MatchString(value)
	}
	for i, ru := range rules {
		if full(ru.Method, r.Method) && full(ru.Path, r.Path) && full(ru.Host, r.Host) &&
			headersHold(ru.Headers, r.Headers) {
			return i, true
		}
	}
	return 0, false
}

func headersHold(rules []rule.HeaderRule, headers []Header) bool {
	for _, h := range rules {
		var values []string
		for _, got := range headers {
			if got.Name == h.Name {
				values = append(values, got.Value)
			}
		}
		if len(values) == 0 || h.Value != nil && *h.Value != strings.Join(values, ",") {
			return false
		}
	}
	return true
}

func compile(t testing.TB, rules []rule.HTTPRule) *Matcher {
	t.Helper()
	m, err := Compile(rules)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestMatch(t *testing.T) {
	rules := []rule.HTTPRule{
		0: {Method: str("GET"), Path: str("^/public$")},
		1: {Method: str("GET|HEAD"), Path: str("/public/.*")},
		2: {Method: str("GET"), Path: str("/hdr"), Headers: []rule.HeaderRule{{Name: "x-token", Value: str("secret")}}},
		3: {Method: str("GET"), Path: str("/hdr"), Headers: []rule.HeaderRule{{Name: "x-any"}, {Name: "x-token"}}},
		4: {Host: str(`(?i)admin\.example(:80)?`)},
		5: {Path: str(`/[^?]*\?debug`), Method: str("GET")},
	}
	tests := []struct {
		name string
		r    Request
		want int // -1: none
	}{
		{"an exact path", Request{Method: "GET", Path: "/public"}, 0},
		{"the query is part of the path", Request{Method: "GET", Path: "/public?x=1"}, -1},
		{"a pattern may ask for a query", Request{Method: "GET", Path: "/public?debug"}, 5},
		{"below a prefix", Request{Method: "HEAD", Path: "/public/a/b"}, 1},
		{"a prefix of the value is no match", Request{Method: "GET", Path: "/public/.."[:8]}, 1},
		{"methods have a letter case", Request{Method: "get", Path: "/public"}, -1},
		{"a header by its value", Request{Method: "GET", Path: "/hdr", Headers: []Header{{"x-token", "secret"}}}, 2},
		{"a header with another value", Request{Method: "GET", Path: "/hdr", Headers: []Header{{"x-token", "Secret"}}}, -1},
		{"two lines are one value", Request{Method: "GET", Path: "/hdr", Headers: []Header{{"x-token", "nope"}, {"x-token", "secret"}}}, -1},
		{"presence of both", Request{Method: "GET", Path: "/hdr", Headers: []Header{{"x-token", "no"}, {"a", "b"}, {"x-any", ""}}}, 3},
		{"the first of two that match", Request{Method: "GET", Path: "/hdr", Headers: []Header{{"x-token", "secret"}, {"x-any", ""}}}, 2},
		{"a host in another case", Request{Method: "PUT", Path: "/", Host: "ADMIN.example:80"}, 4},
		{"another port of a host", Request{Method: "PUT", Path: "/", Host: "admin.example:81"}, -1},
		{"nothing at all", Request{}, -1},
	}
	m := compile(t, rules)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, ok := m.Match(tt.r)
			if !ok {
				got = -1
			}
			if got != tt.want {
				t.Errorf("Match(%+v) = %d, want %d", tt.r, got, tt.want)
			}
		})
	}
}

func TestNoRuleMatchesNothing(t *testing.T) {
	var zero Matcher
	for name, m := range map[string]*Matcher{"zero": &zero, "empty": compile(t, nil)} {
		if i, ok := m.Match(Request{Method: "GET", Path: "/"}); ok {
			t.Errorf("%s matcher matches rule %d", name, i)
		}
	}
	if _, ok := compile(t, []rule.HTTPRule{{}}).Match(Request{}); !ok {
		t.Error("a rule without conditions does not match")
	}
}

func TestBadExpressionNamesItsRule(t *testing.T) {
	for _, expr := range []string{"(", `a)|(b`, `\1`, `(?=x)`, "[z-a]"} {
		_, err := Compile([]rule.HTTPRule{{}, {Path: str(expr)}})
		var re *RuleError
		if !errors.As(err, &re) || re.Index != 1 || re.Field != "path" {
			t.Errorf("Compile(%q): %v, want a RuleError of rule 1's path", expr, err)
		}
	}
}

func TestLiteral(t *testing.T) {
	for expr, want := range map[string]bool{
		"/public": true, "^/public$": true, `\A/p\.x\z`: true, "(/a)(b)": true, "": true,
		"/public.": false, "/p|/q": false, "(?i)/p": false, "/p?": false, "(?m)^/p$": false, "(": false,
	} {
		if got := Literal(expr); got != want {
			t.Errorf("Literal(%q) = %v, want %v", expr, got, want)
		}
	}
}

// Pieces of expressions and values that meet each other often.
var (
	atoms = []string{
		"a", "b", "/", ".", ".*", "a*", "b+?", "[ab]", "[^a]", "(a|b)", "(?i:aK)", "é", "\\w", "\\W", "\\d", "(?s:.)",
		"^", "$", "\\b", "\\B", "(?m:^)", "(?m:$)", "\\z", "\\n", "a{2,3}", "(ab)*", "[k-s]", "\\pL", "",
	}
	bytesOf = []string{"a", "b", "/", "A", "k", "K", "\u212a", "é", "\n", " ", "_", "1", "\xff", "\xc3", "ſ", "\U0010ffff"}
)

func drawExpr(t *rapid.T, label string) *string {
	n := rapid.IntRange(-1, 5).Draw(t, label+" length")
	if n < 0 {
		return nil
	}
	var b strings.Builder
	for range n {
		b.WriteString(rapid.SampledFrom(atoms).Draw(t, label))
		if rapid.IntRange(0, 9).Draw(t, "or") == 0 {
			b.WriteByte('|')
		}
	}
	return str(b.String())
}

func drawValue(t *rapid.T, label string) string {
	return strings.Join(rapid.SliceOfN(rapid.SampledFrom(bytesOf), 0, 6).Draw(t, label), "")
}

var headerValues = []string{"", "1", "2", "1,2"}

func drawRules(t *rapid.T) []rule.HTTPRule {
	rules := make([]rule.HTTPRule, rapid.IntRange(0, 8).Draw(t, "rules"))
	for i := range rules {
		r := &rules[i]
		r.Method, r.Path, r.Host = drawExpr(t, "method"), drawExpr(t, "path"), drawExpr(t, "host")
		for range rapid.IntRange(0, 3).Draw(t, "header rules") {
			h := rule.HeaderRule{Name: rapid.SampledFrom([]string{"x", "y", "z"}).Draw(t, "name")}
			if rapid.Bool().Draw(t, "by value") {
				h.Value = str(rapid.SampledFrom(headerValues).Draw(t, "value"))
			}
			r.Headers = append(r.Headers, h)
		}
	}
	return rules
}

func drawRequest(t *rapid.T) Request {
	r := Request{Method: drawValue(t, "method"), Path: drawValue(t, "path"), Host: drawValue(t, "host")}
	for range rapid.IntRange(0, 4).Draw(t, "headers") {
		r.Headers = append(r.Headers, Header{
			Name:  rapid.SampledFrom([]string{"x", "y", "z", "w"}).Draw(t, "name"),
			Value: rapid.SampledFrom(headerValues).Draw(t, "value"),
		})
	}
	return r
}

// The automaton agrees with package regexp rule by rule, also when its cache
// is full all the time.
func TestAgreesWithRegexp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rules := drawRules(t)
		m, err := Compile(rules)
		if err != nil {
			t.Fatalf("Compile(%+v): %v", rules, err)
		}
		m.limit = rapid.SampledFrom([]int{0, 200, cacheThreads}).Draw(t, "limit")
		for range 20 {
			r := drawRequest(t)
			got, ok := m.Match(r)
			want, wantOK := reference(rules, r)
			if ok != wantOK || got != want {
				t.Fatalf("Match(%q) = %d, %v, want %d, %v", r, got, ok, want, wantOK)
			}
		}
	})
}

func FuzzAgreesWithRegexp(f *testing.F) {
	f.Add("GET", "^/public/.*$", "/public/a", "(?i)srv", "SRV")
	f.Add("(?m)^a$", `\ba\b|.`, "a\n\xff", "", "é")
	f.Fuzz(func(t *testing.T, method, path, target, host, authority string) {
		rules := []rule.HTTPRule{{Method: &method, Path: &path}, {Path: &path, Host: &host}, {Host: &path, Path: &host}}
		for _, e := range []string{method, path, host} {
			if _, err := regexp.Compile(e); err != nil || len(e) > 100 {
				return
			}
		}
		m, err := Compile(rules)
		if err != nil {
			t.Fatalf("package regexp takes what Compile refuses: %v", err)
		}
		for _, r := range []Request{{Method: method, Path: target, Host: authority}, {Path: authority, Host: target}} {
			got, ok := m.Match(r)
			want, wantOK := reference(rules, r)
			if ok != wantOK || got != want {
				t.Errorf("Match(%q) = %d, %v, want %d, %v", r, got, ok, want, wantOK)
			}
		}
	})
}

// manyRules returns n rules with methods, paths and hosts, the last of which
// the request of target(n, i) matches for every i.
func manyRules(n int) []rule.HTTPRule {
	rules := make([]rule.HTTPRule, n)
	for i := range rules {
		rules[i] = rule.HTTPRule{
			Method: str("GET|HEAD"),
			Path:   str(fmt.Sprintf("^/api/v1/tenant%d/items/[0-9]+(/.*)?$", n-1-i)),
			Host:   str(fmt.Sprintf("tenant%d\\.example", n-1-i)),
		}
	}
	return rules
}

func target(i int) Request {
	return Request{Method: "GET", Path: fmt.Sprintf("/api/v1/tenant0/items/%d/x%d", i, i*7919), Host: "tenant0.example"}
}

// The work of a decision is the length of the request, whatever the number of
// rules, on paths never seen before.
func TestWorkIsTheLengthOfTheRequest(t *testing.T) {
	for _, n := range []int{1, 100, 10_000} {
		m := compile(t, manyRules(n))
		for i := range 2000 {
			var w work
			m.match(target(i*31), &w)
		}
		threads := 0
		for i := range 1000 {
			r := target(1_000_000 + i)
			var w work
			got, ok := m.match(r, &w)
			if !ok || got != n-1 {
				t.Fatalf("%d rules: Match = %d, %v, want %d", n, got, ok, n-1)
			}
			if want := len(r.Method) + len(r.Path) + len(r.Host) + 3; w.symbols != want {
				t.Fatalf("%d rules: %d symbols read, want %d", n, w.symbols, want)
			}
			threads += w.threads
		}
		if threads > 100 {
			t.Errorf("%d rules: %d threads stepped in 1,000 warm decisions", n, threads)
		}
	}
}

// A request by headers costs its headers, not the rules' header conditions.
func TestWorkOfHeaderRules(t *testing.T) {
	rules := make([]rule.HTTPRule, 10_000)
	for i := range rules {
		rules[i].Headers = []rule.HeaderRule{{Name: "x-token", Value: str(fmt.Sprint("token", i))}}
	}
	m := compile(t, rules)
	r := Request{Method: "GET", Path: "/", Headers: []Header{{"x-token", "token9999"}}}
	m.Match(r)
	var w work
	if i, ok := m.match(r, &w); i != 9999 || !ok || w.threads != 0 || w.symbols != len("GET")+len("/")+3+1 {
		t.Errorf("rule %d, %v with %+v of work, want rule 9999 with 8 symbols", i, ok, w)
	}
}

// Requests that each need new states never make the cache outgrow its limit,
// and are still decided right.
func TestCacheIsBounded(t *testing.T) {
	rules := []rule.HTTPRule{{Path: str("/(.*a.{12}|.*b.{11})")}}
	m := compile(t, rules)
	m.limit = 20_000
	for i := range 3000 {
		path := "/" + strings.Map(func(r rune) rune { return 'a' + (r-'0')%3 }, fmt.Sprintf("%030b%d", i*2654435761%(1<<30), i))
		r := Request{Path: path}
		_, got := m.Match(r)
		if _, want := reference(rules, r); got != want {
			t.Fatalf("Match(%q) = %v, want %v", path, got, want)
		}
		if c := m.cache.Load(); c.threads > m.limit+5000 {
			t.Fatalf("the cache holds %d threads, its limit is %d", c.threads, m.limit)
		}
	}
}

func TestConcurrentUse(t *testing.T) {
	m := compile(t, manyRules(50))
	m.limit = 3000
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 500 {
				if got, ok := m.Match(target(g*1000 + i)); !ok || got != 49 {
					t.Errorf("Match = %d, %v, want 49", got, ok)
					return
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkMatch(b *testing.B) {
	for _, n := range []int{1, 100, 10_000} {
		b.Run(fmt.Sprintf("rules=%d", n), func(b *testing.B) {
			m := compile(b, manyRules(n))
			requests := make([]Request, 4096)
			for i := range requests {
				requests[i] = target(i * 7)
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if _, ok := m.Match(requests[i&4095]); !ok {
					b.Fatal("no match")
				}
			}
		})
	}
}
