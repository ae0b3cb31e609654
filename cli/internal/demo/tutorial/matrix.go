package tutorial

import (
	"context"
	"fmt"
	"strings"

	"golang.org/x/sync/errgroup"
)

// Limits of the matrix.
const (
	tries   = 60 // by the Service, until the wanted pod was reached
	abreast = 4  // cells at once
)

// cell is one way from a client to the server.
type cell struct {
	family  int  // 0: IPv4, 1: IPv6
	other   bool // the server's pod is on another node
	service bool // by the Service's address, else by the pod's
}

func cells() []cell {
	var out []cell
	for family := range 2 {
		for _, other := range []bool{false, true} {
			for _, service := range []bool{true, false} {
				out = append(out, cell{family, other, service})
			}
		}
	}
	return out
}

func (c cell) String() string {
	return fmt.Sprintf("%s  %-10s  by %-11s", []string{"IPv4", "IPv6"}[c.family],
		map[bool]string{false: "same node", true: "other node"}[c.other],
		map[bool]string{false: "pod address", true: "Service"}[c.service])
}

// line is what a cell showed.
type line struct {
	said   []string
	failed bool
}

func (l *line) say(format string, args ...any)  { l.said = append(l.said, fmt.Sprintf(format, args...)) }
func (l *line) fail(format string, args ...any) { l.failed = true; l.say("✗ "+format, args...) }

// matrixOpen asks every cell while there is no policy.
func (r *runner) matrixOpen(ctx context.Context) error {
	r.title("Every way, without a policy")
	return r.matrix(ctx, r.openCell)
}

// matrixClosed asks every cell while the policy is in force.
func (r *runner) matrixClosed(ctx context.Context) error {
	r.title("Every way, with the policy")
	return r.matrix(ctx, r.closedCell)
}

func (r *runner) matrix(ctx context.Context, ask func(context.Context, cell, *line)) error {
	all := cells()
	lines := make([]line, len(all))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(abreast)
	for i, c := range all {
		g.Go(func() error {
			ask(gctx, c, &lines[i])
			return gctx.Err()
		})
	}
	err := g.Wait()
	for i, c := range all {
		r.check(!lines[i].failed && len(lines[i].said) > 0, "%s  %s", c, strings.Join(lines[i].said, "; "))
	}
	return err
}

// server is the pod that the client reaches in this cell.
func (r *runner) server(c cell, client string) (pod, bool) {
	for _, p := range r.app1 {
		if (p.node != r.clients[client].node) == c.other {
			return p, true
		}
	}
	return pod{}, false
}

func (r *runner) address(c cell, server pod) string {
	if c.service {
		return r.service[c.family]
	}
	return server.addresses[c.family]
}

func (r *runner) openCell(ctx context.Context, c cell, l *line) {
	for _, client := range []string{"app2", "app3"} {
		for _, path := range []string{"/public", "/private"} {
			r.wantServed(ctx, c, l, client, "80", path)
		}
	}
	if !c.service {
		r.wantServed(ctx, c, l, "app2", otherPort, "/public")
	}
}

func (r *runner) closedCell(ctx context.Context, c cell, l *line) {
	r.wantServed(ctx, c, l, "app2", "80", "/public")
	r.wantRefused(ctx, c, l, "app2", "80", "/private", response.denied)
	r.wantRefused(ctx, c, l, "app3", "80", "/public", response.timedOut)
	r.wantRefused(ctx, c, l, "app3", "80", "/private", response.timedOut)
	if !c.service {
		r.wantRefused(ctx, c, l, "app2", otherPort, "/public", response.timedOut)
	}
}

// wantServed asks until the cell's pod has logged the client's own address and
// port; every answer must be the server's.
func (r *runner) wantServed(ctx context.Context, c cell, l *line, client, port, path string) {
	server, ok := r.server(c, client)
	if !ok {
		l.fail("%s has no server on that node", client)
		return
	}
	for n := 1; n <= tries && ctx.Err() == nil; n++ {
		got := r.curl(ctx, client, r.address(c, server), port, path)
		if !got.opened(path) {
			l.fail("%s :%s%s: %s", client, port, path, got)
			return
		}
		if r.served(ctx, server, got, path) {
			l.say("%s :%s%s 200 (%d)", client, port, path, n)
			return
		}
		if !c.service {
			break
		}
	}
	l.fail("%s :%s%s: %s never logged the client's own address and port", client, port, path, server.name)
}

// wantRefused asks until the node of the cell's pod has refused; every answer
// must be the refusal, and have its flow.
func (r *runner) wantRefused(ctx context.Context, c cell, l *line, client, port, path string, want func(response) bool) {
	server, ok := r.server(c, client)
	if !ok {
		l.fail("%s has no server on that node", client)
		return
	}
	for n := 1; n <= tries && ctx.Err() == nil; n++ {
		got := r.curl(ctx, client, r.address(c, server), port, path)
		if !want(got) {
			l.fail("%s :%s%s: %s", client, port, path, got)
			return
		}
		flow, told := r.flows.refusal(ctx, got, r.clients[client])
		if !told {
			l.fail("%s :%s%s: %s, but no flow tells why", client, port, path, got)
			return
		}
		if flow.GetDestination().GetPod() == server.name {
			answer := "time-out"
			if got.status != 0 {
				answer = fmt.Sprint(got.status)
			}
			l.say("%s :%s%s %s %s (%d)", client, port, path, answer, flow.GetReason(), n)
			return
		}
		if !c.service {
			break
		}
	}
	l.fail("%s :%s%s: %s's node never refused", client, port, path, server.name)
}
