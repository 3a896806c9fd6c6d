# Every target first installs missing build tools (`make setup`). Targets that compare with peers also need Go.
.PHONY: demo etcd35 replicas-older test check bench bench-replicas fuzz setup build fmt lint doc deny interop kubernetes interop-kubernetes interop-publisher \
	interop-cilium peers helm deploy crash replicas load publish mesh mesh-replicas adversary guard profile monitoring bench-store image image-test release e2e e2e-up e2e-tools e2e-short page page-cost screenshots

CARGO ?= cargo
TARGET ?= $(or $(CARGO_TARGET_DIR),target)

# Without optimization the build takes little more than half of the time, and the tests use a part of its results, too.
demo: setup ## run a mesh of two clusters on this machine; ARGS=--once prints the status and exits
	@echo "Building Isthmus without optimization: about three and a half minutes on two cores the first time, a second if nothing has changed."
	@$(CARGO) build --locked
	@echo "Starting the clusters of the demo."
	@$(TARGET)/debug/clustermesh-apiserver demo $(ARGS)

test: setup ## run all tests that need neither etcd nor Go
	@echo "Building the tests: four minutes on two cores the first time. Running them takes four minutes more."
	$(CARGO) test --locked

check: setup ## run everything that CI runs
	@./.ci/check

bench: peers ## measure beside etcd 3.7 and 3.6, into benches/results; BENCH="--quick", "--list", "storm puts --rounds 5"
	PEERS_BIN=$(PEERS) $(CARGO) bench --locked --profile dist --bench peers -- $(BENCH)

bench-replicas: peers ## measure replicas beside the etcd that they follow, into benches/results and docs/replicas.md; BENCH="--quick", "--rounds 1"
	PEERS_BIN=$(PEERS) $(CARGO) bench --locked --profile dist --bench peers -- replicas $(BENCH)

monitoring: ## check the alerts and dashboards with promtool, and evaluate etcd's own in a Prometheus that scrapes a store
	@MONITORING=1 ./.ci/setup
	./deploy/monitoring/check
	$(CARGO) build --locked
	ISTHMUS_BIN=$(abspath $(TARGET))/debug/clustermesh-apiserver go test -C tests/monitoring -count=1 -v .

profile: peers ## draw flame graphs of the server into benches/profiles; SCENARIOS="puts gets lists lone lone-mtls"
	PEERS_BIN=$(PEERS) ./benches/profile.sh benches/profiles $(SCENARIOS)

bench-store: setup ## run the criterion benchmarks of the store, its watchers and its log
	$(CARGO) bench --locked --bench mvcc --bench fanout --bench durable

guard: ## count the instructions of the store's operations and compare with benches/instructions.json; UPDATE=1 writes the file
	@GUARD=1 ./.ci/setup
	$(CARGO) build --locked --release --manifest-path benches/guard/Cargo.toml --target-dir $(TARGET)/guard
	$(CARGO) test --locked --release --quiet --manifest-path benches/guard/Cargo.toml --target-dir $(TARGET)/guard --lib
	$(TARGET)/guard/release/isthmus-guard benches/instructions.json $(if $(UPDATE),--update)

# LLVM's own pass counts edges, so a stable compiler is enough.
FUZZ_FLAGS = -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
	-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
	-Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1
FUZZ_HOST = $(shell rustc -vV | sed -n 's/^host: //p')
fuzz: setup ## fuzz the decoders with libFuzzer; TARGETS="requests gateway http2 manifests remotes", SECONDS=60 for each
	RUSTFLAGS="$(FUZZ_FLAGS)" $(CARGO) build --manifest-path tests/fuzz/Cargo.toml --release \
		--target $(FUZZ_HOST) --target-dir $(TARGET)/fuzz
	@for target in $(or $(TARGETS),requests gateway http2 manifests remotes); do \
		mkdir -p $(TARGET)/fuzz/corpus/$$target && echo "== $$target" && \
		FUZZ_TARGET=$$target $(TARGET)/fuzz/$(FUZZ_HOST)/release/isthmus-fuzz $(TARGET)/fuzz/corpus/$$target \
			$(wildcard tests/fuzz/seeds) -max_total_time=$(or $(SECONDS),60) -rss_limit_mb=4096 -timeout=20 \
			-artifact_prefix=$(TARGET)/fuzz/$$target- -print_final_stats=1 -verbosity=0 || exit 1; \
	done

setup: ## install a C compiler where it is missing
	@./.ci/setup

# The browser tests are a crate of their own: nothing else needs a client of WebDriver.
BROWSER_TEST = ISTHMUS_BIN=$(abspath $(TARGET))/debug/clustermesh-apiserver $(CARGO) test --locked \
	--manifest-path tests/browser/Cargo.toml --target-dir $(TARGET)/browser -- --nocapture --test-threads=1

page: ## test the mesh page in chromium, which is installed where it is missing; PAGE=name runs one test
	@BROWSER=1 ./.ci/setup
	$(CARGO) build --locked
	$(BROWSER_TEST) $(PAGE)

page-cost: setup ## measure what 50 open pages of a mesh of 250 clusters cost, in four minutes; ISTHMUS_BIN=FILE measures another build
	$(if $(ISTHMUS_BIN),,$(CARGO) build --locked --release)
	ISTHMUS_BIN=$(abspath $(or $(ISTHMUS_BIN),$(TARGET)/release/clustermesh-apiserver)) $(CARGO) test --locked --test it open_pages_of_a_large_mesh -- --ignored --nocapture

screenshots: ## write the pictures of the mesh page into docs/images
	@BROWSER=1 ./.ci/setup
	$(CARGO) build --locked
	$(BROWSER_TEST) --ignored screenshots

build: setup ## build the release binary
	$(CARGO) build --locked --release

fmt: ## format the sources
	$(CARGO) fmt --all

lint: setup ## check the format, and clippy without warnings
	$(CARGO) fmt --all --check
	$(CARGO) fmt --manifest-path deploy/image/Cargo.toml --check
	$(CARGO) fmt --manifest-path benches/guard/Cargo.toml --check
	$(CARGO) fmt --manifest-path tests/browser/Cargo.toml --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	$(CARGO) clippy --locked --manifest-path deploy/image/Cargo.toml --target-dir $(TARGET)/image-tool --all-targets -- -D warnings
	$(CARGO) clippy --locked --manifest-path benches/guard/Cargo.toml --target-dir $(TARGET)/guard -- -D warnings

doc: setup ## build the documentation of all items without warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --document-private-items

deny: ## check licences, advisories and banned crates, and name the checks that this machine cannot make
	@./.ci/deny

# The peers (etcd, etcdctl, etcdutl) are built from Go modules that tests/interop pins: etcd 3.7, and etcd 3.6 in etcd36.
PEERS = $(abspath $(TARGET))/peers
ISTHMUS_AND_PEERS = ISTHMUS_BIN=$(abspath $(TARGET))/debug/clustermesh-apiserver PEERS_BIN=$(PEERS)
GO_TEST = $(ISTHMUS_AND_PEERS) go test -C tests/interop -count=1
SEEDS ?= 4
CALLS ?= 1000

peers: setup ## build etcd, etcdctl and etcdutl of 3.7, and of 3.6
	@PEERS=1 ./.ci/setup
	@for tool in etcd:server etcdctl:etcdctl etcdutl:etcdutl; do \
		go build -C tests/interop -o $(PEERS)/$${tool%%:*} go.etcd.io/etcd/$${tool##*:}/v3 && \
		go build -C tests/interop/etcd36 -o $(PEERS)/etcd36/$${tool%%:*} go.etcd.io/etcd/$${tool##*:}/v3 || exit 1; done

# Without these values, Helm takes a rendered chart for one of Kubernetes 1.20.
HELM_FLAGS = -X helm.sh/helm/v3/internal/version.version=v3.22.0 -X helm.sh/helm/v3/pkg/chartutil.k8sVersionMajor=1 \
	-X helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor=36
helm: ## build Helm and kustomize, in about five minutes
	@PEERS=1 ./.ci/setup
	go build -C tests/interop/helm -o $(PEERS)/kustomize sigs.k8s.io/kustomize/kustomize/v5
	go build -C tests/interop/helm -ldflags "$(HELM_FLAGS)" -o $(PEERS)/helm helm.sh/helm/v3/cmd/helm

deploy: helm ## render the chart and the manifests of deploy/ with many values, and compare both
	$(CARGO) build --locked
	$(GO_TEST) -v -run Deploy .

# Checks the correctness of the mirror. `make mesh` measures.
SMALL_MESH = go run -C tests/interop ./mesh -isthmus $(abspath $(TARGET))/debug/clustermesh-apiserver -etcd $(PEERS)/etcd \
	-clusters 5 -ips 200 -kills 8 -seconds 5 -rate 100

interop: peers ## compare with etcd 3.7 and 3.6 call by call, and run its tools and clients; SEEDS=20 CALLS=2000 for the long walk
	ISTHMUS_REQUIRE_PEERS=1 $(CARGO) test --locked --test it etcdctl
	$(CARGO) build --locked
	$(GO_TEST) -v -timeout 40m -skip "KubeAPIServer|Publisher|Deploy" . -args -seeds $(SEEDS) -calls $(CALLS)
	$(ISTHMUS_AND_PEERS)/etcd36 go test -C tests/interop -count=1 -v -timeout 10m -run "Differential|Snapshot" . \
		-args -seeds 1 -calls $(or $(CALLS36),300)
	$(SMALL_MESH) -run churn,kills,wiped
	$(SMALL_MESH) -shape mirror -qps 0 -run kills
	$(MAKE) --no-print-directory mesh-replicas SECONDS=60 PROFILE=debug

KUBERNETES_VERSION = -ldflags "-X k8s.io/component-base/version.gitVersion=v1.36.3 -X k8s.io/component-base/version.gitMajor=1 \
	-X k8s.io/component-base/version.gitMinor=36"

kubernetes: peers ## build kube-apiserver, in about ten minutes
	cd tests/interop/kubernetes && go build $(KUBERNETES_VERSION) -o $(PEERS)/kube-apiserver k8s.io/kubernetes/cmd/kube-apiserver

interop-kubernetes: interop kubernetes helm ## run kube-apiserver, Kubernetes' own storage tests, and what deploy/ applies to it
	KUBE_APISERVER=$(PEERS)/kube-apiserver $(GO_TEST) -v -timeout 30m -run KubeAPIServer .
	rm -rf $(PEERS)/apiserver
	cp -r $$(cd tests/interop/kubernetes && go list -m -f '{{.Dir}}' k8s.io/apiserver) $(PEERS)/apiserver
	chmod -R u+w $(PEERS)/apiserver
	cp tests/interop/kubernetes/testserver/testserver.go $(PEERS)/apiserver/pkg/storage/etcd3/testserver/test_server.go
	ETCD_BIN=$(abspath $(TARGET))/debug/clustermesh-apiserver go test -C $(PEERS)/apiserver -mod=mod -vet=off -count=1 \
		-timeout 20m ./pkg/storage/etcd3
	ETCD_BIN=$(abspath $(TARGET))/debug/clustermesh-apiserver UPSTREAM_BIN=$(PEERS)/etcd go test -C $(PEERS)/apiserver -mod=mod \
		-vet=off -count=1 -timeout 20m ./pkg/storage/etcd3

interop-cilium: interop ## run Cilium's own tests of its kvstore packages, in a network namespace, and move 200 of its agents
	./tests/interop/cilium/run $(PEERS) $(abspath $(TARGET))/debug/clustermesh-apiserver
	./tests/interop/cilium/build $(PEERS)
	CILIUM_AGENTS=$(PEERS)/cilium-agents $(GO_TEST) -v -run ReplicasAgents .

interop-publisher: kubernetes ## compare the publisher with Cilium's on one kube-apiserver; SEEDS=3 STEPS=2000 for the long walk
	$(CARGO) build --locked
	./tests/interop/cilium/build $(PEERS)
	KUBE_APISERVER=$(PEERS)/kube-apiserver CILIUM_APISERVER=$(PEERS)/clustermesh-apiserver CILIUM_READER=$(PEERS)/cilium-reader \
		$(GO_TEST) -v -timeout 3h -run 'Publisher|Migration' . -args -seeds $(SEEDS) -publisher.steps $(or $(STEPS),200)

publish: peers ## measure publishing 50,000 objects beside Cilium: memory, start, churn, outages; PUBLISH="-outage both"
	$(CARGO) build --locked --profile dist
	./tests/interop/cilium/build $(PEERS)
	go run -C tests/interop ./publish -isthmus $(abspath $(TARGET))/dist/clustermesh-apiserver -etcd $(PEERS)/etcd \
		-cilium $(PEERS)/clustermesh-apiserver $(PUBLISH)

mesh: peers ## measure mirroring 250 clusters: cold start, churn, restart; MESH="-run chaos,millions,kills,wiped -clusters 20"
	$(CARGO) build --locked --profile dist
	./tests/interop/cilium/build $(PEERS)
	go run -C tests/interop ./mesh -isthmus $(abspath $(TARGET))/dist/clustermesh-apiserver -etcd $(PEERS)/etcd \
		-cilium $(PEERS)/clustermesh-apiserver $(MESH)

# The hosts of this mesh are network namespaces.
mesh-replicas: peers ## run two clusters with replicas under kills and partitions for 20 minutes; SECONDS=60
	$(CARGO) build --locked $(if $(filter debug,$(PROFILE)),,--release)
	@if unshare -rn true; then unshare -rn go run -C tests/interop ./mesh \
		-isthmus $(abspath $(TARGET))/$(or $(PROFILE),release)/clustermesh-apiserver -etcd $(PEERS)/etcd \
		-run replicas -seconds $(or $(SECONDS),1200); else echo "Skipped: this system has no network namespaces for users."; fi

etcd35: ## build etcd 3.5, which is upgraded under replicas
	@PEERS=1 ./.ci/setup
	go build -C tests/interop/etcd35 -o $(PEERS)/etcd35/etcd go.etcd.io/etcd/server/v3

# `make interop` has a short form. One round takes about 10 s.
replicas: peers etcd35 ## kill and stop members and replicas of an etcd under hopping watchers, 3.7 and 3.6; ROUNDS=200
	$(CARGO) build --locked --release
	@for etcd in $(PEERS) $(PEERS)/etcd36; do \
		ISTHMUS_BIN=$(abspath $(TARGET))/release/clustermesh-apiserver PEERS_BIN=$$etcd go test -C tests/interop -count=1 -v \
			-timeout 5h -run Replicas . -args -replicas.figures -replicas.rounds $(or $(ROUNDS),200) -replicas.seeds 10 -replicas.calls 1000 || exit 1; done

# The older version is the last release, or what OLDER names.
OLDER ?= $(shell git describe --tags --abbrev=0 2>/dev/null)
replicas-older: peers ## run replicas of an older version beside those of this one, under hopping watchers; OLDER=REVISION ROUNDS=20
	@test -n "$(OLDER)" || { echo "There is no release to compare with: name a revision, as in OLDER=main~50."; exit 1; }
	$(CARGO) build --locked
	rm -rf $(TARGET)/older-source && mkdir -p $(TARGET)/older-source && git archive $(OLDER) | tar -x -C $(TARGET)/older-source
	$(CARGO) build --locked --manifest-path $(TARGET)/older-source/Cargo.toml --target-dir $(TARGET)/older
	ISTHMUS_OLDER=$(abspath $(TARGET))/older/debug/clustermesh-apiserver $(GO_TEST) -v -timeout 1h -run ReplicasOlderBeside . \
		-args -replicas.rounds $(or $(ROUNDS),10)

crash: peers ## kill the store at random and drop unsynced writes, then check the data; ROUNDS=500 ENGINE=log MODE=sync
	$(CARGO) build --locked --release
	ISTHMUS_BIN=$(abspath $(TARGET))/release/clustermesh-apiserver go test -C tests/interop -count=1 -v -timeout 5h \
		-run 'TestCrash$$|TestFaults' . -args -rounds $(or $(ROUNDS),500) -crash.engine $(or $(ENGINE),log) \
		-crash.mode $(or $(MODE),sync) -crash.args="--checkpoint-bytes=$(or $(CHECKPOINT),1000000)"

load: peers ## measure durable writes beside etcd: throughput, CPU, latency; LOAD="-fill 1000000 -value 400 -churn 1h" for sizes
	$(CARGO) build --locked --profile dist
	go run -C tests/interop ./load -bin $(abspath $(TARGET))/dist/clustermesh-apiserver -etcd $(PEERS)/etcd $(LOAD)

adversary: peers ## attack Isthmus and etcd beside an honest client; ADVERSARY="-scale full -only http2", "-only random -minutes 60"
	$(CARGO) build --locked --release
	go run -C tests/adversary . -isthmus $(abspath $(TARGET))/release/clustermesh-apiserver -etcd $(PEERS)/etcd $(ADVERSARY)

# The version is that of Cargo.toml.
VERSION = $(shell sed -n '0,/^version = "\(.*\)"$$/s//\1/p' Cargo.toml)
HOST_ARCH = $(patsubst aarch64,arm64,$(patsubst x86_64,amd64,$(shell uname -m)))
ARCHS ?= $(HOST_ARCH)
IMAGE ?= $(TARGET)/image/isthmus.tar

image: setup ## write the image as an OCI archive, without a container engine; PROFILE=dist ARCHS="amd64 arm64" TAG=NAME IMAGE=FILE
	@ARCHS="$(ARCHS)" ./.ci/setup
	@CARGO="$(CARGO)" PROFILE=$(PROFILE) TAG=$(TAG) ./deploy/image/build $(IMAGE) $(ARCHS)

# The packer is a crate of its own, so that Isthmus depends on nothing that packs.
image-test: image ## test the packer, and run the image under runc as Cilium's chart does; needs root and runc
	-@RUNC=1 ./.ci/setup
	$(CARGO) test --locked --manifest-path deploy/image/Cargo.toml --target-dir $(TARGET)/image-tool
	ISTHMUS_IMAGE=$(abspath $(IMAGE)) go test -C tests/interop -count=1 -v -timeout 10m ./image $(if $(ORIGINAL),-args -original $(abspath $(ORIGINAL)))

release: setup ## make everything that a release needs in target/release-VERSION: see docs/releasing.md
	@CARGO="$(CARGO)" ARCHS="$(or $(RELEASE_ARCHS),amd64 arm64)" ./deploy/release

# One test after the other, in one lab: the clusters are made once. RUN=TestChartMatrix runs one test, E2E_SET=replicas one set
# of values.
E2E_TEST = ISTHMUS_BIN=$(abspath $(TARGET))/debug/clustermesh-apiserver PEERS_BIN=$(PEERS) E2E_IMAGE=$(abspath $(IMAGE)) \
	E2E_OUTPUT=$(abspath $(TARGET))/e2e go test -C tests/e2e -count=1 -v -timeout 2h

e2e-tools: kubernetes helm ## build what a Kubernetes cluster is made of, and Cilium's own programs, in about 20 minutes
	@E2E=1 ./.ci/setup
	cd tests/interop/kubernetes && for program in kube-controller-manager kube-scheduler kubelet kube-proxy kubectl; do \
		go build $(KUBERNETES_VERSION) -o $(PEERS)/$$program k8s.io/kubernetes/cmd/$$program || exit 1; done
	./tests/interop/cilium/build $(PEERS)

e2e-short: helm ## run the pod of Cilium's rendered chart under runc, with each set of values
	@E2E=short ./.ci/setup
	$(CARGO) build --locked
	PROFILE=debug $(MAKE) --no-print-directory image
	$(E2E_TEST) -run 'TestRendered|TestMachines' . ./lab

e2e: e2e-tools ## run Cilium's chart, ours and the walk on two real Kubernetes clusters; RUN=TestChartMatrix for one test
	$(CARGO) build --locked
	$(MAKE) --no-print-directory image
	$(E2E_TEST) -run '$(or $(RUN),.)' .

e2e-up: ## start two connected clusters for a person, until Ctrl-C
	E2E_UP=1 $(E2E_TEST) -run TestUp .
