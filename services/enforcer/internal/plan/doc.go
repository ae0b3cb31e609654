// Package plan takes the node from what the kernel maps say (realized) to what
// they should say (desired), in an order that never shows a packet a mixture.
//
// It is pure: a State goes in, single writes come out. Package datapath does
// them to kernel maps (Target); Model does them in memory and judges packets
// as the programs do, which is how the order is tested: after each write every
// flow is judged as the old state says, or as the new one does.
//
// Two sides. Rows of endpoints, classes, cells, ranges and services exist twice.
// A change is written to the side at rest, the word moves, a grace period
// passes, and the other side is brought up. Addresses and prefixes are not
// sided: before the word moves they get peers whose class on the live side is
// what they had, after it those no longer needed go.
//
// The package imports the standard library and engine/rule, nothing else.
package plan
