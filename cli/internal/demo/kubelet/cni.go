package kubelet

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	cnitypes "github.com/containernetworking/cni/pkg/types"
	cniv1 "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"weir.dev/weir/cli/internal/demo/layout"
)

// cniLimit bounds one call of weir-cni.
const cniLimit = 60 * time.Second

// cni calls weir-cni in the pod's node, as a container runtime does after the
// plugin that made the veth.
func (r *run) cni(ctx context.Context, command string) error {
	ctx, cancel := context.WithTimeout(ctx, cniLimit)
	defer cancel()
	conf, err := r.cniConf()
	if err != nil {
		return err
	}
	var out, errOut bytes.Buffer
	cmd := &exec.Cmd{
		Path: filepath.Join(r.k.Bin, "weir-cni"), Args: []string{"weir-cni"},
		Stdin: bytes.NewReader(conf), Stdout: &out, Stderr: &errOut,
		Env: append(slices.Clone(r.k.Env),
			"CNI_COMMAND="+command,
			"CNI_CONTAINERID="+containerID(r.pod),
			"CNI_NETNS="+r.net.Path(),
			"CNI_IFNAME="+layout.PodLink,
			"CNI_PATH="+r.k.Bin,
			"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE="+r.pod.Namespace+";K8S_POD_NAME="+r.pod.Name+
				";K8S_POD_UID="+string(r.pod.UID)+";K8S_POD_INFRA_CONTAINER_ID="+containerID(r.pod),
		),
	}
	if err := r.k.Fabric.Node(r.pod.Spec.NodeName).StartCommand(cmd); err != nil {
		return fmt.Errorf("call weir-cni %s: %w", command, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	defer stop()
	err = cmd.Wait()
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("weir-cni %s: %w", command, ctx.Err())
	}
	var told cnitypes.Error
	if json.Unmarshal(out.Bytes(), &told) == nil && told.Msg != "" {
		return fmt.Errorf("weir-cni %s: %w", command, &told)
	}
	return fmt.Errorf("weir-cni %s: %w: %s", command, err, bytes.TrimSpace(errOut.Bytes()))
}

// cniConf is the configuration of the chained plugin, with the result of the
// one before it.
func (r *run) cniConf() ([]byte, error) {
	nodeMAC, podMAC, err := r.net.MACs()
	if err != nil {
		return nil, err
	}
	node, err := nodeOf(r.pod)
	if err != nil {
		return nil, err
	}
	result := &cniv1.Result{
		CNIVersion: cniv1.ImplementedSpecVersion,
		Interfaces: []*cniv1.Interface{
			{Name: hostLink(r.pod), Mac: nodeMAC.String()},
			{Name: layout.PodLink, Mac: podMAC.String(), Sandbox: r.net.Path()},
		},
	}
	inPod := 1
	for i, ip := range r.pod.Status.PodIPs {
		a, err := netip.ParseAddr(ip.IP)
		if err != nil {
			return nil, fmt.Errorf("read the pod's address: %w", err)
		}
		result.IPs = append(result.IPs, &cniv1.IPConfig{
			Interface: &inPod,
			Address:   net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())},
			Gateway:   node.Gateways()[i].AsSlice(),
		})
	}
	text, err := json.Marshal(map[string]any{
		"cniVersion": cniv1.ImplementedSpecVersion, "name": "weir", "type": "weir-cni",
		"socket": r.k.CNISocket(r.pod.Spec.NodeName), "prevResult": result,
	})
	if err != nil {
		return nil, fmt.Errorf("encode the configuration of weir-cni: %w", err)
	}
	return text, nil
}

// probe waits until every TCP port that the containers name takes connections,
// asked from inside of the pod.
func (r *run) probe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for i, c := range r.pod.Spec.Containers {
		for _, port := range c.Ports {
			if port.Protocol != "" && port.Protocol != corev1.ProtocolTCP {
				continue
			}
			for {
				err := r.net.Do(func() error { return connect(int(port.ContainerPort)) })
				if err == nil {
					break
				}
				select {
				case <-tick.C:
				case <-r.containers[i].Ended():
					return fmt.Errorf("container %s has ended: %s", c.Name, r.containers[i].Status().Detail)
				case <-ctx.Done():
					return fmt.Errorf("container %s does not listen on port %d: %w", c.Name, port.ContainerPort, err)
				}
			}
		}
	}
	return nil
}

// connect opens and closes a connection to the loopback address, in the calling
// thread.
func connect(port int) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a socket: %w", err)
	}
	err = unix.Connect(fd, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}})
	return errors.Join(err, unix.Close(fd))
}
