package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	bpf "weir.dev/weir/bpf/datapath"
)

// linkKey names a link: a program and where it is. A pod's interface is named
// by its index; pins are called <program>@<place>.
type linkKey struct{ program, place string }

func (k linkKey) String() string { return k.program + "@" + k.place }

func (d *Datapath) linkDir() string { return filepath.Join(d.dir, "links") }

func (d *Datapath) linkPin(k linkKey) string { return filepath.Join(d.linkDir(), k.String()) }

// hook is where a tcx program attaches: first at ingress, so that nothing sees
// a packet before it, last at egress, so that nothing changes one after it.
func hook(program string) (ebpf.AttachType, link.Anchor) {
	if program == bpf.ToPod {
		return ebpf.AttachTCXEgress, link.Tail()
	}
	return ebpf.AttachTCXIngress, link.Head()
}

// adoptLinks puts the new programs on the links that are pinned. The pin of a
// link whose interface or namespace is gone goes too.
func (d *Datapath) adoptLinks() error {
	entries, err := os.ReadDir(d.linkDir())
	if err != nil {
		return fmt.Errorf("list the pinned links: %w", err)
	}
	for _, e := range entries {
		program, place, ok := strings.Cut(e.Name(), "@")
		if !ok || d.coll.Programs[program] == nil {
			return fmt.Errorf("pinned link %s is none of layout %d: stop Weir on this node and remove %s", e.Name(), bpf.Layout, d.dir)
		}
		if err := d.adoptLink(linkKey{program, place}); err != nil {
			return fmt.Errorf("adopt link %s: %w", e.Name(), err)
		}
	}
	return nil
}

func (d *Datapath) adoptLink(k linkKey) error {
	l, err := link.LoadPinnedLink(d.linkPin(k), nil)
	if err != nil {
		return err
	}
	alive, err := isAttached(l)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	if !alive {
		return errors.Join(l.Unpin(), l.Close())
	}
	if err := l.Update(d.coll.Programs[k.program]); err != nil {
		return errors.Join(fmt.Errorf("replace the program: %w", err), l.Close())
	}
	d.links[k] = l
	return nil
}

// isAttached tells whether what the link is on still exists.
func isAttached(l link.Link) (bool, error) {
	info, err := l.Info()
	if err != nil {
		return false, err
	}
	if tcx := info.TCX(); tcx != nil {
		return tcx.Ifindex != 0, nil
	}
	if ns := info.NetNs(); ns != nil {
		return ns.NetnsInode != 0, nil
	}
	return false, fmt.Errorf("link is of type %v", info.Type)
}

// AttachTCX attaches a tcx program to an interface of the calling thread's
// network namespace, under the name of that place. It may be repeated.
func (d *Datapath) AttachTCX(program, place string, ifindex uint32) error {
	at, anchor := hook(program)
	return d.attach(linkKey{program, place}, func(p *ebpf.Program) (link.Link, error) {
		return link.AttachTCX(link.TCXOptions{Interface: int(ifindex), Program: p, Attach: at, Anchor: anchor})
	}, func(i *link.Info) bool { return i.TCX() != nil && i.TCX().Ifindex == ifindex })
}

// AttachNetNS attaches an sk_lookup program to a network namespace, under the
// name of that place. It may be repeated.
func (d *Datapath) AttachNetNS(program, place string, netns *os.File) error {
	st, err := netns.Stat()
	if err != nil {
		return fmt.Errorf("attach %s to %s: %w", program, place, err)
	}
	return d.attach(linkKey{program, place}, func(p *ebpf.Program) (link.Link, error) {
		return link.AttachNetNs(int(netns.Fd()), p)
	}, func(i *link.Info) bool { return i.NetNs() != nil && uint64(i.NetNs().NetnsInode) == inode(st) })
}

// attach keeps a link that is where it should be, and else makes one.
func (d *Datapath) attach(k linkKey, make func(*ebpf.Program) (link.Link, error), same func(*link.Info) bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.coll.Programs[k.program]
	if p == nil {
		return fmt.Errorf("attach %s: no such program", k)
	}
	if l, ok := d.links[k]; ok {
		if info, err := l.Info(); err == nil && same(info) {
			return nil
		}
		if err := d.drop(k); err != nil {
			return err
		}
	}
	l, err := make(p)
	if err != nil {
		return fmt.Errorf("attach %s: %w", k, err)
	}
	if err := l.Pin(d.linkPin(k)); err != nil {
		return errors.Join(fmt.Errorf("pin link %s: %w", k, err), l.Close())
	}
	d.links[k] = l
	return nil
}

// drop detaches a link. The caller holds mu.
func (d *Datapath) drop(k linkKey) error {
	l, ok := d.links[k]
	if !ok {
		return nil
	}
	delete(d.links, k)
	err := l.Unpin()
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err := errors.Join(err, l.Close()); err != nil {
		return fmt.Errorf("detach %s: %w", k, err)
	}
	return nil
}

// DetachLink takes a program off a place. None being there is no error.
func (d *Datapath) DetachLink(program, place string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.drop(linkKey{program, place})
}

// Attach puts both programs on a pod's host interface. It may be repeated.
func (d *Datapath) Attach(ifindex uint32) error {
	for _, program := range []string{bpf.ToPod, bpf.FromPod} {
		if err := d.AttachTCX(program, place(ifindex), ifindex); err != nil {
			return err
		}
	}
	return nil
}

// Detach takes both programs off a pod's host interface and forgets the
// endpoint's flows. An interface that is gone is no error.
func (d *Datapath) Detach(ifindex, endpoint uint32) error {
	return errors.Join(
		d.DetachLink(bpf.FromPod, place(ifindex)),
		d.DetachLink(bpf.ToPod, place(ifindex)),
		d.Purge(endpoint),
	)
}

// Attached errs unless both programs are on the interface, Weir's being the
// first at ingress and the last at egress.
func (d *Datapath) Attached(ifindex uint32) error {
	for _, program := range []string{bpf.FromPod, bpf.ToPod} {
		at, _ := hook(program)
		found, err := link.QueryPrograms(link.QueryOptions{Target: int(ifindex), Attach: at})
		if err != nil {
			return fmt.Errorf("list the programs of interface %d: %w", ifindex, err)
		}
		info, err := d.coll.Programs[program].Info()
		if err != nil {
			return fmt.Errorf("ask for program %s: %w", program, err)
		}
		id, _ := info.ID()
		n := len(found.Programs)
		switch {
		case n == 0:
			return fmt.Errorf("%s is not attached to interface %d", program, ifindex)
		case at == ebpf.AttachTCXIngress && found.Programs[0].ID != id:
			return fmt.Errorf("%s is not the first program at ingress of interface %d: program %d is", program, ifindex, found.Programs[0].ID)
		case at == ebpf.AttachTCXEgress && found.Programs[n-1].ID != id:
			return fmt.Errorf("%s is not the last program at egress of interface %d: program %d is", program, ifindex, found.Programs[n-1].ID)
		}
	}
	return nil
}

func place(ifindex uint32) string { return strconv.FormatUint(uint64(ifindex), 10) }
