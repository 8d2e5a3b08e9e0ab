# Weir. `make demo` shows it, `make test` tests it; both install what they need first.
#
#   deps       what a fresh Debian 12 with Go lacks (as root)
#   generate   kernel programs and their Go face from bpf/*.c
#   build      bin/weir, bin/weir-agent, bin/weir-cni
#   image      bin/image: a container image (TAG=name:tag; ARCHS="amd64 arm64"; PUSH=1: to TAG's registry)
#   manifests  deploy/*.yaml from deploy/chart (`make -s manifest SET=k8sServiceHost=...`: prints one with your values)
#   demo       a small shop in network namespaces, from nothing (KEEP=1: leave it up)
#   test       test-unit test-packet test-random test-node test-deploy test-collector test-oracle
#   test-hubble  Hubble's client, relay and filters (built at first: five minutes) against an agent and ours
#   test-conformance  cyclonus' cases on a node of namespaces
#   test-api   the agent on a real kube-apiserver (built at first: ten minutes)
#   test-cluster  a real Kubernetes of two nodes (built at first: twelve minutes), Weir installed on it,
#              Kubernetes' own tests (SHARD=1/4: the first quarter of those, and no helm, kube-proxy or other CNI;
#              CLUSTERFLAGS="-only helm,proxy,chained": those; without either: all)
#   cluster    the same, left up to look around in until interrupted
#   bench-scale  the agent among 10,000 pods, that kwok plays, and 1,000 policies: its memory, time and
#              latencies (PODS=10000 POLICIES=1000 LOCAL=100 ROUNDS=50; docs/scale.md)
#   bench-latency  there: from an API call to its effect on packets, a pod's start (ROUNDS=100;
#              AIMS=1: what misses its aim fails)
#   fuzz       test-oracle and made-up packets, ten times as long (SEED=n: others),
#              then every fuzz target for FUZZTIME (FUZZNODES, FRAMES, COMMITS: less of it)
#   test-kernels  the tests that depend on the kernel on 5.10 to 7.x, in small guests
#                 (KERNELS="6.1 6.12": on those; QUICK=1: less of them)
#   bypasses   tries the known ways around a policy, and writes docs/bypasses.md
#   lint       format, vet, staticcheck, import arrows
#   verify     what each kernel program costs the verifier
#   bench      what policy costs, beside what others cost: writes docs/benchmarks.md (ONLY=packets,traffic,flood,
#              flows,updates,cni,memory; BENCHFLAGS=-short: to see that it works; -gate: what a change is held to)
#   fmt        rewrite Go and C in the house's format
#   clean      build output, and what a crashed run left behind

SHELL = /bin/bash -o pipefail
export BPF2GO_CFLAGS = -I/usr/include/$(shell uname -m)-linux-gnu

VERSION   = $(shell sed -n 's/^appVersion: //p' deploy/chart/Chart.yaml)
REVISION  = $(shell git describe --always --dirty --abbrev=40 --exclude='*' 2>/dev/null)
STAMP     = -X github.com/weirnet/weir/controlplane/build.version=$(VERSION) -X github.com/weirnet/weir/controlplane/build.revision=$(REVISION)
GO_BUILD  = CGO_ENABLED=0 go build -trimpath
GO_TEST   = go test -json -count=1 $(TESTFLAGS)
SUMMARY   = go run ./tests/summary $(if $(CI),-no-skips)
ORACLE    = (cd tests/oracle && $(GO_TEST) -timeout 30m ./...)
COLLECTOR = (cd tests/collector && $(GO_TEST) ./...)
DEPLOY    = (cd deploy/tools && $(GO_TEST) ./...)
SLOW      = ./tests/packet ./tests/node ./tests/bypass ./tests/differential ./tests/atomic ./tests/bench# one after the other: they have time limits
UNIT      = $$(go list ./... | grep -vE '/tests/(packet|node|bypass|differential|atomic|bench)$$')
C_SOURCES = $(wildcard bpf/*.c bpf/*.h)
YARD = tests/bench/yard/yard.bpf.c

all: build

deps:
	@tools/deps

generate: bpf/weir_bpfel.go tests/bench/yard/yard_bpfel.go
bpf/weir_bpfel.go: $(C_SOURCES) bpf/gen.go | deps
	cd bpf && go generate ./...
tests/bench/yard/yard_bpfel.go: $(YARD) tests/bench/yard/gen.go | deps
	cd tests/bench/yard && go generate ./...

# Pods' addresses come from host-local and their hostPorts from portmap, plugins of their own.
PLUGINS   = $(addprefix github.com/containernetworking/plugins/plugins/,ipam/host-local meta/portmap)
build: generate
	$(GO_BUILD) -ldflags '$(STAMP)' -o bin/ ./cmd/weir ./cmd/weir-agent ./cmd/weir-cni
	$(GO_BUILD) -o bin/ $(PLUGINS)

# An agent whose maps look different: what upgrades are tested with.
build-other-layout: bin/weir-agent-other-layout
bin/weir-agent-other-layout: $(C_SOURCES) $(shell git ls-files 'cmd/*.go' 'cni/*.go' 'controlplane/*.go' 'datapath/*.go' 'identity/*.go') go.mod
	tests/otherlayout/build $@

# The plugins that Weir is chained to in tests.
OTHERS = github.com/containernetworking/plugins/plugins/main/bridge github.com/containernetworking/plugins/plugins/main/ptp
build-others:
	cd tests/othercni && $(GO_BUILD) -o ../../bin/ $(OTHERS)

TAG = localhost/weir:$(VERSION)
ARCHS = amd64 arm64
PUSH =
image: generate
	for arch in $(ARCHS); do \
	  GOARCH=$$arch $(GO_BUILD) -ldflags '-s -w $(STAMP)' -o bin/image/$$arch/ ./cmd/weir ./cmd/weir-agent ./cmd/weir-cni && \
	  GOARCH=$$arch $(GO_BUILD) -ldflags '-s -w' -o bin/image/$$arch/ $(PLUGINS) || exit 1; done
	cd deploy/tools && go run ./image -tag $(TAG) -version '$(VERSION)' -revision '$(REVISION)' -out ../../bin/image $(if $(PUSH),-push) $(foreach a,$(ARCHS),$(a)=../../bin/image/$(a))
manifests:
	cd deploy/tools && go run ./manifests ..
	cd deploy/tools && go test ./manifests -update

manifest:
	@cd deploy/tools && go run ./manifests -set '$(SET)' ..

demo: build
	@$(GO_BUILD) -o bin/demo ./tests/demo
	@bin/demo $(if $(KEEP),-keep)

test: build build-other-layout build-others
	{ $(GO_TEST) $(UNIT); status=$$?; $(GO_TEST) -p 1 -timeout 30m $(SLOW) || status=1; $(DEPLOY) || status=1; $(COLLECTOR) || status=1; $(ORACLE) && exit $$status; } | $(SUMMARY)
test-unit: generate
	$(GO_TEST) $(UNIT) | $(SUMMARY)
test-packet: generate
	$(GO_TEST) ./tests/packet ./tests/packetfuzz | $(SUMMARY)
test-node: build build-other-layout build-others
	$(GO_TEST) -timeout 20m ./tests/node | $(SUMMARY)
# docs/bypasses.md by what comes of its attempts; `make test` holds them to it.
bypasses: build
	go test -count=1 ./tests/bypass -update

# test-random with other people's policy engines as judges: a module of its own keeps ours short.
test-oracle: generate
	$(ORACLE) | $(SUMMARY)

# Flows and metrics by OTLP, at the receiver that collectors have.
test-collector: generate
	$(COLLECTOR) | $(SUMMARY)

# The chart, the manifests made from it, the image.
test-deploy:
	$(DEPLOY) | $(SUMMARY)

# Its cases, on pods of a real node.
test-conformance: build
	(cd tests/conformance && $(GO_TEST) -timeout 20m ./...) | $(SUMMARY)

# What Hubble's own client, and its filters, make of our flows.
test-hubble: build
	(cd tests/hubble && $(GO_TEST) -timeout 20m ./...) | $(SUMMARY)

# What we make of a real API server: it is built at first (tests/cluster/build.sh).
test-api: build
	($(ON_API) $(GO_TEST) -timeout 20m -p 1 . ./control ./scale) | $(SUMMARY)
ON_API = cd tests/cluster && bin=$$(./build.sh kube) && kwok=$$(kwok/build.sh) && WEIR_CLUSTER_BIN=$$bin WEIR_KWOK=$$kwok
PODS = 10000
POLICIES = 1000
LOCAL = 100
SCALEFLAGS = -rates 20,100 -churn 1m -idle 1m
bench-scale: build
	@$(ON_API) go test -count=1 -timeout 60m -v -run 'TestScale$$' ./scale -args -pods $(PODS) -policies $(POLICIES) -local $(LOCAL) \
	  -rounds $(if $(filter file,$(origin ROUNDS)),50,$(ROUNDS)) $(SCALEFLAGS) -o $(CURDIR)/bin/scale.json

# Weir as its users meet it: the image, the manifest, kubelets, pods.
IN_CLUSTER = bin=$$(tests/cluster/build.sh) && cd tests/cluster && WEIR_CLUSTER_BIN=$$bin go test -count=1 -timeout 80m
SHARD =
CLUSTERFLAGS = $(if $(SHARD),-shard $(SHARD))
test-cluster: image-here
	($(IN_CLUSTER) -json ./installed -args $(CLUSTERFLAGS)) | $(SUMMARY)
cluster: image-here
	@$(IN_CLUSTER) -v ./installed -args -only none -keep
ROUNDS = 100
bench-latency: image-here
	@$(IN_CLUSTER) -v ./installed -args -only latency,starts -policies 120,1000 -rounds $(ROUNDS) $(if $(AIMS),-aims)
image-here: build build-others
	@tools/deps cluster
	@$(MAKE) -s image-other-layout

# An image to upgrade to in tests.
HERE = $(shell go env GOARCH)
OTHER = bin/image-other-layout
image-other-layout: build-other-layout
	$(MAKE) -s image ARCHS=$(HERE)
	mkdir -p $(OTHER)
	cp -r bin/image/$(HERE) $(OTHER)/
	cp bin/weir-agent-other-layout $(OTHER)/$(HERE)/weir-agent
	cd deploy/tools && go run ./image -tag localhost/weir:other-layout -version '$(VERSION)' -revision other-layout -out ../../$(OTHER) $(HERE)=../../$(OTHER)/$(HERE)

# The programs against the reference on random clusters, and commits under a flood.
test-random: generate
	$(GO_TEST) ./tests/differential ./tests/atomic | $(SUMMARY)
SEED = 1
FUZZTIME = 30s
FUZZNODES = 100
FRAMES = 10000000
COMMITS = 10000
fuzz: generate
	{ (cd tests/oracle && $(GO_TEST) -timeout 120m ./... -seed $(SEED) -nodes $(FUZZNODES)); status=$$?; \
	  $(GO_TEST) -timeout 30m ./tests/packetfuzz -seed $(SEED) -frames $(FRAMES) || status=1; \
	  tools/fuzz $(FUZZTIME) || status=1; \
	  $(GO_TEST) -timeout 120m ./tests/atomic -commits $(COMMITS) && exit $$status; } | $(SUMMARY)

# Other kernels, in guests without a network (tests/kernels): what a kernel lacks may not be skipped.
test-kernels: build build-other-layout build-others
	@tools/deps kernels
	tests/kernels/run.sh $(if $(QUICK),-quick) $(KERNELS) | go run ./tests/summary -no-skips

lint: lint-c lint-go lint-mod
lint-c: generate
	clang-format-19 --dry-run -Werror $(C_SOURCES) $(YARD)
lint-go: generate
	@out=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$out" ] || { echo "not gofmt'd: $$out"; exit 1; }
	go vet ./...
	go tool staticcheck ./...
	cd deploy/tools && go vet ./...
	go test -count=1 ./tests

# Modules of tests follow what the root requires.
lint-mod: generate
	@for m in $$(git ls-files '*go.mod'); do \
	  (cd $$(dirname $$m) && go mod tidy -diff >/dev/null) || { echo "$$m is not tidy: run go mod tidy there"; exit 1; }; done

fmt: generate
	gofmt -w $$(git ls-files '*.go')
	clang-format-19 -i $(C_SOURCES) $(YARD)

verify: generate
	@go run ./tests/verify

# With a gate, as .ci/run has it, only the ratios that are stable enough.
ONLY =
bench: generate $(if $(findstring -gate,$(BENCHFLAGS)),,bench-others)
	@$(GO_BUILD) -o bin/bench ./tests/bench
	@bin/bench $(if $(ONLY),-only $(ONLY)) $(BENCHFLAGS)
bench-others: build build-others
	@tools/deps bench
	cd tests/bench/peers && $(GO_BUILD) -o ../../../bin/kube-network-policies sigs.k8s.io/kube-network-policies/cmd/kube-network-policies/standard

clean:
	@flock -n /run/.weird.lock tests/lab/clean.sh weird- /run/weird || { echo "clean: a demo is running: interrupt it first"; exit 1; }
	tests/lab/clean.sh weirt- /run/weirt-
	tests/cluster/clean.sh weirt-
	rm -rf bin bpf/*_bpfel.go bpf/*_bpfel.o tests/bench/yard/*_bpfel.go tests/bench/yard/*_bpfel.o

.PHONY: all deps generate build build-other-layout build-others image image-other-layout image-here manifests manifest demo test test-unit test-packet test-random test-node bypasses test-oracle test-deploy test-hubble test-collector test-conformance test-api test-cluster cluster bench-scale bench-latency fuzz test-kernels lint lint-c lint-go lint-mod fmt verify bench bench-others clean
