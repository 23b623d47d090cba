# The job of the emulated host that stays. Before this come `program`, `address`, `port`, `token` and `cache`.
here=/run/pando-machine
b=$here/busybox
fail() {
  echo "pando: the emulated host cannot $1"
  exit 1
}
export HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PANDO_STATE_DIR=/var/lib/pando PANDO_RUNTIME_DIR=/run/pando PANDO_CACHE_DIR="$cache"
export PANDO_HOST=unix:///run/pando/pando.sock

$b ip addr add "$address/24" dev eth0 && $b ip link set eth0 up || fail "set up its network"
$b mkdir -p /var/lib/pando $here/control
$b mount -t ext4 -o discard /dev/vda /var/lib/pando || fail "mount its disk"
$b mount -t 9p -o trans=virtio,version=9p2000.L,cache=none control $here/control || fail "mount its control folder"
# A copy: the program outside may be replaced by another version at any time.
$b cp "$here/outside$program" $here/pando || fail "find $program"
(umask 077 && echo "$token" >$here/token)

# VMs outlive a daemon, so one that ends is followed by another.
serve() {
  for attempt in 1 2 3 4 5; do
    $b sh -c 'echo $$ >/run/pando-machine/daemon.pid; exec "$@"' sh \
      $here/pando daemon --tcp "$address:$port" --token-file $here/token
    status=$?
    [ -e $here/stopping ] && return
    echo "pando: the daemon of the emulated host ended with $status"
    $b sleep 1
  done
  : >$here/failed
}
serve &
until [ -e $here/control/stop ] || [ -e $here/failed ]; do $b sleep 1; done

: >$here/stopping
if [ ! -e $here/failed ]; then
  $b timeout 90 sh -c "$here/pando ls --quiet --running | xargs -r $here/pando stop --timeout 60s"
  kill -TERM "$($b cat $here/daemon.pid)"
  wait
fi
# Everyone but this script and the one that waits for it.
kill -TERM -1
$b sleep 1
kill -KILL -1
$b umount /var/lib/pando
