# Weir. `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --warn-undefined-variables --no-builtin-rules

BIN      := bin
TOOLS    := .tmp/bin
VERSION  ?= v0.1.0-dev
LDFLAGS  := -s -w -X weir.dev/weir/internal/version.Version=$(VERSION)
MODULES  := proto engine internal bpf services/identity services/policy services/enforcer services/l7proxy cli integration
# Where the recorded verdicts are that may not live in this repository.
CONFORMANCE ?= ../shared/conformance
FILE     ?= services/l7proxy/internal/http1/testdata/http-bypass.json

# The binaries are static: pods and nodes of the demo, and images, have no libc.
export CGO_ENABLED := 0

.PHONY: all help build test test-faults demo lint generate check-generated standalone tidy conformance test-bypass bpf clean tools deps-run deps-generate

all: build lint test ## build, lint and test

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## put weir, weir-cni, the four services and the demo's app into bin/
	@mkdir -p $(BIN)
	go build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/ ./cli/cmd/... \
		./services/identity/cmd/weir-identity ./services/policy/cmd/weir-policy \
		./services/enforcer/cmd/weir-enforcer ./services/l7proxy/cmd/weir-l7proxy

demo: deps-run build ## run the tutorial and the matrix on this machine (root)
	$(BIN)/weir demo run

test: deps-run ## every test; prints what building and what testing took
	@hack=$$(date +%s); \
	go build -trimpath work; go vet work; go test -trimpath -run '^$$' work > /dev/null; \
	built=$$(date +%s); echo "building took $$((built-hack)) s"; \
	go test -trimpath -count=1 -p 2 -timeout 20m work; \
	echo "testing took $$(($$(date +%s)-built)) s"

test-faults: deps-run ## parts killed, paused and restarted, and policies changed, under steady load
	go test -trimpath -count=1 -timeout 20m -tags faults ./integration

lint: $(TOOLS)/stamp ## gofmt, vet, staticcheck, buf lint and breaking
	@unformatted=$$(git ls-files '*.go' | xargs gofmt -l); \
	if [ -n "$$unformatted" ]; then echo "gofmt would change:"; echo "$$unformatted"; exit 1; fi
	go vet work
	go vet -tags faults ./integration
	@for m in $(MODULES); do (cd $$m && $(CURDIR)/$(TOOLS)/staticcheck ./...); done
	$(TOOLS)/buf lint
	$(TOOLS)/buf breaking --against proto/baseline.binpb

generate: deps-generate $(TOOLS)/stamp ## protos and BPF objects (clang-19)
	$(TOOLS)/buf generate
	PATH="$(CURDIR)/$(TOOLS):$$PATH" go generate ./bpf/...

check-generated: generate ## what is committed is what generate makes
	git diff --exit-code -- proto bpf
	@new=$$(git ls-files --others --exclude-standard -- proto bpf); if [ -n "$$new" ]; then echo "not committed: $$new"; exit 1; fi

standalone: ## each module builds alone, and is tidy
	cd tools && GOWORK=off go build -o ../$(TOOLS)/standalone ./standalone
	$(TOOLS)/standalone

tidy: ## tidy every go.mod
	cd tools && GOWORK=off go build -o ../$(TOOLS)/standalone ./standalone && GOWORK=off go mod tidy
	$(TOOLS)/standalone -write

conformance: build ## the supported part of the recorded verdicts in $(CONFORMANCE)
	$(BIN)/weir policy test --only-supported $(CONFORMANCE)/ciliumpolicy.tar.xz
	$(BIN)/weir policy test --only-supported $(CONFORMANCE)/networkpolicy.tar.xz

test-bypass: ## run FILE, a corpus of HTTP bypasses, against a real proxy
	go run -trimpath ./services/l7proxy/cmd/weir-bypass $(FILE)

bpf: generate ## compile the BPF programs and print their instruction counts
	go test -count=1 -v -run 'TestInstructionCounts' ./bpf/...

tools: $(TOOLS)/stamp ## build the pinned generators and linters

$(TOOLS)/stamp: tools/go.mod tools/go.sum
	@mkdir -p $(TOOLS)
	cd tools && GOWORK=off go build -o ../$(TOOLS)/ github.com/bufbuild/buf/cmd/buf \
		github.com/cilium/ebpf/cmd/bpf2go github.com/fullstorydev/grpcurl/cmd/grpcurl \
		google.golang.org/grpc/cmd/protoc-gen-go-grpc google.golang.org/protobuf/cmd/protoc-gen-go \
		honnef.co/go/tools/cmd/staticcheck
	@touch $@

# Debian's packages that running and generating need, installed if they are not there.
deps-run:
	@command -v curl > /dev/null || { apt-get update -qq && apt-get install -y -qq curl > /dev/null; }

deps-generate:
	@command -v clang-19 > /dev/null && test -e /usr/include/bpf/bpf_helpers.h || \
		{ apt-get update -qq && apt-get install -y -qq clang-19 llvm-19 clang-format-19 libbpf-dev linux-libc-dev > /dev/null; }

clean: ## remove what make built
	rm -rf $(BIN) .tmp
