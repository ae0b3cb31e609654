// Package handover is how an enforcer hands its listening sockets, its
// conntrack map and its live word to the HTTP proxy beside it, and how the
// proxy's privileged parent hands sockets to its worker: messages with open
// files over sockets of type SOCK_SEQPACKET.
//
// The enforcer listens on <run-dir>/handover.sock. A proxy connects and gets an
// Offer; it answers Accepting as soon as it accepts connections, and says
// Retiring before it stops. The enforcer lets a proxy go with Retire, when
// another accepts beside it, or when it retires. A proxy that was let go sends
// its Connections, each between two requests; the enforcer passes them to the
// proxy that accepts, or keeps them until one does. A connection that ends says
// that its peer is dead. No message gives a right over the other side: the
// socket is the machine's root's alone.
//
// It imports the standard library and x/sys. A Conn may be used by one sender
// and one receiver at a time.
package handover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Kind of a message.
type Kind string

// Kinds.
const (
	Offer     Kind = "offer"     // enforcer → proxy: with Files
	Accepting Kind = "accepting" // proxy → enforcer
	Retiring  Kind = "retiring"  // proxy → enforcer
	Retire    Kind = "retire"    // enforcer → proxy: stop accepting, end
	Want      Kind = "want"      // worker → parent: Count sockets of Namespace and Family
	Sockets   Kind = "sockets"   // parent → worker: they are the message's files
	// Connection is a proxied connection of Namespace, on its way from one
	// worker by its parent and the enforcer to another: the client's socket and
	// the server's are the message's files.
	Connection Kind = "connection"
)

// A File says what a passed file is.
type File string

// Files of an Offer. Each listener is transparent and listens on loopback.
const (
	ListenerIn4  File = "listener-in-4"
	ListenerIn6  File = "listener-in-6"
	ListenerOut4 File = "listener-out-4"
	ListenerOut6 File = "listener-out-6"
	NetnsIn      File = "netns-in"  // the network namespace weir-in
	NetnsOut     File = "netns-out" // and weir-out
	CtTCP        File = "ct-tcp"    // conntrack of TCP, read-only
	Word         File = "word"      // sealed memfd: the live word, 8 bytes, host byte order
)

// A Namespace is one of the proxy's two.
type Namespace string

// Namespaces.
const (
	In  Namespace = "in"  // connections that a responder's policy sends to the proxy
	Out Namespace = "out" // that an initiator's does
)

// A Message is what is sent at once. Which fields have a meaning is its Kind's.
type Message struct {
	Kind      Kind      `json:"kind"`
	Files     []File    `json:"files,omitempty"`
	Namespace Namespace `json:"namespace,omitempty"`
	Family    int       `json:"family,omitempty"` // 4 or 6
	Count     int       `json:"count,omitempty"`
}

// MaxFiles is how many files one message can carry.
const MaxFiles = 252

// ErrFiles: files of a message were lost, or are not what it says.
var ErrFiles = errors.New("files of a message are missing")

// A Conn carries messages.
type Conn struct {
	c  *net.UnixConn
	mu sync.Mutex // of senders
}

// Listen listens on path, which only root may open. It takes the place of a
// socket that another process has left or still listens on.
func Listen(ctx context.Context, path string) (*net.UnixListener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	ln, err := (&net.ListenConfig{}).Listen(ctx, "unixpacket", path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: %w", path, err), ln.Close())
	}
	ul, ok := ln.(*net.UnixListener)
	if !ok {
		return nil, errors.Join(fmt.Errorf("listen on %s: not a unix listener", path), ln.Close())
	}
	return ul, nil
}

// Dial connects to the enforcer that listens on path.
func Dial(ctx context.Context, path string) (*Conn, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "unixpacket", path)
	if err != nil {
		return nil, err
	}
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("dial %s: not a unix connection", path), c.Close())
	}
	return NewConn(uc), nil
}

// NewConn carries messages over an accepted connection.
func NewConn(c *net.UnixConn) *Conn { return &Conn{c: c} }

// Pair returns two connected ends; the second is a file, for another process.
func Pair() (*Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "handover")
	ours, err := FromFile(os.NewFile(uintptr(fds[0]), "handover"))
	if err != nil {
		return nil, nil, errors.Join(err, theirs.Close())
	}
	return ours, theirs, nil
}

// FromFile takes the end over that another process has passed, and closes f.
func FromFile(f *os.File) (*Conn, error) {
	c, err := net.FileConn(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("take over socket: %w", err)
	}
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(errors.New("take over socket: not a unix socket"), c.Close())
	}
	return NewConn(uc), nil
}

// Close closes the connection; both a sender and a receiver return then.
func (c *Conn) Close() error { return c.c.Close() }

// Send sends a message with open files, which stay open here.
func (c *Conn) Send(m Message, files ...uintptr) error {
	if len(files) > MaxFiles {
		return fmt.Errorf("send %s: %d files, the most is %d", m.Kind, len(files), MaxFiles)
	}
	b, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("send %s: %w", m.Kind, err)
	}
	var oob []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f)
		}
		oob = unix.UnixRights(fds...)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, _, err := c.c.WriteMsgUnix(b, oob, nil); err != nil {
		return fmt.Errorf("send %s: %w", m.Kind, err)
	}
	return nil
}

// Receive waits for a message. Its files are the caller's to close. The error
// is io.EOF if the peer has closed; ErrFiles if this process has no room for all
// files of the message, which is lost then, but for sockets: they are alike, and
// those that fitted are received.
func (c *Conn) Receive() (Message, []*os.File, error) {
	b := make([]byte, 4096)
	oob := make([]byte, unix.CmsgSpace(4*(MaxFiles+1)))
	n, oobn, flags, _, err := c.c.ReadMsgUnix(b, oob)
	if err != nil {
		return Message{}, nil, err
	}
	files, err := parseRights(oob[:oobn])
	if err == nil && flags&unix.MSG_TRUNC != 0 {
		err = ErrFiles
	}
	var m Message
	if err == nil {
		err = json.Unmarshal(b[:n], &m)
	}
	if err == nil && flags&unix.MSG_CTRUNC != 0 && m.Kind != Sockets {
		err = fmt.Errorf("%w: %s", ErrFiles, m.Kind)
	}
	if err == nil && m.Kind == Offer && len(m.Files) != len(files) {
		err = fmt.Errorf("%w: %d named, %d passed", ErrFiles, len(m.Files), len(files))
	}
	if err == nil && m.Kind == Connection && len(files) != 2 {
		err = fmt.Errorf("%w: a connection has 2, %d passed", ErrFiles, len(files))
	}
	if err != nil {
		CloseAll(files)
		return Message{Kind: m.Kind}, nil, fmt.Errorf("receive message: %w", err)
	}
	return m, files, nil
}

func parseRights(oob []byte) ([]*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	cmsgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for i := range cmsgs {
		fds, err := unix.ParseUnixRights(&cmsgs[i])
		if err != nil {
			continue // not rights
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "passed"))
		}
	}
	return files, nil
}

// Forward sends a received message on, and closes its files here.
func (c *Conn) Forward(m Message, files []*os.File) error {
	defer CloseAll(files)
	fds := make([]uintptr, len(files))
	for i, f := range files {
		fds[i] = Descriptor(f)
	}
	return c.Send(m, fds...)
}

// Descriptor returns a file's descriptor. It leaves O_NONBLOCK alone, which all
// who have the file share, as File.Fd does not.
func Descriptor(f syscall.Conn) (fd uintptr) {
	fd = ^uintptr(0) // of a closed file
	raw, err := f.SyscallConn()
	if err != nil {
		return fd
	}
	_ = raw.Control(func(n uintptr) { fd = n }) // closed meanwhile
	return fd
}

// CloseAll closes files that are not needed.
func CloseAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // nothing was written to it
	}
}
