// weir-demo-app is what the demo's pods run: the tutorial's HTTP server, or a
// client that waits to be used by weir exec. Run by weir exec, load makes
// traffic and counts every answer (load.go), and sink is a server that tells
// the fate of every connection (sink.go).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintf(os.Stderr, "weir-demo-app: %v\n", err)
		os.Exit(1)
	}
}

// drain is how long requests may take after the server was told to stop.
const drain = time.Second

func run(ctx context.Context, args []string, in io.Reader, out io.Writer) error {
	command := ""
	if len(args) > 0 {
		command, args = args[0], args[1:]
	}
	switch command {
	case "idle":
		<-ctx.Done()
		return nil
	case "serve":
		return runServe(ctx, args, out)
	case "load":
		return runLoad(ctx, args, in, out)
	case "sink":
		return runSink(ctx, args, in, out)
	}
	return errors.New("usage: weir-demo-app serve [-listen ADDRESS,…] | idle | load STREAM… | sink [-listen ADDRESS,…]")
}

func runServe(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("serve", flag.ContinueOnError)
	listen := flags.String("listen", ":80,:8080", "addresses to listen on, with commas between them")
	if err := flags.Parse(args); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(out, nil))
	g, ctx := errgroup.WithContext(ctx)
	for addr := range strings.SplitSeq(*listen, ",") {
		srv := &http.Server{Addr: addr, Handler: handler(log, addr), ReadHeaderTimeout: 10 * time.Minute}
		g.Go(func() error {
			if err := srv.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("serve on %s: %w", addr, err)
			}
			return nil
		})
		g.Go(func() error {
			<-ctx.Done()
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
			defer cancel()
			if srv.Shutdown(ctx) != nil {
				return srv.Close()
			}
			return nil
		})
	}
	return g.Wait()
}

// handler answers with the tutorial's bodies, to the letter, and logs who asked.
func handler(log *slog.Logger, addr string) http.Handler {
	mux := http.NewServeMux()
	for path, body := range map[string]string{
		"/public":  "{ 'val': 'this is public' }",
		"/private": "{ 'val': 'this is private' }",
	} {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, body) // the client may be gone
		})
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		log.Info("request", "client", r.RemoteAddr, "method", r.Method, "path", r.URL.Path, "listen", addr)
		mux.ServeHTTP(w, r)
	})
}
