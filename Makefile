# The commands of a day. Each installs what it needs and is missing.

.PHONY: help build test check lint demo fuzz bench setup

help:
	@echo 'make test    everything: lint, tests, tests with real Linux guests'
	@echo 'make check   the same without what takes long: what CI runs'
	@echo 'make lint    format, clippy, documentation'
	@echo 'make demo    fork a running Linux VM and look at it'
	@echo 'make build   the pando program, in target/release'
	@echo 'make fuzz    each fuzz target for a minute (FUZZ_SECONDS=60)'
	@echo 'make bench   the figures of the README'

build: setup
	cargo build --release --package pando-cli

test: setup
	@scripts/setup tests
	cargo xtask test

check: setup
	@scripts/setup tests
	cargo xtask check

lint: setup
	cargo xtask lint

demo: build
	cache=$$(cargo xtask kernel) && PANDO_CACHE_DIR=$$cache scripts/demo.sh

fuzz: setup
	scripts/fuzz.sh

bench: setup
	scripts/bench.sh

setup:
	@scripts/setup
