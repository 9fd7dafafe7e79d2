"""Many small runs in one process: memory, open files and temporary files do not grow."""

import gc
import os
import tempfile
import threading
from pathlib import Path

import pytest

from detcurate.cli import main

WARM_UP, GROWTH_MB = 5, 12


def resident_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


def temporary_files():
    return sorted(path.name for path in Path(tempfile.gettempdir()).iterdir() if "pytest" not in path.name)


@pytest.fixture
def private_temporaries(tmp_path, monkeypatch):
    """A private folder for temporary files."""
    folder = tmp_path / "temporaries"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


def test_many_runs_in_one_process_do_not_leak(imported, tmp_path, private_temporaries, is_whole, measured, capsys):
    """The runs alternate between other settings, the original ones, another strategy and --fresh."""
    output = imported.copy(tmp_path)
    base = ["--config-file", imported.config, *imported.overrides, "OUTPUT_DIR", output, "CURATE.NUM_PROCESSES", "1"]
    turns = (["CURATE.SCORE.AGGREGATION", "max"], [], ["CURATE.SELECT.STRATEGY", "random"], ["--fresh"])
    memory, files, threads = [], [], []
    for number in range(204 if is_whole else 10):
        assert main([*map(str, base), *turns[number % len(turns)]]) == 0
        capsys.readouterr()
        gc.collect()
        memory.append(resident_mb())
        files.append(open_files())
        threads.append(threading.active_count())
    warm = WARM_UP if not is_whole else 24
    assert max(files[warm:]) <= files[warm]
    assert max(memory[-10:]) - memory[warm] < GROWTH_MB
    assert list(private_temporaries.iterdir()) == []
    assert max(threads[warm:]) <= threads[warm]
    assert imported.manifest(output) == imported.manifest()
    measured("soak, MB more after the warm-up", f"{len(memory)} runs", memory[-1] - memory[warm])
    measured("soak, open files", f"{len(memory)} runs", files[-1])
