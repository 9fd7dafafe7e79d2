"""Imports run one way; Detectron2 and torch stay where they belong."""

import ast

from helpers import REPOSITORY

PACKAGE = REPOSITORY / "detcurate"

# A module may import from its own rank's own package and from lower ranks.
RANKS = {
    "version": 0,
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
FREE_OF_FRAMEWORKS = ("score", "select")


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield path, (parts[0] if parts[0] != "__init__" else "__init__")


def imported_names(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_every_module_has_a_rank():
    assert {name for _, name in modules()} - {"__init__"} == set(RANKS)


def test_imports_never_run_back():
    backward = []
    for path, name in modules():
        for imported in imported_names(path):
            if name == "__init__" or not imported.startswith("detcurate."):
                continue
            other = imported.split(".")[1]
            if other != name and RANKS[other] >= RANKS[name]:
                backward.append(f"{path.relative_to(PACKAGE)} imports {imported}")
    assert backward == []


def test_only_d2_imports_detectron2():
    strays = [
        f"{path.relative_to(PACKAGE)}: {imported}"
        for path, name in modules()
        for imported in imported_names(path)
        if imported.split(".")[0] == "detectron2" and name != "d2" and imported != "detectron2.config"
    ]
    assert strays == []


def test_scoring_and_selection_need_no_framework_and_no_files():
    strays = [
        f"{path.relative_to(PACKAGE)}: {imported}"
        for path, name in modules()
        for imported in imported_names(path)
        if name in FREE_OF_FRAMEWORKS and imported.split(".")[0] in ("torch", "detectron2", "pathlib", "pyarrow")
    ]
    assert strays == []


def test_no_import_cycle():
    graph = {}
    for path, _ in modules():
        name = ".".join(("detcurate", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        graph[name] = {imported for imported in imported_names(path) if imported.startswith("detcurate")}
    done, active = set(), []

    def visit(name):
        assert name not in active, f"cycle: {' -> '.join([*active, name])}"
        if name in done or name not in graph:
            return
        active.append(name)
        for imported in graph[name]:
            if imported != "detcurate":
                visit(imported)
        active.pop()
        done.add(name)

    for name in graph:
        visit(name)
