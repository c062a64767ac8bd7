#!/bin/sh
# Unpacks QEMU of another Debian, and what it needs, into a directory; it is not installed.
#
#   tests/support/unpack_qemu.sh DIRECTORY [SUITE]     .venv/qemu-trixie, of Debian 13
#
# It leaves DIRECTORY/qemu-system-x86_64, a script. It needs apt, Debian's keys, and the network: 40 MB.
set -eu
suite=${2:-trixie}
# That of this machine, which has all suites.
mirror=${MIRROR:-$(apt-get indextargets --format '$(SITE)' | grep -m 1 -v security)}
mkdir -p "$1"
cd "$1"
# One at a time; who waited finds it.
exec 9>lock
flock 9
[ ! -x qemu-system-x86_64 ] || exit 0
mkdir -p apt/lists/partial apt/archives/partial
: >apt/status
keys=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb [signed-by=$keys] $mirror $suite main" >apt/sources.list
ours() {
	apt-get -qq -o Dir::Etc::SourceList="$PWD/apt/sources.list" -o Dir::Etc::SourceParts=/dev/null \
		-o Dir::State::Lists="$PWD/apt/lists" -o Dir::State::Status="$PWD/apt/status" \
		-o Dir::Cache::Archives="$PWD/apt/archives" -o Dir::Cache::PkgCache= -o Dir::Cache::SrcPkgCache= \
		-o APT::Sandbox::User= -o Acquire::Check-Valid-Until=false "$@"
}
ours update
# As if nothing were installed: all that it needs comes along.
ours install --yes --no-install-recommends --download-only qemu-system-x86 seabios >/dev/null
mkdir -p root
for package in apt/archives/*.deb; do
	dpkg-deb --fsys-tarfile "$package" | tar -x -C root
done
rm -rf apt
libraries=$(dirname "$PWD"/root/usr/lib/*/libc.so.6)
share=$PWD/root/usr/share
cat >qemu-system-x86_64.new <<END
#!/bin/sh
exec $(echo "$libraries"/ld-linux-*.so.*) --library-path "$libraries" --argv0 qemu-system-x86_64 \\
	"$PWD/root/usr/bin/qemu-system-x86_64" -L "$share/seabios" -L "$share/qemu" "\$@"
END
chmod +x qemu-system-x86_64.new
mv qemu-system-x86_64.new qemu-system-x86_64
