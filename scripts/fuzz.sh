#!/usr/bin/env bash
# Fuzzes every target in fuzz/ for FUZZ_SECONDS each (60). With libFuzzer alone, on a stable compiler: the coverage
# instrumentation is the compiler's. With FUZZ_ASAN=1 and a nightly compiler, also with its address sanitizer.
#
#   scripts/fuzz.sh [TARGET ...]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
seconds=${FUZZ_SECONDS:-60}
target=x86_64-unknown-linux-gnu
out=${CARGO_TARGET_DIR:-$PWD/target}/fuzz

if [[ ! -e fuzz/Cargo.toml ]]; then
  echo "error: there is no fuzz/Cargo.toml" >&2
  exit 1
fi
toolchain=() sanitizer=
if [[ ${FUZZ_ASAN:-} == 1 ]]; then
  toolchain=(+nightly) sanitizer="-Zsanitizer=address"
fi
flags="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4"
flags+=" -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table"
flags+=" -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing -Ccodegen-units=1 $sanitizer"
RUSTFLAGS=$flags cargo "${toolchain[@]}" build --release --target "$target" --manifest-path fuzz/Cargo.toml \
  --target-dir "$out" --bins

targets=("$@")
if ((${#targets[@]} == 0)); then
  mapfile -t targets < <(find fuzz/src/bin -maxdepth 1 -name '*.rs' -printf '%f\n' | sed 's/\.rs$//' | sort)
fi
if ((${#targets[@]} == 0)); then
  echo "error: there is no target in fuzz/" >&2
  exit 1
fi

failed=()
for name in "${targets[@]}"; do
  corpus=$out/corpus/$name seeds=fuzz/seeds/$name artifacts=$out/artifacts/$name/
  mkdir -p "$corpus" "$artifacts"
  folders=("$corpus")
  [[ -d $seeds ]] && folders+=("$seeds")
  echo "--- $name, $seconds s"
  log=$out/$name.log
  if "$out/$target/release/$name" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
    -artifact_prefix="$artifacts" "${folders[@]}" >"$log" 2>&1; then
    grep -E 'stat::number_of_executed_units|^#[0-9]+.*DONE' "$log" || true
  else
    tail -n 30 "$log"
    failed+=("$name")
  fi
done
if ((${#failed[@]})); then
  echo "failed: ${failed[*]}; what broke them is in $out/artifacts" >&2
  exit 1
fi
