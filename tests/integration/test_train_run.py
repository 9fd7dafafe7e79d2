# ruff: noqa: E402  Detectron2 may be absent, and is imported first
"""Training runs: safe initial weights, the optimizer, a loss that is not finite, and the log."""

import logging
import pickle
from pathlib import Path

import pytest

pytest.importorskip("detectron2", reason="Detectron2 is not installed: `make setup` installs it")

import torch
from detectron2.modeling import build_model
from safetensors.torch import load_file, save_file

from detcurate.config.declaration import load_config, load_config_text
from detcurate.d2.checkpoints import load_initial_weights, model_bytes, model_for_weights
from detcurate.d2.train.hooks import save_weights
from detcurate.d2.train.trainer import CurateTrainer, ImageSet, TrainingJob, train_run
from detcurate.errors import ConfigError, EnsembleError
from detcurate.synthetic import SyntheticConfig, write_dataset


class Attack:
    """An object that runs code when it is unpickled."""

    def __init__(self, proof) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple:
        return Path.touch, (self.proof,)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 2))


@pytest.fixture
def weights():
    """Other weights for the model, without its last layer."""
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5)).state_dict()


@pytest.fixture(scope="module")
def config(tmp_path_factory, write_tiny_config):
    """Return a function that gives the tiny config as YAML with overrides, for 7 classes and 3 iterations."""
    path, _ = write_tiny_config(tmp_path_factory.mktemp("config"))
    base = ["SOLVER.MAX_ITER", "3", "MODEL.ROI_HEADS.NUM_CLASSES", "7"]
    return lambda *overrides: load_config(path, [*base, *overrides]).dump()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pool")
    write_dataset(folder, SyntheticConfig(num_images=4, width=96, height=64))
    return ImageSet(folder / "train.json", folder / "images-train")


def job(config, images, directory, iterations=(2,)):
    return TrainingJob(config, images, directory, "run-5", run=5, seed=3, iterations=iterations)


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("kind", ["safetensors", "pth", "pt", "pth of a checkpointer"])
def test_load_initial_weights_reads_every_format(model, weights, tmp_path, kind):
    path = tmp_path / f"x.{kind.split()[0]}"
    if kind == "safetensors":
        save_file(weights, path)
    else:
        torch.save({"model": weights, "iteration": 7} if " " in kind else weights, path)
    before = state(model)
    load_initial_weights(model, str(path), allow_pickle=False)
    for name, tensor in state(model).items():
        assert torch.equal(tensor, weights.get(name, before[name])), name
    assert not torch.equal(model[0].weight, before["0.weight"])


def test_load_initial_weights_without_file_keeps_the_model(model):
    before = state(model)
    load_initial_weights(model, "", allow_pickle=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(model).items())


@pytest.mark.parametrize("name", ["R-50.pkl", "https://127.0.0.1:9/weights", "weights", "x.pth.pkl"])
def test_load_initial_weights_rejects_a_pickle_with_code(model, tmp_path, name):
    proof = tmp_path / "proof"
    path = tmp_path / name if "://" not in name else name
    if isinstance(path, Path):
        path.write_bytes(pickle.dumps({"model": Attack(proof)}))
    with pytest.raises(ConfigError, match=rf"MODEL.WEIGHTS.*got .*{name}.*CURATE.TRAIN.ALLOW_PICKLE True"):
        load_initial_weights(model, str(path), allow_pickle=False)
    assert not proof.exists()


@pytest.mark.parametrize("allow_pickle", [False, True])
def test_load_initial_weights_reads_a_pickle_of_arrays(model, weights, tmp_path, allow_pickle):
    path = tmp_path / "x.pkl"
    path.write_bytes(
        pickle.dumps({"model": {name: tensor.numpy() for name, tensor in weights.items()}, "__author__": "me"})
    )
    load_initial_weights(model, str(path), allow_pickle=allow_pickle)
    assert torch.equal(model[0].weight, weights["0.weight"])


@pytest.mark.parametrize("allow_pickle", [False, True])
def test_load_initial_weights_runs_no_code_of_a_pth(model, weights, tmp_path, allow_pickle):
    proof, path = tmp_path / "proof", tmp_path / "x.pth"
    torch.save({**weights, "extra": Attack(proof)}, path)
    with pytest.raises(ConfigError, match=r"MODEL.WEIGHTS.*got .*x.pth"):
        load_initial_weights(model, str(path), allow_pickle=allow_pickle)
    assert not proof.exists()
    torch.load(path, weights_only=False)
    assert proof.exists()  # the attack is a real one


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_load_initial_weights_names_missing_mismatched_and_damaged_files(model, weights, tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    with pytest.raises(ConfigError, match=rf"MODEL.WEIGHTS.*got .*x.{suffix}"):
        load_initial_weights(model, str(path), allow_pickle=False)
    write = (lambda tensors: save_file(tensors, path)) if suffix == "safetensors" else lambda t: torch.save(t, path)
    write({**weights, "0.weight": torch.zeros(4, 3)})
    with pytest.raises(ConfigError, match=rf"(?s)MODEL.WEIGHTS.*got .*x.{suffix}.*0.weight"):
        load_initial_weights(model, str(path), allow_pickle=False)
    write({"module.0.weight": weights["0.weight"]})
    with pytest.raises(ConfigError, match=rf"MODEL.WEIGHTS.*no parameter.*got .*x.{suffix}"):
        load_initial_weights(model, str(path), allow_pickle=False)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ConfigError, match=rf"MODEL.WEIGHTS.*got .*x.{suffix}"):
        load_initial_weights(model, str(path), allow_pickle=False)


def test_build_optimizer_sgd_and_adamw_have_equal_parameter_groups(config):
    found = {}
    for name in ("sgd", "adamw"):
        cfg = load_config_text(
            config("CURATE.TRAIN.OPTIMIZER", name, "SOLVER.WEIGHT_DECAY_NORM", "0.25", "SOLVER.BASE_LR", "0.125")
        )
        found[name] = CurateTrainer.build_optimizer(cfg, build_model(cfg))
    assert isinstance(found["sgd"], torch.optim.SGD)
    assert isinstance(found["adamw"], torch.optim.AdamW)
    groups = {
        name: [(group["lr"], group["weight_decay"], len(group["params"])) for group in optimizer.param_groups]
        for name, optimizer in found.items()
    }
    assert groups["sgd"] == groups["adamw"]
    assert {(lr, decay) for lr, decay, _ in groups["adamw"]} == {(0.125, 0.01), (0.125, 0.25)}


def test_build_optimizer_with_clipping_clips_gradients(config):
    clip = ("SOLVER.CLIP_GRADIENTS.ENABLED", "True", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "1e-3")
    cfg = load_config_text(config(*clip))
    model = build_model(cfg)
    optimizer = CurateTrainer.build_optimizer(cfg, model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert isinstance(optimizer, torch.optim.AdamW)
    for parameter in model.parameters():
        assert parameter.grad.max() == pytest.approx(1e-3)


def test_train_run_with_infinite_loss_names_the_run(config, images, tmp_path):
    wild = job(config("SOLVER.BASE_LR", "1e30"), images, tmp_path)
    with pytest.raises(EnsembleError, match=r"(?s)run 5.*SOLVER.BASE_LR"):
        train_run(wild, lambda _: None)
    assert wild.writer.members() == []


def test_train_run_starts_from_the_initial_weights(config, images, tmp_path):
    torch.manual_seed(9)
    initial = build_model(load_config_text(config()))
    save_weights(initial, tmp_path / "x.safetensors")
    one = job(
        config("MODEL.WEIGHTS", str(tmp_path / "x.safetensors"), "SOLVER.BASE_LR", "1e-30"), images, tmp_path, (0, 2)
    )
    reported = []
    train_run(one, reported.append)
    assert sum(reported) == 3
    for member in one.writer.members():
        found = load_file(tmp_path / member.file)
        for name, parameter in initial.named_parameters():
            torch.testing.assert_close(found[name], parameter.detach(), rtol=0, atol=1e-20)


def test_train_run_logs_to_its_folder_and_restores_the_loggers(config, images, tmp_path):
    logger = logging.getLogger("detectron2")
    before = (list(logger.handlers), logger.level, logger.propagate)
    one = job(config(), images, tmp_path)
    train_run(one, lambda _: None)
    assert "Starting training from iteration 0" in (one.run_directory / "log.txt").read_text()
    assert (list(logger.handlers), logger.level, logger.propagate) == before
    names = {path.name.split(".")[0] for path in one.run_directory.iterdir()}
    assert names == {"iter-0000002", "members", "metrics", "log", "events"}


def test_load_config_text_restores_a_dumped_config(config):
    cfg = load_config_text(config("CURATE.SELECT.FRACTION", "0.25"))
    assert cfg.is_frozen()
    assert (cfg.CURATE.SELECT.FRACTION, cfg.SOLVER.MAX_ITER, cfg.MODEL.BACKBONE.NAME) == (
        0.25, 3, "build_tiny_resnet_fpn_backbone",
    )  # fmt: skip


def test_model_bytes_equals_file_size_without_header(config, tmp_path):
    model = build_model(load_config_text(config()))
    path = tmp_path / "x.safetensors"
    save_weights(model, path)
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    assert model_bytes(config()) == path.stat().st_size - header


def test_model_for_weights_is_in_evaluation_mode_with_equal_weights(config, tmp_path):
    cfg = load_config_text(config())
    model = build_model(cfg)
    save_weights(model, tmp_path / "x.safetensors")
    found = model_for_weights(cfg, tmp_path / "x.safetensors")
    assert not found.training
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in found.state_dict().items())
    with pytest.raises(EnsembleError, match="absent.safetensors"):
        model_for_weights(cfg, tmp_path / "absent.safetensors")
