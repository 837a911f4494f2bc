# make help lists what this file offers.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build

GO ?= go
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/fastmig
# Tests, the demo and the benchmark have a toolkit of their own; the one of the
# host, /opt/fastmig, is made by `bin/fastmig install`.
# Checkouts do not share it.
export FASTMIG_ROOT ?= $(CACHE)/toolkit-$(firstword $(shell printf %s "$(CURDIR)" | sha256sum | cut -c 1-12))

# Bounds the integration tests as a whole.
TEST_TIMEOUT ?= 60m
# What `go test` is told besides, e.g. make test RUN='-run Matrix -v'.
RUN ?=

STATIC := -trimpath -ldflags "-s -w"
# What `fastmig version` says.
RELEASE ?= $(shell git describe --tags --always --dirty 2>/dev/null)
SHIM_TAGS := seccomp netgo osusergo

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: deps ## build the binaries into bin/
	CGO_ENABLED=0 $(GO) build $(STATIC) -o bin/fastfreeze ./cmd/fastfreeze
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-s -w -X main.release=$(RELEASE)" -o bin/fastmig ./cmd/fastmig
	CGO_ENABLED=1 $(GO) build -trimpath -tags "$(SHIM_TAGS)" -ldflags "-s -w -extldflags -static" \
		-o bin/containerd-shim-fastmig-v2 ./cmd/containerd-shim-fastmig-v2
	$(CC) -O2 -Wall -Wextra -fPIC -shared -s -o bin/fastmig-preload.so runtime/criu/preload/preload.c

.PHONY: deps
deps: ## install the Debian packages that building and testing need
	@contrib/dev/deps.sh

.PHONY: toolkit
toolkit: build ## lay out FastFreeze and CRIU for tests (in FASTMIG_ROOT)
	bin/fastmig install --root "$(FASTMIG_ROOT)"

.PHONY: tools
tools: deps ## build the pinned containerd, runc, CNI plugins and nerdctl
	@cd integration && $(GO) run ./cmd/peers >/dev/null

.PHONY: test
test: toolkit tools unit integration ## run all tests, with the race detector

.PHONY: unit
unit: build ## run the unit tests
	$(GO) test -race -p 2 -timeout 20m ./...

.PHONY: integration
integration: toolkit tools ## run the tests with real containerd, ctr, nerdctl and CRIU
	cd integration && $(GO) test -race -p 1 -timeout $(TEST_TIMEOUT) $(or $(RUN),-skip '^Test(Matrix|Faults)$$') ./...
	$(if $(RUN),,cd integration && $(GO) test -race -timeout $(TEST_TIMEOUT) -v -run '^Test(Matrix|Faults)$$' .)

.PHONY: demo
demo: toolkit tools ## checkpoint and restore a Redis server, with a timeline
	@cd integration && $(GO) run ./cmd/demo

.PHONY: bench
bench: toolkit tools ## measure FastMig's shim beside the stock one
	@cd integration && $(GO) run ./bench

.PHONY: lint
lint: deps ## gofmt, go vet and staticcheck
	@unformatted=$$(gofmt -l $$(git ls-files --cached --others --exclude-standard '*.go')); \
		if [ -n "$$unformatted" ]; then echo "not formatted:" $$unformatted; exit 1; fi
	@staticcheck=$$(cd integration/tools/lint && $(GO) tool -n staticcheck); \
		for module in . integration; do \
			(cd $$module && $(GO) vet -tags seccomp ./... && "$$staticcheck" -tags seccomp ./...); \
		done

.PHONY: clean
clean: ## remove what was built here; the cache outside the tree stays
	rm -rf bin
