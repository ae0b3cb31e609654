// Package cni is the chained CNI plugin of Weir: it tells the node's enforcer
// of a pod's interface and returns when a policy that knows the pod is in force
// there. It gives no addresses and makes no links; its result is the one that
// the plugin before it gave.
//
// It imports proto, gRPC, netlink and containernetworking/cni.
package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/vishvananda/netlink"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	enforcerv1 "weir.dev/weir/proto/weir/enforcer/v1"
)

// Versions of CNI that the plugin speaks.
func Versions() version.PluginInfo { return version.PluginSupports("0.4.0", "1.0.0", "1.1.0") }

// Funcs are the plugin's commands. Each call of the enforcer ends with ctx.
func Funcs(ctx context.Context) skel.CNIFuncs {
	p := plugin{ctx: func() (context.Context, context.CancelFunc) { return context.WithTimeout(ctx, limit) }, veth: isVeth}
	return skel.CNIFuncs{Add: p.add, Del: p.del, Check: p.check, GC: p.gc, Status: p.status}
}

// limit is how long one command may take. A runtime tries a failed ADD again.
const limit = 30 * time.Second

const defaultSocket = "/run/weir/cni.sock"

type config struct {
	types.PluginConf
	Socket string `json:"socket"` // of the enforcer on this node
}

// podArgs is what a kubelet's runtime puts into CNI_ARGS.
type podArgs struct {
	types.CommonArgs
	K8S_POD_NAMESPACE          types.UnmarshallableString //nolint:revive // the runtime's name
	K8S_POD_NAME               types.UnmarshallableString //nolint:revive // the runtime's name
	K8S_POD_UID                types.UnmarshallableString //nolint:revive // the runtime's name
	K8S_POD_INFRA_CONTAINER_ID types.UnmarshallableString //nolint:revive // the runtime's name
}

type plugin struct {
	ctx  func() (context.Context, context.CancelFunc)
	veth func(name string) (bool, error) // whether a link of this node is a veth
}

func isVeth(name string) (bool, error) {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return false, fmt.Errorf("look up interface %s: %w", name, err)
	}
	return l.Type() == "veth", nil
}

func load(a *skel.CmdArgs) (config, podArgs, error) {
	c := config{Socket: defaultSocket}
	if err := json.Unmarshal(a.StdinData, &c); err != nil {
		return c, podArgs{}, types.NewError(types.ErrDecodingFailure, "network configuration of weir-cni", err.Error())
	}
	pod := podArgs{CommonArgs: types.CommonArgs{IgnoreUnknown: true}}
	if err := types.LoadArgs(a.Args, &pod); err != nil {
		return c, podArgs{}, types.NewError(types.ErrInvalidEnvironmentVariables, "CNI_ARGS", err.Error())
	}
	return c, pod, nil
}

func (p plugin) add(a *skel.CmdArgs) error {
	c, pod, err := load(a)
	if err != nil {
		return err
	}
	prev, err := previous(&c)
	if err != nil {
		return err
	}
	req, err := p.request(a, pod, prev)
	if err != nil {
		return err
	}
	err = p.call(c, func(ctx context.Context, conn *grpc.ClientConn) error {
		_, err := enforcerv1.NewEndpointServiceClient(conn).AddEndpoint(ctx, req, grpc.WaitForReady(true))
		return err
	})
	if err != nil {
		return err
	}
	return types.PrintResult(prev, c.CNIVersion)
}

func previous(c *config) (*current.Result, error) {
	if c.RawPrevResult == nil {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, "weir-cni must be chained after a plugin that makes the pod's veth",
			"the configuration has no prevResult: put weir-cni last in the plugins list")
	}
	if err := version.ParsePrevResult(&c.PluginConf); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "prevResult", err.Error())
	}
	r, err := current.NewResultFromResult(c.PrevResult)
	if err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "prevResult", err.Error())
	}
	return r, nil
}

// request finds the pod's interface and its veth's end in the node.
func (p plugin) request(a *skel.CmdArgs, pod podArgs, prev *current.Result) (*enforcerv1.AddEndpointRequest, error) {
	if pod.K8S_POD_NAMESPACE == "" || pod.K8S_POD_NAME == "" {
		return nil, types.NewError(types.ErrInvalidEnvironmentVariables, "CNI_ARGS names no pod",
			"K8S_POD_NAMESPACE and K8S_POD_NAME are required")
	}
	inside := -1
	var host []string
	for i, itf := range prev.Interfaces {
		switch {
		case itf.Sandbox != "" && itf.Name == a.IfName:
			inside = i
		case itf.Sandbox == "":
			veth, err := p.veth(itf.Name)
			if err != nil {
				return nil, types.NewError(types.ErrInvalidNetworkConfig, "prevResult names an interface that is not on this node", err.Error())
			}
			if veth {
				host = append(host, itf.Name)
			}
		}
	}
	if inside < 0 || len(host) != 1 {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, "Weir needs a CNI that gives each pod a veth",
			fmt.Sprintf("prevResult has %d veths in the node and the pod's interface %s %s: packets would bypass Weir, so the pod is refused",
				len(host), a.IfName, map[bool]string{true: "is there", false: "is missing"}[inside >= 0]))
	}
	mac, err := net.ParseMAC(prev.Interfaces[inside].Mac)
	if err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "prevResult: MAC of "+a.IfName, err.Error())
	}
	req := &enforcerv1.AddEndpointRequest{
		ContainerId: a.ContainerID, Namespace: string(pod.K8S_POD_NAMESPACE), Pod: string(pod.K8S_POD_NAME),
		PodUid: string(pod.K8S_POD_UID), Netns: a.Netns, Interface: a.IfName, HostInterface: host[0], Mac: mac,
	}
	for _, ip := range prev.IPs {
		if ip.Interface != nil && *ip.Interface != inside {
			continue
		}
		addr := ip.Address.IP
		if v4 := addr.To4(); v4 != nil {
			addr = v4
		}
		req.Addresses = append(req.Addresses, addr)
	}
	if len(req.Addresses) == 0 {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, "prevResult gives the pod no address", "")
	}
	return req, nil
}

func (p plugin) del(a *skel.CmdArgs) error {
	c, pod, err := load(a)
	if err != nil {
		return err
	}
	return p.call(c, func(ctx context.Context, conn *grpc.ClientConn) error {
		_, err := enforcerv1.NewEndpointServiceClient(conn).DeleteEndpoint(ctx, &enforcerv1.DeleteEndpointRequest{
			ContainerId: a.ContainerID, Interface: a.IfName,
			Namespace: string(pod.K8S_POD_NAMESPACE), Pod: string(pod.K8S_POD_NAME),
		}, grpc.WaitForReady(true))
		return err
	})
}

func (p plugin) check(a *skel.CmdArgs) error {
	c, pod, err := load(a)
	if err != nil {
		return err
	}
	return p.call(c, func(ctx context.Context, conn *grpc.ClientConn) error {
		_, err := enforcerv1.NewEndpointServiceClient(conn).CheckEndpoint(ctx, &enforcerv1.CheckEndpointRequest{
			ContainerId: a.ContainerID, Interface: a.IfName,
			Namespace: string(pod.K8S_POD_NAMESPACE), Pod: string(pod.K8S_POD_NAME),
		})
		return err
	})
}

func (p plugin) gc(a *skel.CmdArgs) error {
	c, _, err := load(a)
	if err != nil {
		return err
	}
	req := &enforcerv1.CollectEndpointsRequest{}
	for _, v := range c.ValidAttachments {
		req.Valid = append(req.Valid, &enforcerv1.Attachment{ContainerId: v.ContainerID, Interface: v.IfName})
	}
	return p.call(c, func(ctx context.Context, conn *grpc.ClientConn) error {
		_, err := enforcerv1.NewEndpointServiceClient(conn).CollectEndpoints(ctx, req)
		return err
	})
}

func (p plugin) status(a *skel.CmdArgs) error {
	c, _, err := load(a)
	if err != nil {
		return err
	}
	err = p.call(c, func(ctx context.Context, conn *grpc.ClientConn) error {
		h, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
		if err == nil && h.GetStatus() != healthpb.HealthCheckResponse_SERVING {
			err = status.Error(codes.Unavailable, "the enforcer has no complete policy yet")
		}
		return err
	})
	var failed *types.Error
	if errors.As(err, &failed) {
		return types.NewError(types.ErrPluginNotAvailable, failed.Msg, failed.Details)
	}
	return err
}

// call connects to the enforcer and turns its refusals into CNI errors.
func (p plugin) call(c config, do func(context.Context, *grpc.ClientConn) error) error {
	ctx, cancel := p.ctx()
	defer cancel()
	conn, err := grpc.NewClient("unix:"+c.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return types.NewError(types.ErrInvalidNetworkConfig, "socket "+c.Socket, err.Error())
	}
	defer conn.Close()
	err = do(ctx, conn)
	if err == nil {
		return nil
	}
	s := status.Convert(err)
	switch s.Code() {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		return types.NewError(types.ErrTryAgainLater, "weir-enforcer: "+s.Message(),
			"socket "+c.Socket+": is weir-enforcer running on this node, and does it reach weir-identity and weir-policy?")
	case codes.NotFound:
		return types.NewError(types.ErrUnknownContainer, "weir-enforcer: "+s.Message(), "restart the pod")
	case codes.InvalidArgument:
		return types.NewError(types.ErrInvalidNetworkConfig, "weir-enforcer: "+s.Message(), "")
	}
	return types.NewError(types.ErrInternal, "weir-enforcer: "+s.Message(), s.Code().String())
}
