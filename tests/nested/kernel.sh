#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# A kernel that has what Debian's have not (kernel.config): DIR/nested-vmlinuz, built from Debian's source package, which is
# downloaded to a temporary folder and never installed. Some five minutes on two processors, once.
#
# The engine needs Linux 6.7: where apt's own sources have an older one, those of Debian's backports are asked beside them.
set -eu

dir=${1:?usage: kernel.sh DIR}
here=$(dirname "$(readlink -f "$0")")
mkdir -p "$dir"
tmp=$(mktemp -d -p "$dir" kernel-build.XXXXXX)
trap 'rm -rf "$tmp"' EXIT
trap 'exit 1' INT TERM HUP

for tool in flex bison bc gcc make xz; do
	command -v "$tool" >/dev/null || { echo "kernel.sh: $tool is needed; see tests/deps.sh nested" >&2; exit 1; }
done

mkdir -p "$tmp/apt/lists/partial" "$tmp/apt/cache/archives/partial"
apt_backports()
{
	command=$1
	shift
	"$command" -q -o Dir::Etc::sourcelist="$tmp/apt/sources.list" -o Dir::Etc::sourceparts=/dev/null \
		-o Dir::State::Lists="$tmp/apt/lists" -o Dir::Cache="$tmp/apt/cache" -o APT::Sandbox::User=root "$@"
}

newest()
{
	sed -n 's/^\(linux-source-[0-9.]*\) .*/\1/p' | sort -V | tail -n 1
}

# The mirror that this host is set up with.
suite=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
# shellcheck disable=SC2016 # apt's own words
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' "Codename: $suite" | head -n 1)
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite-backports main" >"$tmp/apt/sources.list"
{
	apt_backports apt-get update
	package=$(apt_backports apt-cache search --names-only '^linux-source-[0-9]' | newest)
	[ -n "$package" ]
	cd "$tmp"
	apt_backports apt-get download "$package"
} >"$tmp/log" 2>&1 || { cat "$tmp/log" >&2; exit 1; }

dpkg-deb --fsys-tarfile "$tmp/$package"_*.deb | tar -C "$tmp" -xf - --wildcards --strip-components=3 './usr/src/*.tar.xz'
rm "$tmp/$package"_*.deb
mkdir "$tmp/linux"
tar -C "$tmp/linux" --strip-components=1 -xf "$tmp/$package.tar.xz"
rm "$tmp/$package.tar.xz"
cd "$tmp/linux"
{
	make KCONFIG_ALLCONFIG="$here/kernel.config" allnoconfig
	# What was asked for and cannot be had would be missing without a word.
	grep '^CONFIG_' "$here/kernel.config" | while read -r want; do
		grep -qx "$want" .config || { echo "kernel.config: $want cannot be had in $package"; exit 1; }
	done
	make -j"$(nproc)" bzImage
} >"$tmp/log" 2>&1 || { tail -n 30 "$tmp/log" >&2; exit 1; }
cp arch/x86/boot/bzImage "$dir/nested-vmlinuz.part"
mv "$dir/nested-vmlinuz.part" "$dir/nested-vmlinuz"
