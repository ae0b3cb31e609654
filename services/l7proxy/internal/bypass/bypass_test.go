package bypass

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func corpus(t *testing.T) *Corpus {
	t.Helper()
	b, err := os.ReadFile("../http1/testdata/http-bypass.json")
	if err != nil {
		t.Fatal(err)
	}
	c, err := Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// No case of the corpus gets round the policy.
func TestCorpus(t *testing.T) {
	results, err := corpus(t).Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range results {
		if r.Problem != "" {
			t.Errorf("%s %s: %s (%s)", r.Case.ID, r.Case.Class, r.Problem, r.Case.Note)
		}
	}
}

// A policy that lets everything pass fails the corpus: the check does see what
// reaches the server.
func TestCheckSeesWhatPasses(t *testing.T) {
	c := corpus(t)
	c.Policy.Allow = []string{"[A-Za-z]+ .*", "GET /private"}
	results, err := c.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	failed := map[string]bool{}
	for _, r := range results {
		if r.Problem != "" {
			failed[r.Case.ID] = true
		}
	}
	for _, id := range []string{"B02", "B15", "B22", "B35", "B43", "B73", "B81", "B82"} {
		if !failed[id] {
			t.Errorf("%s passes though everything is allowed", id)
		}
	}
}

func TestCheck(t *testing.T) {
	c := Case{Acceptable: []string{"403", "forward:GET /a (without Upgrade); second:403", "close"}}
	tests := []struct {
		name string
		got  outcome
		ok   bool
	}{
		{"a denial", outcome{responses: []response{{status: 403, body: "Access denied"}}}, true},
		{"a denial with another body", outcome{responses: []response{{status: 403, body: "no"}}}, false},
		{"a denial of a HEAD", outcome{responses: []response{{status: 403, head: true}}}, true},
		{"a denial of the server's", outcome{responses: []response{{status: 403, fromServer: true, body: "Access denied"}}}, false},
		{"another status", outcome{responses: []response{{status: 400}}}, false},
		{"a close", outcome{closed: true}, true},
		{"nothing at all", outcome{}, false},
		{"forwarded, the second denied", outcome{
			reached:   []request{{request: "GET /a"}},
			responses: []response{{status: 200, fromServer: true}, {status: 403, body: "Access denied"}},
		}, true},
		{"forwarded with its upgrade", outcome{
			reached:   []request{{request: "GET /a", upgrade: true}},
			responses: []response{{status: 200, fromServer: true}, {status: 403, body: "Access denied"}},
		}, false},
		{"another request reached the server", outcome{
			reached: []request{{request: "GET /b"}}, responses: []response{{status: 403, body: "Access denied"}},
		}, false},
		{"bytes after a switch reached the server", outcome{
			reached: []request{{request: "GET /a"}, {request: "GET /a", tunnelled: true}}, closed: true,
		}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := c.check(tt.got); (got == "") != tt.ok {
				t.Errorf("check(%s) = %q, want ok %v", tt.got, got, tt.ok)
			}
		})
	}
}
