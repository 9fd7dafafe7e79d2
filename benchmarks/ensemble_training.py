#!/usr/bin/env python
"""Cost of saving an ensemble: time against a training without the hook, disk against Detectron2's checkpoints.

One training of the tiny detector on rendered images, 10 members over 200 iterations. Trainings with and without the
hook alternate, each in its own process. The time inside the hook's ``after_step`` is measured too, because trainings on
a shared machine differ by more than the hook costs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from footer import footer

_CONFIG = Path(__file__).resolve().parent.parent / "configs" / "Base-CPU-Tiny.yaml"
_ARMS = ("none", "fp32", "bf16")


def train(folder: Path, arm: str, iterations: int, members: int) -> dict[str, float]:
    """Train with Detectron2's SimpleTrainer, with or without the hook; return seconds of training and of the hook."""
    import torch
    from detectron2.data import DatasetMapper, build_detection_train_loader
    from detectron2.engine import SimpleTrainer, hooks
    from detectron2.modeling import build_model

    from detcurate.coco.dataset import read_coco
    from detcurate.d2 import registration  # noqa: F401  registers the small backbone
    from detcurate.d2.train.data import detection_dicts
    from detcurate.d2.train.hooks import ensemble_checkpointer
    from detcurate.d2.train.solver import build_lr_scheduler, build_optimizer

    torch.set_num_threads(1)
    torch.manual_seed(0)
    cfg = _config(iterations)
    model = build_model(cfg)
    records = detection_dicts(read_coco(folder / "train.json"), folder / "images-train", None)
    loader = build_detection_train_loader(
        records, mapper=DatasetMapper(cfg, is_train=True), total_batch_size=cfg.SOLVER.IMS_PER_BATCH, num_workers=0
    )
    optimizer = build_optimizer(cfg, model)
    trainer = SimpleTrainer(model, loader, optimizer)
    trainer.register_hooks([hooks.LRScheduler(optimizer, build_lr_scheduler(cfg, optimizer))])
    spent = [0.0]
    with tempfile.TemporaryDirectory(dir=folder) as output:
        if arm != "none":
            hook = ensemble_checkpointer(output, iterations, members_per_run=members, last_fraction=1.0, dtype=arm)
            hook.after_step = _timed(hook.after_step, spent)
            trainer.register_hooks([hook])
        start = time.perf_counter()
        trainer.train(0, iterations)
        seconds = time.perf_counter() - start
        saved = len(list(Path(output).rglob("*.safetensors")))
    assert saved == (members if arm != "none" else 0)
    return {"seconds": seconds, "hook": spent[0]}


def _timed(function, spent):  # noqa: ANN001, ANN202
    def run() -> None:
        start = time.perf_counter()
        function()
        spent[0] += time.perf_counter() - start

    return run


def _config(iterations: int, *overrides: str):  # noqa: ANN202
    from detcurate.config.declaration import load_config

    small = ["INPUT.MIN_SIZE_TRAIN", "(112,)", "MODEL.ROI_HEADS.NUM_CLASSES", "7", "SOLVER.MAX_ITER", str(iterations)]
    return load_config(_CONFIG, [*small, *overrides])


def sizes() -> list[tuple[str, int]]:
    """Return the bytes of Detectron2's checkpoints and of members, for one model after one update."""
    import torch
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.engine.hooks import PeriodicCheckpointer
    from detectron2.modeling import build_model

    from detcurate.d2 import registration  # noqa: F401  registers the small backbone
    from detcurate.d2.train.hooks import save_member
    from detcurate.d2.train.solver import build_lr_scheduler, build_optimizer

    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for optimizer_name in ("adamw", "sgd"):
            cfg = _config(200, "CURATE.TRAIN.OPTIMIZER", optimizer_name)
            model = build_model(cfg)
            optimizer = build_optimizer(cfg, model)
            for parameter in model.parameters():
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()
            output = folder / optimizer_name
            output.mkdir()
            checkpointer = DetectionCheckpointer(
                model, str(output), optimizer=optimizer, scheduler=build_lr_scheduler(cfg, optimizer)
            )
            hook = PeriodicCheckpointer(checkpointer, period=1)
            hook.max_iter = 200
            hook.step(0)
            found.append((f"Detectron2, {optimizer_name}", (output / "model_0000000.pth").stat().st_size))
        for dtype in ("fp32", "bf16", "fp16"):
            save_member(model, folder / dtype, 0, dtype=dtype)
            found.append((dtype, next((folder / dtype).rglob("*.safetensors")).stat().st_size))
    return found


def measure(folder: Path, arm: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Run one training in a separate process."""
    size = [str(arguments.iterations), str(arguments.members)]
    command = [sys.executable, __file__, "--run", arm, str(folder), *size]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    return json.loads(printed.splitlines()[-1])


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=200, help="(default: %(default)s)")
    parser.add_argument("--members", type=int, default=10, help="(default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, help="also write the tables to this file")
    parser.add_argument("--run", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        arm, folder, iterations, members = arguments.run
        print(json.dumps(train(Path(folder), arm, int(iterations), int(members))))
        return
    from detcurate.synthetic import SyntheticConfig, write_dataset

    load = [os.getloadavg()[0]]
    figures: dict[str, list[dict[str, float]]] = {arm: [] for arm in _ARMS}
    with tempfile.TemporaryDirectory() as name:
        write_dataset(Path(name), SyntheticConfig(num_images=40, width=180, height=112))
        for repeat in range(arguments.repeats):
            for arm in _ARMS if repeat % 2 == 0 else reversed(_ARMS):
                figures[arm].append(measure(Path(name), arm, arguments))
                print(arm, figures[arm][-1], file=sys.stderr)
    load.append(os.getloadavg()[0])
    text = "\n".join([*_times(arguments, figures), "", *_sizes(sizes()), "", *_facts(arguments, load)]) + "\n"
    print(text)
    if arguments.output:
        arguments.output.write_text(text)


def _times(arguments: argparse.Namespace, figures: dict[str, list[dict[str, float]]]) -> list[str]:
    base = statistics.median(found["seconds"] for found in figures["none"])
    lines = [
        "# Cost of saving an ensemble during training",
        "",
        f"{arguments.members} members over {arguments.iterations} iterations of the tiny Faster R-CNN (AdamW, batch 8, "
        f"112×180), one thread; {arguments.repeats} trainings of each kind, alternating. `hook` is the time inside the "
        "hook, which is robust to other load on the machine; `difference` compares the trainings.",
        "",
        "| hook | median s | min s | max s | difference | hook s | hook, % of training | ms a member |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for arm, found in figures.items():
        seconds = sorted(each["seconds"] for each in found)
        median, hook = statistics.median(seconds), statistics.median(each["hook"] for each in found)
        part = statistics.median(each["hook"] / each["seconds"] for each in found)
        row = f"| {arm} | {median:.1f} | {seconds[0]:.1f} | {seconds[-1]:.1f} | {median / base - 1:+.1%} "
        if arm == "none":
            lines.append(f"{row}| – | – | – |")
        else:
            lines.append(f"{row}| {hook:.3f} | {part:.2%} | {1000 * hook / arguments.members:.1f} |")
    worst = max(each["hook"] / each["seconds"] for arm in _ARMS[1:] for each in figures[arm])
    verdict = "met" if worst <= 0.01 else "missed"
    return [*lines, "", f"Target, at most 1 % of the training: {verdict}, {worst:.2%} in the worst repetition."]


def _sizes(found: list[tuple[str, int]]) -> list[str]:
    whole = dict(found)
    adamw, sgd = whole["Detectron2, adamw"], whole["Detectron2, sgd"]
    lines = [
        "| on disk | MB | of Detectron2's with AdamW | of Detectron2's with SGD |",
        "|---|---:|---:|---:|",
    ]
    lines += [f"| {name} | {size / 1e6:.2f} | {size / adamw:.1%} | {size / sgd:.1%} |" for name, size in found]
    for dtype, limit in (("fp32", 0.45), ("bf16", 0.25)):
        verdicts = [
            f"{'met' if whole[dtype] / size <= limit else 'missed'} with {optimizer}"
            for optimizer, size in (("AdamW", adamw), ("SGD", sgd))
        ]
        lines += ["", f"Target, {dtype} at most {limit:.0%} of Detectron2's checkpoint: {', '.join(verdicts)}."]
    lines += [
        "",
        "Detectron2's checkpoint holds the weights, the optimizer's state (two numbers a weight for AdamW, one for SGD "
        "with momentum) and the schedule: a member in fp32 has at least a third or half of its size.",
    ]
    return lines


def _facts(arguments: argparse.Namespace, load: list[float]) -> list[str]:
    output = "--output benchmarks/results/ensemble_training.md"
    command = f"python benchmarks/ensemble_training.py --repeats {arguments.repeats} {output}"
    note = f"of which one was used; load average {load[1]:.1f} at the end"
    return footer(command, load=load[0], note=note, packages=("torch",))


if __name__ == "__main__":
    main()
