# The emulated host's second program, in its new root: it mounts what the job needs, runs the job and tells its status.
here=/run/pando-machine
b=$here/busybox
fail() {
  echo "pando: the emulated host cannot $1" >/dev/console
  $b poweroff -f
}
# share TAG PATH: a folder of the computer outside, writable.
share() {
  $b mkdir -p "$2" && $b mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose "$1" "$2" \
    || fail "mount $2"
}
# modules VERSION FOLDER: every module of the kernel, for modprobe and for the kernel's own requests.
modules() {
  [ -d "$2" ] && $b mkdir -p "/lib/modules/$1" && $b mount --bind "$2" "/lib/modules/$1"
}
$b mkdir -p /dev/shm /dev/pts
# Which the kernel does not make: `<(...)` of a shell opens them.
$b ln -s /proc/self/fd /dev/fd
for stream in 0:stdin 1:stdout 2:stderr; do $b ln -s "fd/${stream%%:*}" "/dev/${stream#*:}"; done
$b mount -t tmpfs -o mode=1777 tmpfs /dev/shm
$b mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts
$b mount -t cgroup2 cgroup2 /sys/fs/cgroup && echo "+cpu +memory +pids" >/sys/fs/cgroup/cgroup.subtree_control
$b ip link set lo up
$b hostname pando-machine

# QEMU's emulation of nested guests now and then forgets that an interrupt is pending (its thread that runs the CPU
# changes the word with that bit without the lock under which the timers' thread sets it). If that was the only timer of
# this kernel, nothing ever came after it, and a guest that waited for its other CPU waited for ever. The interrupts of
# the old timer, 18 in a second, that nobody listens to, make QEMU look again.
port() { $b printf "$2" | $b dd of=/dev/port bs=1 seek=$1 conv=notrunc 2>/dev/null || fail "set its timer"; }
port 67 '\064' && port 64 '\377' && port 64 '\377'

# What comes next was written for this start: `marker`, `linger` (seconds), and calls of the functions above.
. $here/settings

# The job writes into pipes, because a port can be opened only once. The marker follows through the same pipes, so
# nothing that the job wrote can come after it. Descriptors 8 and 9 keep the pipes open between the two. A session of
# its own gives the job a process group with a number, which the first program has not.
for n in 1 2; do
  tries=0
  until [ -e /dev/vport0p$n ]; do
    tries=$((tries + 1))
    [ $tries -lt 600 ] || fail "find its output port $n"
    $b usleep 50000
  done
done
$b mkfifo $here/out $here/err
exec 8<>$here/out 9<>$here/err
$b cat $here/out >/dev/vport0p1 8>&- 9>&- &
$b cat $here/err >/dev/vport0p2 8>&- 9>&- &
$b setsid /bin/sh $here/job </dev/null >$here/out 2>$here/err 8>&- 9>&-
status=$?
$b sync
echo "$marker $status" >&8
echo "$marker $status" >&9
$b sleep "$linger"
$b poweroff -f
