package demo

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"weir.dev/weir/cli/internal/demo/control"
	"weir.dev/weir/cli/internal/demo/fabric"
	"weir.dev/weir/cli/internal/demo/layout"
	"weir.dev/weir/cli/internal/demo/proc"
	"weir.dev/weir/cli/internal/parts"
)

// partSet are Weir's own processes in a demo.
type partSet struct {
	demo  parts.Demo
	order []layout.Part
	procs map[string]*proc.Process
}

func newPartSet(d parts.Demo, f *fabric.Fabric, cfg Config, env []string) *partSet {
	s := &partSet{demo: d, procs: map[string]*proc.Process{}}
	if cfg.Parts == PartsNone {
		return s
	}
	s.order = layout.AllParts(d)
	for _, p := range s.order {
		path, space := filepath.Join(cfg.Bin, p.Binary), f.Control
		if p.Binary == filepath.Base(cfg.Exe) {
			path = cfg.Exe
		}
		if p.Node != "" {
			space = f.Node(p.Node)
		}
		s.procs[p.Name] = proc.New(proc.Spec{
			Name: p.Name, Path: path, Args: p.Args, Env: env,
			Space: space, Dir: filepath.Dir(d.Log(p.Name)),
		})
	}
	return s
}

// startAll starts the parts, each after those it needs, and waits until all
// are ready.
func (s *partSet) startAll(ctx context.Context, say func(string, ...any)) error {
	ctx, cancel := context.WithTimeout(ctx, partsLimit)
	defer cancel()
	begun := time.Now()
	g, ctx := errgroup.WithContext(ctx)
	ready := map[string]chan struct{}{}
	for _, p := range s.order {
		ready[p.Name] = make(chan struct{})
	}
	for _, p := range s.order {
		g.Go(func() error {
			for _, before := range p.After {
				select {
				case <-ready[before]:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			if err := s.procs[p.Name].Start(); err != nil {
				return err
			}
			if err := proc.AwaitReady(ctx, s.procs[p.Name], s.demo.HTTPSocket(p.Name)); err != nil {
				return err
			}
			close(ready[p.Name])
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if len(s.order) > 0 {
		say("parts: %d ready after %.1f s", len(s.order), time.Since(begun).Seconds())
	}
	return nil
}

func (s *partSet) list() []proc.Status {
	out := []proc.Status{}
	for _, p := range s.order {
		out = append(out, s.procs[p.Name].Status())
	}
	return out
}

func (s *partSet) act(ctx context.Context, part, action string) error {
	p, ok := s.procs[part]
	if !ok {
		names := []string{}
		for _, p := range s.order {
			names = append(names, p.Name)
		}
		return fmt.Errorf("%w part %q: there are %s", control.ErrUnknown, part, strings.Join(names, ", "))
	}
	if !slices.Contains([]string{control.Start, control.Stop, control.Kill, control.Restart}, action) {
		return fmt.Errorf("%w action %q", control.ErrUnknown, action)
	}
	switch action {
	case control.Stop:
		return p.Stop(ctx)
	case control.Kill:
		return p.Kill()
	case control.Restart:
		if p.Status().State == proc.Running {
			if err := p.Stop(ctx); err != nil {
				return err
			}
		}
	}
	if err := p.Start(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, partsLimit)
	defer cancel()
	return proc.AwaitReady(ctx, p, s.demo.HTTPSocket(part))
}
