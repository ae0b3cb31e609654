// The weir command: demo, policies, explanations.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"weir.dev/weir/cli/internal/command"
	"weir.dev/weir/internal/netns"
)

func main() {
	if netns.IsHolder() {
		os.Exit(netns.Hold())
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := command.Run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
