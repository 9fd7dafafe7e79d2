"""The faults: a short part in every test run, and the whole with ``--faults``, which `make faults` gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.harness import Pipeline, imported_pipeline, trained_pipeline


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults", action="store_true", help="the long variants of the fault suite too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--faults", default=False):
        return
    for item in items:
        if item.get_closest_marker("faults"):
            item.add_marker(pytest.mark.skip(reason="a long variant; run `make faults`"))


@pytest.fixture(scope="session")
def is_whole(request: pytest.FixtureRequest) -> bool:
    """Whether the long variants are asked for."""
    return bool(request.config.getoption("--faults", default=False))


@pytest.fixture(scope="session")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A finished run on imported answers, which needs no Detectron2 and is over in seconds."""
    return imported_pipeline(tmp_path_factory.mktemp("imported"))


@pytest.fixture(scope="session")
def trained(
    tmp_path_factory: pytest.TempPathFactory, write_tiny_config: Callable[[Path], tuple[Path, Path]]
) -> Pipeline:
    """A finished run of the whole job, with trainings."""
    pytest.importorskip("detectron2", reason="Detectron2 is not installed: `make setup` installs it")
    return trained_pipeline(tmp_path_factory.mktemp("trained"), write_tiny_config)


@pytest.fixture(scope="session")
def measured(request: pytest.FixtureRequest) -> Callable[[str, str, float], None]:
    """Return a function that notes a figure; all are printed at the end for docs/explanation/reliability.md."""
    found: dict[tuple[str, str], list[float]] = {}

    def note(what: str, where: str, value: float) -> None:
        found.setdefault((what, where), []).append(value)

    def tell() -> None:
        reporter = request.config.pluginmanager.getplugin("terminalreporter")
        for (what, where), values in found.items():
            values.sort()
            reporter.write_line(
                f"{what} {where}: {len(values)} times, median {values[len(values) // 2]:.2f}, most {values[-1]:.2f}"
            )

    request.addfinalizer(tell)
    return note
