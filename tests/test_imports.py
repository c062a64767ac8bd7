"""Who may import whom, what is public, and what is not needed."""

import ast
import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import statsfs

PACKAGE = Path(statsfs.__file__).parent

# The rooms from bottom to top; those of one line do not know each other. A room imports from lines
# above it only.
ORDER: tuple[tuple[str, ...], ...] = (
    ("exceptions",),
    ("model",),
    ("tree",),
    ("formats",),
    ("eyes", "filesystem", "kvm", "monitoring", "segments"),
    ("collector", "demo", "recordings", "top"),
    ("cli",),
)
CORE = ("model", "tree")
THIRD_PARTIES = {
    "pyfuse3": {"filesystem"},
    "trio": {"filesystem", "monitoring", "cli"},
    "h11": {"monitoring"},
    "prometheus_client": {"monitoring"},
    "click": {"cli"},
    "rich": {"cli", "top"},
    "textual": {"top"},
    "pyarrow": {"recordings"},
    "numpy": {"recordings"},
    "matplotlib": {"recordings"},
    "qemu": {"kvm"},
    "inotify_simple": {"collector"},
}

FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__main__.py")


def module_name(path: Path) -> str:
    """The dotted name of a module of the package."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def is_for_types(node: ast.AST) -> bool:
    """Whether a statement is `if TYPE_CHECKING`, which does not run."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imports_of(path: Path, *, types: bool = True) -> set[str]:
    """The modules that a file imports, at its top or inside its functions; of names, the module.

    `types` tells whether those count that only a type checker imports.
    """
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    tree.body = [node for node in tree.body if types or not is_for_types(node)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            assert node.module is not None
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            found.update(submodules or {node.module})
    return found


def room(module: str) -> str:
    """The room of a module of ours; "" for the package itself."""
    return [*module.split("."), ""][1]


def floor(module: str) -> int:
    """The place of a module's room in `ORDER`."""
    places = [place for place, rooms in enumerate(ORDER) if room(module) in rooms]
    assert places, f"{module} is in no room of the plan"
    return places[0]


@pytest.mark.parametrize("module", [name for name in MODULES if name != "statsfs"])
def test_rooms_import_downwards_only(module: str) -> None:
    """The order of the rooms holds, so there are no cycles between them."""
    for imported in imports_of(MODULES[module]):
        if imported.split(".")[0] != "statsfs" or room(imported) == room(module):
            continue
        if not room(imported):
            assert room(module) == "cli", "only the command line asks the package for its version"
            continue
        assert floor(imported) < floor(module), f"{module} imports {imported}"


def test_modules_of_a_room_import_in_one_direction() -> None:
    """Inside a room there are no cycles either, but for the names of types."""
    waiting = {
        module: {one for one in imports_of(path, types=False) if room(one) == room(module)}
        & MODULES.keys() - {module}
        for module, path in MODULES.items()
        if path.name != "__init__.py"
    }
    while ready := [module for module, needed in waiting.items() if not needed & waiting.keys()]:
        for module in ready:
            del waiting[module]
    assert waiting == {}, "these import each other"


@pytest.mark.parametrize("module", MODULES)
def test_only_the_edge_imports_third_parties(module: str) -> None:
    """FUSE and trio are known to few modules, and nothing else at all to the library."""
    for imported in imports_of(MODULES[module]):
        top = imported.split(".")[0]
        if top in sys.stdlib_module_names or top == "statsfs":
            continue
        assert room(module) in THIRD_PARTIES.get(top, set()), f"{module} imports {imported}"


def sort_key(name: str) -> tuple[int, str]:
    """As ruff sorts `__all__`: CONSTANTS, Classes, functions."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


@pytest.mark.parametrize("module", [n for n in MODULES if not n.startswith("statsfs.cli.")])
def test_every_module_says_what_is_public(module: str) -> None:
    """`__all__` is there and sorted, has nothing twice, and each of its names exists."""
    third = {
        "pyfuse3": "statsfs.filesystem.fuse_handlers statsfs.filesystem.invalidator "
        "statsfs.filesystem.request_loop statsfs.filesystem.session",
        "click": "statsfs.cli",
        "h11": "statsfs.monitoring.http_connections statsfs.monitoring.http_messages "
        "statsfs.monitoring.http_server statsfs.monitoring.http_sockets",
        "trio": "statsfs.monitoring.clients statsfs.monitoring.shared_renderings",
        "qemu": "statsfs.kvm.qmp",
    }
    for package, users in third.items():
        if module in users.split() and importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    loaded = importlib.import_module(module)
    names = loaded.__all__
    assert len(set(names)) == len(names)
    assert [n for n in names if not hasattr(loaded, n)] == []
    by_kind = [[n for n in names if sort_key(n)[0] == kind] for kind in (0, 1, 2)]
    assert [n for some in by_kind for n in some] == names


@pytest.mark.parametrize("module", [name for name in MODULES if room(name) in CORE])
def test_what_the_core_defines_in_public_is_in_all(module: str) -> None:
    """A name without an underscore that is not in `__all__` would be public by accident."""
    tree = ast.parse(MODULES[module].read_text())
    defined = {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    }
    loaded = importlib.import_module(module)
    assert defined <= set(loaded.__all__)


# docs/architecture.md, "Names that users rely on".
PINNED = {
    "Aggregate", "Kind", "Registry", "RegistryCollector", "Snapshot", "Source", "Stats", "Type",
    "Unit", "Value",
    "boolean", "mount", "mounted", "serve_metrics", "values_of",
    "s8", "s16", "s32", "s64", "u8", "u16", "u32", "u64",
    "StatsfsError", "BaseMismatchError", "DuplicateNameError", "InvalidNameError", "MountError",
    "ReadOnlyValueError", "ReleasedError", "SegmentError", "TreeError", "UnknownValueError",
}  # fmt: skip


def test_the_package_exports_what_users_rely_on() -> None:
    """Everything that a user needs comes from `statsfs` itself."""
    assert set(statsfs.__all__) >= PINNED


def test_the_packages_all_is_complete() -> None:
    """What `__init__` imports is what it exports, and all of it is public where it comes from."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    imported = {
        alias.name: node.module
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert sorted(imported) == sorted(statsfs.__all__) == statsfs.__all__
    for name, module in imported.items():
        assert module is not None
        assert name in importlib.import_module(module).__all__


WITHOUT = """
import sys, tempfile

class Blocker:
    blocked = {
        "pyfuse3", "trio", "click", "rich", "prometheus_client", "h11", "qemu", "inotify_simple",
        "textual", "pyarrow", "numpy", "matplotlib",
    }

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
import statsfs
from statsfs import *

class VcpuStats(Stats):
    exits = u64(Aggregate.SUM)

registry, kvm, stats = Registry(), Source("kvm"), VcpuStats()
registry.register(kvm)
vcpu = Source("vcpu%d", 0)
vcpu.add_values(VcpuStats, stats)
kvm.add_subordinate(vcpu)
stats.exits += 3
assert kvm.get_value("exits") == 3
assert kvm.snapshot().to_dict()["values"] == {"exits": 3}
kvm.clear_value("exits")
assert stats.exits == 0
with tempfile.TemporaryDirectory() as directory:
    with publish("kvm/vcpu0", values=VcpuStats, directory=directory) as segment:
        segment.stats.exits += 1
assert not Blocker.blocked & {name.partition(".")[0] for name in sys.modules}
"""


def test_the_library_counts_where_fuse_is_not_installed() -> None:
    """Importing, counting, aggregating, sampling, clearing, publishing need only Python."""
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_importing_reads_no_environment_and_starts_nothing() -> None:
    """No thread, no variable of the environment that changes anything at import."""
    program = (
        "import os, threading\n"
        "class Watched(dict):\n"
        "    read = []\n"
        "    def __getitem__(self, key): self.read.append(key); return super().__getitem__(key)\n"
        "    def get(self, key, default=None): self.read.append(key); return default\n"
        "import ctypes, logging, subprocess, shutil, contextlib, multiprocessing.shared_memory\n"
        "os.environ = Watched(os.environ)\n"
        "import statsfs\n"
        "assert threading.active_count() == 1\n"
        "assert Watched.read == [], Watched.read\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
