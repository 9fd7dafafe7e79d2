# ruff: noqa: E402  Detectron2 may be absent, and is imported first
"""Members from Detectron2's trainers and custom loops; dtypes, averages and cosine cycles."""

import dataclasses
import math
import os

import pytest

pytest.importorskip("detectron2", reason="Detectron2 is not installed: `make setup` installs it")

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_train_loader
from detectron2.engine import AMPTrainer, DefaultTrainer, HookBase, SimpleTrainer
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.utils.events import EventStorage
from safetensors.torch import load_file

from detcurate.coco.dataset import read_coco
from detcurate.config.declaration import load_config
from detcurate.d2.checkpoints import model_for_weights
from detcurate.d2.train.data import detection_dicts
from detcurate.d2.train.hooks import WeightAverage, ensemble_checkpointer, save_member, save_state
from detcurate.d2.train.job import ImageSet, TrainingJob
from detcurate.d2.train.trainer import CurateTrainer, train_run
from detcurate.ensemble.index import AVERAGE, CHECKPOINT, ensemble_members, verify_member
from detcurate.ensemble.schedule import averaging_windows, cosine_cycle_multiplier
from detcurate.errors import ConfigError, EnsembleError
from detcurate.synthetic import SyntheticConfig, write_dataset

STATE = {
    "weight": torch.tensor([[1.0, -0.1, 3e-5], [70000.0, 2.0, 0.5]]),
    "num_batches_tracked": torch.tensor(70001),
    "mask": torch.tensor([True, False]),
}


@pytest.fixture(scope="module")
def pool(tmp_path_factory, write_tiny_config):
    """A folder with 5 rendered images, and a function that gives the tiny config with overrides."""
    folder = tmp_path_factory.mktemp("pool")
    config, _ = write_tiny_config(folder)
    write_dataset(folder, SyntheticConfig(num_images=5, width=96, height=64))
    base = ["SOLVER.MAX_ITER", "8", "SOLVER.CHECKPOINT_PERIOD", "3", "MODEL.ROI_HEADS.NUM_CLASSES", "7"]
    return folder, lambda *overrides: load_config(config, [*base, *overrides])


@pytest.fixture(scope="module")
def dataset(pool):
    """The 5 images under a name that Detectron2 knows."""
    folder, _ = pool
    name = "detcurate_test_ensemble"
    records = detection_dicts(read_coco(folder / "train.json"), folder / "images-train", None)
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).thing_classes = [str(number) for number in range(7)]
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize(("storage", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_save_state_casts_floats_only(tmp_path, storage, dtype):
    save_state(STATE, tmp_path / "x", storage, "the weights")
    found = load_file(tmp_path / "x")
    assert found["weight"].dtype == dtype
    assert torch.equal(found["weight"], STATE["weight"].to(dtype))
    for name in ("num_batches_tracked", "mask"):
        assert found[name].dtype == STATE[name].dtype
        assert torch.equal(found[name], STATE[name])


def test_save_state_beyond_fp16_names_tensor_and_value(tmp_path):
    with pytest.raises(EnsembleError, match=r"the weights.*fp16.*got 70000 in weight.*CURATE.ENSEMBLE.DTYPE bf16"):
        save_state(STATE, tmp_path / "x", "fp16", "the weights")
    save_state({"weight": STATE["weight"][0]}, tmp_path / "x", "fp16", "the weights")
    assert load_file(tmp_path / "x")["weight"].dtype == torch.float16


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_save_member_not_finite_names_iteration_and_tensor(tmp_path, value):
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 2))
    save_member(model, tmp_path, 10)
    model[1].running_var[2] = value
    model[2].bias.data[0] = value
    with pytest.raises(EnsembleError, match=rf"iteration 11.*got {value} in 1.running_var"):
        save_member(model, tmp_path, 11)
    assert [member.iteration for member in ensemble_members(tmp_path)] == [10]
    assert sorted(path.name for path in (tmp_path / "run-0").iterdir()) == ["iter-0000010.safetensors", "members.jsonl"]


@pytest.mark.parametrize("storage", ["bf16", "fp16"])
def test_half_precision_member_loads_in_the_models_dtype(pool, tmp_path, storage):
    _, config = pool
    cfg = config()
    model = build_model(cfg)
    save_member(model, tmp_path, 0, dtype=storage)
    (member,) = ensemble_members(tmp_path)
    found = model_for_weights(cfg, tmp_path / member.file).state_dict()
    for name, tensor in model.state_dict().items():
        assert found[name].dtype == tensor.dtype
        torch.testing.assert_close(found[name], tensor, rtol=2**-8, atol=1e-6)
    whole = sum(tensor.nbytes for tensor in model.state_dict().values())
    assert (tmp_path / member.file).stat().st_size < 0.6 * whole


def test_weight_average_by_hand():
    states = [{"w": torch.tensor([float(i), 2.0 * i, 1.0]), "n": torch.tensor(i)} for i in (1, 2, 6)]
    average = WeightAverage()
    for number, state in enumerate(states):
        average.update(state, number)
    assert torch.allclose(average.state()["w"], torch.tensor([3.0, 6.0, 1.0]))
    assert average.state()["n"] == 6
    assert states[0]["w"][0] == 1  # the model's own tensors are left alone
    average.begin()
    average.update(states[1], 7)
    assert torch.equal(average.state()["w"], states[1]["w"])


class Recorder(HookBase):
    def __init__(self) -> None:
        self.states, self.rates = {}, {}

    def before_step(self):
        self.rates[self.trainer.iter] = self.trainer.optimizer.param_groups[0]["lr"]

    def after_step(self):
        self.states[self.trainer.iter] = state_of(self.trainer.model)


def default_trainer(cfg, dataset, directory, hook=None):
    """Detectron2's DefaultTrainer as it is, with two lines added; the members' hook comes after its own."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST, cfg.OUTPUT_DIR = (dataset,), (), str(directory)
    directory.mkdir(exist_ok=True)
    trainer = DefaultTrainer(cfg)
    trainer.register_hooks([hook or ensemble_checkpointer(directory / "train", cfg.SOLVER.MAX_ITER, members_per_run=2)])
    return trainer


def test_default_trainer_with_the_hook_saves_members(pool, dataset, tmp_path):
    _, config = pool
    trainer = default_trainer(config("CURATE.TRAIN.OPTIMIZER", "sgd"), dataset, tmp_path)
    recorder = Recorder()
    trainer.register_hooks([recorder])
    trainer.resume_or_load(resume=False)
    trainer.train()
    members = ensemble_members(tmp_path / "train")
    assert [(m.run, m.iteration, m.seed, m.kind) for m in members] == [
        (0, 5, None, CHECKPOINT),
        (0, 7, None, CHECKPOINT),
    ]
    for member in members:
        verify_member(tmp_path / "train" / member.file, member.sha256)
        assert_equal(load_file(tmp_path / "train" / member.file), recorder.states[member.iteration])
        assert member.lr == recorder.rates[member.iteration]
    assert (tmp_path / "model_final.pth").exists()


def test_resumed_default_trainer_continues_the_average(pool, dataset, tmp_path):
    """Detectron2's checkpoint of iteration 5 is saved before our hook had its turn at that iteration."""
    _, config = pool

    def hook():
        return ensemble_checkpointer(tmp_path / "train", 8, explicit=(2, 7), average_last=1)

    class Stop(HookBase):
        def after_step(self):
            if self.trainer.iter == 5:
                raise KeyboardInterrupt

    first = default_trainer(config(), dataset, tmp_path, hook())
    states = Recorder()
    first.register_hooks([states])
    first._hooks.insert(-2, stop := Stop())  # after PeriodicCheckpointer, before the members' hook
    stop.trainer = first
    with pytest.raises(KeyboardInterrupt):
        first.train()
    assert sorted(states.states) == [0, 1, 2, 3, 4]
    resumed = default_trainer(config(), dataset, tmp_path, hook())
    recorder = Recorder()
    resumed.register_hooks([recorder])
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 6
    fifth = state_of(resumed.model)
    resumed.train()
    average = next(m for m in ensemble_members(tmp_path / "train") if m.kind == AVERAGE)
    found = load_file(tmp_path / "train" / average.file)
    samples = [states.states[3], states.states[4], fifth, recorder.states[6], recorder.states[7]]
    for name, tensor in found.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, torch.stack([s[name] for s in samples]).mean(0), rtol=1e-5, atol=1e-6)


def test_average_with_missing_samples_is_not_saved(pool, dataset, tmp_path, caplog):
    _, config = pool
    hook = ensemble_checkpointer(tmp_path / "train", 8, explicit=(2, 7), average_last=1)
    trainer = default_trainer(config(), dataset, tmp_path, hook)
    trainer.start_iter = 6
    trainer.train()
    assert [(m.iteration, m.kind) for m in ensemble_members(tmp_path / "train")] == [(7, CHECKPOINT)]


def test_custom_loop_saves_members_once(pool, dataset, tmp_path):
    """In the manner of Detectron2's ``tools/plain_train_net.py``."""
    _, config = pool
    cfg = config().clone()
    cfg.defrost()
    cfg.DATASETS.TRAIN = (dataset,)
    model = build_model(cfg).train()
    optimizer = build_optimizer(cfg, model)
    scheduler = build_lr_scheduler(cfg, optimizer)
    states, rates = {}, {}
    with EventStorage(0) as storage:
        for data, iteration in zip(build_detection_train_loader(cfg), range(4), strict=False):
            storage.iter = iteration
            losses = sum(model(data).values())
            optimizer.zero_grad()
            losses.backward()
            optimizer.step()
            lr = optimizer.param_groups[0]["lr"]
            if iteration in (1, 3):
                save_member(model, tmp_path, iteration, run=2, seed=9, lr=lr)
                states[iteration], rates[iteration] = state_of(model), lr
            scheduler.step()
    save_member(model, tmp_path, 3, run=2)  # once more, as loops do at the end
    members = ensemble_members(tmp_path)
    assert [(m.run, m.iteration, m.seed, m.lr) for m in members] == [(2, i, 9, rates[i]) for i in (1, 3)]
    for member in members:
        assert_equal(load_file(tmp_path / member.file), states[member.iteration])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="Detectron2's AMPTrainer needs a GPU")
def test_amp_trainer_with_the_hook_saves_members(pool, dataset, tmp_path):
    _, config = pool
    cfg = config("MODEL.DEVICE", "cuda").clone()
    cfg.defrost()
    cfg.DATASETS.TRAIN = (dataset,)
    model = build_model(cfg)
    trainer = AMPTrainer(model, build_detection_train_loader(cfg), build_optimizer(cfg, model))
    trainer.register_hooks([ensemble_checkpointer(tmp_path, 4, members_per_run=2)])
    trainer.train(0, 4)
    assert [m.iteration for m in ensemble_members(tmp_path)] == [2, 3]


class Loss(torch.nn.Linear):
    def forward(self, data):
        return {"loss": super().forward(data).square().mean()}


def _one_of_two(rank, directory):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{directory}/meet", rank=rank, world_size=2)
    torch.manual_seed(rank)  # DistributedDataParallel gives both the weights of the first
    model = torch.nn.parallel.DistributedDataParallel(Loss(2, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = [torch.full((4, 2), rank + 1.0)] * 4
    trainer = SimpleTrainer(model, iter(data), optimizer)
    trainer.register_hooks(
        [ensemble_checkpointer(directory / "hook", 4, members_per_run=2, last_fraction=1.0, average_last=1)]
    )
    trainer.train(0, 4)
    save_member(model, directory / "loop", 3)
    save_member(model, directory / f"rank-{rank}", 3)
    torch.distributed.barrier()
    # Not by way of gloo's destructors, which on a busy machine now and then end a process that is done by an abort.
    os._exit(0)


def test_distributed_training_writes_in_the_main_process_only(tmp_path):
    torch.multiprocessing.spawn(_one_of_two, (tmp_path,), nprocs=2)
    members = ensemble_members(tmp_path / "hook")
    assert [m.key for m in members] == [(1, CHECKPOINT), (3, AVERAGE), (3, CHECKPOINT)]
    assert sorted(load_file(tmp_path / "hook" / members[0].file)) == ["bias", "weight"]  # no "module."
    assert_equal(load_file(tmp_path / "hook" / members[2].file), load_file(tmp_path / "loop" / members[2].file))
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["hook", "loop", "rank-0"]


def job(pool, directory, *overrides: str, **changes: object):
    folder, config = pool
    made = TrainingJob(
        config=config(*overrides).dump(),
        images=ImageSet(folder / "train.json", folder / "images-train"),
        directory=directory,
        folder="run-0",
        run=0,
        seed=3,
        iterations=(3, 7),
    )
    return dataclasses.replace(made, **changes)


class Killed(Exception):
    pass


def train(one, last=99):
    """Train, and be killed after the iteration ``last``."""
    reported = []

    def progress(amount):
        reported.append(amount)
        if sum(reported) > last:
            raise Killed

    try:
        train_run(one, progress)
    except Killed:
        pass


def content(one):
    return {m.key: (one.directory / m.file).read_bytes() for m in one.writer.members()}


def test_killed_training_gives_the_same_averages(pool, tmp_path):
    windows = averaging_windows((1, 4, 7), last=2, every=1)
    every = job(pool, tmp_path / "every", iterations=tuple(range(8)))
    train(every)
    states = {m.iteration: load_file(every.directory / m.file) for m in every.writer.members()}
    whole = job(pool, tmp_path / "whole", iterations=(1, 4, 7), windows=windows)
    train(whole)
    assert [m.key for m in whole.writer.members()] == [
        (1, CHECKPOINT), (4, AVERAGE), (4, CHECKPOINT), (7, AVERAGE), (7, CHECKPOINT),
    ]  # fmt: skip
    for member in whole.writer.members():
        found = load_file(whole.directory / member.file)
        if member.kind == CHECKPOINT:
            assert_equal(found, states[member.iteration])
            continue
        for name, tensor in found.items():
            samples = [states[i][name] for i in windows[member.iteration]]
            if tensor.is_floating_point():
                torch.testing.assert_close(tensor, torch.stack(samples).mean(0), rtol=1e-5, atol=1e-6)
            else:
                assert torch.equal(tensor, samples[-1])
        assert any("running_mean" in name for name in found)
    killed = job(pool, tmp_path / "killed", iterations=(1, 4, 7), windows=windows)
    for last in (3, 5, 6):  # states to resume from are saved after iterations 2 and 5
        train(killed, last)
    train(killed)
    assert content(killed) == content(whole)


def test_keep_last_saves_fp32_weights_beside_bf16_members(pool, tmp_path):
    plain, half = job(pool, tmp_path / "plain"), job(pool, tmp_path / "half", dtype="bf16", keep_last=True)
    train(plain)
    train(half)
    last, member = half.last_writer.members()[0], half.writer.members()[-1]
    assert (last.iteration, last.dtype, member.dtype) == (7, "fp32", "bf16")
    assert (half.directory / last.file).read_bytes() == content(plain)[7, CHECKPOINT]
    assert half.is_complete
    (half.directory / last.file).unlink()
    assert not half.is_complete


def test_max_gb_limits_members_and_the_run_stays_complete(pool, tmp_path):
    size = len(content_of_one(pool, tmp_path))
    one = job(pool, tmp_path / "thin", iterations=tuple(range(8)), max_bytes=3 * size + 10)
    train(one)
    assert [m.iteration for m in one.writer.members()] == [0, 3, 7] or [m.iteration for m in one.writer.members()] == [
        0,
        4,
        7,
    ]
    log = (one.run_directory / "log.txt").read_text()
    train(one)
    assert (one.run_directory / "log.txt").read_text() == log


def content_of_one(pool, tmp_path):
    one = job(pool, tmp_path / "size", iterations=(0,))
    train(one, 0)
    return content(one)[0, CHECKPOINT]


CYCLES = ("SOLVER.LR_SCHEDULER_NAME", "WarmupCosineCyclesLR", "CURATE.ENSEMBLE.CYCLES", "2", "SOLVER.BASE_LR", "0.01")


@pytest.mark.parametrize("warmup", [0, 2])
def test_cosine_cycles_set_the_learning_rate_with_one_warm_up(pool, tmp_path, warmup):
    one = job(pool, tmp_path, *CYCLES, "SOLVER.WARMUP_ITERS", str(warmup), iterations=tuple(range(8)))
    train(one)
    found = [member.lr for member in one.writer.members()]
    expected = [0.01 * cosine_cycle_multiplier(i, max_iter=8, cycles=2) for i in range(8)]
    assert found[warmup:] == pytest.approx(expected[warmup:])
    if warmup:
        assert found[0] == pytest.approx(0.01 * 1e-3)
        assert found[0] < found[1] < found[2]


def test_build_lr_scheduler_rejects_impossible_schedules(pool):
    _, config = pool
    cfg = config(*CYCLES, "SOLVER.WARMUP_ITERS", "4")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
    with pytest.raises(ConfigError, match=r"SOLVER.WARMUP_ITERS.*4 iterations.*got 4"):
        CurateTrainer.build_lr_scheduler(cfg, optimizer)
    with pytest.raises(ConfigError, match=r"SOLVER.LR_SCHEDULER_NAME.*WarmupCosineCyclesLR, .*got 'Cosine'"):
        from detcurate.d2.train.solver import require_lr_schedule

        require_lr_schedule(config("SOLVER.LR_SCHEDULER_NAME", "Cosine"))
    with pytest.raises(ConfigError, match=r"SOLVER.BASE_LR.*WarmupCosineLR.*got 0.0"):
        require_lr_schedule(config("SOLVER.BASE_LR", "0.0"))
