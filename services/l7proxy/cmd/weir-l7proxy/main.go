// Command weir-l7proxy judges HTTP requests on a node, beside its enforcer. A
// privileged parent starts a worker without privileges, which does the work.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"weir.dev/weir/internal/logkey"
	"weir.dev/weir/internal/server"
	"weir.dev/weir/services/l7proxy/internal/parent"
	"weir.dev/weir/services/l7proxy/internal/sandbox"
	"weir.dev/weir/services/l7proxy/internal/worker"
)

func main() { os.Exit(run(os.Args[1:], os.Stderr)) }

// options are the flags, of the parent and the worker alike.
type options struct {
	node, runDir, socket, http string
	logLevel, logFormat        string
}

func parse(args []string, stderr io.Writer) (options, error) {
	var o options
	fs := flag.NewFlagSet("weir-l7proxy", flag.ContinueOnError)
	fs.SetOutput(io.Discard) // one line says what is wrong
	fs.StringVar(&o.node, "node", "", "name of this node")
	fs.StringVar(&o.runDir, "run-dir", "/run/weir", "folder of the enforcer beside this proxy; holds handover.sock")
	fs.StringVar(&o.socket, "socket", "", "unix socket for gRPC, 0600 (default RUN-DIR/proxy.sock)")
	fs.StringVar(&o.http, "http", "", "unix socket for /metrics, /livez and /readyz")
	fs.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
	fs.StringVar(&o.logFormat, "log-format", "text", "text or json")
	if err := fs.Parse(args); errors.Is(err, flag.ErrHelp) {
		fs.SetOutput(stderr)
		fs.Usage()
		return o, err
	} else if err != nil {
		return o, err
	}
	if fs.NArg() > 0 {
		return o, fmt.Errorf("argument %q: want flags only", fs.Arg(0))
	}
	if o.node == "" {
		return o, errors.New("--node is missing: want the name of this node")
	}
	if o.socket == "" {
		o.socket = filepath.Join(o.runDir, "proxy.sock")
	}
	return o, nil
}

func run(args []string, stderr io.Writer) int {
	enter := func() error { return start(args, stderr) }
	if sandbox.IsJail() {
		enter = sandbox.Enter // returns only if it did not work
	}
	err := enter()
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return 0
	default:
		fmt.Fprintln(stderr, "weir-l7proxy:", err)
		return 1
	}
}

func start(args []string, stderr io.Writer) error {
	o, err := parse(args, stderr)
	if err != nil {
		return err
	}
	log, err := server.Logger(o.logLevel, o.logFormat)
	if err != nil {
		return err
	}
	log = log.With(logkey.Node, o.node)
	if sandbox.IsWorker() {
		return runWorker(o, log)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	return parent.Run(ctx, parent.Config{
		RunDir: o.runDir, Socket: o.socket, HTTP: o.http, Args: args, Stderr: stderr,
	}, log)
}

// runWorker is the worker's life. Signals are the parent's to act on, which
// ends the worker in order.
func runWorker(o options, log *slog.Logger) error {
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	if err := sandbox.Seal(); err != nil {
		return err
	}
	files := worker.Files{Parent: sandbox.File(0), GRPC: sandbox.File(1)}
	if o.http != "" {
		files.HTTP = sandbox.File(2)
	}
	return worker.Run(context.Background(), files, log)
}
