# Weir. `make demo` shows it, `make test` tests it; both install what they need first.
export BPF2GO_CFLAGS = -I/usr/include/$(shell gcc -print-multiarch)

generate: bpf/weir_bpfel.go
bpf/weir_bpfel.go: $(wildcard bpf/*.c bpf/*.h) bpf/gen.go
	cd bpf && go generate ./...
.PHONY: generate
