// Command weir-bypass runs a corpus of HTTP inputs that try to get round an
// allow-list, FILE in the format of services/l7proxy/internal/http1/testdata,
// through a real proxy on loopback. It prints what failed and how many passed,
// and exits 1 if any failed.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"weir.dev/weir/services/l7proxy/internal/bypass"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	fs := flag.NewFlagSet("weir-bypass", flag.ContinueOnError)
	fs.SetOutput(stderr)
	verbose := fs.Bool("v", false, "print what became of each case")
	fs.Usage = func() {
		fmt.Fprintln(stderr, "usage: weir-bypass [-v] FILE")
		fs.PrintDefaults()
	}
	if err := fs.Parse(args); err != nil {
		return 2
	}
	if fs.NArg() != 1 {
		fs.Usage()
		return 2
	}
	failed, err := report(ctx, fs.Arg(0), *verbose, stdout)
	if err != nil {
		fmt.Fprintln(stderr, "weir-bypass:", err)
		return 1
	}
	return min(failed, 1)
}

// report runs a corpus and returns how many of its cases failed.
func report(ctx context.Context, path string, verbose bool, w io.Writer) (failed int, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	corpus, err := bypass.Parse(b)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	results, err := corpus.Run(ctx)
	if err != nil {
		return 0, err
	}
	for _, r := range results {
		if r.Problem != "" {
			failed++
			fmt.Fprintf(w, "%s %s: %s (%s)\n", r.Case.ID, r.Case.Class, r.Problem, r.Case.Note)
		} else if verbose {
			fmt.Fprintf(w, "%s %s: %s\n", r.Case.ID, r.Case.Class, r.Outcome)
		}
	}
	fmt.Fprintf(w, "%d passed, %d failed\n", len(results)-failed, failed)
	return failed, nil
}
