"""The last stage: the comparison of the arms."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import orjson

from detcurate.ensemble import LEDGER, read_ledger
from detcurate.evaluate.coco_eval import CocoFigures
from detcurate.evaluate.compare import Replicates, markdown_table, summarise
from detcurate.evaluate.sections import sections
from detcurate.pipeline.context import Run
from detcurate.pipeline.modes import predicted_mode, score_settings
from detcurate.pipeline.predict import FIGURES, REPLICATES
from detcurate.pipeline.search import held_images
from detcurate.pipeline.tables import read_columns
from detcurate.report.build import SUMMARY, write_report
from detcurate.stages import Stage, StageResult, output_digest


def report_stage(run: Run) -> Stage:
    """Build the stage ``report``."""
    inputs = {name: output_digest(run.marker(name)) for name in ("pool", "manifest", "evaluate")}
    return Stage("report", run.directory("report"), {}, inputs, lambda: _report(run))


def _report(run: Run) -> StageResult:
    rows = orjson.loads((run.directory("evaluate") / FIGURES).read_bytes())
    models = run.marker("retrain")["facts"]["models"]
    arms: dict[str, list[CocoFigures]] = {}
    for row in rows:
        arms.setdefault(row["arm"], []).append(CocoFigures.from_dict(row["figures"]))
    training: dict[str, list[dict[str, Any]]] = {}
    for model in models:
        training.setdefault(model["arm"], []).append(model)
    curve_arms = [arm for arm in arms if arm in run.settings.retrain.curve_arms]
    summary = summarise(arms, _replicates(run, arms), training=training, curve_arms=curve_arms)
    table = markdown_table(summary, {arm: found["training"] for arm, found in summary["arms"].items()})
    described = [{**model, "figures": row["figures"]} for model, row in zip(models, rows, strict=True)]
    outputs = write_report(
        run.directory("report"),
        summary=summary,
        table=table,
        facts=_facts(run),
        models=described,
        sections=sections(summary),
    )
    return StageResult(outputs, str(run.directory("report") / SUMMARY), {"table": table})


def _replicates(run: Run, arms: Iterable[str]) -> Replicates:
    """Return the figures on resampled images, a column a seed in the order of the figures."""
    found: dict[str, dict[str, dict[str, list[np.ndarray]]]] = {arm: {"figures": {}, "per_class": {}} for arm in arms}
    for column, values in read_columns(run.directory("evaluate") / REPLICATES).items():
        arm, _, part, name = column.split("/", 3)  # a class may have a slash in its name
        found[arm][part].setdefault(name, []).append(values)
    return {
        arm: {part: {name: np.column_stack(of) for name, of in named.items()} for part, named in parts.items()}
        for arm, parts in found.items()
    }


def _facts(run: Run) -> dict[str, Any]:
    members = read_ledger(run.directory("train") / LEDGER)
    score = score_settings(run.settings, predicted_mode(run))
    return {
        "pool": f"{len(run.usable_image_ids):,} images, {run.pool.num_boxes:,} boxes",
        "evaluation": f"{len(run.evaluation):,} images, {run.evaluation.num_boxes:,} boxes",
        "ensemble": f"{len(members)} members of {len({member.run for member in members})} runs",
        "score": f"{' + '.join(score.measures)}, {score.aggregation}",
        "search": _search(run),
        "selection": run.marker("select")["summary"],
        "training of each arm": _training(run),
    }


def _search(run: Run) -> str:
    """Say by which scheme the subset was found, and how large the rounds were."""
    rounds = [images for images, _ in held_images(run)]
    sizes = [str(sum(len(images) for images in rounds[: number + 1])) for number in range(len(rounds))]
    return f"{run.settings.search.scheme}" + (f", ensembles trained on {', then '.join(sizes)} images" if sizes else "")


def _training(run: Run) -> str:
    """Say what the trainings of the arms have in common."""
    start = ", from the weights of the ensemble's runs" if run.settings.search.scheme == "pretrain" else ""
    return _length(run) + start


def _length(run: Run) -> str:
    solver = run.cfg.SOLVER
    if run.settings.retrain.equal == "epochs":
        epochs = solver.MAX_ITER * solver.IMS_PER_BATCH / len(run.usable_image_ids)
        return f"{epochs:,.1f} epochs, the same for all arms (so a smaller subset is trained on for less long)"
    return (
        f"{solver.MAX_ITER:,} iterations of {solver.IMS_PER_BATCH} images, "
        "the same for all arms (so a smaller subset is seen more often)"
    )
