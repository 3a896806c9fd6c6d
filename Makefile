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

# Edges are counted by LLVM itself, so a stable compiler is enough.
FUZZ_FLAGS = -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
	-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
	-Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1
FUZZ_HOST = $(shell rustc -vV | sed -n 's/^host: //p')
fuzz: setup ## libFuzzer on what decodes input: TARGETS="requests …", SECONDS=60 for each
	RUSTFLAGS="$(FUZZ_FLAGS)" $(CARGO) build --manifest-path tests/fuzz/Cargo.toml --release \
		--target $(FUZZ_HOST) --target-dir $(TARGET)/fuzz
	@for target in $(or $(TARGETS),requests gateway manifests remotes); do \
		mkdir -p $(TARGET)/fuzz/corpus/$$target && echo "== $$target" && \
		FUZZ_TARGET=$$target $(TARGET)/fuzz/$(FUZZ_HOST)/release/isthmus-fuzz $(TARGET)/fuzz/corpus/$$target \
			$(wildcard tests/fuzz/seeds) -max_total_time=$(or $(SECONDS),60) -rss_limit_mb=4096 -timeout=20 \
			-artifact_prefix=$(TARGET)/fuzz/$$target- -print_final_stats=1 -verbosity=0 || exit 1; \
	done

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
