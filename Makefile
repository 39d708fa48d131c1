# Slipway's verbs. Every one can be repeated and interrupted; `make help` lists them.

SHELL := /bin/bash
TREE := target/dist/opt/slipway
# The demo's downloads take no processor: they come while the programs are built.
MAKEFLAGS += $(if $(filter demo,$(MAKECMDGOALS)),-j2)

.PHONY: help setup engine build dist bed-demo bed examples hello guests demo test test-unit test-integration test-examples test-soak test-cgroup2 test-lsm critest fuzz chart-test image helm cluster cluster-up cluster-down e2e e2e-parts e2e-cgroup2 kind kind-up kind-down kind-e2e lint cross reproducible bench clean

help: ## List the verbs
	@sed -nE 's/^([a-z0-9-]+):.*## (.*)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

setup: ## Install what building and testing need from Debian's packages, where missing
	@test/setup

engine: setup ## Fetch WasmEdge and LLVM into target/engine
	@engine/fetch

build: engine ## Build shim, guest, compiler and command line
	@shim/build

dist: build ## Assemble the installable tree and its tar under target/dist
	@engine/dist

bed-demo: setup
	@test/bed/fetch demo

bed: bed-demo ## Fetch containerds, runc, crun and CNI plugins into target/bed
	@test/bed/fetch

examples: setup ## Build the small example modules into target/examples
	@examples/build-all light

hello: setup
	@examples/hello/build

guests: setup ## Build the programs that the integration tests run in pods, into target/guests
	@test/guests/build

demo: dist bed-demo hello ## Run a Wasm pod through CRI on a private containerd, beside the same pod under runc
	@test/demo

test: test-unit test-integration ## Run all tests

test-unit: engine bed ## Run the tests of the crates and of the benchmark's client
	@test/unit

test-integration: dist bed examples guests ## Run the tests on private containerds: 2.1, 2.4 and 1.7
	@test/integration/run

test-examples: dist bed examples ## Build the heavy examples too, and run them as pods: half an hour, the first time
	@test/setup llvm-14 python3.11 || echo "test-examples: Python's example needs them, and is left out"
	@examples/build-all heavy
	@test/integration/run 2.1 Light Heavy Manifests

test-soak: dist bed examples guests ## Make and remove pods by the thousand, and see that nothing grows; then for DURATION=1800 seconds while their processes are killed
	@SLIPWAY_SOAK_PODS=1000 test/integration/run 2.1 Leaks
	@SLIPWAY_SOAK_SECONDS=$(or $(DURATION),1800) test/integration/run 2.1 Soak

test-cgroup2: dist bed examples guests ## Run them on cgroup v2, whatever this machine has, with both cgroup drivers
	@test/cgroup2/suite

test-lsm: dist bed examples ## Run those of AppArmor and SELinux in kernels that have them
	@test/lsm/run

critest: dist bed ## Run cri-tools' specs on Linux images in pods of runc and of Slipway, and see that they pass alike
	@test/critest/fetch
	@test/critest/run

fuzz: bed ## Give arbitrary bytes to what reads some from outside, DURATION=60 seconds for each
	@test/setup g++
	@test/fuzz/run $(DURATION)

chart-test: dist bed ## Test the Helm chart, the plain manifests and the installer's image; no cluster is needed
	@test/chart/run

image: dist ## Make the installer's image, with its bill of materials, under target/images
	@images/installer/build

cluster: bed
	@test/setup systemd dbus nftables openssl
	@test/cluster/fetch

cluster-up: cluster ## Start a one-node Kubernetes with containerd 2.1; VERSION=2.4 or 1.7 for the others
	@test/cluster/cluster up $(VERSION)

cluster-down: ## Take it down again
	@test/cluster/cluster down

e2e: $(if $(KUBECONFIG),,e2e-parts) ## Run the end-to-end tests on a cluster of their own; KUBECONFIG=… for another
	@test/e2e/run

helm: bed ## Build helm into target/chart-tools
	@test/chart/fetch helm

e2e-parts: cluster dist examples guests helm

e2e-cgroup2: e2e-parts ## Run those that cgroups have a part in on cgroup v2, with systemd's driver
	@test/cgroup2/e2e

kind: cluster
	@test/setup mmdebstrap
	@test/kind/fetch

kind-up: kind ## Start a cluster by kind, with a node image made here
	@test/kind/kind up

kind-down: ## Take it down again
	@test/kind/kind down

kind-e2e: kind e2e-parts ## Run the end-to-end tests on a cluster by kind
	@CLUSTER=kind test/e2e/run

lint: engine bed ## Check formatting, lints, licences and shell scripts
	@test/lint

cross: ## Build what is static for aarch64, and run it under qemu
	@test/setup qemu-user-static
	@test/cross

reproducible: build ## Build the programs again in another directory, and see that they are the same
	@test/reproducible

bench: dist bed examples ## Measure beside runc, crun, a conventional shim and a null shim
	@test/bench/run

clean: ## Remove everything that was built or fetched
	@rm -rf target
