#!/bin/sh
# `make check` on Debian 13 and on unstable, with each Python that they have, then the tests as a plain user.
#
#   tests/matrix.sh [SUITE[:VERSION]] ...    trixie and sid; `sid:3.14` is one Python alone
#
# A suite is a root in .cache/, made once by debootstrap. In it `make` installs what it needs, as on a new
# machine. Each run has a copy of the tree, and mounts and processes of its own, which end with it. What it
# prints is in .cache/SUITE-VERSION-USER.log; the table of all runs comes last. It needs root and the network.
set -eu
cd "$(dirname "$0")/.."
cache=$PWD/.cache
. tests/support/debian_root.sh

run() { # SUITE VERSION USER COMMAND: adds a line to the table
	name=$1-$2-$3
	copy_tree "$cache/$1/srv/$2-$3"
	echo "matrix: $name: $4"
	status=0
	in_root "$1" "cd /srv/$2-$3 && chown -R $3: . && exec setpriv --reuid=$3 --regid=$3 --init-groups \
		env HOME=\$(getent passwd $3 | cut -d: -f6) $4" >"$cache/$name.log" 2>&1 </dev/null || status=$?
	python=$(in_root "$1" "python$2 -V" | cut -d' ' -f2)
	fuse=$(in_root "$1" 'pkg-config --modversion fuse3')
	tests=$(grep -E '^=+ .* in [0-9.]+s' "$cache/$name.log" | tail -n 1 | tr -d =)
	printf '| %s | %s | %s | %s | %s |%s|\n' "$1" "$python" "$fuse" "$3" "$status" "$tests" >>"$table"
}

main() {
	table=$(mktemp)
	printf '| Debian | Python | libfuse | user | status | tests |\n|---|---|---|---|---|---|\n' >"$table"
	[ $# -gt 0 ] || set -- trixie sid
	for wanted; do
		suite=${wanted%%:*}
		make_root "$suite" "$suite" make 'useradd --create-home plain'
		in_root "$suite" 'apt-get -qq update'
		versions=${wanted#"$suite"}
		[ -n "$versions" ] || versions=$(in_root "$suite" \
			"apt-cache search --names-only '^python3\.[0-9]+-venv\$' | sed 's/^python//; s/-venv.*//'")
		for version in ${versions#:}; do
			run "$suite" "$version" root "make check PYTHON=python$version"
			run "$suite" "$version" plain "make test PYTHON=python$version"
		done
	done
	cat "$table"
	rm "$table"
}

main "$@" # a function, so that an edit meanwhile changes nothing
