package datapath

//go:generate bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -go-package datapath -type weir_event weir ../weir.bpf.c -- -std=gnu11 -O2 -fno-strict-aliasing -mcpu=v3 -Wall -Wextra -Werror -I.. -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu
//go:generate go run ../internal/enumgen -object weir_bpfel.o -out enums.go
