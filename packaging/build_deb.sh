#!/bin/sh
# `make deb`: a Debian package in dist/, for the release that this runs on, of this tree. It needs the packages of
# Build-Depends in debian/control, and the network: pip brings what goes into it.
set -eu
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

. /etc/os-release
version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' statsfs/__init__.py)+$ID${VERSION_ID:-$VERSION_CODENAME}
mkdir "$work/statsfs"
tar --exclude=__pycache__ --create statsfs packaging examples docs pyproject.toml README.md CHANGELOG.md LICENSE |
	tar --directory="$work/statsfs" --extract
mv "$work/statsfs/packaging/debian" "$work/statsfs/debian"
cat >"$work/statsfs/debian/changelog" <<END
statsfs ($version) $VERSION_CODENAME; urgency=medium

  * CHANGELOG.md has what changed.

 -- $(sed -n 's/^Maintainer: //p' packaging/debian/control)  $(date --rfc-email)
END
(cd "$work/statsfs" && DEB_BUILD_OPTIONS=nocheck dpkg-buildpackage --build=binary --no-sign) >"$work/log" 2>&1 || {
	cat "$work/log" >&2
	exit 1
}
mkdir -p dist
rm -f "dist/statsfs_$version"_*.deb
for package in "$work"/*.deb; do
	mv "$package" dist/
	echo "dist/${package##*/}"
done
