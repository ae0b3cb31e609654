// Package svcnat translates Service addresses in a node by nftables over
// netlink. It is the demo's stand-in for kube-proxy and no part of Weir: the
// source address is kept, and new connections are spread by chance.
package svcnat

import (
	"encoding/binary"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"weir.dev/weir/cli/internal/demo/controller"
	"weir.dev/weir/internal/netns"
)

const table = "demo-services"

// Apply makes the node translate exactly these addresses. It replaces all
// rules at once; connections that exist keep their backend.
func Apply(node *netns.Space, translations []controller.Translation) error {
	ns, err := node.Open()
	if err != nil {
		return err
	}
	defer ns.Close()
	conn, err := nftables.New(nftables.WithNetNSFd(int(ns.Fd())))
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	t := &nftables.Table{Name: table, Family: nftables.TableFamilyINet}
	conn.AddTable(t) // so that the next line always finds one
	conn.DelTable(t)
	conn.AddTable(t)
	for _, hook := range []struct {
		name string
		hook *nftables.ChainHook
	}{{"prerouting", nftables.ChainHookPrerouting}, {"output", nftables.ChainHookOutput}} {
		chain := conn.AddChain(&nftables.Chain{
			Name: hook.name, Table: t, Type: nftables.ChainTypeNAT,
			Hooknum: hook.hook, Priority: nftables.ChainPriorityNATDest,
		})
		for _, tr := range translations {
			for i, b := range tr.Backends {
				exprs, err := rule(tr, b, len(tr.Backends)-i)
				if err != nil {
					return err
				}
				conn.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: exprs})
			}
		}
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("write the nftables of %d Service addresses: %w", len(translations), err)
	}
	return nil
}

// rule sends one of every left connections that come to it to the backend.
func rule(tr controller.Translation, b controller.Backend, left int) ([]expr.Any, error) {
	proto, err := protocol(tr.Protocol)
	if err != nil {
		return nil, err
	}
	family, offset := byte(unix.NFPROTO_IPV4), uint32(16)
	if tr.Address.Is6() {
		family, offset = unix.NFPROTO_IPV6, 24
	}
	exprs := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		equal([]byte{family}),
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		equal([]byte{proto}),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(len(tr.Address.AsSlice()))},
		equal(tr.Address.AsSlice()),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		equal(bigEndian(tr.Port)),
	}
	if left > 1 {
		exprs = append(exprs,
			&expr.Numgen{Register: 1, Modulus: uint32(left), Type: unix.NFT_NG_RANDOM},
			equal([]byte{0, 0, 0, 0}),
		)
	}
	return append(exprs, translate(b, family)...), nil
}

func translate(b controller.Backend, family byte) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: b.Address.AsSlice()},
		&expr.Immediate{Register: 2, Data: bigEndian(b.Port)},
		&expr.NAT{
			Type: expr.NATTypeDestNAT, Family: uint32(family),
			RegAddrMin: 1, RegProtoMin: 2, Specified: true,
		},
	}
}

func equal(value []byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: value}
}

func bigEndian(port uint16) []byte { return binary.BigEndian.AppendUint16(nil, port) }

func protocol(p corev1.Protocol) (byte, error) {
	switch p {
	case corev1.ProtocolTCP:
		return unix.IPPROTO_TCP, nil
	case corev1.ProtocolUDP:
		return unix.IPPROTO_UDP, nil
	case corev1.ProtocolSCTP:
		return unix.IPPROTO_SCTP, nil
	}
	return 0, fmt.Errorf("translate protocol %q: unknown", p)
}
