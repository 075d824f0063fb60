# gatehouse. `make` lists the targets.
SHELL := /bin/bash -o pipefail
GO ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X e13.dev/gatehouse/internal/cli.Version=$(VERSION)
# The lab's components must call themselves by the version they are, or clients
# take them for v0.0.0.
KUBE_VERSION := v1.36.1
KUBE_LDFLAGS := -s -w -X k8s.io/component-base/version.gitVersion=$(KUBE_VERSION) -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=36
GOLANGCI_VERSION := v2.15.0
COREDNS_VERSION := v1.12.4
say = @printf '\033[1m==>\033[0m %s\n'

.DEFAULT_GOAL := help
.PHONY: package image image-lock test-package
.PHONY: help build demo test test-unit test-netns test-e2e test-race numbers lab lab-down fuzz bench bench-dns bench-parts soak fairness upstream gen lint chart vulncheck check deps labs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

build: ## build bin/gatehouse
	$(say) "building bin/gatehouse (the first time, the modules it needs are downloaded)"
	@CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=auto -ldflags '$(LDFLAGS)' -o bin/gatehouse ./cmd/gatehouse

demo: build ## show the main job on loopback: no root, no cluster
	@./bin/gatehouse demo

test: test-unit test-netns test-e2e ## all tests; as root, since they make network namespaces

test-unit: ## unit tests: no root, seconds
	$(say) "unit tests"
	@$(GO) test ./...

test-netns: deps ## tests that need network namespaces
	$(say) "network namespace tests"
	@GATEHOUSE_NETNS=required unshare -Urnm $(GO) test -count=1 -run Netns $$(grep -lr --include='*_test.go' 'func TestNetns' internal | xargs -n1 dirname | sort -u | sed 's,^,./,')

test-e2e: build labs ## end-to-end tests in the lab, against a real Kubernetes
	$(say) "end-to-end tests in the lab (about 12 minutes, and 2 to compile them the first time)"
	@GO=$(GO) GATEHOUSE_LAB=required LAB_BIN=$(CURDIR)/bin LAB=$(CURDIR)/bin/lab LABKUBE=$(CURDIR)/bin/labkube GATEHOUSE_HELM=$$(scripts/helm) scripts/test-e2e

test-race: ## the unit tests under the race detector; needs a C compiler
	$(say) "unit tests under the race detector"
	@$(GO) test -race -skip NetnsSpeed ./internal/...

package: ## Debian packages, archives, bills of materials and checksums, into dist/ (a minute)
	@cd packaging && $(GO) run ./cmd/package -root .. -out ../dist

image: ## the container image, without a daemon, into dist/ (a minute)
	@cd packaging && $(GO) run ./cmd/image -root .. -out ../dist -cache ../dist/cache

image-lock: ## which packages of Debian the image is made of, anew
	@scripts/image-lock

test-package: deps ## packages and image: built twice, installed under a systemd of their own, run (root, 3 minutes)
	$(say) "packages and image (about 3 minutes)"
	@cd packaging && GATEHOUSE_PACKAGE=required $(GO) test -count=1 -timeout 15m -v ./... 2>&1 | ../scripts/testlog

numbers: build labs ## measure latencies and memory in the lab (10 minutes, on a machine that does nothing else)
	@cd lab && $(GO) build -trimpath -o ../bin/measure ./cmd/measure
	@bin/measure

lab: build labs ## bring up the lab with gatehouse and two sample Services
	@./bin/lab up --gatehouse bin/gatehouse --config lab/gatehouse.yaml --manifests deploy/rbac.yaml --samples

lab-down: ## take the lab down again
	@./bin/lab down

labs: deps bin/labkube ## build the lab's binaries
	$(say) "building bin/lab"
	@cd lab && $(GO) build -trimpath -o ../bin/lab ./cmd/lab

# Go knows best what has changed; -v lets the script say how far it is.
bin/labkube: FORCE
	@scripts/build-labkube '$(KUBE_LDFLAGS)'

.PHONY: FORCE
FORCE:

deps: ## install the Debian packages that tests need
	@scripts/deps

fuzz: ## run each fuzz target for a while (FUZZTIME=30s)
	@scripts/fuzz $(or $(FUZZTIME),30s)

bench: build ## compare with HAProxy, nginx and the kernel alone (half an hour, root); BENCH="--quick" or other flags
	@scripts/deps
	@cd lab && $(GO) build -trimpath -o ../bin/bench ./cmd/bench
	@bin/bench $(or $(BENCH),--write docs/benchmarks.md)
	@[ -n "$(BENCH)" ] || $(MAKE) bench-dns

bench-dns: build .tools/coredns-$(COREDNS_VERSION) ## its DNS server next to dnsmasq and CoreDNS (ten minutes, root); BENCHDNS="--repeat 1" or other flags
	@scripts/deps
	@cd lab && $(GO) build -trimpath -o ../bin/dnsbench ./cmd/dnsbench
	@bin/dnsbench --coredns .tools/coredns-$(COREDNS_VERSION) $(or $(BENCHDNS),--write docs/benchmarks.md)

.tools/coredns-$(COREDNS_VERSION):
	$(say) "building CoreDNS $(COREDNS_VERSION) (once, some minutes)"
	@GOBIN=$(CURDIR)/.tools $(GO) install github.com/coredns/coredns@$(COREDNS_VERSION)
	@mv .tools/coredns $@

soak: build ## an hour of every kind of load: nothing may be left behind (root); SOAK="--duration 5m" or other flags
	@cd lab && $(GO) build -trimpath -o ../bin/soak ./cmd/soak
	@bin/soak $(or $(SOAK),--svg docs/soak.svg --write docs/benchmarks.md)

upstream: build labs ## Kubernetes' own tests of load balancers, in the lab (root); UPSTREAM="--focus UDP" or other flags
	$(say) "building Kubernetes' own tests (the first time some minutes more)"
	@cd lab/upstream && $(GO) test -c -trimpath -ldflags '-s -w' -o ../../bin/upstream.test . && $(GO) build -trimpath -ldflags '-s -w' -o ../../bin/agnhost ./agnhost
	@cd lab && $(GO) build -trimpath -o ../bin/upstream ./cmd/upstream
	@bin/upstream $(or $(UPSTREAM),--write docs/upstream-tests.md)

fairness: build labs ## which share of connections each pod gets, over all ways (a minute, root); FAIRNESS="--quick" or other flags
	@cd lab && $(GO) build -trimpath -o ../bin/fairness ./cmd/fairness
	@bin/fairness $(or $(FAIRNESS),--svg docs/fairness.svg --write docs/fairness.md)

bench-parts: ## benchmarks of single parts
	@$(GO) test -run '^$$' -bench . -benchmem ./internal/...

gen: ## write the generated docs anew
	@$(GO) run ./internal/config/gen > docs/config.md
	@$(GO) run ./internal/web/gen > docs/metrics.md
	@$(GO) run ./internal/cli/gen commands > docs/commands.md
	@$(GO) run ./internal/cli/gen decisions docs/adr > docs/adr/README.md

lint: .tools/golangci-lint-$(GOLANGCI_VERSION) ## lint
	$(say) "lint"
	@.tools/golangci-lint-$(GOLANGCI_VERSION) config verify
	@.tools/golangci-lint-$(GOLANGCI_VERSION) run ./...
	@cd lab && $(GO) vet ./site/... ./e2e/... ./home/... ./guides/... ./internal/... ./cmd/lab ./cmd/bench ./cmd/dnsbench ./cmd/soak ./cmd/measure ./cmd/fairness ./cmd/upstream
	@cd packaging && ../.tools/golangci-lint-$(GOLANGCI_VERSION) run ./...
	@test -z "$$(gofmt -l lab cmd internal packaging | tee -a /dev/stderr)"

.tools/golangci-lint-$(GOLANGCI_VERSION):
	$(say) "building golangci-lint $(GOLANGCI_VERSION) (once, some minutes)"
	@GOBIN=$(CURDIR)/.tools $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)
	@mv .tools/golangci-lint $@

vulncheck: ## whether what we call is known to be vulnerable; VULNCHECK=required fails if that cannot be looked up
	@GO=$(GO) scripts/vulncheck-test
	@GO=$(GO) scripts/vulncheck

chart: ## lint and test the Helm chart
	$(say) "the Helm chart"
	@GATEHOUSE_HELM=$$(scripts/helm) $(GO) test -count=1 -run Chart ./deploy

check: lint chart gen vulncheck ## lint, the Helm chart, known vulnerabilities, and that generated files are current
	@git diff --exit-code -- docs || { echo "generated files have changed: commit what 'make gen' wrote"; exit 1; }

clean: ## remove what was built
	@rm -rf bin dist .tools
