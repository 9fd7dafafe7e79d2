"""Tests of the architecture: direction of imports, use of frameworks, names of modules."""

import ast
import functools
from collections import defaultdict

import pytest
from helpers import REPOSITORY

PACKAGE = REPOSITORY / "detcurate"

# A package imports only from packages of lower rank.
RANKS = {
    "version": 0,
    "choices": 0,
    "errors": 0,
    "legacy": 0,
    "structures": 1,
    "io": 2,
    "score": 2,
    "select": 2,
    "ensemble": 3,
    "coco": 3,
    "synthetic": 4,
    "manifest": 4,
    "predictions": 4,
    "evaluate": 4,
    "config": 5,
    "interop": 5,
    "engines": 6,
    "report": 6,
    "d2": 7,
    "pipeline": 8,
    "api": 9,
    "cli": 9,
}
IO_RANKS = {"storage": 0, "files": 1, "safe_loading": 2, "parquet": 2, "leases": 2, "workers": 2}
# Modules that only read arrays and write arrays.
PURE = ("score", "select")
FRAMEWORKS_AND_FILES = ("torch", "detectron2", "pathlib", "pyarrow")

# A command, and the stage or writer that it runs, share a name.
SAME_NAME_ALLOWED = ("cli", "manifest", "pipeline/commands", "pipeline/stages")


@functools.cache
def imports():
    """Return the imported names of every module, by its parts below the package."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        names = []
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path.relative_to(PACKAGE)}: relative import"
                names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        found[path.relative_to(PACKAGE).with_suffix("").parts] = names
    return found


def upward_imports(ranks, prefix=()):
    """Return the imports of a module below ``prefix`` from another one of the same or a higher rank."""
    dotted = ".".join(("detcurate", *prefix, ""))
    found = []
    for module, names in imports().items():
        if module[: len(prefix)] != prefix or len(module) <= len(prefix) or module[len(prefix)] == "__init__":
            continue
        own = module[len(prefix)]
        for name in names:
            other = name.removeprefix(dotted).split(".")[0] if name.startswith(dotted) else own
            if other in ranks and other != own and ranks[other] >= ranks[own]:
                found.append(f"{'/'.join(module)} imports {name}")
    return found


def test_ranks_cover_every_package():
    assert {module[0] for module in imports()} - {"__init__"} == set(RANKS)
    assert {module[1] for module in imports() if module[0] == "io"} - {"__init__"} == set(IO_RANKS)


@pytest.mark.parametrize(("ranks", "prefix"), [(RANKS, ()), (IO_RANKS, ("io",))], ids=["detcurate", "io"])
def test_imports_run_downwards(ranks, prefix):
    assert upward_imports(ranks, prefix) == []


def test_upward_import_is_found(monkeypatch):
    monkeypatch.setitem(globals(), "imports", lambda: {("score", "measures"): ["detcurate.coco.dataset"]})
    assert upward_imports(RANKS) == ["score/measures imports detcurate.coco.dataset"]


def test_only_d2_imports_detectron2():
    strays = {
        "/".join(module)
        for module, names in imports().items()
        for name in names
        if name.split(".")[0] == "detectron2" and module[0] != "d2" and not name.startswith("detectron2.config")
    }
    assert strays == set()


@pytest.mark.parametrize("package", PURE)
def test_pure_package_imports_no_framework_and_no_files(package):
    strays = {
        f"{'/'.join(module)}: {name}"
        for module, names in imports().items()
        for name in names
        if module[0] == package and name.split(".")[0] in FRAMEWORKS_AND_FILES
    }
    assert strays == set()


def test_imports_have_no_cycle():
    graph = {}
    for module, names in imports().items():
        name = ".".join(("detcurate", *module)).removesuffix(".__init__")
        graph[name] = {imported for imported in names if imported.startswith("detcurate.")}
    done, active = set(), []

    def visit(name):
        assert name not in active, f"cycle: {' -> '.join([*active, name])}"
        if name in done or name not in graph:
            return
        active.append(name)
        for imported in graph[name] - {name}:
            visit(imported)
        active.pop()
        done.add(name)

    for name in graph:
        visit(name)


def test_module_names_are_unique():
    folders = defaultdict(list)
    for *folder, name in imports():
        folders[name].append("/".join(folder))
    repeated = {
        name: found
        for name, found in folders.items()
        if name != "__init__" and len(found) > 1 and not set(found) <= set(SAME_NAME_ALLOWED)
    }
    assert repeated == {}


def test_unit_tests_mirror_the_packages():
    folders = {path.name for path in (REPOSITORY / "tests" / "unit").iterdir() if any(path.glob("test_*.py"))}
    assert folders <= set(RANKS)
