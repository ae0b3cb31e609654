package datapath

import "encoding/binary"

// littleEndian tells how this processor stores numbers; ports in maps are in
// network byte order.
var littleEndian = binary.NativeEndian.Uint16([]byte{1, 0}) == 1
