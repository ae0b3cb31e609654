// Package logkey names the keys of log records, so that one thing has one key
// in every service. It imports nothing.
package logkey

// Keys of slog attributes.
const (
	Address    = "address"
	Bytes      = "bytes"
	Count      = "count"
	Endpoint   = "endpoint"
	Error      = "error"
	File       = "file"
	Generation = "generation"
	Identity   = "identity"
	Kind       = "kind"
	Line       = "line"
	Name       = "name"
	Namespace  = "namespace"
	Node       = "node"
	Part       = "part"
	Path       = "path"
	Peer       = "peer"
	Pod        = "pod"
	Policy     = "policy"
	Reason     = "reason"
	Replica    = "replica"
	Revision   = "revision"
	Rule       = "rule"
	Sequence   = "sequence"
	Socket     = "socket"
	Took       = "took"
	Word       = "word"
)
