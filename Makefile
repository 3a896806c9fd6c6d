# `make demo` and `make test` set up what is missing and need nothing else.
.PHONY: demo test check bench fuzz setup build fmt lint doc deny interop image

CARGO ?= cargo
TARGET ?= $(or $(CARGO_TARGET_DIR),target)
PROFILE ?= release

demo: setup ## two clusters on this machine; ARGS=--once prints the status and exits
	@$(CARGO) build --release --quiet
	@$(TARGET)/release/clustermesh-apiserver demo $(ARGS)

test: setup ## all tests that need no peer
	$(CARGO) test --locked

check: setup ## all that CI runs
	@./.ci/check

bench: setup ## criterion benchmarks of the store and its fan-out
	$(CARGO) bench --locked

fuzz: setup ## property tests, long: CASES=100000
	PROPTEST_CASES=$(or $(CASES),20000) $(CARGO) test --locked --release --lib

setup: ## protoc, a C compiler and Rust, where they are missing
	@./.ci/setup

build: setup
	$(CARGO) build --locked --release

fmt:
	$(CARGO) fmt --all

lint: setup
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --all-targets -- -D warnings

doc: setup
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --document-private-items

deny: ## licences, advisories and bans, where cargo-deny is installed
	@if command -v cargo-deny >/dev/null; then cargo deny --all-features check $(DENY); else echo "cargo-deny is not installed: skipped"; fi

interop: setup ## real peers: etcdctl, installed if it can be
	@PEERS=1 ./.ci/setup
	ISTHMUS_REQUIRE_PEERS=1 $(CARGO) test --locked --test it etcdctl

image: ## container image
	docker build -t isthmus .
