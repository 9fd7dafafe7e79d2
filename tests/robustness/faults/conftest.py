"""Fault tests: a short part in every test run, all of them with ``--faults`` (`make faults`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import runs
from helpers.harness import Pipeline, imported_pipeline, trained_pipeline


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults", action="store_true", help="run the long fault tests too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--faults", default=False):
        return
    for item in items:
        if item.get_closest_marker("faults"):
            item.add_marker(pytest.mark.skip(reason="long fault test: run `make faults`"))


@pytest.fixture(scope="session")
def is_whole(request: pytest.FixtureRequest) -> bool:
    """Whether the long fault tests run."""
    return bool(request.config.getoption("--faults", default=False))


@pytest.fixture(scope="session")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A finished run on imported predictions, which needs no Detectron2 and takes seconds."""
    return runs.share(tmp_path_factory, "imported-run", imported_pipeline)


@pytest.fixture(scope="session")
def trained(
    tmp_path_factory: pytest.TempPathFactory, write_tiny_config: Callable[[Path], tuple[Path, Path]]
) -> Pipeline:
    """A finished run of all stages, with trainings."""
    pytest.importorskip("detectron2", reason="Detectron2 is not installed: `make setup` installs it")
    return trained_pipeline(tmp_path_factory.mktemp("trained"), write_tiny_config)


@pytest.fixture(scope="session")
def measured(request: pytest.FixtureRequest) -> Callable[[str, str, float], None]:
    """Return a function that records a figure for docs/explanation/reliability.md; a summary is printed at the end."""
    found: dict[tuple[str, str], list[float]] = {}

    def record(what: str, where: str, value: float) -> None:
        found.setdefault((what, where), []).append(value)

    def summarise() -> None:
        reporter = request.config.pluginmanager.getplugin("terminalreporter")
        for (what, where), values in found.items():
            values.sort()
            reporter.write_line(
                f"{what} {where}: {len(values)} times, median {values[len(values) // 2]:.2f}, most {values[-1]:.2f}"
            )

    request.addfinalizer(summarise)
    return record
