// Package parent is the privileged part of weir-l7proxy: it takes what the
// enforcer hands over, makes transparent sockets, and passes both to a worker
// without privileges, which alone parses anything. What comes from the worker
// it believes no more than it must: a worker may ask for sockets and say that
// it accepts.
//
// It imports internal/handover, internal/logkey, sandbox, upstream, x/sync and
// the standard library.
package parent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"weir.dev/weir/internal/handover"
	"weir.dev/weir/internal/logkey"
	"weir.dev/weir/services/l7proxy/internal/sandbox"
	"weir.dev/weir/services/l7proxy/internal/upstream"
)

// Config of a Parent.
type Config struct {
	RunDir string   // has handover.sock
	Socket string   // of gRPC
	HTTP   string   // of /metrics; empty: none
	Args   []string // of the worker
	Stderr io.Writer
}

const (
	retireWithin = 2 * time.Second  // for an enforcer to take over
	drainWithin  = 30 * time.Second // for the worker to end after it was told to
	redial       = 100 * time.Millisecond
)

// A Parent runs one worker.
type Parent struct {
	cfg    Config
	log    *slog.Logger
	worker *handover.Conn

	mu       sync.Mutex
	makers   map[handover.Namespace]*upstream.Maker
	enforcer *handover.Conn // nil: none is connected
	retired  chan struct{}  // closed when the worker must end
	once     sync.Once
	accepts  bool
}

// Run runs a proxy until ctx ends or the enforcer lets it go. It returns nil
// after a clean end.
func Run(ctx context.Context, cfg Config, log *slog.Logger) error {
	p := &Parent{cfg: cfg, log: log, makers: map[handover.Namespace]*upstream.Maker{}, retired: make(chan struct{})}
	cmd, err := p.spawn(ctx)
	if err != nil {
		return err
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	g, running := errgroup.WithContext(running)
	served := make(chan error, 1)
	go func() { served <- p.serveWorker() }()
	g.Go(func() error { return p.followEnforcer(running) })
	err = p.supervise(ctx, exited, cmd)
	if serve := <-served; err == nil { // the worker's last words are passed on
		err = serve
	}
	cancel()
	closed := p.worker.Close()
	if follow := g.Wait(); err == nil {
		err = follow
	}
	p.closeMakers()
	return errors.Join(err, closed)
}

// spawn starts the worker with its listeners.
func (p *Parent) spawn(ctx context.Context) (*exec.Cmd, error) {
	if err := os.MkdirAll(p.cfg.RunDir, 0o700); err != nil {
		return nil, err
	}
	ours, theirs, err := handover.Pair()
	if err != nil {
		return nil, err
	}
	files := []*os.File{theirs}
	defer func() { handover.CloseAll(files) }()
	for _, path := range []string{p.cfg.Socket, p.cfg.HTTP} {
		if path == "" {
			continue
		}
		f, err := listenUnix(ctx, path)
		if err != nil {
			return nil, errors.Join(err, ours.Close())
		}
		files = append(files, f)
	}
	cmd, err := sandbox.Spawn(context.WithoutCancel(ctx), p.cfg.RunDir, p.cfg.Args, p.cfg.Stderr, files...)
	if err != nil {
		return nil, errors.Join(err, ours.Close())
	}
	p.worker = ours
	return cmd, nil
}

// listenUnix listens on path, which only root may open. It takes the path from
// a proxy that still listens on it, without a moment in which nobody does.
func listenUnix(ctx context.Context, path string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	next := path + ".next"
	if err := os.Remove(next); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	ln, err := (&net.ListenConfig{}).Listen(ctx, "unix", next)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	ul, ok := ln.(*net.UnixListener)
	if !ok {
		return nil, errors.Join(fmt.Errorf("listen on %s: not a unix listener", path), ln.Close())
	}
	ul.SetUnlinkOnClose(false)
	f, err := ul.File()
	err = errors.Join(err, ul.Close(), os.Chmod(next, 0o600), os.Rename(next, path))
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return f, nil
}

// supervise waits for the end, and brings it about in order.
func (p *Parent) supervise(ctx context.Context, exited <-chan error, cmd *exec.Cmd) error {
	select {
	case err := <-exited:
		return fmt.Errorf("worker ended: %w", orEnd(err))
	case <-p.retired:
	case <-ctx.Done():
		p.askToRetire()
	}
	p.log.Info("retiring")
	limit := time.NewTimer(drainWithin)
	defer limit.Stop()
	if err := p.worker.Send(handover.Message{Kind: handover.Retire}); err != nil {
		p.log.Warn("tell the worker to end", logkey.Error, err)
	}
	select {
	case err := <-exited:
		return err
	case <-limit.C:
		return errors.Join(errors.New("worker did not end and was killed"), cmd.Process.Kill(), <-exited)
	}
}

func orEnd(err error) error {
	if err == nil {
		return errors.New("of its own accord")
	}
	return err
}

// askToRetire tells the enforcer, and waits a moment for it to take over.
func (p *Parent) askToRetire() {
	p.mu.Lock()
	enforcer := p.enforcer
	p.mu.Unlock()
	if enforcer == nil {
		return
	}
	if err := enforcer.Send(handover.Message{Kind: handover.Retiring}); err != nil {
		return // it is gone
	}
	limit := time.NewTimer(retireWithin)
	defer limit.Stop()
	select {
	case <-p.retired:
	case <-limit.C:
	}
}

func (p *Parent) retire() { p.once.Do(func() { close(p.retired) }) }

// serveWorker does what the worker asks for until it ends. One that asks for
// anything else must end.
func (p *Parent) serveWorker() error {
	for {
		m, files, err := p.worker.Receive()
		if err != nil {
			return nil // it has ended, which supervise sees too
		}
		if m.Kind == handover.Connection {
			p.passOn(m, files)
			continue
		}
		handover.CloseAll(files)
		switch m.Kind {
		case handover.Want:
			if err := p.makeSockets(m); err != nil {
				p.log.Error("make sockets", logkey.Error, err)
			}
		case handover.Accepting:
			p.accepting()
		default:
			p.retire()
			return fmt.Errorf("message of kind %q from the worker", m.Kind)
		}
	}
}

// passOn gives a connection of the worker's to the enforcer.
func (p *Parent) passOn(m handover.Message, files []*os.File) {
	p.mu.Lock()
	enforcer := p.enforcer
	p.mu.Unlock()
	if enforcer == nil {
		handover.CloseAll(files) // nobody could keep it: it ends
		return
	}
	if err := enforcer.Forward(m, files); err != nil {
		p.log.Warn("hand a connection over", logkey.Error, err)
	}
}

func (p *Parent) makeSockets(m handover.Message) error {
	p.mu.Lock()
	maker := p.makers[m.Namespace]
	p.mu.Unlock()
	reply := handover.Message{Kind: handover.Sockets, Namespace: m.Namespace, Family: m.Family}
	if maker == nil {
		return errors.Join(fmt.Errorf("no namespace %q", m.Namespace), p.worker.Send(reply))
	}
	files, err := maker.Make(m.Family, m.Count)
	if err != nil {
		return errors.Join(err, p.worker.Send(reply))
	}
	defer handover.CloseAll(files)
	fds := make([]uintptr, len(files))
	for i, f := range files {
		fds[i] = f.Fd()
	}
	return p.worker.Send(reply, fds...)
}

// accepting tells the enforcer that connections are in good hands.
func (p *Parent) accepting() {
	p.mu.Lock()
	p.accepts = true
	enforcer := p.enforcer
	p.mu.Unlock()
	if enforcer == nil {
		return
	}
	if err := enforcer.Send(handover.Message{Kind: handover.Accepting}); err != nil {
		p.log.Warn("tell the enforcer", logkey.Error, err)
	}
}

// followEnforcer keeps a connection to the enforcer of the node, and passes on
// what it hands over. An enforcer that goes takes nothing with it.
func (p *Parent) followEnforcer(ctx context.Context) error {
	path := filepath.Join(p.cfg.RunDir, "handover.sock")
	for {
		err := p.withEnforcer(ctx, path)
		if ctx.Err() != nil {
			return nil
		}
		p.log.Debug("no enforcer", logkey.Error, err)
		t := time.NewTimer(redial)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-t.C:
		}
	}
}

func (p *Parent) withEnforcer(ctx context.Context, path string) error {
	c, err := handover.Dial(ctx, path)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer func() {
		if stop() {
			_ = c.Close()
		}
	}()
	p.setEnforcer(c)
	defer p.setEnforcer(nil)
	for {
		m, files, err := c.Receive()
		if err != nil {
			return err
		}
		switch m.Kind {
		case handover.Connection:
			err, files = p.worker.Forward(m, files), nil
		case handover.Offer:
			err = p.offered(m, files)
		case handover.Retire:
			p.retire()
		default:
			err = fmt.Errorf("message of kind %q from the enforcer", m.Kind)
		}
		handover.CloseAll(files)
		if err != nil {
			return err
		}
	}
}

func (p *Parent) setEnforcer(c *handover.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.enforcer = c
}

// offered keeps the namespaces, and passes the rest to the worker.
func (p *Parent) offered(m handover.Message, files []*os.File) error {
	pass := handover.Message{Kind: handover.Offer}
	var fds []uintptr
	for i, name := range m.Files {
		switch name {
		case handover.NetnsIn:
			if err := p.setMaker(handover.In, files[i]); err != nil {
				return err
			}
		case handover.NetnsOut:
			if err := p.setMaker(handover.Out, files[i]); err != nil {
				return err
			}
		case handover.ListenerIn4, handover.ListenerIn6, handover.ListenerOut4, handover.ListenerOut6, handover.CtTCP, handover.Word:
			pass.Files = append(pass.Files, name)
			fds = append(fds, handover.Descriptor(files[i]))
		default:
			return fmt.Errorf("the enforcer hands over a %q", name)
		}
	}
	p.log.Info("handed over by the enforcer", logkey.Count, len(m.Files))
	return p.worker.Send(pass, fds...)
}

func (p *Parent) setMaker(ns handover.Namespace, netns *os.File) error {
	maker, err := upstream.NewMaker(netns)
	if err != nil {
		return err
	}
	p.mu.Lock()
	old := p.makers[ns]
	p.makers[ns] = maker
	p.mu.Unlock()
	if old != nil {
		old.Close()
	}
	return nil
}

func (p *Parent) closeMakers() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, m := range p.makers {
		m.Close()
	}
}
