// Package integration tests the whole system: it builds the binaries, runs them
// as a reader does and looks only at what anybody could see — commands, sockets,
// certificates, the kernel. It needs root, Linux 6.6 or newer and curl.
package integration
