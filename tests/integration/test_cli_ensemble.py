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


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("CURATE.ENSEMBLE.SCHEDULE", "every"), "CURATE.ENSEMBLE.SCHEDULE: must be one of cosine_cycles,"),
        (("CURATE.ENSEMBLE.SCHEDULE", "every_n"), "EVERY must be at most SOLVER.MAX_ITER = 4, got 1000"),
        (("CURATE.ENSEMBLE.SCHEDULE", "every_n", "CURATE.ENSEMBLE.EVERY", "0"), "greater than or equal to 1 (got 0)"),
        (("CURATE.ENSEMBLE.SCHEDULE", "explicit"), "CURATE.ENSEMBLE.ITERATIONS: "),
        (
            ("CURATE.ENSEMBLE.SCHEDULE", "every_n", "CURATE.ENSEMBLE.ITERATIONS", "(1, 2)"),
            "CURATE.ENSEMBLE.ITERATIONS: must be empty for SCHEDULE every_n (got [1, 2])",
        ),
        (("CURATE.ENSEMBLE.SCHEDULE", "cosine_cycles"), "SOLVER.LR_SCHEDULER_NAME: must be WarmupCosineCyclesLR"),
        (
            (
                "CURATE.ENSEMBLE.SCHEDULE", "cosine_cycles", "SOLVER.LR_SCHEDULER_NAME", "WarmupCosineCyclesLR",
                "CURATE.ENSEMBLE.CYCLES", "3",
            ),
            "CYCLES must divide SOLVER.MAX_ITER = 4, or nearly so, got 3",
        ),
        (
            (
                "SOLVER.LR_SCHEDULER_NAME", "WarmupCosineCyclesLR", "CURATE.ENSEMBLE.CYCLES", "2",
                "SOLVER.WARMUP_ITERS", "2",
            ),
            "WARMUP_ITERS must be less than the 2 iterations of the first cycle, got 2",
        ),
        (("SOLVER.LR_SCHEDULER_NAME", "Cosine"), "SOLVER.LR_SCHEDULER_NAME must be one of"),
        (("CURATE.ENSEMBLE.DTYPE", "int8"), "CURATE.ENSEMBLE.DTYPE: must be one of bf16, fp16, fp32 (got 'int8')"),
        (("CURATE.ENSEMBLE.AVERAGE_LAST", "2"), "AVERAGE_LAST must be at most the 1 windows between 2 members"),
        (("CURATE.ENSEMBLE.AVERAGE_LAST", "1"), "AVERAGE_EVERY must be less than the 1 iterations between"),
        (("CURATE.ENSEMBLE.MAX_GB", "-1"), "greater than or equal to 0 (got -1.0)"),
        (("CURATE.ENSEMBLE.MAX_GB", "1e-6"), "CURATE.ENSEMBLE.MAX_GB"),
        (("CURATE.ENSEMBLE.AUGMENTATIONS", "('blur',)"), "must be one of crop, default, no_flip (got 'blur')"),
        (("CURATE.TRAIN.GPUS_PER_RUN", "2"), "CURATE.TRAIN.GPUS_PER_RUN: must be 0 or 1 (got 2)"),
    ],
)  # fmt: skip
def test_bad_settings_are_named(tiny_config, refused, overrides, message):
    config, output = tiny_config()
    assert message in refused("--config-file", config, *overrides)
    assert not output.exists()


def test_a_plan_knows_schedules_averages_and_budgets(tiny_config, done):
    config, _ = tiny_config()
    plan = ["--config-file", config, "--dry-run", "CURATE.ENSEMBLE.SCHEDULE", "every_n", "CURATE.ENSEMBLE.EVERY", "2"]
    assert "4 members of" in done(*plan)
    assert "6 members on 26 images" in done(*plan, "CURATE.ENSEMBLE.AVERAGE_LAST", "1")


def test_jobs_take_turns_on_the_gpus():
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


def test_checkpoints_become_members_that_are_predicted_with(theirs, tiny_config, done, capsys):
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
    assert "26 images by 3 members" in done("--config-file", config, "--only", "predict")
    text = done("--config-file", config, "--until", "manifest", *ALONE)
    assert [line.split(":")[0] for line in text.splitlines() if "up to date" in line] == ["pool", "train", "predict"]
    provenance = json.loads((output / "manifest" / "provenance.json").read_text())
    assert [(m["iteration"], m["kind"]) for m in provenance["ensemble"]] == [(i, "checkpoint") for i in (99, 199, 299)]
    assert main(["manifest", "verify", str(output / "manifest")]) == 0
    capsys.readouterr()
    again = done("ensemble", "add", theirs, "--config-file", config, *ALONE)
    assert "0 members added" in again
    assert "predict: up to date" in done("--config-file", config, "--until", "predict", *ALONE)


def test_added_members_stand_beside_trained_runs_which_are_not_trained_again(theirs, tiny_config, done, refused):
    config, output = tiny_config()
    done("--config-file", config, "--until", "train")
    log = (output / "train" / "run-0" / "log.txt").read_text()
    assert "--run: must be at least 2" in refused("ensemble", "add", theirs, "--config-file", config, "--run", "1")
    assert "added as run 2" in done("ensemble", "add", theirs, "--config-file", config)
    runs = [member.run for member in read_index(output / "train" / "ensemble.jsonl")]
    assert runs == [0, 0, 1, 1, 2, 2, 2]
    assert (output / "train" / "run-0" / "log.txt").read_text() == log
    assert "26 images by 7 members" in done("--config-file", config, "--until", "predict")
    text = done("--config-file", config, "--until", "train", "SOLVER.BASE_LR", "0.003")
    assert "train: runs again (SOLVER.BASE_LR" in text  # the trained runs are; the added members stay
    assert [m.run for m in read_index(output / "train" / "ensemble.jsonl")] == runs
    shutil.rmtree(output / "added")
    assert "4 members from 2 runs" in done("--config-file", config, "--until", "train", "SOLVER.BASE_LR", "0.003")
    assert not list((output / "train" / "run-2").glob("*.safetensors"))


def test_members_of_the_hook_in_a_trainer_of_ones_own_are_added_as_they_are(checkpoints, tmp_path, tiny_config, done):
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
    """What runs code when it is unpickled."""

    def __init__(self, proof) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple:
        return Path.touch, (self.proof,)


@pytest.mark.parametrize(
    ("harm", "messages"),
    [
        (
            lambda c: c["model"].update({"roi_heads.box_predictor.cls_score.weight": torch.zeros(5, 128)}),
            ("got roi_heads.box_predictor.cls_score.weight of shape (5, 128) where the model has (8, 128)",),
        ),
        (
            lambda c: c["model"].pop("roi_heads.box_predictor.cls_score.bias"),
            ("got no tensor roi_heads.box_predictor.cls_score.bias where the model has (8,)",),
        ),
        (
            lambda c: c["model"].update({"roi_heads.mask_head.x": torch.zeros(3, 2)}),
            ("got roi_heads.mask_head.x of shape (3, 2) where the model has none",),
        ),
        (
            lambda c: c["model"]["roi_heads.box_predictor.bbox_pred.bias"].__setitem__(3, float("nan")),
            ("must be finite, got nan in roi_heads.box_predictor.bbox_pred.bias (1 of 28 numbers)",),
        ),
        (lambda c: c.update(model="no weights"), ("a checkpoint must hold tensors by name, got model of type str",)),
        (lambda c: c.update(iteration=99), ("run 0 has another checkpoint of iteration 99",)),
    ],
)
def test_a_checkpoint_that_cannot_be_a_member_is_named_and_none_is_added(
    theirs, tiny_config, refused, harm, messages
):  # fmt: skip
    config, output = tiny_config()
    change(theirs / "model_0000199.pth", harm)
    text = refused("ensemble", "add", theirs, "--config-file", config, *ALONE)
    for message in (*messages, "model_0000199.pth"):
        assert message in text
    assert not (output / "added").exists()
    assert not (output / "train").exists()


def test_a_pickle_that_would_run_code_is_refused_until_it_is_allowed(theirs, tmp_path, tiny_config, refused, done):
    config, _ = tiny_config()
    proof, path = tmp_path / "proof", theirs / "model_0000199.pth"
    checkpoint = torch.load(path, weights_only=True)
    torch.save({**checkpoint, "extra": Attack(proof)}, path)
    text = refused("ensemble", "add", theirs, "--config-file", config, *ALONE)
    assert "model_0000199.pth" in text
    assert "CURATE.TRAIN.ALLOW_PICKLE True if you trust" in text
    assert not proof.exists()
    done("ensemble", "add", theirs, "--config-file", config, *ALONE, "CURATE.TRAIN.ALLOW_PICKLE", "True")
    assert proof.exists()  # it was a real one
    path.write_bytes(pickle.dumps({"model": Attack(tmp_path / "other")}))
    assert "ALLOW_PICKLE" in refused("ensemble", "add", theirs, "--config-file", config, *ALONE)
    assert not (tmp_path / "other").exists()


def test_a_truncated_checkpoint_and_folders_without_any(theirs, tmp_path, tiny_config, refused):
    config, _ = tiny_config()
    path = theirs / "model_0000299.pth"
    path.write_bytes(path.read_bytes()[:-1000])
    assert "a checkpoint must be a whole file" in refused("ensemble", "add", theirs, "--config-file", config, *ALONE)
    assert f"DIR: not a folder of checkpoints (got {tmp_path / 'no'})" in refused(
        "ensemble", "add", tmp_path / "no", "--config-file", config
    )
    (tmp_path / "empty").mkdir()
    assert "model_*.pth" in refused("ensemble", "add", tmp_path / "empty", "--config-file", config)


def test_the_iteration_is_the_files_own_else_its_names(theirs, tiny_config, done, refused):
    config, output = tiny_config()
    change(theirs / "model_0000099.pth", lambda c: c.pop("iteration"))
    change(theirs / "model_0000199.pth", lambda c: c.update(iteration=150))
    done("ensemble", "add", theirs, "--config-file", config, *ALONE)
    assert [m.iteration for m in read_index(output / "train" / "ensemble.jsonl")] == [99, 150, 299]

    def anonymous(checkpoint):
        checkpoint.pop("iteration")
        checkpoint["model"]["roi_heads.box_predictor.cls_score.bias"] += 1

    change(theirs / "model_final.pth", anonymous)
    assert "the iteration is unknown" in refused("ensemble", "add", theirs, "--config-file", config, *ALONE)


def test_no_runs_and_nothing_added(tiny_config, refused):
    config, _ = tiny_config()
    assert "CURATE.ENSEMBLE.NUM_RUNS" in refused("--config-file", config, "--until", "train", *ALONE)


def test_half_precision_members_averages_augmentations_and_a_full_arm_in_fp32(tiny_config, done):
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


def test_the_reused_full_arm_is_what_training_it_gives(tiny_config, done, tmp_path):
    config, output = tiny_config()
    done(
        "--config-file",
        config,
        "CURATE.ENSEMBLE.DTYPE",
        "bf16",
        "CURATE.RETRAIN.ARMS",
        "('full',)",
        "--until",
        "retrain",
    )
    reused = (output / "retrain" / "full" / "seed-0" / "iter-0000003.safetensors").read_bytes()
    other = ["OUTPUT_DIR", tmp_path / "plain", "CURATE.RETRAIN.ARMS", "('full',)"]
    done("--config-file", config, "--until", "train", *other)
    assert (tmp_path / "plain" / "train" / "run-0" / "iter-0000003.safetensors").read_bytes() == reused
