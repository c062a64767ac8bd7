# Sourced by scripts that need a root of another Debian: made once by debootstrap in $cache, and entered by a chroot
# with mounts and processes of its own, which end with it. It needs root and the network.

# That of this machine, which has all suites.
mirror=${MIRROR:-$(apt-get indextargets --format '$(SITE)' | grep -m 1 -v security)}

make_root() { # NAME SUITE PACKAGES SCRIPT: in .cache/NAME; the script ends it, inside
	[ ! -e "$cache/$1/.made" ] || return 0
	echo "making .cache/$1"
	command -v debootstrap >/dev/null || apt-get -qq -y install debootstrap
	rm -rf "${cache:?}/$1"
	mkdir -p "$cache"
	debootstrap --variant=minbase --include="ca-certificates,$3" "$2" "$cache/$1" "$mirror" >"$cache/$1.log"
	# A mirror may be some days behind.
	echo 'Acquire::Check-Valid-Until "false";' >"$cache/$1/etc/apt/apt.conf.d/mirror"
	# What the network needs here, it needs there.
	cp -r /usr/local/share/ca-certificates "$cache/$1/usr/local/share/"
	in_root "$1" "update-ca-certificates; $4" >>"$cache/$1.log" 2>&1
	touch "$cache/$1/.made"
}

# Runs a script in a root. A plain chroot has no mount table of its own, and cannot be left by what tests do with
# namespaces. The devices are as on a Debian machine: whoever likes may mount.
in_root() { # NAME SCRIPT
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
