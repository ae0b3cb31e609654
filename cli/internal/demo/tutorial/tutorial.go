// Package tutorial is weir demo run: it brings a demo up, does the tutorial step
// by step with the commands that a reader would type, then asks every way from
// the clients to the server, and takes the demo down. Nothing counts as shown
// that was not seen: an answer to the letter, or a refusal together with the
// flow that tells its reason.
package tutorial

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"weir.dev/weir/cli/internal/parts"
)

// What the tutorial's server answers.
const (
	publicBody  = "{ 'val': 'this is public' }"
	privateBody = "{ 'val': 'this is private' }"
	deniedBody  = "Access denied"
)

// Limits that the tutorial promises.
const (
	firstRefusal = 10 * time.Second // from the parts' start
	inForce      = time.Second      // from the policy's creation to every node
	podsLimit    = 30 * time.Second
)

// ErrShown says that a line did not show what it must.
var ErrShown = errors.New("not every line showed what it must")

// Config says what is run.
type Config struct {
	Demo  string // its name
	Exe   string // the weir command
	Bin   string // folder of the other binaries
	Files string // folder of demo.yaml and policy-v1.yaml
	Keep  bool   // leave the demo up
	Out   io.Writer
}

// runner does the tutorial. Its fields are set before the matrix begins, which
// only reads them.
type runner struct {
	cfg     Config
	demo    parts.Demo
	flows   *flows
	started time.Time // of the parts
	failed  int
	service []string // addresses of app1-service: IPv4, IPv6
	app1    []pod
	clients map[string]pod // app2, app3
	ports   ports
}

// Run shows everything and returns nil only if every line showed what it must.
func Run(ctx context.Context, cfg Config) (err error) {
	r := &runner{cfg: cfg, demo: parts.At(cfg.Demo), clients: map[string]pod{}}
	if _, err := os.Stat(filepath.Join(cfg.Files, "policy-v1.yaml")); err != nil {
		return fmt.Errorf("find the tutorial's files (say where with --files): %w", err)
	}
	if _, err := os.Stat(r.demo.Dir); err == nil {
		return fmt.Errorf("demo %q is up already: take it down with: weir demo down --name %s", cfg.Demo, cfg.Demo)
	}
	r.started = time.Now()
	if !cfg.Keep {
		defer func() {
			down := r.weir(context.WithoutCancel(ctx), "demo", "down", "--name", cfg.Demo)
			r.title("Take everything down")
			r.show(down)
			r.check(down.code == 0, "down")
			if err == nil && r.failed > 0 {
				err = ErrShown
			}
			r.verdict(err)
		}()
	}
	if err := r.up(ctx); err != nil {
		return err
	}
	watched, stop := context.WithCancel(ctx)
	defer stop()
	if r.flows, err = collect(watched, r.demo); err != nil {
		return err
	}
	defer r.flows.wait(stop)
	for _, step := range []func(context.Context) error{
		r.create, r.pods, r.open, r.policy, r.public, r.private, r.app3, r.otherPort, r.deletePolicy,
		r.matrixOpen, r.policyAgain, r.matrixClosed,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	if r.failed > 0 {
		return ErrShown
	}
	return nil
}

func (r *runner) verdict(err error) {
	if err == nil {
		fmt.Fprintf(r.cfg.Out, "\n✓ everything was shown, in %.0f s\n", time.Since(r.started).Seconds())
		return
	}
	fmt.Fprintf(r.cfg.Out, "\n✗ %v (%d lines)\n", err, r.failed)
}

func (r *runner) up(ctx context.Context) error {
	r.title("Bring up three nodes with every part of Weir")
	res := r.weir(ctx, "demo", "up", "--name", r.cfg.Demo, "--bin", r.cfg.Bin)
	r.show(res)
	r.check(res.code == 0, "up after %.1f s", time.Since(r.started).Seconds())
	if res.code != 0 {
		return errors.New("the demo did not come up")
	}
	return nil
}

// create is step 1.
func (r *runner) create(ctx context.Context) error {
	r.title("1. Create the Service and the deployments")
	res := r.weir(ctx, "create", "-f", filepath.Join(r.cfg.Files, "demo.yaml"))
	r.show(res)
	want := []string{"service/app1-service created", "deployment.apps/app1 created", "deployment.apps/app2 created", "deployment.apps/app3 created"}
	r.check(res.code == 0 && slices.Equal(strings.Split(strings.TrimSpace(res.out), "\n"), want), "the Service and three deployments are created")
	return ctx.Err()
}

// pods is step 2.
func (r *runner) pods(ctx context.Context) error {
	r.title("2. The pods run")
	limit, cancel := context.WithTimeout(ctx, podsLimit)
	defer cancel()
	err := until(limit, func() bool { return r.findPods(limit) == nil })
	res := r.weir(ctx, "get", "pods", "-o", "wide")
	r.show(res)
	if err != nil {
		r.check(false, "four pods run: %v", r.findPods(ctx))
		return errors.New("the pods do not run")
	}
	r.check(true, "four pods run; app1 on two nodes (%s, %s)", r.app1[0].node, r.app1[1].node)
	return ctx.Err()
}

// open is step 3.
func (r *runner) open(ctx context.Context) error {
	r.title("3. Without a policy everything is open")
	for _, client := range []string{"app2", "app3"} {
		for _, path := range []string{"/public", "/private"} {
			got := r.curl(ctx, client, r.service[0], "80", path)
			r.request(got)
			r.check(got.opened(path), "%s gets %s", client, path)
		}
	}
	return ctx.Err()
}

// policy is step 4.
func (r *runner) policy(ctx context.Context) error {
	r.title("4. Create the policy")
	return r.createPolicy(ctx)
}

func (r *runner) policyAgain(ctx context.Context) error {
	r.title("The policy again")
	return r.createPolicy(ctx)
}

func (r *runner) createPolicy(ctx context.Context) error {
	res := r.weir(ctx, "create", "-f", filepath.Join(r.cfg.Files, "policy-v1.yaml"))
	created := time.Now()
	r.show(res)
	r.check(res.code == 0 && strings.TrimSpace(res.out) == "ciliumnetworkpolicy.cilium.io/rule1 created", "the policy is created")
	limit, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	said := ""
	err := until(limit, func() bool {
		var ok bool
		ok, said = r.enforced(limit)
		return ok
	})
	took := time.Since(created)
	r.check(err == nil && took <= inForce, "in force on every node (%s) after %d ms; the limit is %v", said, took.Milliseconds(), inForce)
	return ctx.Err()
}

// public is step 5.
func (r *runner) public(ctx context.Context) error {
	r.title("5. app2 may GET /public")
	got := r.curl(ctx, "app2", r.service[0], "80", "/public")
	r.request(got)
	r.check(got.opened("/public"), "app2 gets /public")
	return ctx.Err()
}

// private is step 6.
func (r *runner) private(ctx context.Context) error {
	r.title("6. app2 may not GET /private")
	got := r.curl(ctx, "app2", r.service[0], "80", "/private")
	r.request(got)
	flow, ok := r.flows.refusal(ctx, got, r.clients["app2"])
	r.reason(flow, ok)
	r.check(got.denied() && ok, "status 403, %s, with its reason", deniedBody)
	took := time.Since(r.started)
	r.check(ok && took <= firstRefusal, "from the parts' start to the first refused request with its reason: %.1f s; the limit is %v", took.Seconds(), firstRefusal)
	return ctx.Err()
}

// app3 is step 7.
func (r *runner) app3(ctx context.Context) error {
	r.title("7. app3 gets no connection")
	for _, path := range []string{"/public", "/private"} {
		got := r.curl(ctx, "app3", r.service[0], "80", path)
		r.request(got)
		flow, ok := r.flows.refusal(ctx, got, r.clients["app3"])
		r.reason(flow, ok)
		r.check(got.timedOut() && ok, "time-out for %s, with its reason", path)
	}
	return ctx.Err()
}

// otherPort is step 8.
func (r *runner) otherPort(ctx context.Context) error {
	r.title("8. app2 gets no connection to another port")
	got := r.curl(ctx, "app2", r.app1[0].addresses[0], otherPort, "/public")
	r.request(got)
	flow, ok := r.flows.refusal(ctx, got, r.clients["app2"])
	r.reason(flow, ok)
	r.check(got.timedOut() && ok, "time-out for port %s, with its reason", otherPort)
	return ctx.Err()
}

// deletePolicy is step 9.
func (r *runner) deletePolicy(ctx context.Context) error {
	r.title("9. Delete the policy: everything is open again")
	res := r.weir(ctx, "delete", "cnp", "rule1")
	deleted := time.Now()
	r.show(res)
	r.check(res.code == 0 && strings.TrimSpace(res.out) == `ciliumnetworkpolicy.cilium.io "rule1" deleted`, "the policy is deleted")
	limit, cancel := context.WithTimeout(ctx, inForce)
	defer cancel()
	var got response
	err := until(limit, func() bool {
		got = r.curl(limit, "app2", r.service[0], "80", "/private")
		return got.opened("/private")
	})
	r.request(got)
	r.check(err == nil, "app2 gets /private again after %d ms; the limit is %v", time.Since(deleted).Milliseconds(), inForce)
	for _, path := range []string{"/public", "/private"} {
		got := r.curl(ctx, "app3", r.service[0], "80", path)
		r.request(got)
		r.check(got.opened(path), "app3 gets %s again", path)
	}
	got = r.curl(ctx, "app2", r.app1[0].addresses[0], otherPort, "/public")
	r.request(got)
	r.check(got.opened("/public"), "app2 gets port %s again", otherPort)
	return ctx.Err()
}

// until calls f again and again until it says yes or ctx ends.
func until(ctx context.Context, f func() bool) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !f() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
