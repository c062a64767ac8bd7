#!/bin/sh
# Part of `make release`: whether this commit can be released as the version that it has.
#
#   check_release.sh before     is refused before anything is built
#   check_release.sh after      checks the built files, and says what to do next
#
# It publishes nothing, and changes nothing.
set -eu
cd "$(dirname "$0")/.."

refuse() {
	echo "no release: $*" >&2
	exit 1
}

version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' statsfs/__init__.py)
[ -n "$version" ] || refuse "statsfs/__init__.py has no version"
heading=$(sed -n '/^## /{p;q}' CHANGELOG.md)
case $heading in
"## [$version] - "[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]) ;;
*) refuse "the first heading of CHANGELOG.md is '$heading', not '## [$version] - YEAR-MONTH-DAY'" ;;
esac
changed=$(git status --porcelain) || refuse "this is not a clone of the repository"
[ -z "$changed" ] || refuse "not committed:" $(echo "$changed" | cut -c4-)
! git rev-parse --quiet --verify "refs/tags/v$version" >/dev/null || refuse "there is a tag v$version already"
[ "$1" = after ] || exit 0

built=$(cd dist && ls -- *.whl *.tar.gz)
[ "$built" = "statsfs-$version-py3-none-any.whl
statsfs-$version.tar.gz" ] || refuse "dist/ has" $built
cat <<END
statsfs $version can be released. Next:
  make check, make matrix, make boot and make debtest, if they did not run on this commit
  git tag --annotate v$version --message 'statsfs $version' && git push origin v$version
  publish dist/statsfs-$version-py3-none-any.whl and dist/statsfs-$version.tar.gz
END
