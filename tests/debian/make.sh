#!/usr/bin/env bash
# Makes a root file system with real programs: make.sh TREE IMAGE ARCHIVES
#
# The packages in the folder ARCHIVES are unpacked into TREE, not installed: what their scripts would do and is needed here
# is done by hand, and what no test looks at is left out. IMAGE is TREE as ext4, with some room; TREE is removed.
# PostgreSQL's cluster is in it: its making takes a second here, and half a minute in a guest that is emulated.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
# Files of other users are made.
((EUID == 0)) || exec sudo "$0" "$@"
tree=$1 image=$2 archives=$3

rm -rf "$tree"
mkdir -p "$tree"/usr/{bin,sbin,lib,lib64}
for folder in bin sbin lib lib64; do
  ln -s "usr/$folder" "$tree/$folder"
done
for archive in "$archives"/*.deb; do
  # Not dpkg-deb -x, which makes folders of those links.
  dpkg-deb --fsys-tarfile "$archive" | tar -x --keep-directory-symlink -C "$tree"
done

library=$tree/usr/lib/x86_64-linux-gnu
rm -rf "$tree"/usr/share/{doc,man,info,locale,i18n,perl,perl5,lintian,bug,zoneinfo/right,zoneinfo/posix}
rm -rf "$tree"/usr/lib/postgresql/*/lib/{bitcode,llvmjit*} "$library"/{perl,perl5,perl-base,libperl.*,libLLVM*,libz3.*}
rm -rf "$tree"/var/{cache,lib}/{apt,dpkg,nginx} "$tree"/etc/{init.d,cron.*,systemd}

mkdir -p "$tree"/{dev,proc,sys,run,tmp,root,srv,data} "$tree"/var/{log,lib}/nginx "$tree/etc/pando/fork.d"
chmod 1777 "$tree/tmp"
cat >"$tree/etc/passwd" <<END
root:x:0:0:root:/root:/bin/sh
www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin
postgres:x:100:100:postgres:/data:/bin/sh
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
END
printf '%s:x:%s:\n' root 0 www-data 33 postgres 100 nogroup 65534 >"$tree/etc/group"
# Whatever no package has.
for applet in $("$tree/bin/busybox" --list); do
  [[ -e $tree/bin/$applet || -e $tree/sbin/$applet ]] || ln -s busybox "$tree/bin/$applet"
done
for program in "$tree"/usr/lib/postgresql/*/bin/*; do
  ln -sf "${program#"$tree"}" "$tree/usr/bin/${program##*/}"
done
chroot "$tree" /sbin/ldconfig
install -d -o 100 -g 100 -m 700 "$tree/data/cluster"
mknod -m 666 "$tree/dev/null" c 1 3
chroot "$tree" su postgres -c 'initdb -D /data/cluster --auth trust --no-locale -E UTF8 --no-sync' >/dev/null
# A guest is slow, small, and gone after the test; its disk is to be as real as any.
cat >>"$tree/data/cluster/postgresql.conf" <<END
jit = off
shared_buffers = 8MB
max_connections = 20
autovacuum = off
listen_addresses = '127.0.0.1'
unix_socket_directories = '/tmp'
END

rm -f "$image"
mke2fs -q -t ext4 -O ^has_journal -m 0 -d "$tree" "$image" "$(($(du -sm "$tree" | cut -f 1) * 5 / 4 + 64))M"
rm -rf "$tree"
