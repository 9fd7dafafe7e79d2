#!/usr/bin/env python3
"""Print the size of the package and its tests: modules, lines, largest, small and single-importer modules."""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "detcurate"
SMALL = 60


def main() -> int:
    """Print the figures and return the exit status."""
    modules = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
    lines = {name: count_lines(path) for name, path in modules.items()}
    plain = [name for name, path in modules.items() if path.name not in ("__init__.py", "__main__.py")]
    used_by = importers(modules)
    single = sorted(name for name in plain if len(used_by[name]) == 1)
    small = sorted((name for name in plain if lines[name] < SMALL), key=lines.__getitem__)
    largest = sorted(modules, key=lines.__getitem__, reverse=True)[:5]
    tests = sorted((ROOT / "tests").rglob("*.py"))
    rows = [
        ("modules", f"{len(modules):,} ({len(plain):,} without __init__.py)"),
        ("lines of detcurate/", f"{sum(lines.values()):,}"),
        ("largest modules", ", ".join(f"{name} {lines[name]:,}" for name in largest)),
        (f"modules under {SMALL} lines", f"{len(small):,}: {', '.join(f'{name} {lines[name]}' for name in small)}"),
        ("modules with one importer", f"{len(single):,}: {', '.join(single)}"),
        ("test files", f"{sum(path.name.startswith('test_') for path in tests):,}"),
        ("lines of tests/", f"{sum(map(count_lines, tests)):,}"),
        ("test functions", f"{sum(map(count_tests, tests)):,}"),
    ]
    for title, value in rows:
        sys.stdout.write(f"{title:27} {value}\n")
    return 0


def module_name(path: Path) -> str:
    """Return the dotted name of a module without the package's own name."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def importers(modules: dict[str, Path]) -> dict[str, set[str]]:
    """Return for each module the other modules of the package that import it, or a name from it."""
    found: dict[str, set[str]] = defaultdict(set)
    for name, path in modules.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                targets = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            else:
                continue
            for target in targets:
                imported = target.removeprefix("detcurate.")
                if imported in modules and imported != name:
                    found[imported].add(name)
    return found


def count_lines(path: Path) -> int:
    """Return the number of lines of a file."""
    return len(path.read_text().splitlines())


def count_tests(path: Path) -> int:
    """Return the number of test functions of a file; parametrized ones count once."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return sum(isinstance(node, ast.FunctionDef) and node.name.startswith("test_") for node in nodes)


if __name__ == "__main__":
    sys.exit(main())
