// Package http1 reads HTTP/1.0 and HTTP/1.1 messages as strictly as RFC 9112
// lets one, and writes the heads that a proxy passes on.
//
// What it cannot read in exactly one way it refuses: two framings, two hosts,
// blanks around a field's name, folded lines, line feeds without a carriage
// return, control characters. A message that it takes is passed on in the very
// bytes that were read, except for hop-by-hop fields, which are dropped, and
// for chunks, which are framed anew.
//
// It parses what strangers send. It does no I/O but by the readers and writers
// it is given, keeps no state but in its values, and imports the standard
// library only.
package http1

import "fmt"

// MaxHead bounds a message's head, and a chunked body's trailers.
const MaxHead = 64 << 10

// maxFields bounds the field lines of a head.
const maxFields = 256

// Error is why a message was refused.
type Error struct {
	Status int    // that tells the client
	Reason string // for verdicts and metrics, as in weir.l7proxy.v1
	Text   string // what is wrong
}

func (e *Error) Error() string { return fmt.Sprintf("%s (%d, %s)", e.Text, e.Status, e.Reason) }

// Reasons of refusals.
const (
	ReasonMalformed = "http-malformed"
	ReasonFraming   = "http-framing"
	ReasonTooLarge  = "http-too-large"
	ReasonVersion   = "http-version"
	ReasonConnect   = "http-connect"
	ReasonUpgrade   = "http-upgrade"
	ReasonExpect    = "http-expect"
)

func malformed(format string, args ...any) *Error {
	return &Error{400, ReasonMalformed, fmt.Sprintf(format, args...)}
}

func framing(format string, args ...any) *Error {
	return &Error{400, ReasonFraming, fmt.Sprintf(format, args...)}
}

// Kind is how the end of a body is known.
type Kind uint8

// Kinds of bodies.
const (
	NoBody   Kind = iota
	Length        // by Content-Length
	Chunked       // by its last chunk
	UntilEOF      // by the connection's end: of responses only
)
