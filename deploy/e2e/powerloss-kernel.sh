#!/bin/sh
# Fetches Debian's kernel for virtual machines into the folder given as $1,
# without installing it, unless it is there. Needs apt-get and dpkg.
set -eu
dir=$1
ls "$dir"/boot/vmlinuz-* >/dev/null 2>&1 && exit 0
package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
test -n "$package" || { echo "no package linux-image-cloud-amd64 is known: run apt-get update on a Debian for amd64" >&2; exit 1; }
mkdir -p "$dir"
cd "$dir"
apt-get download "$package"
dpkg-deb -x "$package"_*.deb .
rm "$package"_*.deb
# Later releases compress modules, the guest loads them as they are.
find . -name '*.ko.xz' -exec xz -d {} +
