package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"

	enforcerv1 "weir.dev/weir/proto/weir/enforcer/v1"
)

// enforcer records what the plugin asked and answers err.
type enforcer struct {
	enforcerv1.UnimplementedEndpointServiceServer
	got []any
	err error
}

func (e *enforcer) AddEndpoint(_ context.Context, r *enforcerv1.AddEndpointRequest) (*enforcerv1.AddEndpointResponse, error) {
	e.got = append(e.got, r)
	return &enforcerv1.AddEndpointResponse{}, e.err
}

func (e *enforcer) DeleteEndpoint(_ context.Context, r *enforcerv1.DeleteEndpointRequest) (*enforcerv1.DeleteEndpointResponse, error) {
	e.got = append(e.got, r)
	return &enforcerv1.DeleteEndpointResponse{}, e.err
}

func (e *enforcer) CollectEndpoints(_ context.Context, r *enforcerv1.CollectEndpointsRequest) (*enforcerv1.CollectEndpointsResponse, error) {
	e.got = append(e.got, r)
	return &enforcerv1.CollectEndpointsResponse{}, e.err
}

func serve(t *testing.T, e *enforcer) (socket string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "weir-cni") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	socket = filepath.Join(dir, "s")
	lis, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	enforcerv1.RegisterEndpointServiceServer(s, e)
	done := make(chan error)
	go func() { done <- s.Serve(lis) }()
	t.Cleanup(func() {
		s.Stop()
		// A test may end before the server has begun.
		if err := <-done; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			t.Error(err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return socket
}

func args(socket, rest string) *skel.CmdArgs {
	return &skel.CmdArgs{
		ContainerID: "c1", Netns: "/proc/7/ns/net", IfName: "eth0",
		Args:      "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=app1;K8S_POD_UID=u1;K8S_POD_INFRA_CONTAINER_ID=c1",
		StdinData: fmt.Appendf(nil, `{"cniVersion":"1.0.0","name":"weir","type":"weir-cni","socket":%q%s}`, socket, rest),
	}
}

const prevResult = `,"prevResult":{"cniVersion":"1.0.0","interfaces":[
	{"name":"br0","mac":"02:00:00:00:00:01"},
	{"name":"veth1","mac":"02:00:00:00:00:02"},
	{"name":"eth0","mac":"02:00:00:00:00:03","sandbox":"/proc/7/ns/net"}],
	"ips":[{"address":"10.244.1.2/24","interface":2},{"address":"fd00:244:1::2/64","interface":2},{"address":"10.9.9.9/24","interface":0}]}`

func testPlugin(t *testing.T, veths ...string) plugin {
	return plugin{
		ctx: func() (context.Context, context.CancelFunc) { return context.WithTimeout(t.Context(), 5*time.Second) },
		veth: func(name string) (bool, error) {
			for _, v := range veths {
				if v == name {
					return true, nil
				}
			}
			return false, nil
		},
	}
}

func TestAddTellsTheEnforcerOfThePodsVeth(t *testing.T) {
	e := &enforcer{}
	a := args(serve(t, e), prevResult)
	c, pod, err := load(a)
	if err != nil {
		t.Fatal(err)
	}
	prev, err := previous(&c)
	if err != nil {
		t.Fatal(err)
	}
	got, err := testPlugin(t, "veth1").request(a, pod, prev)
	if err != nil {
		t.Fatal(err)
	}
	want := &enforcerv1.AddEndpointRequest{
		ContainerId: "c1", Namespace: "default", Pod: "app1", PodUid: "u1", Netns: "/proc/7/ns/net",
		Interface: "eth0", HostInterface: "veth1", Mac: []byte{2, 0, 0, 0, 0, 3},
		Addresses: [][]byte{{10, 244, 1, 2}, net.ParseIP("fd00:244:1::2")},
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("request (-want +got):\n%s", diff)
	}
	if err := testPlugin(t, "veth1").del(a); err != nil {
		t.Error(err)
	}
	if err := testPlugin(t).gc(args(c.Socket, `,"cni.dev/valid-attachments":[{"containerID":"c2","ifname":"eth0"}]`)); err != nil {
		t.Error(err)
	}
	wantCalls := []any{
		&enforcerv1.DeleteEndpointRequest{ContainerId: "c1", Interface: "eth0", Namespace: "default", Pod: "app1"},
		&enforcerv1.CollectEndpointsRequest{Valid: []*enforcerv1.Attachment{{ContainerId: "c2", Interface: "eth0"}}},
	}
	if diff := cmp.Diff(wantCalls, e.got, protocmp.Transform()); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
}

// P17: what bypasses the host's veth is refused.
func TestP17AddRefusesWhatHasNoVeth(t *testing.T) {
	e := &enforcer{}
	socket := serve(t, e)
	for name, tc := range map[string]struct {
		rest  string
		veths []string
	}{
		"no previous plugin":        {"", nil},
		"no veth in the node":       {prevResult, nil},
		"two veths":                 {prevResult, []string{"br0", "veth1"}},
		"an interface of elsewhere": {`,"prevResult":{"cniVersion":"1.0.0","interfaces":[{"name":"veth1"}],"ips":[]}`, []string{"veth1"}},
	} {
		err := testPlugin(t, tc.veths...).add(args(socket, tc.rest))
		var failed *types.Error
		if !errors.As(err, &failed) || failed.Code != types.ErrInvalidNetworkConfig {
			t.Errorf("%s: got %v, want an invalid network config", name, err)
		}
	}
	if len(e.got) != 0 {
		t.Errorf("the enforcer was asked %d times", len(e.got))
	}
}

func TestRefusalsBecomeErrorsOfCNI(t *testing.T) {
	for code, want := range map[codes.Code]uint{
		codes.Unavailable:        types.ErrTryAgainLater,
		codes.InvalidArgument:    types.ErrInvalidNetworkConfig,
		codes.FailedPrecondition: types.ErrInternal,
	} {
		e := &enforcer{err: status.Error(code, "no")}
		err := testPlugin(t, "veth1").add(args(serve(t, e), prevResult))
		var failed *types.Error
		if !errors.As(err, &failed) || failed.Code != want {
			t.Errorf("%s: got %v, want code %d", code, err, want)
		}
		if b, err := json.Marshal(failed); err != nil || len(b) == 0 {
			t.Errorf("%s: as JSON: %s, %v", code, b, err)
		}
	}
}

// A pod's start fails, with a hint, when there is no enforcer.
func TestStatusWithoutEnforcer(t *testing.T) {
	p := testPlugin(t)
	p.ctx = func() (context.Context, context.CancelFunc) {
		return context.WithTimeout(t.Context(), 200*time.Millisecond)
	}
	var failed *types.Error
	if err := p.status(args(filepath.Join(t.TempDir(), "none"), "")); !errors.As(err, &failed) || failed.Code != types.ErrPluginNotAvailable {
		t.Errorf("status: got %v, want that the plugin is not available", err)
	}
}
