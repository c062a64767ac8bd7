# Sourced by deb_smoke.sh: an upgrade of the package while its service runs, which nobody notices.
#
# There is no systemd. A stand-in notes what it is told, and runs the commands of the unit as systemd would; what
# systemd itself does is checked by tests/boot.

unit=/usr/lib/systemd/system/statsfs.service # /lib is a link to /usr/lib
told=/tmp/told

pretend_systemd() {
	mkdir -p /run/systemd/system
	cat >/usr/bin/systemctl <<-'END'
		#!/bin/sh
		# What a setting of the unit says, OPTIONS being empty.
		setting() {
			sed -n "s/^$1=//p" /usr/lib/systemd/system/statsfs.service
		}
		command() {
			setting "$1" | sed 's/\$OPTIONS //'
		}
		is_active() {
			findmnt /run/stats >/dev/null
		}
		echo "$*" >>/tmp/told
		case " $* " in
		*" is-enabled "*) echo disabled; exit 1 ;;
		*" is-active "*) is_active ;;
		*" show --property="*)
			name=${1#*=}
			[ "$1" != show ] || name=${2#*=}
			# A drop-in changed this one alone.
			[ "$name" != ExecStart ] || [ ! -e /tmp/dropin ] || { echo "argv[]=/bin/other ; ignore_errors=no"; exit; }
			echo "$name={ path=/usr/bin/statsfs ; argv[]=$(setting "$name") ; ignore_errors=no ; start_time=[n/a] }"
			;;
		*" reload statsfs.service "*) [ ! -e /tmp/old-linux ] && is_active && eval "$(command ExecReload)" ;;
		*" stop statsfs.service "*) ! is_active || umount /run/stats ;;
		*" start statsfs.service "*) eval "$(command ExecStart) --background" ;;
		*" restart statsfs.service "*) "$0" stop statsfs.service && sleep 1 && "$0" start statsfs.service ;;
		esac
	END
	chmod +x /usr/bin/systemctl
}

make_newer() { # VERSION: of the package, from the one that is installed
	rm -rf /tmp/newer
	dpkg-deb --raw-extract statsfs_*.deb /tmp/newer
	sed -i "s/^Version: .*/Version: $1/" /tmp/newer/DEBIAN/control
	sed -i "s/^__version__ = .*/__version__ = \"$1\"/" /tmp/newer/usr/lib/statsfs/lib/python3.*/site-packages/statsfs/__init__.py
	dpkg-deb --build --root-owner-group /tmp/newer "/tmp/statsfs_$1.deb" >/dev/null
}

upgrade() { # VERSION
	make_newer "$1"
	: >$told
	install "/tmp/statsfs_$1.deb"
	said_to_systemd=$(grep -oE '(start|stop|restart|reload) statsfs.service' $told | tr '\n' ' ')
}

served_version() {
	getfattr --absolute-names --only-values --name=user.statsfs.version /run/stats/statsfs
}

check_upgrades() {
	install attr
	pretend_systemd
	systemctl start statsfs.service

	# Linux here is 6.5 or later: a reader finds the file at every moment.
	(
		while [ ! -e /tmp/enough ]; do
			cat /run/stats/statsfs/sources >/dev/null 2>>/tmp/gaps || :
		done
	) &
	reader=$!
	upgrade 98
	touch /tmp/enough
	wait $reader
	says "" cat /tmp/gaps
	says 98 served_version
	[ "$said_to_systemd" = "reload statsfs.service " ] || fail "the upgrade: $said_to_systemd"

	touch /tmp/old-linux # it refuses
	upgrade 99
	says 99 served_version
	case $said_to_systemd in
	"reload statsfs.service restart statsfs.service "*) ;;
	*) fail "the upgrade where it cannot reload: $said_to_systemd" ;;
	esac

	rm /tmp/old-linux
	touch /tmp/dropin
	upgrade 100
	says 100 served_version
	case $said_to_systemd in
	"restart statsfs.service "*) ;;
	*) fail "the upgrade with a drop-in: $said_to_systemd" ;;
	esac
	rm /tmp/dropin

	# A service that was stopped stays so.
	systemctl stop statsfs.service
	wait_until ended
	upgrade 101
	[ "$said_to_systemd" = "" ] || fail "the upgrade of a stopped one: $said_to_systemd"
	wait_until ended

	# One that runs is stopped with the package.
	systemctl start statsfs.service
	: >$told
	apt-get -qq -y remove statsfs >/dev/null
	grep -q 'stop statsfs.service' $told || fail "removed, and not stopped: $(cat $told)"
	wait_until ended
	rm /usr/bin/systemctl
	rmdir /run/systemd/system
	install ./statsfs_*.deb
}
