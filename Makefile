# The two commands: `make demo` and `make test`. Everything else is for those who change the code.
CARGO ?= cargo
PYTHON ?= python3
VENV := target/venv
# Third-party plugins of pytest are in an environment of their own.
PLUGINS := target/venv-plugins
# Tests of a test runner wait more than they compute, so that more of them run at once than there are cores.
export RUST_TEST_THREADS ?= 4
AT_ONCE := --offload-parallel 4
OFFLOAD := $(CURDIR)/target/release/cargo-offload

.PHONY: demo test wheel oracle faults fuzz lint bench clean

# Builds Offload and runs it on examples/: passing, failing, flaky and skipped tests in view, in Rust and in Python.
demo: $(VENV)/ready
	$(CARGO) build --release --package cargo-offload
	rm -rf target/wheels/demo
	$(VENV)/bin/maturin build --quiet --locked --release --interpreter $(VENV)/bin/python --out target/wheels/demo
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --force-reinstall --no-deps \
		target/wheels/demo/*.whl
	@rm -f "$${TMPDIR:-/tmp}/offload-example-flaky"*
	@# What fails while Cargo still builds is forgotten and tried again, and the flaky test would not be seen to be.
	@cd examples/rust && $(CARGO) test --quiet --no-run
	@echo; echo '$$ cd examples/rust && cargo offload --retries 1 -v'
	@cd examples/rust && $(OFFLOAD) offload --retries 1 -v; code=$$?; echo; \
		echo "exit code $$code: one test of the example fails on purpose"; test $$code -eq 1
	@echo; echo '$$ cd examples/python && pytest --offload -v'
	@cd examples/python && $(CURDIR)/$(VENV)/bin/python -m pytest --offload -v; code=$$?; echo; \
		echo "exit code $$code: one test of the example fails on purpose"; test $$code -eq 1

# Everything that can be tested on this machine. Python tests use an environment of their own under target/.
test: $(VENV)/ready $(PLUGINS)/ready
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" tests/with_docker.sh $(CARGO) test --workspace --locked --no-fail-fast
	$(MAKE) wheel
	tests/with_docker.sh $(VENV)/bin/python -m pytest --offload $(AT_ONCE) python/tests
	$(VENV)/bin/python tests/oracle --seeds 20
	$(VENV)/bin/python tests/faults --seeds 15
	$(VENV)/bin/python tests/faults --kind cargo --seeds 15
	$(MAKE) oracle KIND=cargo FIRST=1 SEEDS=15
	$(PLUGINS)/bin/python -m pip install --quiet --disable-pip-version-check --force-reinstall --no-deps \
		target/wheels/test/*.whl
	PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 $(PLUGINS)/bin/python -m pytest -p pytest_offload.plugin --offload $(AT_ONCE) \
		python/tests/test_plugins*.py
	$(VENV)/bin/python tests/every_python.py target/wheels/test/*.whl

# Compares Offload with plain pytest, or with KIND=cargo with `cargo test`, on random projects: SEEDS of them from FIRST
# on; a seed that fails says how it is run again.
SEEDS ?= 300
FIRST ?= 1
KIND ?= pytest
ifeq ($(KIND),cargo)
oracle:
	$(CARGO) build --package cargo-offload
	$(PYTHON) tests/cargo_oracle --first $(FIRST) --seeds $(SEEDS)
else
oracle: wheel
	$(VENV)/bin/python tests/oracle --first $(FIRST) --seeds $(SEEDS)
endif

# Kills and stops processes of random runs, KIND=pytest or cargo, at random moments, and looks whether what they report
# happened.
faults: wheel
	$(CARGO) build --package cargo-offload --locked
	$(VENV)/bin/python tests/faults --kind $(KIND) --first $(FIRST) --seeds $(SEEDS)

# Feeds TARGET, one of fuzz/fuzz_targets, with what cargo-fuzz makes up, for SECONDS. Needs a nightly toolchain and
# `cargo install cargo-fuzz`. What is found is in fuzz/artifacts; it belongs into fuzz/seeds when it is mended.
TARGET ?= worker_frames
SECONDS ?= 60
fuzz:
	mkdir -p fuzz/corpus/$(TARGET)
	cd fuzz && $(CARGO) +nightly fuzz run $(TARGET) corpus/$(TARGET) seeds/$(TARGET) -- \
		-max_total_time=$(SECONDS) -rss_limit_mb=2048 -timeout=10 -max_len=16384

# Builds the wheel without optimisation and installs it into the environment of the tests.
wheel: $(VENV)/ready
	rm -rf target/wheels/test
	$(VENV)/bin/maturin build --quiet --locked --profile dev --interpreter $(VENV)/bin/python --out target/wheels/test
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --force-reinstall --no-deps \
		target/wheels/test/*.whl

$(VENV)/ready: tests/requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --requirement tests/requirements.txt
	touch $@

$(PLUGINS)/ready: tests/requirements-plugins.txt
	$(PYTHON) -m venv $(PLUGINS)
	$(PLUGINS)/bin/python -m pip install --quiet --disable-pip-version-check \
		--requirement tests/requirements-plugins.txt
	touch $@

lint: export RUSTDOCFLAGS = -D warnings
lint: $(VENV)/ready
	$(CARGO) fmt --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(CARGO) doc --workspace --no-deps --locked --quiet
	$(VENV)/bin/ruff check python bench tests/oracle tests/cargo_oracle tests/faults
	$(VENV)/bin/ruff format --check python bench tests/oracle tests/cargo_oracle tests/faults
	$(VENV)/bin/mypy
	$(VENV)/bin/mypy --strict tests/oracle
	$(VENV)/bin/mypy --strict tests/cargo_oracle
	MYPYPATH=python/tests $(VENV)/bin/mypy --strict tests/faults

# Side by side with the tools that people use instead; prints tables of ratios. Installs those that are missing under
# target/bench. BENCH="--runs 3 --only process" chooses.
bench: $(VENV)/ready
	$(CARGO) build --release --package cargo-offload --package offload-core --examples
	$(CARGO) build --release --package cargo-offload
	rm -rf target/wheels/bench
	$(VENV)/bin/maturin build --quiet --locked --release --interpreter $(VENV)/bin/python --out target/wheels/bench
	tests/with_docker.sh $(VENV)/bin/python bench/bench.py $(BENCH)

clean:
	$(CARGO) clean
