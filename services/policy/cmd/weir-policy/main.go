// Command weir-policy resolves policies and tells each node what it needs of them.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	kitserver "weir.dev/weir/internal/server"
	"weir.dev/weir/internal/version"
	"weir.dev/weir/services/policy/internal/replica"
)

func main() {
	if err := run(os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "weir-policy:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	var cfg replica.Config
	var level, format string
	fs := flag.NewFlagSet("weir-policy", flag.ContinueOnError)
	fs.StringVar(&cfg.Name, "name", "policy-0", "`name` of this replica")
	fs.StringVar(&cfg.Cluster, "cluster", "default", "`name` of the cluster, that policies speak of")
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
			fs.PrintDefaults()
		}
		return err
	}
	cfg.Server.Version = version.Version
	for name, value := range map[string]string{
		"--nats": cfg.NATS, "--tls-dir": cfg.Server.TLSDir, "--manifests": strings.Join(cfg.Manifests, ","),
	} {
		if value == "" {
			return fmt.Errorf("%s is required (see --help)", name)
		}
	}
	log, err := kitserver.Logger(level, format)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	return replica.Run(ctx, cfg, log)
}
