#!/bin/sh
# Runs in a fresh Debian root, by tests/deb.sh: installs the package that is beside this file, tries what is in it,
# and purges it.
set -eu
export DEBIAN_FRONTEND=noninteractive
cd "$(dirname "$0")"

fail() {
	echo "failed: $*" >&2
	exit 1
}

says() { # TEXT COMMAND...: the command succeeds, and prints that
	text=$1
	shift
	said=$("$@") || fail "$* ended with $?"
	[ "$said" = "$text" ] || fail "$*: '$said', not '$text'"
}

wait_until() { # COMMAND...: succeeds within 10 s
	for _ in $(seq 100); do
		! "$@" || return 0
		sleep 0.1
	done
	fail "in 10 s, not: $*"
}

install() {
	apt-get -qq -y --no-install-recommends install "$@" >/tmp/apt 2>&1 || { cat /tmp/apt >&2; fail "to install $*"; }
}

ended() { # the daemon
	for file in /proc/[0-9]*/cmdline; do
		! tr '\0' ' ' 2>/dev/null <"$file" | grep -q '^/usr/lib/statsfs/' || return 1
	done
}

find_left() { # but for what man keeps of a page
	find / -xdev -path '*statsfs*' ! -path '/srv/*' ! -path '/var/lib/dpkg/*' ! -path '/var/cache/man/*'
}

# With nothing but what the package says that it needs.
apt-get -qq update
install ./statsfs_*.deb
version=$(dpkg-deb --field statsfs_*.deb Version)
says "statsfs ${version%%+*}" statsfs --version

# mount(8) mounts what the system's Python publishes, and what C does.
mkdir /run/stats
mount -t statsfs statsfs /run/stats
says fuse.statsfs findmnt --noheadings --output FSTYPE /run/stats
python3 -c '
import time
from statsfs import Stats, counter, publish

class Jobs(Stats):
    done = counter()

segment = publish("jobs/python", values=Jobs)
segment.stats.done += 3
time.sleep(600)
' &
python=$!
wait_until test -e /run/stats/jobs/python/done
says 3 cat /run/stats/jobs/done
kill $python
install gcc libc6-dev
cc -o /tmp/counter /usr/share/doc/statsfs/examples/counter.c
/tmp/counter /run/statsfs jobs/c &
c=$!
wait_until test -e /run/stats/jobs/c/ticks
grep -q '"ticks": [1-9]' /run/stats/.stats.json || fail "$(cat /run/stats/.stats.json)"
kill $c
umount /run/stats
wait_until ended
mount -t fuse.statsfs statsfs /run/stats
mount -o remount,ro /run/stats
says fuse.statsfs findmnt --noheadings --options ro --output FSTYPE /run/stats
umount /run/stats
wait_until ended

# What needs further packages, if they are there.
statsfs demo /run/stats --vms 1 --rate 0 >/dev/null &
wait_until test -e /run/stats/kvm/exits
says 0 sh -c 'statsfs umount /run/stats; echo $?'
wait $!
! /usr/lib/statsfs/bin/python3 -c 'import libvirt' 2>/dev/null || fail "there is a libvirt"
install python3-libvirt
/usr/lib/statsfs/bin/python3 -c 'import libvirt'

# Upgrades. The manual, completions, the unit.
. ./deb_upgrade.sh
check_upgrades
install man-db bash-completion zsh fish systemd
for file in /usr/share/man/man*/*statsfs*; do
	page=$(basename "$file" .gz)
	[ -L "$file" ] || says "$file" man --where "${page##*.}" "${page%.*}"
	says "" sh -c "man --warnings --ditroff ${page##*.} ${page%.*} 2>&1 >/dev/null"
done
says /usr/share/man/man1/statsfs-mount.1.gz man --where statsfs mount
says /usr/share/man/man5/statsfs.5.gz man --where 5 statsfs
says mount bash -c '
	. /usr/share/bash-completion/bash_completion
	_comp_load statsfs 2>/dev/null || __load_completion statsfs
	COMP_WORDS=(statsfs mo) COMP_CWORD=1
	_statsfs_completion statsfs
	echo "${COMPREPLY[@]}"
'
says "statsfs mount [OPTIONS] MOUNTPOINT" timeout 60 zsh ./deb_complete.zsh
says mount sh -c "fish -c 'complete -C \"statsfs mo\"' | cut -f 1"
says "" systemd-analyze verify statsfs.service
says disabled sh -c 'systemctl is-enabled statsfs || :'

# updatedb leaves out a mount: as its service runs it, and as its own package has it.
install plocate
mkdir /srv/stats
mount -t statsfs statsfs /srv/stats -o segments=/srv/segments
command=$(sed -n 's/^ExecStart=\(..*\)/\1/p' /usr/lib/systemd/system/plocate-updatedb.service.d/statsfs.conf)
says "${command%% *}" sed -n 's/^ExecStart=//p' /usr/lib/systemd/system/plocate-updatedb.service
says "/srv/stats/statsfs" sh -c "${command%% *} && locate --existing --regexp stats/statsfs\$"
says "" sh -c "$command && { locate --existing --regexp stats/statsfs\$ || :; }"
umount /srv/stats
wait_until ended
rm -r /srv/segments

# Nothing of it stays.
test -d /run/statsfs || fail "there is no /run/statsfs"
apt-get -qq -y purge statsfs >/dev/null
says "" find /run /tmp -name '*statsfs*' ! -name '*.deb' ! -path '/tmp/newer/*'
says "" find_left
echo "$(. /etc/os-release; echo "$PRETTY_NAME"): statsfs $version is installed, works, and is purged"
