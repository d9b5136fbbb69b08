#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# The Debian packages that building and testing need: installs the missing ones when root, else prints the command that does.
#
#	tests/deps.sh [lint|fuzz|bench]	those of `make lint`, `make fuzz` or a bench too
set -eu

build="gcc make libc6-dev binutils pkg-config protobuf-c-compiler
	criu liburing-dev libprotobuf-c-dev libjansson-dev libxxhash-dev libzstd-dev libsystemd-dev libblkid-dev
	libgnutls28-dev libnl-3-dev libnl-route-3-dev systemtap-sdt-dev"
tests="check qemu-system-x86 qemu-utils busybox-static cpio dpkg git python3 procps util-linux mount e2fsprogs btrfs-progs strace mandoc libfuse3-dev fuse3
	iproute2 gnutls-bin"
lint="clang-tidy cppcheck shellcheck"
fuzz="clang libclang-rt-14-dev"
nested="flex bison bc libelf-dev xz-utils"
bench="fio"

packages="$build $tests"
case "${1:-}" in
lint) packages="$packages $lint" ;;
fuzz) packages="$packages $fuzz" ;;
nested) packages="$packages $nested" ;;
bench) packages="$packages $bench" ;;
esac

missing=
for p in $packages; do
	[ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || missing="$missing $p"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ]; then
	echo "Missing packages. As root, run:" >&2
	echo "apt-get update && apt-get install -y --no-install-recommends$missing" >&2
	exit 1
fi
echo "installing:$missing"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086 # a list of words
if ! { apt-get -q update && apt-get -q -y -o Dpkg::Use-Pty=0 install --no-install-recommends $missing; } >"$log" 2>&1; then
	cat "$log" >&2
	exit 1
fi
