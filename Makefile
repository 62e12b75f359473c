# Everything one does with Tollhouse from a checkout. `make help` lists it.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help run test setup format lint unit doc deny schema man bench release load clean

# Outside the checkout, so that several checkouts share what they compile.
CARGO_TARGET_DIR ?= $(HOME)/.cache/tollhouse/target
export CARGO_TARGET_DIR
export PATH := $(HOME)/.cargo/bin:$(PATH)

# `make run RELEASE=1` compiles for speed, which takes far longer.
PROFILE := $(if $(filter 1,$(RELEASE)),--release --features full)

help: ## Show this list
	@grep -hE '^[a-z]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z]+):.*## (.*)/\1\t\2/' | expand -t 8

run: ## Build and start a demonstration (RELEASE=1: optimised)
	@tests/setup.sh build
	cargo run --locked $(PROFILE) -- demo

test: setup format lint unit doc deny ## Everything that must pass

setup:
	@tests/setup.sh test

format:
	cargo fmt --all --check
	rustfmt --edition 2024 --check loadtest/origin/main.rs

lint: ## Only clippy, warnings are errors
	cargo clippy --locked --workspace --all-targets --features full -- -D warnings

unit: ## Only the tests
	cargo nextest run --locked --workspace --features full
	@if grep -rqE '^ *//[/!] ```' src filters/src; then cargo test --locked --workspace --features full --doc; fi

doc: ## Only the documentation, warnings are errors
	RUSTDOCFLAGS=-Dwarnings cargo doc --locked --no-deps --workspace --features full

deny: ## Only licences, sources and known vulnerabilities of dependencies
	@if ! command -v cargo-deny >/dev/null; then \
	    echo 'deny: SKIPPED, cargo-deny is not installed (cargo install --locked cargo-deny)'; \
	else \
	    cargo deny --locked --offline check bans licenses sources; \
	    if cargo deny --locked fetch db >/dev/null 2>&1; then \
	        cargo deny --locked --offline check advisories; \
	    else \
	        echo 'deny: advisories SKIPPED, the advisory database cannot be fetched'; \
	    fi; \
	fi

schema: ## Write conf/schema.json anew
	cargo run --locked --quiet -- schema >conf/schema.json.new
	mv conf/schema.json.new conf/schema.json

man: ## Write manual pages, one for each command, and say where
	cargo run --locked --quiet -- man --into "$(CARGO_TARGET_DIR)/man"
	@echo "$(CARGO_TARGET_DIR)/man"

bench: ## Measure single functions (SAVE=NAME: keep as a baseline; AGAINST=NAME: compare)
	@tests/setup.sh bench
	benches/run $(if $(SAVE),--save $(SAVE)) $(if $(AGAINST),--against $(AGAINST))

release: ## Build the fastest program, guided by a profile of its own work (two builds), and say where
	@tests/setup.sh load
	loadtest/guided

load: ## Measure the gateway side by side with others (see loadtest/)
	@tests/setup.sh load
	cargo build --locked --release --features full
	loadtest/compare

clean: ## Remove everything compiled
	cargo clean
