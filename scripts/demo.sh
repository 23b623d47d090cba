#!/usr/bin/env bash
# Forks a running Linux VM and shows that parent and children are what they were, and part ways. Where this computer
# has no hardware KVM, it does so in an emulated host, slowly. Leaves nothing behind.
#
#   PANDO_CACHE_DIR=$(cargo xtask kernel) scripts/demo.sh      after `make build`; `make demo` does all three
#
# PANDO names another pando. PANDO_DEMO_INSIDE says that Linux guests run here; `make test` sets both, for it runs this.
#
# The kernel of guests must be in the cache before: in an emulated host there is no network.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
pando=${PANDO:-$here/../target/release/pando}
if [[ ! -x $pando ]]; then
  echo "error: there is no $pando; run make demo" >&2
  exit 1
fi
pando=$(realpath "$pando")

# Native, or once more in the emulated host.
if [[ -z ${PANDO_DEMO_INSIDE:-} ]]; then
  way=$("$pando" doctor -o json | sed -n 's/.*"way": *"\([a-z]*\)".*/\1/p' | head -n 1) || true
  case $way in
    native) ;;
    machine)
      echo "This computer has no hardware KVM: the demo runs in an emulated host, 10 to 20 times slower."
      exchange=$(mktemp -d)
      trap 'rm -rf "$exchange"' EXIT
      PANDO_DEMO_INSIDE=1 "$pando" machine run -m 4096 -t 900 -w "$exchange" -- bash "$here/demo.sh"
      exit
      ;;
    *)
      "$pando" doctor || true
      exit 1
      ;;
  esac
fi

folder=$(mktemp -d /tmp/pando-demo.XXXXXX)
export PANDO_STATE_DIR=$folder/state PANDO_RUNTIME_DIR=$folder/run PANDO_HOST=unix://$folder/pando.sock
"$pando" daemon --socket "$folder/pando.sock" 2>"$folder/daemon.log" &
daemon=$!
finish() {
  status=$?
  trap - EXIT INT TERM
  ((status == 0)) || { echo "--- the daemon's log"; tail -n 20 "$folder/daemon.log"; } >&2
  names=$("$pando" ls -q 2>/dev/null) || names=
  # shellcheck disable=SC2086 # Names have no spaces.
  [[ -z $names ]] || "$pando" rm -f $names >/dev/null 2>&1 || true
  kill "$daemon" 2>/dev/null || true
  wait "$daemon" 2>/dev/null || true
  rm -rf "$folder"
  exit "$status"
}
trap finish EXIT INT TERM

for _ in {1..300}; do
  "$pando" ls -q >/dev/null 2>&1 && break
  kill -0 "$daemon" 2>/dev/null || break
  sleep 0.1
done
"$pando" ls -q >/dev/null

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
show() {
  printf '\033[2m$ pando %s\033[0m\n' "$*"
  "$pando" "$@"
}
milliseconds() { echo $(($(date +%s%N) / 1000000)); }

# A root file system: busybox, and a program that counts.
root=$folder/rootfs
mkdir -p "$root"/{bin,etc,data}
cp /bin/busybox "$root/bin/busybox"
for applet in $(/bin/busybox --list); do
  [[ $applet == busybox ]] || ln -s busybox "$root/bin/$applet"
done
echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
cat >"$root/bin/counter" <<'COUNTER'
#!/bin/sh
# Counts in a variable of the shell: it lives in the VM's memory and nowhere else.
n=0
while :; do
  n=$((n + 1))
  echo $n >/run/count.new && mv /run/count.new /run/count
  usleep 10000
done
COUNTER
chmod +x "$root/bin/counter"

say "A VM: a Linux kernel, one program that counts, a file on its disk."
start=$(milliseconds)
show run --name web --memory 256M "$root" -- /bin/counter
echo "booted in $(($(milliseconds) - start)) ms, the import of its image included"
"$pando" exec web sh -c 'while [ ! -s /run/count ]; do usleep 10000; done; echo written-by-web > /data/note; sync'
show exec web sh -c 'echo "$(hostname) counts: $(cat /run/count), note: $(cat /data/note)"'

say "Fork it three times while it runs."
start=$(milliseconds)
show fork web --count 3 --prefix review -e BRANCH=fix-login
echo "three copies answered after $(($(milliseconds) - start)) ms"

say "Each copy went on counting from the same instant; each has its own name, and a disk that parts from the others'."
for name in review.1 review.2 review.3; do
  "$pando" exec "$name" sh -c 'echo "written-by-$(hostname)" > /data/note'
done
for name in web review.1 review.2 review.3; do
  "$pando" exec "$name" sh -c 'echo "$(hostname) counts: $(cat /run/count), note: $(cat /data/note), BRANCH=$BRANCH"'
done

say "A copy can be copied, and outlives the one that it was copied from."
show fork review.1 --name deeper --timings
show rm -f review.1
show exec deeper cat /data/note
show tree
show ls

say "What the copies cost: pages that nobody changed are there once."
for name in web review.2 deeper; do
  printf '%-10s' "$name"
  "$pando" inspect "$name" | awk '$1 == "resident" || $1 == "private" || $1 == "proportional" {printf "  %s %s %s", $1, $2, $3} END {print ""}'
done
echo
echo "Removing everything."
