// Package datapath is the thin shell around the kernel: pins, maps, programs and
// their links. It decides nothing. It does the writes that package plan orders
// (Datapath is a plan.Target), attaches the programs to pods' interfaces, keeps
// the conntrack maps from filling up, and hands out what the programs report.
//
// What it holds outlives the process: maps and links are pinned below
// <bpffs>/weir/v1, and traffic flows under the last policy while no enforcer
// runs. One enforcer at a time holds the lock on that directory.
//
// Methods of plan.Target are for one goroutine; all others may be called from any.
package datapath

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
	bpf "weir.dev/weir/bpf/datapath"
	"weir.dev/weir/services/enforcer/internal/plan"
)

// ErrLocked says that another enforcer has the pins.
var ErrLocked = errors.New("another enforcer holds the lock")

// firstWord is the word of a node that never had one. Zero is in slots that
// were never written, and must not count.
const firstWord = 2

// Config says where the pins are and how large maps are made. Maps that are
// pinned already keep their size.
type Config struct {
	BPFFS string // a mounted BPF file system
	Sizes bpf.Sizes
}

// Datapath is the kernel's part of an enforcer. It is made by Open.
type Datapath struct {
	log  *slog.Logger
	dir  string   // of the pins
	lock *os.File // that directory
	maps map[string]*ebpf.Map
	coll *ebpf.Collection
	word *liveWord
	wait func() error
	anew bool // conntrack was not adopted

	mu     sync.Mutex
	links  map[linkKey]link.Link
	closed bool

	held atomic.Pointer[[2]int] // flows in weir_ct_tcp and weir_ct_any

	quota sync.Mutex // weir_quota_freed is read and written under it
}

// Open takes the lock, adopts what is pinned, makes what is not, loads the
// programs and puts them on the links that exist. What the maps say is left as
// it is: that is for plan.Planner.
func Open(cfg Config, log *slog.Logger) (*Datapath, error) {
	d := &Datapath{
		log: log, dir: filepath.Join(cfg.BPFFS, "weir", fmt.Sprintf("v%d", bpf.Layout)),
		maps: map[string]*ebpf.Map{}, links: map[linkKey]link.Link{},
	}
	if err := d.open(cfg); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

func (d *Datapath) open(cfg Config) error {
	if err := d.takeLock(cfg.BPFFS); err != nil {
		return err
	}
	spec, err := bpf.LoadWeir()
	if err != nil {
		return fmt.Errorf("read the programs: %w", err)
	}
	if err := d.loadPins(spec); err != nil {
		return err
	}
	sizes, err := d.sizes(cfg.Sizes)
	if err != nil {
		return err
	}
	if err := sizes.Apply(spec); err != nil {
		return err
	}
	if err := d.checkPins(spec); err != nil {
		return err
	}
	_, adopted := d.maps[bpf.MapCtTCP]
	d.anew = !adopted
	d.coll, err = ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: d.maps})
	if err != nil {
		return loadError(err)
	}
	if err := d.pinNew(); err != nil {
		return err
	}
	if d.word, err = newLiveWord(d.coll.Maps[bpf.MapWord]); err != nil {
		return err
	}
	if d.word.load() == 0 {
		d.word.store(firstWord)
	}
	if d.wait, err = newGrace(); err != nil {
		return err
	}
	return d.adoptLinks()
}

// loadError keeps the verifier's last lines, which say what is wrong.
func loadError(err error) error {
	var verifier *ebpf.VerifierError
	if errors.As(err, &verifier) {
		return fmt.Errorf("load the programs: %w: %-20v", err, verifier)
	}
	return fmt.Errorf("load the programs (Linux 6.6 or newer and CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON are needed): %w", err)
}

// takeLock makes the directories and locks the inner one.
func (d *Datapath) takeLock(bpffs string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(bpffs, &st); err != nil {
		return fmt.Errorf("look at %s: %w", bpffs, err)
	}
	if uint32(st.Type) != unix.BPF_FS_MAGIC {
		return fmt.Errorf("%s is no BPF file system: mount one there, mount -t bpf bpf %s", bpffs, bpffs)
	}
	for _, dir := range []string{filepath.Dir(d.dir), d.dir, d.linkDir()} {
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("make the pins' directory: %w", err)
		}
		if err := os.Chmod(dir, 0o700); err != nil {
			return fmt.Errorf("close the pins' directory to others: %w", err)
		}
	}
	lock, err := os.Open(d.dir)
	if err != nil {
		return fmt.Errorf("open the pins' directory: %w", err)
	}
	d.lock = lock
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrLocked
		}
		return fmt.Errorf("lock %s: %w", d.dir, err)
	}
	return nil
}

func (d *Datapath) pin(mapName string) string { return filepath.Join(d.dir, mapName) }

// loadPins opens the maps that are pinned. Without the word none of them
// counts: slots in a conntrack map could seem to be of the new word.
func (d *Datapath) loadPins(spec *ebpf.CollectionSpec) error {
	for _, name := range bpf.PinnedMaps() {
		m, err := ebpf.LoadPinnedMap(d.pin(name), nil)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("open pinned map %s: %w", name, err)
		}
		d.maps[name] = m
	}
	if _, ok := d.maps[bpf.MapWord]; !ok && len(d.maps) > 0 {
		d.log.Warn("the word's pin is missing: all maps are made anew")
		for name := range d.maps {
			if err := d.dropPin(name); err != nil {
				return err
			}
		}
	}
	// Counters grow with the reasons that are known; nothing is lost but counts.
	for _, name := range []string{bpf.MapCounters, bpf.MapLost} {
		if m, ok := d.maps[name]; ok && m.MaxEntries() != spec.Maps[name].MaxEntries {
			if err := d.dropPin(name); err != nil {
				return err
			}
		}
	}
	return nil
}

func (d *Datapath) dropPin(name string) error {
	m := d.maps[name]
	delete(d.maps, name)
	if err := errors.Join(os.Remove(d.pin(name)), m.Close()); err != nil {
		return fmt.Errorf("drop pinned map %s: %w", name, err)
	}
	return nil
}

// sizes are those of the pinned maps, and want's for the rest.
func (d *Datapath) sizes(want bpf.Sizes) (bpf.Sizes, error) {
	for _, s := range []struct {
		name  string
		size  *uint32
		sides uint32
	}{
		{bpf.MapClasses, &want.Peers, 2}, {bpf.MapRanges, &want.Ranges, 2}, {bpf.MapBackends, &want.Backends, 2},
		{bpf.MapEndpoints, &want.Endpoints, 1}, {bpf.MapAddresses, &want.Addresses, 1}, {bpf.MapPrefixes, &want.Prefixes, 1},
		{bpf.MapCells, &want.Cells, 1}, {bpf.MapServices, &want.Services, 1}, {bpf.MapBackendSets, &want.BackendSets, 1},
		{bpf.MapCtTCP, &want.CtTCP, 1}, {bpf.MapCtAny, &want.CtAny, 1}, {bpf.MapDrops, &want.RingBytes, 1},
	} {
		m, ok := d.maps[s.name]
		if !ok {
			continue
		}
		has := m.MaxEntries() / s.sides
		if *s.size != 0 && *s.size != has {
			d.log.Warn("a pinned map keeps its size", "map", s.name, "entries", has, "wanted", *s.size)
		}
		*s.size = has
	}
	return want, nil
}

// checkPins refuses pins of another layout.
func (d *Datapath) checkPins(spec *ebpf.CollectionSpec) error {
	for name, m := range d.maps {
		if err := spec.Maps[name].Compatible(m); err != nil {
			return fmt.Errorf("pinned map %s is not one of layout %d (%w): stop Weir on this node and remove %s", name, bpf.Layout, err, d.dir)
		}
	}
	return nil
}

// pinNew pins what was made, the word first: without it nothing else counts.
func (d *Datapath) pinNew() error {
	names := append([]string{bpf.MapWord}, bpf.PinnedMaps()...)
	for _, name := range names {
		if _, adopted := d.maps[name]; adopted {
			continue
		}
		m, ok := d.coll.Maps[name]
		if !ok {
			return fmt.Errorf("map %s is not in the object", name)
		}
		if err := m.Pin(d.pin(name)); err != nil {
			return fmt.Errorf("pin map %s: %w", name, err)
		}
		d.maps[name] = m
	}
	return nil
}

// Limits are the sizes of the maps.
func (d *Datapath) Limits() plan.Limits {
	n := func(name string) int { return int(d.coll.Maps[name].MaxEntries()) }
	return plan.Limits{
		Endpoints: n(bpf.MapEndpoints), Addresses: n(bpf.MapAddresses), Prefixes: n(bpf.MapPrefixes),
		Peers: n(bpf.MapClasses) / 2, Cells: n(bpf.MapCells), Ranges: n(bpf.MapRanges) / 2,
		Services: n(bpf.MapServices), Backends: n(bpf.MapBackends) / 2, Pairs: n(bpf.MapBackendSets),
	}
}

// Map is one of the maps named in bpf/datapath, owned by the Datapath.
func (d *Datapath) Map(name string) *ebpf.Map { return d.coll.Maps[name] }

// Close lets go of the kernel, which goes on as it is. The Datapath must not be
// used after it; closing it again does nothing.
func (d *Datapath) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil
	}
	d.closed = true
	var errs []error
	for _, l := range d.links {
		errs = append(errs, l.Close())
	}
	if d.word != nil {
		errs = append(errs, d.word.close())
	}
	for _, m := range d.maps {
		errs = append(errs, m.Close())
	}
	if d.coll != nil {
		d.coll.Close()
	}
	if d.lock != nil {
		errs = append(errs, d.lock.Close())
	}
	return errors.Join(errs...)
}

// Wait lasts until no program runs any more that began before it. It implements
// plan.Target.
func (d *Datapath) Wait(context.Context) error { return d.wait() }

var _ plan.Target = (*Datapath)(nil)
