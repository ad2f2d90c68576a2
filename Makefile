# One verb per intention; `make help` lists them.
SERVICES := api-gateway canary command-dispatch endpoint-registry log-ingest report-scorer rule-engine siem-forwarder standalone
MODULES  := pkg $(addprefix services/,$(SERVICES)) deploy/demo deploy/e2e deploy/bench deploy/nats deploy/siem-example
PACKAGES := $(patsubst %,./%/...,$(MODULES))
UNIT     := $(patsubst %,./%/...,$(filter-out deploy/e2e,$(MODULES)))

# The race detector needs a C compiler; without one the tests run without it.
RACE := $(shell test "$$(go env CGO_ENABLED)" = 1 && command -v "$$(go env CC)" >/dev/null 2>&1 && echo -race)

# Every build tag of the tests, and the packages that have files under one.
TAGS   := chaos,cluster,failpoint,fsync,full,natscli,powerloss,recorded
TAGGED := ./pkg/failpoint ./services/rule-engine/... ./deploy/e2e/...

# Packages of one goroutine each that work on many bytes, which the race
# detector makes ten times slower.
UNRACED := ./services/api-gateway/internal/artifact ./services/api-gateway/internal/command ./services/log-ingest/internal/logstore ./services/standalone/internal/gziplog

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.7.0
REVIVE      := github.com/mgechev/revive@v1.15.0

NATSCLI     := github.com/nats-io/natscli/nats@v0.5.1

NIGHTJAR_TESTDATA ?= ../shared
FUZZTIME ?= 10s
BENCHTIME ?= 1s
AWAY ?= 1m
CHAOS_TIME ?= 10m
CHAOS_SEED ?= 0
MODEL_CHECKS ?= 10
POWER_CUTS ?= 6
POWER_SYNC ?= always
POWER_KERNEL ?= bin/powerloss

.DEFAULT_GOAL := help

.PHONY: help
help: ## list what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## start a manager with three simulated endpoints and watch their alerts; Ctrl-C stops it
	go run ./deploy/demo

.PHONY: run
run: ## start a clean manager with its data in ./data
	go run ./services/standalone

.PHONY: build
build: ## build all programs into ./bin
	go build -o bin/ $(patsubst %,./services/%,$(SERVICES)) ./deploy/demo

.PHONY: test
test: ## run all tests; needs nothing but Go, takes a few minutes
	go test $(RACE) -timeout 15m $$(go list $(UNIT) | grep -vxF "$$(go list $(UNRACED))")
	go test -timeout 10m $(UNRACED)
	go test -tags failpoint ./pkg/failpoint
	go test -timeout 15m -parallel 4 ./deploy/e2e/...

.PHONY: test-recorded
test-recorded: ## run the tests on recorded events, rules and exchanges, found in NIGHTJAR_TESTDATA (default ../shared)
	@test -d "$(NIGHTJAR_TESTDATA)/data/events" || { \
	  echo "make test-recorded: no recorded data in $(abspath $(NIGHTJAR_TESTDATA)); set NIGHTJAR_TESTDATA to the folder that holds data/events and data/rules" >&2; exit 1; }
	NIGHTJAR_TESTDATA="$(abspath $(NIGHTJAR_TESTDATA))" go test -tags recorded -run Recorded -timeout 15m ./services/rule-engine/... ./deploy/e2e/...

.PHONY: test-fsync
test-fsync: ## watch the system calls of a manager: what it acknowledges is synced before; needs strace
	go test -tags fsync -run Sync -timeout 5m ./deploy/e2e

.PHONY: test-full
test-full: ## fill the disk under a manager; needs root, or a system that allows user namespaces
	go test -tags full -run '^TestDisk' -timeout 10m ./deploy/e2e

.PHONY: test-cluster
test-cluster: ## run the services apart while NATS servers and replicas are killed and cut off; NATS is away for AWAY (default 1m)
	go test -tags cluster -run 'TestNATSAway|TestNATSCluster|TestReplicas|TestBackupOfCluster' -timeout 30m ./deploy/e2e -away $(AWAY)

.PHONY: test-siem
test-siem: ## run the commands of docs/siem.md with the NATS command line, which is built for it
	GOBIN="$(CURDIR)/bin" GOWORK=off go install $(NATSCLI)
	NIGHTJAR_NATS_CLI="$(CURDIR)/bin/nats" go test -tags natscli -run SIEMCommandLine -timeout 10m ./deploy/e2e

# What fails is told with its seed; CHAOS_SEED repeats it. Sequences that the
# model has failed on are kept in deploy/e2e/testdata/rapid and repeated first.
CHAOS = go test -tags chaos -count=1 -v ./deploy/e2e

.PHONY: chaos
chaos: ## kill a manager at every failpoint and at random moments for CHAOS_TIME (default 10m), then hold it against a model
	$(CHAOS) -run '^TestChaos$$' -timeout 2h -args -chaos.time=$(CHAOS_TIME) -chaos.seed=$(CHAOS_SEED) -chaos.all
	$(CHAOS) -run '^TestModel$$' -timeout 2h -args -rapid.checks=$(MODEL_CHECKS) -rapid.steps=100 -rapid.seed=$(CHAOS_SEED)

.PHONY: chaos-short
chaos-short: ## the same for a minute or two: passes every failpoint, kills at some
	$(CHAOS) -run '^TestChaos$$' -timeout 15m -args -chaos.time=20s -chaos.seed=$(CHAOS_SEED)
	$(CHAOS) -run '^TestModel$$' -timeout 15m -args -rapid.checks=4 -rapid.steps=20 -rapid.seed=$(CHAOS_SEED)

# A module of its own, outside of go.work: its doc.go says why.
.PHONY: test-manifests
test-manifests: ## hold what is shipped for Kubernetes, Docker and systemd to the programs, and run them as it says
	cd deploy/manifests && GOWORK=off go test -timeout 15m ./...

# A module of its own, outside of go.work: its doc.go says why.
.PHONY: test-monitoring
test-monitoring: ## hold alert rules, dashboards and the list of metrics to what the programs export, and test the rules
	cd deploy/monitoring && GOWORK=off go test -timeout 10m ./...

.PHONY: powerloss
powerloss: ## cut the power of a virtual machine with a manager in mid load POWER_CUTS times (default 6); needs QEMU and Debian
	@for p in qemu-system-x86_64:qemu-system-x86 mke2fs:e2fsprogs xz:xz-utils; do \
	  command -v "$${p%:*}" >/dev/null || { echo "make powerloss: no $${p%:*}: apt-get install $${p#*:}" >&2; exit 1; }; done
	deploy/e2e/powerloss-kernel.sh "$(POWER_KERNEL)"
	go test -tags powerloss -count=1 -v -run '^TestPowerLoss$$' -timeout 2h ./deploy/e2e \
	  -args -powerloss.kernel="$(abspath $(POWER_KERNEL))" -powerloss.cuts=$(POWER_CUTS) -powerloss.sync=$(POWER_SYNC) -chaos.seed=$(CHAOS_SEED)

.PHONY: fuzz
fuzz: ## fuzz every parser of outside bytes, each for FUZZTIME (default 10s; 2000x is a count)
	@set -e; for dir in $$(grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u); do \
	  for f in $$(grep -h -o '^func Fuzz[A-Za-z0-9]*' $$dir/*_test.go | cut -d' ' -f2); do \
	    echo "== $$dir $$f"; go test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) $$dir; done; done

.PHONY: bench
bench: ## measure a whole manager under load against its goals (under 15 minutes); writes docs/performance.md
	NIGHTJAR_TESTDATA="$(if $(wildcard $(NIGHTJAR_TESTDATA)/data/events),$(abspath $(NIGHTJAR_TESTDATA)))" go run ./deploy/bench -write docs/performance.md

.PHONY: bench-micro
bench-micro: ## run the benchmarks of single parts
	go test -run '^$$' -bench . -benchtime $(BENCHTIME) -timeout 30m $(UNIT)

.PHONY: bench-short
bench-short: ## measure a whole manager small, to see that it runs
	go run ./deploy/bench -short -run ingest,single,latency,query,fleet,idle

.PHONY: lint
lint: ## check formatting, vet, staticcheck and doc comments
	@unformatted=$$(gofmt -l $(MODULES) deploy/manifests deploy/monitoring); test -z "$$unformatted" || { echo "gofmt has not been run on:"; echo "$$unformatted"; exit 1; }
	go vet $(PACKAGES)
	go run $(STATICCHECK) $(PACKAGES)
	go vet -tags $(TAGS) $(TAGGED)
	go run $(STATICCHECK) -tags $(TAGS) $(TAGGED)
	go run $(REVIVE) -config revive.toml -formatter friendly -set_exit_status $(PACKAGES)
	@for m in deploy/manifests deploy/monitoring; do (cd $$m && export GOWORK=off && go vet ./... && go run $(STATICCHECK) ./... && \
	  go run $(REVIVE) -config ../../revive.toml -formatter friendly -set_exit_status ./...) || exit 1; done

.PHONY: tidy
tidy: ## bring every go.mod up to date
	@for m in $(MODULES); do echo "$$m"; (cd $$m && go mod tidy) || exit 1; done
	@for m in deploy/manifests deploy/monitoring; do (cd $$m && GOWORK=off go mod tidy) || exit 1; done
