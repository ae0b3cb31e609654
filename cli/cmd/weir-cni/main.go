// The CNI plugin that a container runtime calls for each pod.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/containernetworking/cni/pkg/skel"

	"weir.dev/weir/cli/internal/cni"
	"weir.dev/weir/internal/version"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	failed := skel.PluginMainFuncsWithError(cni.Funcs(ctx), cni.Versions(), "CNI plugin weir-cni "+version.Version)
	if failed == nil {
		return
	}
	if err := failed.Print(); err != nil {
		fmt.Fprintln(os.Stderr, "print the CNI error:", err)
	}
	stop()
	os.Exit(1) //nolint:gocritic // stop has been called
}
