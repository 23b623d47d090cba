#!/usr/bin/env bash
# Prints the figures of the README, each with its bound where it has one. Never fails for being slow.
#
#   scripts/bench.sh      builds what it needs; `make bench` installs what that needs, too
#
# The pause is measured here with a toy guest, on any KVM. Linux guests run here with hardware KVM, and otherwise in an
# emulated host, where times are 10 to 20 times too long, and ratios hold.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

cargo build --release --package pando-cli --package pando-bench
target=$(cargo metadata --no-deps --format-version 1 | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
bin=$target/release
PANDO_CACHE_DIR=$(cargo xtask kernel)
export PANDO_CACHE_DIR

printf '%s, %s CPUs, Linux %s, load %s, commit %s\n\n' \
  "$(sed -n 's/^model name\s*: //p' /proc/cpuinfo | head -n 1)" "$(nproc)" "$(uname -r)" \
  "$(cut -d ' ' -f 1 /proc/loadavg)" "$(git describe --always --dirty 2>/dev/null || echo unknown)"

echo "== A toy guest, here"
"$bin/pause" "$bin/pando"

printf '\n== The store, here\n'
"$bin/store" 512 "$bin/pando"

printf '\n== Networks of VMs, here\n'
"$bin/network"

way=$("$bin/pando" doctor -o json | sed -n 's/.*"way": *"\([a-z]*\)".*/\1/p' | head -n 1) || true
case $way in
  native)
    printf '\n== Linux guests, here\n'
    "$bin/linux" "$bin/pando"
    printf '\n== Checkpoints of Linux guests, here\n'
    "$bin/checkpoint" "$bin/pando"
    printf '\n== Networks of Linux guests, here\n'
    "$bin/net" "$bin/pando"
    ;;
  machine)
    printf '\n== Linux guests, in an emulated host: times are 10 to 20 times too long, ratios hold\n'
    # The benchmark writes nothing outside the host's own /tmp.
    exchange=$(mktemp -d)
    trap 'rm -rf "$exchange"' EXIT
    "$bin/pando" machine run -m 6144 -t 900 -w "$exchange" -- "$bin/linux" "$bin/pando"
    printf '\n== Checkpoints of Linux guests, likewise\n'
    "$bin/pando" machine run -m 6144 -t 1800 -w "$exchange" -- "$bin/checkpoint" "$bin/pando"
    printf '\n== Networks of Linux guests, likewise\n'
    "$bin/pando" machine run -m 6144 -t 1800 -w "$exchange" -- "$bin/net" "$bin/pando"
    ;;
  *) "$bin/pando" doctor || true ;;
esac
