package httprule

import (
	"testing"

	"weir.dev/weir/engine/rule"
)

func TestAmbiguous(t *testing.T) {
	plain := []string{
		"/", "/a/b", "/a.b/.well-known/c..d", "/a%20b", "/%C3%A4", "/a;b=c/d", "/a?../b", "/a?%00", "*", "/a//b", "/a%25", "/...x", "/%41",
	}
	ambiguous := []string{
		"/.", "/..", "/a/../b", "/a/./b", "/%2e", "/a/%2E%2e/b", "/.%2e/", "/..;/b", "/..;a=b/c", "/..%3b/a", "/a/..%3Bx/b", "/.;/",
		"/a%2fb", "/a%2Fb", "/a%5cb", `/a\b`, "/a%00", "/a%0a", "/a%7f", "/a%", "/a%2", "/a%zz", "/%u002e", "/a%252e", "/a%2525g", "/a%252fb",
		"/%c0%ae", "/%c0%af", "/%ff", "/%ef%bc%8e", "/%EF%BC%8F", "/... /a", "/.%20/a", "/..%20", "/..?x",
	}
	for _, p := range plain {
		if Ambiguous(p) {
			t.Errorf("%q is ambiguous", p)
		}
	}
	for _, p := range ambiguous {
		if !Ambiguous(p) {
			t.Errorf("%q is not ambiguous", p)
		}
	}
}

func TestGuard(t *testing.T) {
	g, err := NewGuard([]rule.HTTPRule{
		{Method: str("GET"), Path: str("/public/.*")},
		{Method: str("GET"), Path: str("^/a%2Fb$")},
		{Method: str("PUT")},
		{Method: str("HEAD"), Path: str("/[^p].*")},
	})
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, method, path string
		index              int
		ok, ambiguous      bool
	}{
		{"a pattern", "GET", "/public/a", 0, true, false},
		{"no rule", "GET", "/private", 0, false, false},
		{"a pattern does not match an ambiguous path", "GET", "/public/%2e%2e/private", 0, false, true},
		{"an ambiguous path that nothing would match", "GET", "/..", 0, false, false},
		{"an exact rule matches its own spelling", "GET", "/a%2Fb", 1, true, false},
		{"and no other", "GET", "/a%2fb", 0, false, false},
		{"a rule without a path matches any", "PUT", "/public/../x", 2, true, false},
		{"a needless escape that is let pass without it too", "GET", "/public/%61", 0, true, false},
		{"a needless escape that hides what is not let pass", "HEAD", "/%70rivate/a?x=%70", 0, false, true},
		{"and what is", "HEAD", "/other%2Da?x", 3, true, false},
		{"dots in a query are none", "GET", "/public/a?../..", 0, true, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			index, ok, ambiguous := g.Match(Request{Method: tt.method, Path: tt.path})
			if index != tt.index || ok != tt.ok || ambiguous != tt.ambiguous {
				t.Errorf("Match = %d, %v, %v, want %d, %v, %v", index, ok, ambiguous, tt.index, tt.ok, tt.ambiguous)
			}
		})
	}
	if _, err := NewGuard([]rule.HTTPRule{{Path: str("(")}}); err == nil {
		t.Error("a bad expression compiles")
	}
}
