// Package yard holds the kernel programs that benchmarks measure Weir's against.
// `make generate` writes its Go face.
package yard

//go:generate go tool bpf2go -target bpfel -cc clang-19 -strip llvm-strip-19 -no-global-types Yard yard.bpf.c -- -O2 -g -Wall -Werror -mcpu=v3
