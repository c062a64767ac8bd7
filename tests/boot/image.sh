#!/bin/sh
# What `make boot` boots, in .cache/boot/: a Debian 12 root with systemd, a stock kernel and what statsfs needs, made
# once, and this tree, copied each time; each is an ext4 image. It needs root and the network, but mounts nothing.
set -eu
cd "$(dirname "$0")/../.."
cache=$PWD/.cache
boot=$cache/boot
. tests/support/debian_root.sh

packages='systemd-sysv udev kmod procps psmisc fuse3 libnss-systemd
	python3-venv python3-dev libfuse3-dev pkg-config gcc libc6-dev
	linux-image-cloud-amd64 initramfs-tools'

make_image() { # NAME SIZE DIRECTORY
	rm -f "$boot/$1.new"
	mke2fs -q -t ext4 -L "$1" -d "$3" "$boot/$1.new" "$2"
	mv "$boot/$1.new" "$boot/$1.ext4"
}

main() {
	command -v qemu-system-x86_64 >/dev/null ||
		apt-get -qq -y --no-install-recommends install qemu-system-x86 seabios
	mkdir -p "$boot"
	make_root boot-root bookworm make "
		echo 'deb $mirror bookworm main' >/etc/apt/sources.list
		apt-get -qq update
		DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install $(echo $packages)
		apt-get clean
		python3 -m venv /opt/statsfs
		useradd --create-home plain
	"
	if [ ! -e "$boot/root.ext4" ] || [ -n "$(find pyproject.toml "$0" tests/boot/agent.service -newer "$boot/root.ext4")" ]; then
		copy_tree "$cache/boot-root/srv/statsfs"
		in_root boot-root "
			/opt/statsfs/bin/pip install -q --disable-pip-version-check --editable '/srv/statsfs[all]'
			rm -rf /srv/statsfs/* /srv/statsfs/.[a-z]*
			echo 'LABEL=tree /srv/statsfs ext4 defaults 0 0' >/etc/fstab
			ln -sf /opt/statsfs/bin/statsfs /usr/local/bin/statsfs
		" >>"$cache/boot-root.log" 2>&1
		cp tests/boot/agent.service "$cache/boot-root/etc/systemd/system/"
		ln -sf ../agent.service "$cache/boot-root/etc/systemd/system/multi-user.target.wants/"
		cp "$cache"/boot-root/boot/vmlinuz-* "$boot/vmlinuz"
		cp "$cache"/boot-root/boot/initrd.img-* "$boot/initrd"
		make_image root 3G "$cache/boot-root"
	fi
	copy_tree "$boot/tree"
	make_image tree 100M "$boot/tree"
}

main
