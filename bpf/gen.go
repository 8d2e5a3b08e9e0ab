// Package bpf is the generated Go face of the kernel programs: their objects and the
// types and constants of contract.h and event.h. `make generate` writes it; nobody edits it.
package bpf

//go:generate go tool bpf2go -target bpfel -cc clang-19 -strip llvm-strip-19 -type event -type flow -type flow_key -type slots -type peer_entry -type address_key -type prefix_key -type endpoint -type endpoint_state -type fact_key -type port_group -type port_span -type wide_mask -type mask_key -type ruleset -type exact_key -type frontend_key -type denial_key -type denial -type refusal -type denial_count_key -type denial_count -type fragment -type parked -type drop_reason -type counter -type limits -type identity_number -type rule_number -type stamp_bits -type mark_bits -type flow_state -type flow_end -type process -type process_key -type process_number -type process_limits -type flow_tcp -type event_kind -type flow_path -type way_key -type endpoint_flags -type group_flags -type iface_class Weir weir.bpf.c -- -O2 -g -Wall -Werror -mcpu=v3
//go:generate go tool bpf2go -target bpfel -cc clang-19 -strip llvm-strip-19 -type hook Stub stub.bpf.c -- -O2 -g -Wall -Werror -mcpu=v3
//go:generate go tool bpf2go -target bpfel -cc clang-19 -strip llvm-strip-19 -type backend_list -type backend -type translation -type affinity_key -type affinity Sock sock.bpf.c -- -O2 -g -Wall -Werror -mcpu=v3
//go:generate go tool bpf2go -target bpfel -cc clang-19 -strip llvm-strip-19 -no-global-types -type kernel_drop_key Observe observe.bpf.c -- -O2 -g -Wall -Werror -mcpu=v3
