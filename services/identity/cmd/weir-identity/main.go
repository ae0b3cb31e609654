// Command weir-identity turns pods into identities and addresses.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	kitserver "weir.dev/weir/internal/server"
	"weir.dev/weir/internal/version"
	"weir.dev/weir/services/identity/internal/replica"
)

func main() {
	if err := run(os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "weir-identity:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	var cfg replica.Config
	var level, format string
	fs := flag.NewFlagSet("weir-identity", flag.ContinueOnError)
	fs.StringVar(&cfg.Name, "name", "identity-0", "`name` of this replica")
	fs.StringVar(&cfg.Cluster, "cluster", "default", "`name` of the cluster, part of every identity")
	fs.StringVar(&cfg.NATS, "nats", "", "`URL` of NATS: tls://HOST:PORT")
	fs.Func("manifests", "`folder` of Kubernetes YAML to read (repeatable)", func(dir string) error {
		cfg.Manifests = append(cfg.Manifests, dir)
		return nil
	})
	fs.StringVar(&cfg.Server.Listen, "listen", "", "`HOST:PORT` to serve gRPC on, with TLS")
	fs.StringVar(&cfg.Server.TLSDir, "tls-dir", "", "`folder` with ca.crt, tls.crt, tls.key")
	fs.StringVar(&cfg.Server.Socket, "socket", "", "`path` of a unix socket to serve gRPC on, for the operator")
	fs.StringVar(&cfg.Server.HTTP, "http", "", "`path` of a unix socket for /metrics, /livez, /readyz")
	fs.StringVar(&level, "log-level", "info", "debug, info, warn or error")
	fs.StringVar(&format, "log-format", "text", "text or json")
	fs.SetOutput(io.Discard) // main prints the one line that counts
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			fs.SetOutput(os.Stdout)
			fmt.Println("Usage: weir-identity --name NAME --nats URL --tls-dir DIR --manifests DIR [flags]")
			fs.PrintDefaults()
		}
		return err
	}
	cfg.Server.Version = version.Version
	switch {
	case fs.NArg() > 0:
		return fmt.Errorf("%q is no flag: all of its input are flags (see --help)", fs.Arg(0))
	case cfg.NATS == "":
		return errors.New("--nats is required (see --help)")
	case cfg.Server.TLSDir == "":
		return errors.New("--tls-dir is required (see --help)")
	case len(cfg.Manifests) == 0:
		return errors.New("--manifests is required (see --help)")
	}
	log, err := kitserver.Logger(level, format)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	return replica.Run(ctx, cfg, log)
}
