#!/bin/busybox sh
# The emulated host's first program. It loads modules and moves into the root of the computer that started it: that
# root read-only over 9p, under a layer in memory that takes what is written.
b=/bin/busybox
fail() {
  echo "pando: the emulated host cannot $1" >/dev/console
  $b poweroff -f
}
for d in proc sys dev lower layer new; do $b mkdir -p "/$d"; done
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs dev /dev
while read -r module; do
  $b insmod "/modules/$module" || echo "pando: cannot load $module" >/dev/console
done </modules/order
$b mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=512000,cache=loose root /lower || fail "reach the root"
$b mount -t tmpfs -o size=80% layer /layer
$b mkdir /layer/upper /layer/work
$b mount -t overlay -o lowerdir=/lower,upperdir=/layer/upper,workdir=/layer/work overlay /new || fail "lay a layer"
for d in proc sys dev run; do $b mkdir -p "/new/$d"; done
for d in proc sys dev; do $b mount --move "/$d" "/new/$d"; done
$b mount -t tmpfs -o mode=755 tmpfs /new/run
$b mkdir -p -m 1777 /new/tmp
$b mkdir -p /new/run/lock
$b mkdir -m 700 /new/run/pando-machine /new/run/pando-machine/outside
# The root as it is outside, with what the new /dev, /proc, /sys and /run hide.
$b mount --move /lower /new/run/pando-machine/outside
$b cp /bin/busybox /second.sh /settings /job /new/run/pando-machine/
exec $b switch_root -c /dev/console /new /run/pando-machine/busybox sh /run/pando-machine/second.sh
