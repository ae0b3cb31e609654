package demo

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"weir.dev/weir/cli/internal/exit"
	"weir.dev/weir/internal/natsserver"
	"weir.dev/weir/internal/server"
	"weir.dev/weir/internal/version"
)

// natsCommand is the demo's NATS: the library, with the configuration that
// deploy/nats installs.
func natsCommand() *cobra.Command {
	var cfg natsserver.Config
	var socket, level string
	cmd := &cobra.Command{
		Use: "nats", Short: "Run the NATS server of a demo, with deploy/nats/nats.conf", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := server.Logger(level, "text")
			if err != nil {
				return exit.With(exit.Usage, err)
			}
			cfg.Log = natsLog{log}
			srv, err := natsserver.Start(cfg)
			if err != nil {
				return err
			}
			kit, err := server.New(server.Config{HTTP: socket, Version: version.Version}, log, prometheus.NewRegistry())
			if err != nil {
				return err
			}
			kit.ReadyCheck("nats", func() error {
				if !srv.Running() {
					return errors.New("the server does not run")
				}
				return nil
			})
			err = kit.Run(cmd.Context())
			srv.Shutdown()
			srv.WaitForShutdown()
			return err
		},
	}
	cmd.Flags().StringVar(&cfg.Listen, "listen", "127.0.0.1:4222", "HOST:PORT to listen on")
	cmd.Flags().StringVar(&cfg.Store, "store", "", "folder of the JetStream store")
	cmd.Flags().StringVar(&cfg.TLSDir, "tls-dir", "", "folder of ca.crt, tls.crt and tls.key")
	cmd.Flags().StringVar(&socket, "http", "", "unix socket of /livez, /readyz and /metrics")
	cmd.Flags().StringVar(&level, "log-level", "info", "debug, info, warn or error")
	return cmd
}

// natsLog takes the server's own lines into the log.
type natsLog struct{ log *slog.Logger }

func (l natsLog) Noticef(format string, v ...any) { l.say(slog.LevelInfo, format, v) }
func (l natsLog) Warnf(format string, v ...any)   { l.say(slog.LevelWarn, format, v) }
func (l natsLog) Errorf(format string, v ...any)  { l.say(slog.LevelError, format, v) }
func (l natsLog) Fatalf(format string, v ...any)  { l.say(slog.LevelError, format, v) }
func (l natsLog) Debugf(format string, v ...any)  { l.say(slog.LevelDebug, format, v) }
func (l natsLog) Tracef(format string, v ...any)  { l.say(slog.LevelDebug, format, v) }

func (l natsLog) say(level slog.Level, format string, v []any) {
	l.log.Log(context.Background(), level, "nats", "text", fmt.Sprintf(format, v...))
}
