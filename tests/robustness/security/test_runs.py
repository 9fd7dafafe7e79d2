"""Untrusted OUTPUT_DIR, manifest, members or shards: nothing outside is read, written, removed or run."""

from __future__ import annotations

import csv
import json
import os
import pickle
import zipfile
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from detcurate.ensemble.index import read_index
from detcurate.errors import ConfigError, DatasetError, DetcurateError, EnsembleError, PredictionError
from detcurate.io.files import link_or_copy, sha256_json, write_json
from detcurate.manifest.provenance import read_provenance
from detcurate.manifest.verify import verify_manifest
from detcurate.pipeline.imported_members import read_import
from detcurate.pipeline.stage import Stage, StageResult, run_stage
from detcurate.pipeline.tables import RemovedTable
from detcurate.predictions.shards import read_shard


class Attack:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.proof),)


def stage_in(directory):
    return Stage("report", directory, {}, {}, lambda: StageResult([], "done"))


@pytest.mark.parametrize("name", ["../../thesis.tex", "ABSOLUTE"])
def test_stage_metadata_cannot_remove_other_files(tmp_path, name):
    """Stage metadata once could list any file as an output, which was then removed for its size."""
    victim = tmp_path / "thesis.tex"
    victim.write_text("years of work")
    directory = tmp_path / "output" / "report"
    directory.mkdir(parents=True)
    outputs = {str(victim) if name == "ABSOLUTE" else name: {"sha256": "0" * 64, "bytes": 1}}
    digest = sha256_json({"settings": {}, "inputs": {}})
    stage_metadata = {"status": "complete", "digest": digest, "outputs": outputs, "summary": "", "facts": {}}
    (directory / "stage.json").write_bytes(orjson.dumps(stage_metadata))
    with pytest.raises(ConfigError, match="stage.json"):
        run_stage(stage_in(directory))
    assert victim.read_text() == "years of work"


def test_stage_directory_that_is_link_is_refused(tmp_path):
    home = tmp_path / "home"
    (home / "output").mkdir(parents=True)
    (home / "thesis.tex").write_text("years of work")
    (home / "stage.json").write_text('{"status": "complete", "digest": "other", "outputs": {}}')
    (home / "output" / "report").symlink_to("..")
    with pytest.raises(ConfigError, match="report: .*link"):
        run_stage(stage_in(home / "output" / "report"))
    assert (home / "thesis.tex").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"file": "../../secret.safetensors"},
        {"file": "/etc/passwd"},
        {"kind": "/../../../../evil"},
        {"run": -1},
        {"iteration": "0/../.."},
        {"sha256": 7},
    ],
)
def test_index_with_path_outside_folder_is_refused(tmp_path, change):
    """The kind of a member becomes part of a file name."""
    member = {"run": 0, "iteration": 3, "seed": 1, "lr": 0.1, "file": "run-0/x.safetensors", "sha256": "0" * 64}
    (tmp_path / "ensemble.jsonl").write_bytes(orjson.dumps({**member, **change}))
    with pytest.raises(EnsembleError, match="ensemble.jsonl: line 1 "):
        read_index(tmp_path / "ensemble.jsonl")


@pytest.mark.parametrize("key", ["file_name", "folder", "copy"])
@pytest.mark.parametrize("name", ["../../../.bashrc", "/etc/passwd", "..", "a/b", ""])
def test_import_with_path_outside_folder_is_refused(tmp_path, key, name):
    """The file in ``copy`` was once linked to ``file_name``, replacing what was there."""
    member = {
        "run": 0, "iteration": 0, "file_name": "r.json", "sha256": "0" * 64, "folder": "f", "copy": "results.json",
        "form": None, "counts": {}, key: name,
    }  # fmt: skip
    options = {"image_key": "id", "category_key": "id", "score_threshold": 0.05, "max_per_image": 100}
    write_json(tmp_path / "import.json", {"digest": "x", "options": options, "members": [member]})
    with pytest.raises(PredictionError, match="import.json"):
        read_import(tmp_path)


def test_log_file_that_is_link_is_refused(tmp_path):
    """Names from untrusted files are written to the log, which may lead to ~/.bashrc."""
    from detcurate.pipeline.workspace import logged_to

    victim = tmp_path / ".bashrc"
    victim.write_text("")
    (tmp_path / "log.txt").symlink_to(victim)
    with pytest.raises(ConfigError, match="log.txt"), logged_to(tmp_path / "log.txt"):
        pass
    assert victim.read_text() == ""


def test_linked_file_keeps_its_mode(tmp_path):
    private = tmp_path / "weights.safetensors"
    private.write_bytes(b"x")
    private.chmod(0o600)
    link_or_copy(private, tmp_path / "out" / "weights.safetensors")
    assert private.stat().st_mode & 0o777 == 0o600


def test_new_files_respect_umask(tmp_path):
    import subprocess
    import sys

    code = (
        "import sys, pathlib; from detcurate.io.files import write_bytes; write_bytes(pathlib.Path(sys.argv[1]), b'x')"
    )
    subprocess.run(
        ["sh", "-c", 'umask 077; "$0" -c "$1" "$2"', sys.executable, code, str(tmp_path / "secret")], check=True
    )
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600


def provenance_of(folder, **changes: object):
    value = {
        "source": {"file_name": "train.json", "sha256": "0" * 64, "num_images": 1, "num_boxes": 1},
        "subset": {"file_name": "subset.json", "sha256": "0" * 64, "num_images": 1, "num_boxes": 1},
        "budget": {"spent": {"images": 1, "boxes": 1, "cost_seconds": 0.0}, "seconds_per_image": 0.0,
                   "seconds_per_box": 0.0, "requested": {}},
        "strategy": "top_score", "seed": 0, "histograms": {}, "ensemble": [], "findings": [],
        "config_sha256": "0" * 64, "scores_sha256": "0" * 64, "versions": {}, **changes,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "provenance.json").write_bytes(orjson.dumps(value))
    (folder / "subset.json").write_text("{}")


def test_provenance_with_path_outside_run_is_not_read(tmp_path):
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    manifest = tmp_path / "output" / "manifest"
    (tmp_path / "output" / "pool").mkdir(parents=True)
    provenance_of(
        manifest, source={"file_name": "../../secret.json", "sha256": "0" * 64, "num_images": 1, "num_boxes": 1}
    )
    found = {check.name: check.status for check in verify_manifest(manifest)}
    assert found["source"] == "absent"


@pytest.mark.parametrize("settings", [[], {"pool": []}, {"select": 7}, "x"])
def test_provenance_with_wrong_types_is_refused(tmp_path, settings):
    provenance_of(tmp_path / "manifest", settings=settings)
    with pytest.raises(DatasetError, match="provenance.json"):
        verify_manifest(tmp_path / "manifest")


def test_deeply_nested_provenance_is_refused(tmp_path):
    (tmp_path / "provenance.json").write_text("[" * 900 + "]" * 900)
    with pytest.raises(DetcurateError):
        read_provenance(tmp_path)


def test_exploding_aliases_in_config_of_run_are_ignored(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    provenance_of(tmp_path / "output" / "manifest")
    (tmp_path / "output" / "config.yaml").write_text("\n".join([*lines, "DATASETS: {ROOT: *a9}"]))
    assert {check.name: check.status for check in verify_manifest(tmp_path / "output" / "manifest")}[
        "source"
    ] == "absent"


def bomb(path, rows=700_000_000):
    """Write hundreds of millions of null values into a few thousand bytes."""
    chunk = pa.table({"image_id": pa.nulls(70_000_000, pa.int64())})
    with pq.ParquetWriter(path, chunk.schema, compression="zstd") as writer:
        for _ in range(rows // 70_000_000):
            writer.write_table(chunk, row_group_size=70_000_000)


def test_table_bomb_is_refused(tmp_path):
    path = tmp_path / "shard-00000.parquet"
    bomb(path)
    assert path.stat().st_size < 2_000_000
    with pytest.raises(PredictionError, match="5,600,000,000 bytes"):
        read_shard(path)
    with pytest.raises(PredictionError, match="5,600,000,000 bytes"):
        RemovedTable(path).read()


def test_table_with_extension_type_runs_no_code(tmp_path):
    """Arrow of before 14.0.1 unpickled an extension type that a file declared (CVE-2023-47248)."""
    proof, path = tmp_path / "proof", tmp_path / "shard-00000.parquet"
    field = pa.field("image_id", pa.int64(), metadata={
        b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": pickle.dumps(Attack(proof)),
    })  # fmt: skip
    pq.write_table(pa.table([pa.array([1])], schema=pa.schema([field])), path)
    with pytest.raises(PredictionError):
        read_shard(path)
    with pytest.raises(PredictionError):
        RemovedTable(path).read()
    assert not proof.exists()


def test_archive_bomb_of_weights_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("detectron2")
    from detcurate.d2.checkpoints import load_tensors, read_checkpoint

    plain, path = tmp_path / "plain.pth", tmp_path / "model_0000001.pth"
    torch.save({"model": {"w": torch.zeros(20_000_000)}}, plain)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for part in old.infolist():
            new.writestr(part.filename, old.read(part))
    assert path.stat().st_size < 200_000
    with pytest.raises(EnsembleError, match="the archive expands"):
        read_checkpoint(path, allow_pickle=False)
    with pytest.raises(ValueError, match="the archive expands"):
        load_tensors(path)


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 8 + b"{}", (1 << 40).to_bytes(8, "little") + b"{", b"\x02\0\0\0\0\0\0\0{}"]
)
def test_broken_safetensors_are_refused(tmp_path, content):
    pytest.importorskip("detectron2")
    from detcurate.d2.checkpoints import read_checkpoint

    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(EnsembleError, match="x.safetensors"):
        read_checkpoint(path, allow_pickle=False)


def test_weights_of_meta_tensors_are_refused(tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("detectron2")
    from detcurate.d2.checkpoints import read_checkpoint

    torch.save({"model": {"w": torch.zeros(3, device="meta")}}, tmp_path / "model_1.pth")
    with pytest.raises(EnsembleError, match="dense tensor"):
        read_checkpoint(tmp_path / "model_1.pth", allow_pickle=False)


FORMULAS = ['=HYPERLINK("http://evil","x")', "+1+cmd|' /C calc'!A0", "-2+3", "@SUM(1)", "\t=1"]


@pytest.mark.parametrize("name", FORMULAS)
def test_csv_escapes_formulas(name):
    from detcurate.report.page_tables import Table, to_csv

    text = to_csv(Table("classes", "", ("class", name), ((name, -3), ("car", -0.5)))).decode()
    rows = list(csv.reader(text.splitlines()))
    assert rows == [["class", f"'{name}"], [f"'{name}", "-3"], ["car", "-0.5"]]


def test_markdown_escapes_tags():
    from detcurate.evaluate.summary import table

    assert "<" not in table(["<img src=x onerror=alert(1)>"], [["<script>alert(1)</script>"]])


def test_terminal_output_escapes_control_characters(write_pool, capsys):
    """The class name clears the screen and sets the title of a terminal."""
    from detcurate.cli import main

    path, _ = write_pool(category="\x1b[2J\x1b]0;owned\x07\u202ecar")
    main(["validate", str(path)])
    main(["validate", str(path.with_name("\x1b[2J.json"))])
    found = capsys.readouterr()
    assert not set("\x1b\x07\u202e") & set(found.out + found.err)


def test_page_escapes_names():
    from detcurate.report.page import json_for_html

    text = str(json_for_html({"name": "</script><script>alert(1)</script><!--"}))
    assert "<" not in text
    assert json.loads(text) == {"name": "</script><script>alert(1)</script><!--"}


def test_file_name_of_many_digits_is_read_quickly(write_pool):
    from detcurate.coco.dataset import read_coco
    from detcurate.interop.coco_results.result_columns import index_pool

    path, _ = write_pool(image={"file_name": "9" * 5_000 + ".png"})
    pool = read_coco(path)
    index = index_pool(pool, pool.image_ids, image_key="stem")
    assert index.image_rows(["9" * 5_000, "8" * 5_000]).tolist() == [0, -2]


def test_package_starts_no_program_and_evaluates_no_text():
    """Nothing in the package starts programs, evaluates text or unpickles without restrictions."""
    import detcurate

    package = Path(detcurate.__file__).parent
    found = [
        f"{path.relative_to(package)}: {word}"
        for path in package.rglob("*.py")
        for word in (
            "import subprocess",
            "os.system",
            "popen",
            "shell=True",
            " eval(",
            " exec(",
            "pickle.load(",
            "unsafe_load",
        )
        if word in path.read_text()
    ]
    assert found == []
