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
# That of this machine, which has both suites.
mirror=${MIRROR:-$(apt-get indextargets --format '$(SITE)' | grep -m 1 -v security)}

make_root() { # SUITE
	[ ! -e "$cache/$1/.made" ] || return 0
	echo "matrix: making .cache/$1"
	command -v debootstrap >/dev/null || apt-get -qq -y install debootstrap
	rm -rf "${cache:?}/$1"
	mkdir -p "$cache"
	debootstrap --variant=minbase --include=ca-certificates,make "$1" "$cache/$1" "$mirror" >"$cache/$1.log"
	# A mirror may be some days behind.
	echo 'Acquire::Check-Valid-Until "false";' >"$cache/$1/etc/apt/apt.conf.d/matrix"
	# What the network needs here, it needs there.
	cp -r /usr/local/share/ca-certificates "$cache/$1/usr/local/share/"
	in_root "$1" 'update-ca-certificates && useradd --create-home plain' >>"$cache/$1.log" 2>&1
	touch "$cache/$1/.made"
}

# Runs a script in a suite's root. A plain chroot has no mount table of its own, and cannot be left by
# what tests do with namespaces. The devices are as on a Debian machine: whoever likes may mount.
in_root() { # SUITE SCRIPT
	cp /etc/resolv.conf /etc/hosts "$cache/$1/etc/"
	# shellcheck disable=SC2046  # words, of which none has a blank
	unshare --mount --pid --fork --kill-child --propagation private sh -euc '
		cd "$1"
		mount --bind . .
		cd "$1"
		mount -t proc proc proc
		mount --rbind /sys sys
		mount -t tmpfs -o mode=755 tmpfs dev
		mount -t tmpfs -o mode=755 tmpfs run
		mount -t tmpfs -o mode=1777 tmpfs tmp
		mkdir -m 1777 dev/shm
		mkdir dev/pts
		mount -t devpts -o newinstance,ptmxmode=666,mode=620 devpts dev/pts
		for node in null zero full random urandom tty fuse; do
			mknod -m 666 dev/$node c $(stat -c "0x%t 0x%T" /dev/$node)
		done
		[ ! -e /dev/kvm ] || mknod -m 660 dev/kvm c $(stat -c "0x%t 0x%T" /dev/kvm)
		ln -s pts/ptmx dev/ptmx
		ln -s /proc/self/fd dev/fd
		ln -sf /proc/self/mounts etc/mtab
		mkdir -p mnt/host
		pivot_root . mnt/host
		cd /
		umount --lazy /mnt/host
		script=$2
		shift 2
		exec env -i --default-signal "$@" PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 HOME=/root sh -euc "$script"
	' sh "$cache/$1" "$2" $(env | grep -E '^(PIP_INDEX_URL|PIP_CERT|https?_proxy|no_proxy)=[^ ]*$')
}

copy_tree() { # DIRECTORY: but for what `make` made there
	mkdir -p "$1"
	find "$1" -mindepth 1 -maxdepth 1 ! -name .venv -exec rm -rf {} +
	git ls-files -z --cached --others --exclude-standard |
		tar --null --files-from=- --ignore-failed-read --create | tar --directory="$1" --extract
}

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
		make_root "$suite"
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
