#!/bin/sh
# Installs a wheel or an sdist in a fresh virtual environment, and tries what is in it; for `make dist`.
#
#   install_dist.sh FILE [PIP-OPTION] ...
set -eu
file=$(realpath "$1")
shift
cd /tmp # where no clone's package is found
venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT

"${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check "$@" "statsfs[all] @ file://$file"
"$venv/bin/statsfs" --version
"$venv/bin/mount.statsfs" --help >/dev/null
include=$("$venv/bin/python" -c '
import os, statsfs, sys
assert statsfs.__file__.startswith(sys.prefix), statsfs.__file__
assert os.path.exists(f"{os.path.dirname(statsfs.__file__)}/py.typed")
print(statsfs.get_include())
')
echo '#include <statsfs.h>' | cc -I "$include" -x c -std=c99 -Werror -fsyntax-only -
