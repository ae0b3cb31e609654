// Package demo is weir demo: three nodes, the tutorial's pods and every part of
// Weir on one machine, in namespaces of their own. The daemon here owns the
// state folder of one demo; the commands beside it talk to it.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"weir.dev/weir/cli/internal/demo/control"
	"weir.dev/weir/cli/internal/demo/fabric"
	"weir.dev/weir/cli/internal/demo/kubelet"
	"weir.dev/weir/cli/internal/demo/layout"
	"weir.dev/weir/cli/internal/demo/proc"
	"weir.dev/weir/cli/internal/parts"
	"weir.dev/weir/internal/netns"
	"weir.dev/weir/internal/server"
	"weir.dev/weir/internal/tlsconf"
)

// Limits of the daemon's waits.
const (
	partsLimit = 60 * time.Second // for all parts to be ready
	killLimit  = 20 * time.Second // for the last process to be gone
)

// Which parts a demo has.
const (
	PartsAll  = "all"
	PartsNone = "none" // the network and pods alone: everything is open
)

// ErrUp says that the demo is up already.
var ErrUp = errors.New("is up already")

// nameForm keeps socket paths short enough for the kernel.
var nameForm = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,19}$`)

// Config says what is brought up.
type Config struct {
	Name  string
	Exe   string // the weir command itself: it holds namespaces
	Bin   string // folder of the binaries
	Parts string // PartsAll or PartsNone
}

type daemon struct {
	cfg    Config
	demo   parts.Demo
	out    io.Writer // what a person reads
	log    *slog.Logger
	fabric *fabric.Fabric
	parts  *partSet
	pods   *cluster
	down   context.CancelFunc
}

// Serve brings the demo up, calls ready and keeps it until ctx ends or somebody
// calls Down. Then it takes everything away again.
func Serve(ctx context.Context, cfg Config, out io.Writer, ready func() error) error {
	if !nameForm.MatchString(cfg.Name) {
		return fmt.Errorf("demo name %q: use at most 20 of a-z, 0-9 and -", cfg.Name)
	}
	if err := kernelError(); err != nil {
		return err
	}
	d := &daemon{cfg: cfg, demo: parts.At(cfg.Name), out: out}
	unlock, err := lock(d.demo)
	if err != nil {
		return err
	}
	defer unlock()
	if err := Clear(ctx, d.demo); err != nil {
		return err
	}
	ctx, d.down = context.WithCancel(ctx)
	defer d.down()
	err = d.serve(ctx, ready)
	return errors.Join(err, Clear(context.WithoutCancel(ctx), d.demo))
}

func (d *daemon) serve(ctx context.Context, ready func() error) error {
	if err := d.folders(); err != nil {
		return err
	}
	logFile, err := os.OpenFile(d.demo.Log("demo"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open the demo's log: %w", err)
	}
	defer logFile.Close()
	d.log = slog.New(slog.NewTextHandler(logFile, nil))
	if d.fabric, err = fabric.Build(ctx, d.cfg.Exe, d.env()); err != nil {
		return err
	}
	d.say("network: a fabric, a control plane, %d nodes", layout.Nodes)
	d.parts = newPartSet(d.demo, d.fabric, d.cfg, d.env())

	k := &kubelet.Kubelet{
		Fabric: d.fabric, Demo: d.demo, Bin: d.cfg.Bin, Env: d.env(), Log: d.log,
	}
	if d.cfg.Parts != PartsNone {
		k.CNISocket = func(node string) string { return filepath.Join(d.demo.Run(node), "cni.sock") }
	}
	d.pods = newCluster(d.demo, d.fabric, k, d.log)
	g, ctx := errgroup.WithContext(ctx)
	if err := d.listen(ctx, g); err != nil {
		return err
	}
	g.Go(func() error { return d.pods.run(ctx) })
	g.Go(func() error {
		if err := d.parts.startAll(ctx, d.say); err != nil {
			return err
		}
		return ready()
	})
	err = g.Wait()
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	return err
}

// env is the environment of every process of the demo.
func (d *daemon) env() []string {
	return []string{
		netns.Mark + "=" + d.demo.Dir,
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root", "LANG=C.UTF-8",
	}
}

func (d *daemon) say(format string, args ...any) { fmt.Fprintf(d.out, format+"\n", args...) }

func (d *daemon) folders() error {
	dirs := []string{
		d.demo.Sockets(), d.demo.Manifests(), d.demo.Cluster(), d.demo.Pods(),
		filepath.Join(d.demo.Dir, "nats"), filepath.Dir(d.demo.Log("demo")),
	}
	for _, n := range layout.AllNodes() {
		dirs = append(dirs, d.demo.Run(n.Name))
	}
	for _, dir := range dirs {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make the demo's folders: %w", err)
		}
	}
	ca, err := tlsconf.NewCA()
	if err != nil {
		return fmt.Errorf("make the demo's CA: %w", err)
	}
	if err := ca.Save(d.demo.PKI("ca")); err != nil {
		return fmt.Errorf("keep the demo's CA: %w", err)
	}
	control := layout.Control()
	ips := []net.IP{control[0].Addr().AsSlice(), control[1].Addr().AsSlice()}
	for _, p := range layout.AllParts(d.demo) {
		if p.Role == "" {
			continue
		}
		if err := ca.Issue(d.demo.PKI(p.Name), tlsconf.Name{Role: tlsconf.Role(p.Role), Name: p.CertName}, ips); err != nil {
			return fmt.Errorf("make the certificate of %s: %w", p.Name, err)
		}
	}
	return nil
}

// listen serves the control socket.
func (d *daemon) listen(ctx context.Context, g *errgroup.Group) error {
	lis, err := server.ListenUnix(ctx, control.Socket(d.demo))
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: control.Handler(d), ReadHeaderTimeout: 5 * time.Second}
	g.Go(func() error {
		if err := srv.Serve(lis); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve the control socket: %w", err)
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if srv.Shutdown(ctx) != nil {
			return srv.Close()
		}
		return nil
	})
	return nil
}

// List, Act, DeletePod and Down are what the control socket offers.
func (d *daemon) List() []proc.Status { return d.parts.list() }

func (d *daemon) Act(ctx context.Context, part, action string) error {
	d.log.Info("part", "part", part, "action", action)
	return d.parts.act(ctx, part, action)
}

func (d *daemon) DeletePod(ctx context.Context, namespace, name string) error {
	return d.pods.deletePod(ctx, types.NamespacedName{Namespace: namespace, Name: name})
}

func (d *daemon) Down() { d.down() }

// lock takes the demo's state folder for this process alone.
func lock(d parts.Demo) (unlock func(), err error) {
	if err := os.MkdirAll(d.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the demo's folder (root is needed): %w", err)
	}
	f, err := os.Open(d.Dir)
	if err != nil {
		return nil, fmt.Errorf("open the demo's folder: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("demo %q %w", d.Name, ErrUp)
		}
		return nil, fmt.Errorf("lock %s: %w", d.Dir, err)
	}
	return func() {
		if entries, err := os.ReadDir(d.Dir); err == nil && len(entries) == 0 {
			_ = os.Remove(d.Dir) // and the folders above, if nothing else is in them
			_ = os.Remove(parts.Root)
			_ = os.Remove(filepath.Dir(parts.Root))
		}
		_ = f.Close()
	}, nil
}

// Clear ends every process of the demo but this one and empties its folder,
// whoever left them.
func Clear(ctx context.Context, d parts.Demo) error {
	ctx, cancel := context.WithTimeout(ctx, killLimit)
	defer cancel()
	if err := netns.KillMarked(ctx, d.Dir); err != nil {
		return err
	}
	entries, err := os.ReadDir(d.Dir)
	if err != nil {
		return fmt.Errorf("clear the demo's folder: %w", err)
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(d.Dir, e.Name())); err != nil {
			return fmt.Errorf("clear the demo's folder: %w", err)
		}
	}
	return nil
}
