package datapath

import (
	"fmt"
	"time"

	"github.com/cilium/ebpf"
	bpf "weir.dev/weir/bpf/datapath"
)

// Count is how many packets had an outcome. ReasonNone: they passed.
type Count struct {
	Reason  bpf.Reason
	Ingress bool
	Packets uint64
}

// Counters returns every count since the maps were made.
func (d *Datapath) Counters() ([]Count, error) {
	var counts []Count
	for reason := bpf.ReasonNone; reason < bpf.ReasonCount; reason++ {
		for _, ingress := range []bool{false, true} {
			i := 2 * uint32(reason)
			if ingress {
				i++
			}
			n, err := sum(d.Map(bpf.MapCounters), i)
			if err != nil {
				return nil, err
			}
			counts = append(counts, Count{reason, ingress, n})
		}
	}
	return counts, nil
}

// Lost is how many events found their ring full.
func (d *Datapath) Lost() (drops, flows uint64, err error) {
	if drops, err = sum(d.Map(bpf.MapLost), 0); err != nil {
		return 0, 0, err
	}
	flows, err = sum(d.Map(bpf.MapLost), 1)
	return drops, flows, err
}

// sum adds up what the processors counted.
func sum(m *ebpf.Map, i uint32) (uint64, error) {
	var each []uint64
	if err := m.Lookup(i, &each); err != nil {
		return 0, fmt.Errorf("read counter %d of %s: %w", i, m, err)
	}
	var n uint64
	for _, v := range each {
		n += v
	}
	return n, nil
}

// ProxyWays is how the programs reach the proxy's namespaces. The zero value: no
// way, and what has HTTP rules is dropped.
type ProxyWays struct {
	In, Out      uint32 // ifindex of the node's end of the veth into weir-in, weir-out
	InNSID       int32  // of the namespace, as the node's namespace numbers it; negative: none
	OutNSID      int32
	AllowTunnels bool // tunnel protocols to nodes are judged like the rest
}

// SetProxyWays writes what weir_config says of them.
func (d *Datapath) SetProxyWays(w ProxyWays) error {
	return d.configure(func(c *bpf.WeirConfig) {
		c.InIfindex, c.OutIfindex, c.InNsid, c.OutNsid, c.AllowTunnels = w.In, w.Out, w.InNSID, w.OutNSID, 0
		if w.AllowTunnels {
			c.AllowTunnels = 1
		}
	})
}

// pickUp is how long connections that conntrack has never heard of may go on,
// each from its next packet on.
const pickUp = time.Hour

// PickUp lets connections go on that the endpoints had before, if conntrack was
// made anew by Open. Nothing else has lost a connection's beginning.
func (d *Datapath) PickUp() error {
	if !d.anew {
		return nil
	}
	now, err := monotonicSeconds()
	if err != nil {
		return err
	}
	d.log.Warn("conntrack was made anew: connections are picked up from the middle", "for", pickUp)
	return d.configure(func(c *bpf.WeirConfig) { c.PickUpUntil = now + uint32(pickUp/time.Second) })
}

func (d *Datapath) configure(change func(*bpf.WeirConfig)) error {
	var c bpf.WeirConfig
	if err := d.Map(bpf.MapConfig).Lookup(uint32(0), &c); err != nil {
		return fmt.Errorf("read weir_config: %w", err)
	}
	change(&c)
	if err := d.Map(bpf.MapConfig).Put(uint32(0), c); err != nil {
		return fmt.Errorf("write weir_config: %w", err)
	}
	return nil
}
