// Command weir-enforcer enforces policy on one node: it keeps the kernel's maps
// as the policy says, and feeds the HTTP proxy beside it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	kitserver "weir.dev/weir/internal/server"
	"weir.dev/weir/internal/version"
	"weir.dev/weir/services/enforcer/internal/node"
)

func main() {
	if err := run(os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "weir-enforcer:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	var cfg node.Config
	var level, format, identity, policy string
	fs := flag.NewFlagSet("weir-enforcer", flag.ContinueOnError)
	fs.StringVar(&cfg.Node, "node", "", "`name` of this node, as Kubernetes knows it")
	fs.StringVar(&cfg.NATS, "nats", "", "`URL` of NATS: tls://HOST:PORT")
	fs.StringVar(&identity, "identity", "", "weir-identity replicas: `HOST:PORT,…`")
	fs.StringVar(&policy, "policy", "", "weir-policy replicas: `HOST:PORT,…`")
	fs.Func("cluster-cidr", "`range` of pod addresses (repeatable): an unknown address inside is not judged", func(s string) error {
		p, err := netip.ParsePrefix(s)
		cfg.ClusterCIDRs = append(cfg.ClusterCIDRs, p.Masked())
		return err
	})
	fs.StringVar(&cfg.BPFFS, "bpffs", "/sys/fs/bpf", "`folder` of a mounted BPF file system")
	fs.StringVar(&cfg.RunDir, "run-dir", "/run/weir", "`folder` for sockets, namespaces and what a restart needs")
	fs.StringVar(&cfg.ProxySocket, "proxy-socket", "", "`path` of the HTTP proxy's socket (default RUN-DIR/proxy.sock)")
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
	for _, required := range []struct{ name, value string }{
		{"--node", cfg.Node}, {"--nats", cfg.NATS}, {"--identity", identity}, {"--policy", policy}, {"--tls-dir", cfg.Server.TLSDir},
	} {
		if required.value == "" {
			return fmt.Errorf("%s is required (see --help)", required.name)
		}
	}
	if cfg.ProxySocket == "" {
		cfg.ProxySocket = filepath.Join(cfg.RunDir, "proxy.sock")
	}
	cfg.Identity, cfg.Policy = strings.Split(identity, ","), strings.Split(policy, ",")
	cfg.Server.Version = version.Version
	log, err := kitserver.Logger(level, format)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	return node.Run(ctx, cfg, log)
}
