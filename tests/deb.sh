#!/bin/sh
# The Debian package, on Debian 12 and 13: `make deb` in a root of each, then tests/deb_smoke.sh in a fresh one.
#
#   tests/deb.sh [SUITE] ...    bookworm and trixie
#
# The roots are in .cache/, made once by debootstrap; the fresh one is a copy, for one run. It needs root and the
# network.
set -eu
cd "$(dirname "$0")/.."
cache=$PWD/.cache
. tests/support/debian_root.sh

main() {
	[ $# -gt 0 ] || set -- bookworm trixie
	for suite; do
		make_root "deb-$suite" "$suite" make "
			echo 'deb $mirror $suite main' >/etc/apt/sources.list
			apt-get -qq update
			apt-get clean
		"
		[ -e "$cache/deb-build-$suite" ] || cp -a "$cache/deb-$suite" "$cache/deb-build-$suite"
		copy_tree "$cache/deb-build-$suite/srv/statsfs"
		echo "$suite: make deb"
		in_root "deb-build-$suite" 'cd /srv/statsfs && rm -rf dist && make deb'
		fresh=deb-fresh-$suite
		rm -rf "${cache:?}/$fresh"
		cp -a "$cache/deb-$suite" "$cache/$fresh"
		cp "$cache/deb-build-$suite"/srv/statsfs/dist/*.deb tests/deb_smoke.sh tests/deb_upgrade.sh tests/deb_complete.zsh "$cache/$fresh/srv/"
		in_root "$fresh" 'sh /srv/deb_smoke.sh'
		rm -r "${cache:?}/$fresh"
	done
}

main "$@" # a function, so that an edit meanwhile changes nothing
