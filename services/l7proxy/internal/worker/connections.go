package worker

import (
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"weir.dev/weir/internal/handover"
	"weir.dev/weir/services/l7proxy/internal/proxy"
)

// The kernel lets a user have only so many descriptors under way between
// processes: who has too many waits for the receiver.
const (
	underwayRetry = 5 * time.Millisecond
	underwayTries = 400
)

// give sends a connection to the parent, on its way to the next proxy.
func (w *worker) give(pair proxy.Pair) error {
	m := handover.Message{Kind: handover.Connection, Namespace: handover.In}
	if pair.Direction == proxy.Egress {
		m.Namespace = handover.Out
	}
	client, server := handover.Descriptor(pair.Client), handover.Descriptor(pair.Server)
	err := w.parent.Send(m, client, server)
	for tries := 0; errors.Is(err, unix.ETOOMANYREFS) && tries < underwayTries; tries++ {
		<-time.NewTimer(underwayRetry).C
		err = w.parent.Send(m, client, server)
	}
	return err
}

// adopt serves a connection that another worker has given.
func (w *worker) adopt(m handover.Message, files []*os.File) error {
	direction := proxy.Ingress
	if m.Namespace == handover.Out {
		direction = proxy.Egress
	}
	client, err := connection(files[0])
	if err != nil {
		handover.CloseAll(files)
		return err
	}
	server, err := connection(files[1])
	if err != nil {
		return errors.Join(err, client.Close(), files[1].Close())
	}
	if !ends(client, server) {
		return errors.Join(ErrPair, client.Close(), server.Close())
	}
	w.core.Adopt(proxy.Pair{Direction: direction, Client: client, Server: server})
	return nil
}

// ErrPair: two sockets are not the ends of one proxied connection. The worker
// they come from may have been anybody's.
var ErrPair = errors.New("take over connection: not the two ends of one")

// ends reports whether the server's socket speaks in the client's name to the
// one whom the client speaks to.
func ends(client, server *net.TCPConn) bool {
	return client.RemoteAddr().String() == server.LocalAddr().String() &&
		client.LocalAddr().String() == server.RemoteAddr().String()
}

// connection takes a socket over; the file is closed if that went well.
func connection(f *os.File) (*net.TCPConn, error) {
	c, err := net.FileConn(f) // has a descriptor of its own
	if err != nil {
		return nil, fmt.Errorf("take over connection: %w", err)
	}
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return nil, errors.Join(errors.New("take over connection: not TCP"), c.Close())
	}
	return tcp, f.Close()
}
