// Package parts finds the parts of a running demo and dials them on their unix
// sockets. It imports gRPC and the standard library.
package parts

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// Root holds the state folders of all demos of this machine.
const Root = "/run/weir/demo"

// ErrNoDemo says that no demo of that name is up.
var ErrNoDemo = errors.New("no such demo is up")

// Demo is the state folder of one demo.
type Demo struct {
	Name string
	Dir  string
}

// At is the demo of that name, up or not.
func At(name string) Demo { return Demo{Name: name, Dir: filepath.Join(Root, name)} }

// Find is the demo of that name, if it is up.
func Find(name string) (Demo, error) {
	d := At(name)
	if _, err := os.Stat(d.Sockets()); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return Demo{}, fmt.Errorf("demo %q in %s: %w: start it with: weir demo up --name %s", name, d.Dir, ErrNoDemo, name)
		}
		return Demo{}, fmt.Errorf("find demo %q: %w", name, err)
	}
	return d, nil
}

// Sockets is the folder of the parts' unix sockets.
func (d Demo) Sockets() string { return filepath.Join(d.Dir, "sock") }

// Socket is the gRPC socket of a part: policy-0, enforcer-n1, …
func (d Demo) Socket(part string) string { return filepath.Join(d.Sockets(), part+".sock") }

// HTTPSocket is the socket of a part's /metrics, /livez and /readyz.
func (d Demo) HTTPSocket(part string) string { return filepath.Join(d.Sockets(), part+".http.sock") }

// Manifests is the folder that weir apply writes.
func (d Demo) Manifests() string { return filepath.Join(d.Dir, "manifests") }

// Cluster is the folder that the demo's controller writes: nodes, pods with
// their node and addresses, services with theirs, namespaces.
func (d Demo) Cluster() string { return filepath.Join(d.Dir, "cluster") }

// PKI is the folder of a part's certificate: ca.crt, tls.crt, tls.key.
func (d Demo) PKI(part string) string { return filepath.Join(d.Dir, "pki", part) }

// Run is the run folder of a node's enforcer and proxy.
func (d Demo) Run(node string) string { return filepath.Join(d.Dir, "nodes", node, "run") }

// Log is the file of what a part says.
func (d Demo) Log(part string) string { return filepath.Join(d.Dir, "parts", part, "log") }

// HolderFile, in a pod's folder, holds the number of the process that holds the
// pod's namespaces.
const HolderFile = "holder"

// Pods is the folder of the pods' state.
func (d Demo) Pods() string { return filepath.Join(d.Dir, "pods") }

// Pod is the folder of one pod's state: its holder's number, and a folder with
// the log of each container.
func (d Demo) Pod(namespace, name string) string {
	return filepath.Join(d.Pods(), namespace+"_"+name)
}

// Refused is an object that the demo's controller cannot run, and why.
type Refused struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
	File      string `json:"file"`
	Line      int    `json:"line"`
	Reason    string `json:"reason"`
}

// RefusedFile is where the controller keeps what it refuses now.
func (d Demo) RefusedFile() string { return filepath.Join(d.Dir, "refused.json") }

// Refused lists what the controller refuses now.
func (d Demo) Refused() ([]Refused, error) {
	text, err := os.ReadFile(d.RefusedFile())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // it has refused nothing yet
	}
	if err != nil {
		return nil, fmt.Errorf("read what the controller refuses: %w", err)
	}
	var out []Refused
	if err := json.Unmarshal(text, &out); err != nil {
		return nil, fmt.Errorf("read what the controller refuses: %w", err)
	}
	return out, nil
}

// Parts lists the parts of one service (nats, identity, policy, enforcer,
// l7proxy) that were started, by name, whether they live or not.
func (d Demo) Parts(service string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(d.Dir, "parts"))
	if err != nil {
		return nil, fmt.Errorf("list the parts of demo %q: %w", d.Name, err)
	}
	var out []string
	for _, e := range entries {
		if e.Name() == service || strings.HasPrefix(e.Name(), service+"-") {
			out = append(out, e.Name())
		}
	}
	slices.Sort(out)
	return out, nil
}

// Nodes lists the demo's nodes by name.
func (d Demo) Nodes() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(d.Dir, "nodes"))
	if err != nil {
		return nil, fmt.Errorf("list the nodes of demo %q: %w", d.Name, err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out, nil
}

// Dial connects to a part's gRPC socket; the connection is made by the first
// call. The socket is 0600: who can open it may do everything.
func (d Demo) Dial(part string) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient("unix:"+d.Socket(part), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", part, err)
	}
	return conn, nil
}

// Any calls f with the parts of a service, one after the other, until one
// returns nil: replicas answer alike. It returns what all of them said.
func (d Demo) Any(service string, f func(part string) error) error {
	names, err := d.Parts(service)
	if err != nil {
		return err
	}
	if len(names) == 0 {
		return fmt.Errorf("demo %q has no %s", d.Name, service)
	}
	var said []error
	for _, name := range names {
		err := f(name)
		if err == nil {
			return nil
		}
		said = append(said, err)
	}
	return errors.Join(said...)
}
