"""A stage is skipped, continued, run again or run for the first time; its metadata stay correct after any failure."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from detcurate.errors import ConfigError
from detcurate.io.files import verify_checksum
from detcurate.pipeline.stage import (
    STAGE_FILE,
    Stage,
    StageResult,
    changes,
    output_digest,
    read_stage_metadata,
    run_stage,
    stage_state,
)

NAMES = ("a.txt", "sub/b.txt", "sub/deep/c.txt")


class Work:
    """Writes those of three files that do not exist; fails before the file ``fails_at``."""

    def __init__(self, directory, text="x") -> None:
        self.directory, self.text, self.fails_at, self.written = directory, text, None, []

    def __call__(self) -> StageResult:
        for name in NAMES:
            path = self.directory / name
            if name == self.fails_at:
                raise OSError(28, "No space left on device")
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(self.text + name)
                self.written.append(name)
        return StageResult([self.directory / name for name in NAMES], "3 files", {"num_files": 3})


@pytest.fixture
def work(tmp_path):
    return Work(tmp_path / "stage")


@pytest.fixture
def stage(work):
    settings = {"rate": 0.5, "names": ["u", "v"], "tree": {"depth": 2}}
    return Stage("draw", work.directory, settings, {"pool": "1" * 64, "train": "2" * 64}, work)


@pytest.fixture
def said(caplog, monkeypatch):
    """Return the log messages of the stages, even if a command line has configured their logger before."""
    logger = logging.getLogger("detcurate")
    monkeypatch.setattr(logger, "propagate", True)
    caplog.set_level(logging.INFO, "detcurate")
    return lambda: [record.getMessage() for record in caplog.records]


def test_run_stage_complete_is_skipped(stage, work, said):
    assert stage_state(stage) == "new"
    stage_metadata = run_stage(stage)
    assert work.written == list(NAMES)
    assert stage_state(stage) == "complete"
    assert run_stage(stage) == stage_metadata
    assert work.written == list(NAMES)
    assert said() == ["draw: 3 files", "draw: up to date (3 files)"]


def test_run_stage_metadata_record_settings_inputs_and_outputs(stage, work):
    stage_metadata = run_stage(stage)
    assert stage_metadata == verify_checksum((work.directory / STAGE_FILE).read_bytes())
    assert stage_metadata["status"] == "complete"
    assert stage_metadata["settings"] == {"rate": 0.5, "names": ["u", "v"], "tree": {"depth": 2}}
    assert stage_metadata["inputs"] == {"pool": "1" * 64, "train": "2" * 64}
    assert {name: output["bytes"] for name, output in stage_metadata["outputs"].items()} == {
        name: 1 + len(name) for name in NAMES
    }
    assert stage_metadata["facts"] == {"num_files": 3}


def test_run_stage_after_failure_continues(stage, work, said):
    work.fails_at = "sub/deep/c.txt"
    with pytest.raises(OSError, match="No space left"):
        run_stage(stage)
    assert read_stage_metadata(work.directory)["status"] == "started"
    assert stage_state(stage) == "interrupted"
    (work.directory / "sub" / ".c.txt.1.partial").touch()
    work.fails_at, work.written = None, []
    assert run_stage(stage)["status"] == "complete"
    assert work.written == ["sub/deep/c.txt"]
    assert said() == ["draw: continues after an interruption", "draw: 3 files"]
    assert not list(work.directory.rglob("*.partial"))


@pytest.mark.parametrize("damage", ["shorter", "longer", "empty", "absent"])
def test_run_stage_damaged_output_alone_is_written_again(stage, work, damage):
    before = run_stage(stage)
    path = work.directory / "sub" / "b.txt"
    text = path.read_text()
    path.write_text({"shorter": text[:-1], "longer": text + "!", "empty": "", "absent": ""}[damage])
    if damage == "absent":
        path.unlink()
    assert stage_state(stage) == "interrupted"
    work.written = []
    assert run_stage(stage) == before
    assert work.written == ["sub/b.txt"]
    assert path.read_text() == text


def test_run_stage_changed_settings_or_inputs_runs_again_and_logs_changes(stage, work, said):
    run_stage(stage)
    (work.directory / "of old.txt").touch()
    other = replace(stage, settings={"rate": 0.75, "tree": {"depth": 3}}, inputs={"pool": "3" * 64, "new": "4" * 64})
    assert changes(other) == [
        "new changed", "pool changed", "train changed", "names ['u', 'v'] -> None", "rate 0.5 -> 0.75",
        "tree.depth 2 -> 3",
    ]  # fmt: skip
    assert stage_state(other) == "changed"
    work.written, work.text = [], "y"
    run_stage(other)
    assert work.written == list(NAMES)
    assert (work.directory / "a.txt").read_text() == "ya.txt"
    assert not (work.directory / "of old.txt").exists()
    assert said()[1].startswith("draw: runs again (new changed; pool changed; ")
    assert stage_state(stage) == "changed"
    assert changes(other) == []


def test_run_stage_interrupted_with_changed_settings_runs_again(stage, work):
    work.fails_at = "sub/b.txt"
    with pytest.raises(OSError, match="No space left"):
        run_stage(stage)
    other = replace(stage, settings={"rate": 0.25})
    assert stage_state(other) == "changed"
    work.fails_at, work.written = None, []
    run_stage(other)
    assert work.written == list(NAMES)


def test_run_stage_killed_during_removal_does_not_reuse_old_files(stage, work, monkeypatch):
    other = replace(stage, settings={"rate": 0.75})
    remove, rmtree = Path.unlink, shutil.rmtree
    moments = 0
    for survived in range(9):
        rmtree(work.directory, ignore_errors=True)
        work.text = "x"
        run_stage(stage)
        work.text, left = "y", [survived]

        def killed(path, *args: object, left=left, **options: object):
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            remove(Path(path), *args, **options)

        def killed_tree(tree, *args: object, killed=killed, **options: object):
            for path in sorted(Path(tree).rglob("*"), key=lambda path: path.name != STAGE_FILE):
                if path.is_file():
                    killed(path)
            rmtree(tree, *args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", killed)
            patch.setattr(shutil, "rmtree", killed_tree)
            try:
                run_stage(other)
            except KeyboardInterrupt:
                moments += 1
            else:
                break
        run_stage(other)
        assert [(work.directory / name).read_text() for name in NAMES] == ["y" + name for name in NAMES]
    assert moments >= len(NAMES)


def test_output_digest_depends_on_results_not_on_settings(stage, work):
    first = output_digest(run_stage(stage))
    assert output_digest(run_stage(replace(stage, settings={"rate": 0.75}))) == first
    work.text = "y"
    assert output_digest(run_stage(replace(stage, settings={"rate": 0.5}))) != first


def test_output_digest_depends_on_names_and_contents():
    def digest(**contents: str):
        return output_digest({"outputs": {name: {"sha256": text, "bytes": 1} for name, text in contents.items()}})

    assert digest(a="1", b="2") == digest(b="2", a="1")
    assert len({digest(a="1", b="2"), digest(a="2", b="1"), digest(a="1"), digest(c="1"), digest()}) == 5


def test_stage_state_ignores_order_of_settings(stage):
    run_stage(stage)
    again = replace(
        stage, settings=dict(reversed(stage.settings.items())), inputs={"train": "2" * 64, "pool": "1" * 64}
    )
    assert stage_state(again) == "complete"
    assert stage_state(replace(stage, settings=stage.inputs, inputs=stage.settings)) == "changed"


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"7", b'{"status": "complete"}', b'{"digest": "00"}', b'{"stat', b'"status digest"']
)
def test_stage_state_invalid_metadata_names_file(stage, work, text):
    work.directory.mkdir()
    (work.directory / STAGE_FILE).write_bytes(text)
    with pytest.raises(ConfigError, match=r"stage\.json"):
        stage_state(stage)


def test_read_stage_metadata_absent_returns_none(tmp_path):
    assert read_stage_metadata(tmp_path) is None
    assert read_stage_metadata(tmp_path / "absent") is None
