"""``detcurate ensemble``, the ensemble's settings, and curations with members that were trained elsewhere."""

import json
import pickle
import shutil
from pathlib import Path

import pytest

from detcurate.cli import main
from detcurate.ensemble.index import ensemble_members, read_index
from detcurate.io.files import sha256_file
from detcurate.io.workers import assign_gpus

pytest.importorskip("detectron2", reason="Detectron2 is not installed: `make setup` installs it")

import torch
from safetensors.torch import load_file

E = "CURATE.ENSEMBLE."


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ((E + "SCHEDULE", "every"), (E + "SCHEDULE", "'every'", "cosine_cycles")),
        ((E + "SCHEDULE", "every_n"), (E + "EVERY", "SOLVER.MAX_ITER", "1000")),
        ((E + "SCHEDULE", "every_n", E + "EVERY", "0"), (E + "EVERY", "got 0")),
        ((E + "SCHEDULE", "explicit"), ("CURATE.ENSEMBLE", "explicit")),
        ((E + "SCHEDULE", "every_n", E + "ITERATIONS", "(1, 2)"), ("CURATE.ENSEMBLE", "every_n", "[1, 2]")),
        ((E + "SCHEDULE", "cosine_cycles"), ("SOLVER.LR_SCHEDULER_NAME", "WarmupCosineCyclesLR")),
        (
            (E + "SCHEDULE", "cosine_cycles", "SOLVER.LR_SCHEDULER_NAME", "WarmupCosineCyclesLR", E + "CYCLES", "3"),
            (E + "CYCLES", "SOLVER.MAX_ITER", "got 3"),
        ),
        (
            ("SOLVER.LR_SCHEDULER_NAME", "WarmupCosineCyclesLR", E + "CYCLES", "2", "SOLVER.WARMUP_ITERS", "2"),
            ("SOLVER.WARMUP_ITERS", "2 iterations", "got 2"),
        ),
        (("SOLVER.LR_SCHEDULER_NAME", "Cosine"), ("SOLVER.LR_SCHEDULER_NAME", "'Cosine'")),
        ((E + "DTYPE", "int8"), (E + "DTYPE", "'int8'")),
        ((E + "AVERAGE_LAST", "2"), (E + "AVERAGE_LAST", "1 windows")),
        ((E + "AVERAGE_LAST", "1"), (E + "AVERAGE_EVERY", "1 iterations")),
        ((E + "MAX_GB", "-1"), (E + "MAX_GB", "got -1.0")),
        ((E + "MAX_GB", "1e-6"), (E + "MAX_GB",)),
        ((E + "AUGMENTATIONS", "('blur',)"), ("CURATE.ENSEMBLE.AUGMENTATIONS", "'blur'", "no_flip")),
        (("CURATE.TRAIN.GPUS_PER_RUN", "2"), ("CURATE.TRAIN.GPUS_PER_RUN", "got 2")),
    ],
)
def test_run_names_an_ensemble_setting_that_is_not_possible(tiny_config, refused, overrides, parts):
    config, output = tiny_config()
    message = refused("--config-file", config, *overrides)
    assert [part for part in parts if part not in message] == [], message
    assert not output.exists()


def test_dry_run_counts_members_of_schedule_and_averages(tiny_config, done):
    config, _ = tiny_config()
    plan = ["--config-file", config, "--dry-run", "CURATE.ENSEMBLE.SCHEDULE", "every_n", "CURATE.ENSEMBLE.EVERY", "2"]
    assert "4 members of" in done(*plan)
    assert "6 members on 26 images" in done(*plan, "CURATE.ENSEMBLE.AVERAGE_LAST", "1")


def test_assign_gpus_cycles_through_the_gpus():
    assert assign_gpus(7, 3) == (0, 1, 2, 0, 1, 2, 0)
    assert assign_gpus(0, 3) == ()


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory, write_tiny_config):
    """Checkpoints as Detectron2's own trainer leaves them: the last iteration twice; and the config of the model."""
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.engine.hooks import PeriodicCheckpointer
    from detectron2.modeling import build_model

    from detcurate.config.declaration import load_config
    from detcurate.d2 import registration  # noqa: F401  registers the small backbone

    folder = tmp_path_factory.mktemp("theirs")
    config, _ = write_tiny_config(folder)
    model = build_model(load_config(config, ["MODEL.ROI_HEADS.NUM_CLASSES", "7"]))
    optimizer = torch.optim.AdamW(model.parameters())
    hook = PeriodicCheckpointer(DetectionCheckpointer(model, str(folder / "out"), optimizer=optimizer), period=100)
    (folder / "out").mkdir()
    hook.max_iter = 300
    for iteration in (99, 199, 299):
        with torch.no_grad():
            next(iter(model.parameters())).add_(0.01)
        hook.step(iteration)
    return folder / "out"


@pytest.fixture
def theirs(checkpoints, tmp_path):
    """A copy of those checkpoints."""
    return Path(shutil.copytree(checkpoints, tmp_path / "theirs"))


ALONE = ("CURATE.ENSEMBLE.NUM_RUNS", "0")


def test_ensemble_add_makes_checkpoints_members_of_the_run(theirs, tiny_config, done, capsys):
    config, output = tiny_config()
    assert sorted(path.name for path in theirs.glob("*.pth")) == [
        "model_0000099.pth", "model_0000199.pth", "model_0000299.pth", "model_final.pth",
    ]  # fmt: skip
    text = done("ensemble", "add", theirs, "--config-file", config, *ALONE)
    assert "model_final.pth: skipped, run 0, iteration 299" in text
    assert "3 members added as run 0" in text
    members = read_index(output / "train" / "ensemble.jsonl")
    assert [(m.run, m.iteration, m.seed, m.lr, m.kind) for m in members] == [
        (0, i, None, None, "checkpoint") for i in (99, 199, 299)
    ]
    for member in members:
        assert sha256_file(output / "train" / member.file) == member.sha256
        original = torch.load(theirs / f"model_{member.iteration:07d}.pth", weights_only=True)["model"]
        found = load_file(output / "train" / member.file)
        assert all(torch.equal(found[name], original[name]) for name in found)
    done("--config-file", config, "--only", "pool")
    assert "26 images with 3 members" in done("--config-file", config, "--only", "predict")
    text = done("--config-file", config, "--until", "manifest", *ALONE)
    assert [line.split(":")[0] for line in text.splitlines() if "up to date" in line] == ["pool", "train", "predict"]
    provenance = json.loads((output / "manifest" / "provenance.json").read_text())
    assert [(m["iteration"], m["kind"]) for m in provenance["ensemble"]] == [(i, "checkpoint") for i in (99, 199, 299)]
    assert main(["manifest", "verify", str(output / "manifest")]) == 0
    capsys.readouterr()
    again = done("ensemble", "add", theirs, "--config-file", config, *ALONE)
    assert "0 members added" in again
    assert "predict: up to date" in done("--config-file", config, "--until", "predict", *ALONE)


def test_added_members_leave_trained_runs_unchanged(finished_run, theirs, tmp_path, done, refused):
    config, output = finished_run.copy(tmp_path / "own", until="train")
    log = (output / "train" / "run-0" / "log.txt").read_text()
    assert "--run" in refused("ensemble", "add", theirs, "--config-file", config, "--run", "1")
    assert "added as run 2" in done("ensemble", "add", theirs, "--config-file", config)
    runs = [member.run for member in read_index(output / "train" / "ensemble.jsonl")]
    assert runs == [0, 0, 1, 1, 2, 2, 2]
    assert (output / "train" / "run-0" / "log.txt").read_text() == log
    assert "26 images with 7 members" in done("--config-file", config, "--until", "predict")
    text = done("--config-file", config, "--until", "train", "SOLVER.BASE_LR", "0.003")
    assert "train: runs again (SOLVER.BASE_LR" in text  # the trained runs are; the added members stay
    assert [m.run for m in read_index(output / "train" / "ensemble.jsonl")] == runs
    shutil.rmtree(output / "added")
    assert "4 members from 2 runs" in done("--config-file", config, "--until", "train", "SOLVER.BASE_LR", "0.003")
    assert not list((output / "train" / "run-2").glob("*.safetensors"))


def test_ensemble_add_copies_members_of_the_hook_unchanged(checkpoints, tmp_path, tiny_config, done):
    from detectron2.modeling import build_model

    from detcurate.config.declaration import load_config
    from detcurate.d2.train.hooks import save_member

    config, output = tiny_config()
    model = build_model(load_config(config, ["MODEL.ROI_HEADS.NUM_CLASSES", "7"]))
    for run in (0, 1):
        with torch.no_grad():
            next(iter(model.parameters())).add_(0.01)
        save_member(model, tmp_path / "hook", 9, run=run, seed=5 + run, lr=0.25, dtype="bf16")
    done("ensemble", "add", tmp_path / "hook", "--config-file", config, "--run", "3", *ALONE)
    (first, second) = read_index(output / "train" / "ensemble.jsonl")
    assert (first.run, first.seed, first.lr, first.dtype, second.run) == (3, 5, 0.25, "bf16", 4)
    assert first.sha256 == ensemble_members(tmp_path / "hook")[0].sha256


def change(path, function):
    checkpoint = torch.load(path, weights_only=True)
    function(checkpoint)
    torch.save(checkpoint, path)


class Attack:
    """An object that runs code when it is unpickled."""

    def __init__(self, proof) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple:
        return Path.touch, (self.proof,)


@pytest.mark.parametrize(
    ("harm", "parts"),
    [
        (
            lambda c: c["model"].update({"roi_heads.box_predictor.cls_score.weight": torch.zeros(5, 128)}),
            ("roi_heads.box_predictor.cls_score.weight", "(8, 128)", "got (5, 128)"),
        ),
        (
            lambda c: c["model"].pop("roi_heads.box_predictor.cls_score.bias"),
            ("roi_heads.box_predictor.cls_score.bias", "(8,)"),
        ),
        (
            lambda c: c["model"].update({"roi_heads.mask_head.x": torch.zeros(3, 2)}),
            ("roi_heads.mask_head.x", "(3, 2)"),
        ),
        (
            lambda c: c["model"]["roi_heads.box_predictor.bbox_pred.bias"].__setitem__(3, float("nan")),
            ("got nan in roi_heads.box_predictor.bbox_pred.bias", "1 of 28"),
        ),
        (lambda c: c.update(model="no weights"), ("model of type str",)),
        (lambda c: c.update(iteration=99), ("iteration 99", "run 0")),
    ],
)
def test_ensemble_add_names_an_unusable_checkpoint_and_adds_none(theirs, tiny_config, refused, harm, parts):
    config, output = tiny_config()
    change(theirs / "model_0000199.pth", harm)
    text = refused("ensemble", "add", theirs, "--config-file", config, *ALONE)
    assert [part for part in (*parts, "model_0000199.pth") if part not in text] == [], text
    assert not (output / "added").exists()
    assert not (output / "train").exists()


def test_ensemble_add_rejects_a_pickle_with_code_unless_allowed(theirs, tmp_path, tiny_config, refused, done):
    config, _ = tiny_config()
    proof, path = tmp_path / "proof", theirs / "model_0000199.pth"
    checkpoint = torch.load(path, weights_only=True)
    torch.save({**checkpoint, "extra": Attack(proof)}, path)
    text = refused("ensemble", "add", theirs, "--config-file", config, *ALONE)
    assert "model_0000199.pth" in text
    assert "CURATE.TRAIN.ALLOW_PICKLE True" in text
    assert not proof.exists()
    done("ensemble", "add", theirs, "--config-file", config, *ALONE, "CURATE.TRAIN.ALLOW_PICKLE", "True")
    assert proof.exists()  # it was a real one
    path.write_bytes(pickle.dumps({"model": Attack(tmp_path / "other")}))
    assert "ALLOW_PICKLE" in refused("ensemble", "add", theirs, "--config-file", config, *ALONE)
    assert not (tmp_path / "other").exists()


def test_ensemble_add_names_truncated_checkpoint_missing_and_empty_folder(theirs, tmp_path, tiny_config, refused):
    config, _ = tiny_config()
    path = theirs / "model_0000299.pth"
    path.write_bytes(path.read_bytes()[:-1000])
    assert path.name in refused("ensemble", "add", theirs, "--config-file", config, *ALONE)
    assert str(tmp_path / "no") in refused("ensemble", "add", tmp_path / "no", "--config-file", config)
    (tmp_path / "empty").mkdir()
    assert "model_*.pth" in refused("ensemble", "add", tmp_path / "empty", "--config-file", config)


def test_ensemble_add_takes_iteration_from_content_then_from_name(theirs, tiny_config, done, refused):
    config, output = tiny_config()
    change(theirs / "model_0000099.pth", lambda c: c.pop("iteration"))
    change(theirs / "model_0000199.pth", lambda c: c.update(iteration=150))
    done("ensemble", "add", theirs, "--config-file", config, *ALONE)
    assert [m.iteration for m in read_index(output / "train" / "ensemble.jsonl")] == [99, 150, 299]

    def anonymous(checkpoint):
        checkpoint.pop("iteration")
        checkpoint["model"]["roi_heads.box_predictor.cls_score.bias"] += 1

    change(theirs / "model_final.pth", anonymous)
    message = refused("ensemble", "add", theirs, "--config-file", config, *ALONE)
    assert "iteration" in message
    assert "model_final.pth" in message


def test_train_without_runs_and_added_members_is_rejected(tiny_config, refused):
    config, _ = tiny_config()
    assert "CURATE.ENSEMBLE.NUM_RUNS" in refused("--config-file", config, "--until", "train", *ALONE)


def test_bf16_members_with_averages_keep_a_full_arm_in_fp32(tiny_config, done):
    config, output = tiny_config()
    done(
        "--config-file", config, "CURATE.ENSEMBLE.DTYPE", "bf16", "CURATE.ENSEMBLE.ITERATIONS", "(0, 2)",
        "CURATE.ENSEMBLE.AVERAGE_LAST", "1", "CURATE.ENSEMBLE.AUGMENTATIONS", "('default', 'crop')",
        "CURATE.RETRAIN.ARMS", "('full',)",
    )  # fmt: skip
    members = read_index(output / "train" / "ensemble.jsonl")
    assert [(m.run, m.iteration, m.kind) for m in members] == [
        (run, *key) for run in (0, 1) for key in ((0, "checkpoint"), (2, "average"), (2, "checkpoint"))
    ]
    assert {m.dtype for m in members} == {"bf16"}
    full = {seed: output / "retrain" / "full" / f"seed-{seed}" for seed in (0, 1)}
    last = output / "train" / "run-0" / "last" / "iter-0000003.safetensors"
    assert (full[0] / "iter-0000003.safetensors").read_bytes() == last.read_bytes()
    assert all(t.dtype != torch.bfloat16 for t in load_file(last).values())
    assert (full[0] / "reused.txt").exists()
    assert not (full[1] / "reused.txt").exists()  # that run saw other augmentations than an arm does
    done("--config-file", config.parent / config.name, "--only", "report", "OUTPUT_DIR", output)
    text = done("ensemble", "list", output)
    assert "6 members of 2 runs" in text
    assert "average" in text
    listed = json.loads(done("ensemble", "list", output, "--json"))
    assert [row["file"] for row in listed] == [m.file for m in members]
    assert main(["manifest", "verify", str(output / "manifest")]) == 0


def test_reused_full_arm_equals_a_training_of_its_own(finished_run, tiny_config, done):
    """Members in bf16 keep the last weights in fp32 besides, which the full arm reuses."""
    config, output = tiny_config()
    words = ["CURATE.ENSEMBLE.DTYPE", "bf16", "CURATE.RETRAIN.ARMS", "('full',)", "CURATE.RETRAIN.NUM_SEEDS", "1"]
    done("--config-file", config, *words, "--until", "retrain")
    reused = output / "retrain" / "full" / "seed-0" / "iter-0000003.safetensors"
    trained = finished_run.output / "train" / "run-0" / "iter-0000003.safetensors"
    assert reused.read_bytes() == trained.read_bytes()
