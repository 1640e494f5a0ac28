# What there is to do here; CONTRIBUTING.md says more. ARGS go to the program: make demo ARGS="--for 30s"

# sudo, cron and the like often leave cargo's own folder out.
export PATH := $(PATH):$(HOME)/.cargo/bin
CARGO_TARGET_DIR ?= target
ARGS ?=
SECONDS ?= 600
SEED := $(or $(SEED),$(shell date +%s))

# Most tests wait for a server or a process rather than compute.
export RUST_TEST_THREADS ?= $(shell echo $$(($$(getconf _NPROCESSORS_ONLN) * 2)))

# All of them with the same packages and features, so that each thing is compiled once.
tests = cargo test --locked --workspace --all-features

.PHONY: build demo compile test model soak bench smoke lint sbom

build:
	cargo build --release --locked

demo:
	@scripts/setup
	@test -e $(CARGO_TARGET_DIR)/release/outbox-relay || \
		echo "The first build compiles everything: this takes some minutes. Later ones take seconds."
	@cargo build --release --locked
	@$(CARGO_TARGET_DIR)/release/outbox-relay demo $(ARGS)

# Every test and benchmark at once, so that all cores have something to do until the end.
compile:
	@scripts/setup
	$(tests) --tests --bench beside --bench migration --no-run

test:
	@scripts/setup --tests
	@if newest=$$(scripts/newest-postgres); then \
		echo "On the newest Postgres that can be had:"; \
		OUTBOX_RELAY_PG_BIN=$$newest $(tests) --test it -- relay:: healing:: run:: mapping::; \
	else \
		echo "Tests on a second version of Postgres: skipped."; \
	fi
	$(tests) --tests $(ARGS)

# The protocol in all its states, a part of the tests. SIZE=large takes hours, and much memory; SIZE=large:failovers is one of it.
model:
	OUTBOX_RELAY_MODEL=$(or $(SIZE),small) $(tests) --test model -- --nocapture

# The release build, under every fault at once, for so long and by this seed; then the larger model for as long. `make test` runs a minute of the same.
soak:
	@scripts/setup --tests
	cargo build --release --locked
	OUTBOX_RELAY_SOAK_PROGRAM=$(abspath $(CARGO_TARGET_DIR))/release/outbox-relay \
		OUTBOX_RELAY_SOAK_SECONDS=$(SECONDS) OUTBOX_RELAY_SOAK_SEED=$(SEED) \
		$(tests) --test soak -- --nocapture whatever_fails
	OUTBOX_RELAY_MODEL=large OUTBOX_RELAY_MODEL_SECONDS=$(SECONDS) \
		$(tests) --test model -- --nocapture the_protocol_keeps_its_promises

# make bench CASE=drain,far SIZE=200000 ROUNDS=5; without, all of it at full size, for hours. SECONDS for what is measured by time, PROFILE=dist for
# the program as it is shipped.
# The cases copy, verify and capture are of the tools around the relay, SIZE in rows.
comma := ,
cases = $(subst $(comma), ,$(CASE))
tools = $(filter copy verify capture,$(cases))
relays = $(filter-out copy verify capture,$(cases))
scale = $(if $(SIZE),--size $(SIZE)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(filter file,$(origin SECONDS)),,--seconds $(SECONDS)) $(ARGS)
profile = $(if $(PROFILE),--profile $(PROFILE))
bench:
	@scripts/setup
	@test -n "$(tools)" -a -z "$(relays)" || cargo bench --locked $(profile) --bench beside -- $(relays:%=--case %) $(scale)
	@test -n "$(relays)" -a -z "$(tools)" || cargo bench --locked $(profile) --bench migration -- $(tools:%=--case %) $(scale)

# Every case of it, tiny, and the tools that read whole tables with a tenth of the rows: that each still works, and passes its check.
smoke:
	@scripts/setup
	$(tests) --bench beside --bench migration -- --smoke

lint:
	@scripts/lint

# What the program is made of, in CycloneDX. Needs Python, and the registry only for crates that were never downloaded.
sbom:
	@mkdir -p $(CARGO_TARGET_DIR)
	@scripts/sbom $(CARGO_TARGET_DIR)/sbom.json
