# ruff: noqa: E402  Detectron2 may be absent, and is imported first
"""Hooks in an unmodified Detectron2 trainer: members on schedule, and exact resumption of interrupted trainings."""

import hashlib
import json
from pathlib import Path

import pytest

pytest.importorskip("detectron2", reason="Detectron2 is not installed: `make setup` installs it")

import torch
from detectron2.engine import HookBase, SimpleTrainer, hooks
from detectron2.solver import LRMultiplier, WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler
from safetensors.torch import load_file

from detcurate.config.declaration import load_config
from detcurate.d2.train.hooks import EnsembleCheckpointer, ResumeSaver, StepSeeder, mix_seed, save_weights
from detcurate.d2.train.trainer import ImageSet, TrainingJob, train_run
from detcurate.ensemble.index import MemberWriter, member_iterations, verify_member
from detcurate.errors import EnsembleError
from detcurate.synthetic import SyntheticConfig, write_dataset

MAX_ITER = 11


class Model(torch.nn.Module):
    """Returns a loss; a batch norm and a transposed weight make its state more than plain parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 2)
        self.register_buffer("transposed", torch.arange(6.0).reshape(2, 3).T)

    def forward(self, data):
        return {"loss": self.last(self.norm(self.first(data)) * torch.rand(5)).square().mean()}


class Recorder(HookBase):
    """Notes the state and the learning rate of every update, before any other hook has moved on."""

    def __init__(self) -> None:
        self.states, self.rates = {}, {}

    def before_step(self):
        self.rates[self.trainer.iter] = self.trainer.optimizer.param_groups[0]["lr"]

    def after_step(self):
        self.states[self.trainer.iter] = {k: v.clone() for k, v in self.trainer.model.state_dict().items()}


class Crash(HookBase):
    def __init__(self, iteration) -> None:
        self.iteration = iteration

    def after_step(self):
        if self.trainer.iter == self.iteration:
            raise KeyboardInterrupt


def data():
    generator = torch.Generator().manual_seed(0)
    while True:
        yield torch.randn(4, 3, generator=generator)


def trainer(model=None):
    """Return Detectron2's own SimpleTrainer on a small model, and its scheduler."""
    torch.manual_seed(0)
    model = model or Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    schedule = WarmupParamScheduler(CosineParamScheduler(1, 0.01), warmup_factor=0.1, warmup_length=0.3)
    return SimpleTrainer(model, data(), optimizer), LRMultiplier(optimizer, schedule, max_iter=MAX_ITER)


def train(writer, iterations, *extra: HookBase, start=0, order="after"):
    """Train with the members' hook before or after the scheduler's; return what really happened."""
    loop, scheduler = trainer()
    recorder, members = Recorder(), EnsembleCheckpointer(writer, iterations)
    rest = [hooks.LRScheduler(scheduler=scheduler), members]
    loop.register_hooks([recorder, *(rest if order == "after" else rest[::-1]), *extra])
    loop.train(start, MAX_ITER)
    return recorder


@pytest.fixture
def writer(tmp_path):
    return MemberWriter(tmp_path, run=2, seed=19)


def names(directory):
    return sorted(path.name for path in directory.rglob("*") if path.is_file())


def assert_state(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("order", ["after", "before"])
def test_checkpointer_saves_the_states_after_its_iterations(writer, tmp_path, order):
    schedule = (0, 3, 4, MAX_ITER - 1)
    happened = train(writer, schedule, order=order)
    members = writer.members()
    assert [(member.run, member.iteration, member.seed) for member in members] == [(2, i, 19) for i in schedule]
    assert names(tmp_path) == [f"iter-{i:07d}.safetensors" for i in schedule] + ["members.jsonl"]
    for member in members:
        path = tmp_path / member.file
        verify_member(path, member.sha256)
        assert hashlib.sha256(path.read_bytes()).hexdigest() == member.sha256
        assert_state(load_file(path), happened.states[member.iteration])
    assert len({member.sha256 for member in members}) == len(schedule)


@pytest.mark.parametrize("order", ["after", "before"])
def test_member_index_holds_the_learning_rate_of_the_update(writer, order):
    happened = train(writer, range(MAX_ITER), order=order)
    assert {member.iteration: member.lr for member in writer.members()} == happened.rates
    assert len(set(happened.rates.values())) == MAX_ITER


def test_member_index_without_scheduler_holds_the_optimizers_rate(writer):
    loop, _ = trainer()
    loop.optimizer.param_groups[0]["lr"] = 0.25
    loop.register_hooks([EnsembleCheckpointer(writer, [1])])
    loop.train(0, 3)
    assert [member.lr for member in writer.members()] == [0.25]


def test_repeated_training_saves_no_iteration_twice(writer, tmp_path):
    schedule = member_iterations(MAX_ITER, members_per_run=3, last_fraction=0.6)
    assert schedule[-1] == MAX_ITER - 1
    train(writer, schedule)
    before = {name: (tmp_path / "run-2" / name).stat().st_mtime_ns for name in names(tmp_path)}
    member_index = writer.members()
    train(writer, schedule)
    train(MemberWriter(tmp_path, run=2, seed=19), schedule, start=8)
    assert writer.members() == member_index
    assert {name: (tmp_path / "run-2" / name).stat().st_mtime_ns for name in names(tmp_path)} == before


def test_last_iteration_beside_periodic_checkpointer_is_one_member(writer, tmp_path):
    """``PeriodicCheckpointer`` saves the last iteration twice when its period divides the length; we must not."""
    from detectron2.checkpoint import Checkpointer

    (tmp_path / "own").mkdir()
    loop, scheduler = trainer()
    own = hooks.PeriodicCheckpointer(Checkpointer(loop.model, str(tmp_path / "own")), period=MAX_ITER)
    loop.register_hooks([hooks.LRScheduler(scheduler=scheduler), own, EnsembleCheckpointer(writer, [MAX_ITER - 1])])
    loop.train(0, MAX_ITER)
    assert [name for name in names(tmp_path / "own") if name.endswith(".pth")] == [
        "model_0000010.pth",
        "model_final.pth",
    ]
    assert [member.iteration for member in writer.members()] == [MAX_ITER - 1]


def test_crashed_training_keeps_the_members_before_the_crash(writer):
    with pytest.raises(KeyboardInterrupt):
        train(writer, (2, 5, MAX_ITER - 1), Crash(6))
    assert [member.iteration for member in writer.members()] == [2, 5]


def test_crash_while_saving_leaves_index_correct_and_no_temporary_file(writer, tmp_path, monkeypatch):
    from detcurate.d2.train import hooks as ours

    def half(state, path):
        if writer.members():
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        whole(state, path)

    whole = ours.save_file
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(ours, "save_file", half)
        train(writer, (2, 5))
    assert names(tmp_path) == ["iter-0000002.safetensors", "members.jsonl"]
    assert [member.iteration for member in writer.members()] == [2]
    happened = train(writer, (2, 5))
    assert [member.iteration for member in writer.members()] == [2, 5]
    assert_state(load_file(tmp_path / writer.members()[-1].file), happened.states[5])


def test_save_weights_writes_shared_tensors_under_both_names(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    model[1].weight = model[0].weight
    save_weights(model, tmp_path / "x.safetensors")
    assert_state(load_file(tmp_path / "x.safetensors"), model.state_dict())


def test_member_file_is_plain_safetensors(writer, tmp_path):
    train(writer, (1,))
    content = (tmp_path / writer.members()[0].file).read_bytes()
    length = int.from_bytes(content[:8], "little")  # safetensors: the length of a JSON header, the header, the numbers
    header = json.loads(content[8 : 8 + length])
    assert header.keys() - {"__metadata__"} == Model().state_dict().keys()
    assert len(content) == 8 + length + sum(tensor.nbytes for tensor in Model().state_dict().values())


def test_step_seeder_draws_depend_on_the_iteration_only():
    def draws(seed, start):
        found = {}

        class Draw(HookBase):
            def before_step(self):
                found[self.trainer.iter] = torch.rand(()).item()

        loop, _ = trainer()
        loop.register_hooks([StepSeeder(seed), Draw()])
        loop.train(start, 6)
        return found

    whole = draws(7, 0)
    assert draws(7, 3) == {k: v for k, v in whole.items() if k >= 3}
    assert len({*whole.values(), *draws(8, 0).values()}) == 12


def test_mix_seed_gives_distinct_seeds_in_range():
    seeds = {mix_seed(a, b) for a in range(40) for b in range(50)}
    assert len(seeds) == 2000
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert mix_seed(1, 2) != mix_seed(2, 1)
    assert mix_seed(3) != mix_seed(3, 0)
    assert mix_seed(2**40 + 5) == mix_seed(5)


class Saved(HookBase):
    """Notes after which iterations the state to resume from has changed."""

    def __init__(self, path) -> None:
        self.path, self.iterations, self.last = path, [], None

    def after_step(self):
        digest = self.path.exists() and hashlib.sha256(self.path.read_bytes()).hexdigest()
        if digest != self.last and digest:
            self.iterations.append(self.trainer.iter)
        self.last = digest


@pytest.mark.parametrize(("period", "expected"), [(4, [3, 7]), (MAX_ITER, []), (1, list(range(MAX_ITER - 1)))])
def test_resume_saver_saves_every_period_but_not_at_the_end(writer, tmp_path, period, expected):
    path = tmp_path / "state" / "resume.pth"
    saved = Saved(path)
    train(writer, (), ResumeSaver(path, period), saved)
    assert saved.iterations == expected
    assert names(tmp_path) == (["resume.pth", "resume.sha256"] if expected else [])


def test_crash_while_saving_the_state_keeps_the_previous(writer, tmp_path, monkeypatch):
    path = tmp_path / "resume.pth"
    save = torch.save

    def half(state, target):
        if path.exists():
            target.write(b"half")
            raise OSError(28, "No space left on device")
        save(state, target)

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="No space left"):
        train(writer, (), ResumeSaver(path, 3))
    assert torch.load(path, weights_only=True)["trainer"]["iteration"] == 2
    assert names(tmp_path) == ["resume.pth", "resume.sha256"]


@pytest.fixture(scope="module")
def detector(tmp_path_factory, write_tiny_config):
    """A job maker for the tiny Faster R-CNN on 5 rendered images, 7 iterations with AdamW and a cosine."""
    folder = tmp_path_factory.mktemp("pool")
    config, _ = write_tiny_config(folder)
    write_dataset(folder, SyntheticConfig(num_images=5, width=96, height=64))
    overrides = ["SOLVER.MAX_ITER", "7", "SOLVER.CHECKPOINT_PERIOD", "2", "MODEL.ROI_HEADS.NUM_CLASSES", "7"]

    def job(directory, num_workers=0, **changes: object):
        cfg = load_config(config, [*overrides, "DATALOADER.NUM_WORKERS", str(num_workers)])
        return TrainingJob(
            **{
                "config": cfg.dump(),
                "images": ImageSet(folder / "train.json", folder / "images-train"),
                "directory": directory,
                "folder": "run-0",
                "run": 0,
                "seed": 3,
                "iterations": (2, 4, 6),
                **changes,
            }
        )

    return job


WITH_WORKERS = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # from Python 3.12 on


class Killed(Exception):
    pass


def run_until(job, last):
    """Train until the iteration ``last`` is done, and interrupt it there; return the reported progress."""
    reported = []

    def progress(amount):
        reported.append(amount)
        if sum(reported) > last:
            raise Killed

    try:
        train_run(job, progress)
    except Killed:
        pass
    return sum(reported)


def members_bytes(job):
    return {member.iteration: (job.directory / member.file).read_bytes() for member in job.writer.members()}


@WITH_WORKERS
@pytest.mark.parametrize("num_workers", [0, 2])
def test_killed_training_resumes_to_equal_weights(detector, tmp_path, num_workers):
    whole = detector(tmp_path / "whole", num_workers)
    assert run_until(whole, 99) == 7
    expected = members_bytes(whole)
    assert list(expected) == [2, 4, 6]
    assert len(set(expected.values())) == 3
    killed = detector(tmp_path / "killed", num_workers)
    for last in (0, 1, 4):  # before any state, at a saved one, one after it
        assert run_until(killed, last) == last + 1
    assert (killed.run_directory / "resume.pth").exists()
    assert [member.iteration for member in killed.writer.members()] == [2, 4]
    assert run_until(killed, 99) == 7
    assert members_bytes(killed) == expected
    assert killed.writer.members() == whole.writer.members()
    assert not (killed.run_directory / "resume.pth").exists()
    assert not list(killed.directory.rglob("*.partial"))


def test_finished_run_is_skipped_and_a_lost_member_trained_again(detector, tmp_path):
    job = detector(tmp_path, iterations=(1, 6))
    run_until(job, 99)
    expected, log = members_bytes(job), (job.run_directory / "log.txt").read_text()
    assert run_until(job, 99) == 7
    assert (job.run_directory / "log.txt").read_text() == log
    (job.run_directory / "iter-0000001.safetensors").unlink()
    kept = (job.run_directory / "iter-0000006.safetensors").stat().st_mtime_ns
    run_until(job, 99)
    assert members_bytes(job) == expected
    assert (job.run_directory / "iter-0000006.safetensors").stat().st_mtime_ns == kept


@WITH_WORKERS
def test_weights_do_not_depend_on_the_number_of_loader_workers(detector, tmp_path):
    found = []
    for num_workers in (0, 2):
        job = detector(tmp_path / str(num_workers), num_workers, iterations=(1,))
        run_until(job, 1)
        found.append(members_bytes(job))
    assert found[0] == found[1]


def test_weights_differ_between_seeds(detector, tmp_path):
    found = []
    for seed in (3, 4):
        job = detector(tmp_path, seed=seed, folder=f"seed-{seed}", iterations=(0,))
        run_until(job, 0)
        found += members_bytes(job).values()
    assert len(set(found)) == 2


def test_damaged_state_is_named(detector, tmp_path):
    job = detector(tmp_path)
    run_until(job, 3)
    path = job.run_directory / "resume.pth"
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(EnsembleError, match=r"resume\.pth"):
        train_run(job, lambda _: None)
