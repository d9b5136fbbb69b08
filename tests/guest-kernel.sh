#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Debian's cloud kernel for the Linux guest: downloaded and unpacked into DIR (vmlinuz, modules/NN-NAME.ko, NN giving
# the order of loading), never installed.
set -eu

dir=${1:?usage: guest-kernel.sh DIR}
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

resolve()
{
	apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | head -n 1
}

package=$(resolve)
if [ -z "$package" ] && [ "$(id -u)" = 0 ]; then
	apt-get -qq update
	package=$(resolve)
fi
if [ -z "$package" ]; then
	echo "guest-kernel.sh: apt knows no linux-image-cloud-amd64; run apt-get update as root" >&2
	exit 1
fi
# A list of packages can be older than what the mirror still has.
if ! (cd "$tmp" && apt-get -qq download "$package") >"$tmp/log" 2>&1; then
	[ "$(id -u)" = 0 ] && apt-get -qq update && package=$(resolve)
	(cd "$tmp" && apt-get -qq download "$package") >"$tmp/log" 2>&1 || { cat "$tmp/log" >&2; exit 1; }
fi
dpkg-deb -x "$tmp/$package"_*.deb "$tmp/root"
rm -rf "$dir/modules"
mkdir -p "$dir/modules"
n=10
for m in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_console virtio_blk virtio_balloon \
	 failover net_failover virtio_net; do		# NVMe's driver is built in
	find "$tmp/root/lib/modules" -name "$m.ko" -exec cp {} "$dir/modules/$n-$m.ko" \;
	n=$((n + 1))
done
cp "$tmp"/root/boot/vmlinuz-* "$dir/vmlinuz.part"
mv "$dir/vmlinuz.part" "$dir/vmlinuz"
