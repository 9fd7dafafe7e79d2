"""The stage ``report``: write the report of all finished stages."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import orjson

from detcurate.config.declaration import has_detectron2
from detcurate.ensemble.index import MEMBER_INDEX, read_index
from detcurate.errors import DetcurateError
from detcurate.evaluate.arm_comparison import Replicates, markdown_table, summarise
from detcurate.evaluate.coco_eval import CocoFigures
from detcurate.evaluate.summary import sections
from detcurate.io.files import sha256_json
from detcurate.manifest.write import PROVENANCE_FILE
from detcurate.pipeline.context import Run
from detcurate.pipeline.report_gallery import Pictured, report_galleries
from detcurate.pipeline.report_inputs import (
    completed,
    report_choice,
    report_histograms,
    report_pool,
    report_scores,
    stage_states,
)
from detcurate.pipeline.search import held_images
from detcurate.pipeline.stage import Stage, StageResult, output_digest
from detcurate.pipeline.stages.predict import FIGURES
from detcurate.pipeline.tables import ReplicatesTable
from detcurate.report.build import PAGE, write_report
from detcurate.report.report_data import Comparison, ReportData, StageState
from detcurate.version import __version__

TENSORBOARD = "tensorboard"
"""The folder of TensorBoard's scalars: one run an arm, one step a seed."""

Part = TypeVar("Part")


def report_stage(run: Run) -> Stage:
    """Return the stage ``report``, which needs the stage ``pool`` and shows every other finished stage."""
    run.stage_metadata("pool")
    states = stage_states(run)
    finished = completed(states)
    inputs = {
        stage.name: output_digest(run.stage_metadata(stage.name)) if stage.name in finished else stage.state
        for stage in states
    }
    inputs["config"] = sha256_json(run.cfg.dump())
    directory = run.directory("report")
    return Stage("report", directory, {"detcurate": __version__}, inputs, lambda: build_report(run, states, directory))


def build_report(run: Run, states: tuple[StageState, ...], directory: Path) -> StageResult:
    """Write the report into a directory.

    Args:
        run: The run; its stage ``pool`` has finished.
        states: The states of its stages.
        directory: The directory of the report.
    """
    data = report_data(run, states)
    written = write_report(directory, data)
    table = ""
    if data.comparison:
        table = data.comparison.table
        written += _write_scalars(directory / TENSORBOARD, data.comparison)
    unfinished = ", ".join(f"{stage.name} {stage.state}" for stage in data.unfinished)
    summary = f"wrote {directory / PAGE}" + (f" (not finished: {unfinished})" if unfinished else "")
    return StageResult(written, summary, {"table": table})


def report_data(run: Run, states: tuple[StageState, ...]) -> ReportData:
    """Return the content of the report; parts that cannot be read are listed in ``missing``."""
    finished, missing = completed(states), []

    def read(needs: str, what: str, part: Callable[[], Part]) -> Part | None:
        if needs not in finished:
            return None
        try:
            return part()
        except (DetcurateError, OSError) as error:
            missing.append(f"{what} cannot be shown: {error}")
            return None

    pool = read("pool", "The pool", lambda: report_pool(run))
    scores = choice = pictured = None
    if pool is not None:
        scores = read("score", "The scores", lambda: report_scores(run, pool))
        choice = read("select", "The selection", lambda: report_choice(run, pool))
    provenance = read("manifest", "The manifest", lambda: _provenance(run))
    counts = None
    if choice is not None:
        counts = read("select", "Before and after", lambda: report_histograms(run, choice, provenance))
    if pool is not None and scores is not None and len(pool):
        with_votes = "predict" in finished
        pictured = read(
            "score", "The galleries", lambda: report_galleries(run, pool, scores, choice, with_votes=with_votes)
        )
    comparison = read("evaluate", "The comparison", lambda: _comparison(run))
    pictured = pictured or Pictured((), (), (), 0)
    return ReportData(
        title=run.output_dir.resolve().name,
        facts=_facts(run, finished),
        stages=states,
        missing=(*missing, *pictured.missing),
        class_names=tuple(run.class_names) if pool is None else pool.class_names,
        comparison=comparison,
        pool=pool,
        scores=scores,
        choice=choice,
        histograms=counts or {},
        galleries=pictured.galleries,
        pictures=pictured.pictures,
        num_members=pictured.num_members,
        provenance=provenance,
        config=run.cfg.dump(),
        commands=_commands(run),
    )


def _comparison(run: Run) -> Comparison:
    rows = orjson.loads((run.directory("evaluate") / FIGURES).read_bytes())
    retrain = run.stage_metadata("retrain")
    models = retrain["facts"]["models"]
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
    equal = retrain["settings"]["CURATE.RETRAIN"]["equal"]
    return Comparison(summary, described, table, equal, sections(summary))


def _replicates(run: Run, arms: Iterable[str]) -> Replicates:
    """Return the figures on resampled images, one column a seed in the order of the figures."""
    found: dict[str, dict[str, dict[str, list[np.ndarray]]]] = {arm: {"figures": {}, "per_class": {}} for arm in arms}
    for column, values in ReplicatesTable.of(run).read().items():
        arm, _, part, name = column.split("/", 3)  # a class may have a slash in its name
        found[arm][part].setdefault(name, []).append(values)
    return {
        arm: {part: {name: np.column_stack(of) for name, of in named.items()} for part, named in parts.items()}
        for arm, parts in found.items()
    }


def _provenance(run: Run) -> dict[str, Any]:
    return dict(orjson.loads((run.directory("manifest") / PROVENANCE_FILE).read_bytes()))


def _write_scalars(directory: Path, comparison: Comparison) -> list[Path]:
    """Write the figures of every detector for TensorBoard; nothing without Detectron2."""
    shutil.rmtree(directory, ignore_errors=True)  # event files are appended to, never overwritten
    if not has_detectron2():
        return []
    from detcurate.d2.events import write_scalars

    scalars: dict[str, dict[int, dict[str, float]]] = {}
    for model in comparison.models:
        figures = {name: value for name, value in model["figures"].items() if name.startswith("AP")}
        figures |= {f"AP of class/{name}": value for name, value in model["figures"]["per_class"].items()}
        figures |= {f"cost/{name}": model.get(name) for name in ("num_images", "num_boxes", "images_seen", "seconds")}
        known = {name: float(value) for name, value in figures.items() if value is not None}
        scalars.setdefault(model["arm"], {})[model["seed"]] = known
    return write_scalars(directory, scalars)


def _facts(run: Run, finished: frozenset[str]) -> dict[str, str]:
    found = run.pool_facts
    pool, evaluation = found["pool"], found["evaluation"]
    usable = pool["num_images"] - len(found["quarantined"])
    facts = {
        "pool": f"{usable:,} images, {pool['num_boxes']:,} boxes",
        "evaluation": f"{evaluation['num_images']:,} images, {evaluation['num_boxes']:,} boxes",
    }
    if "train" in finished:
        members = read_index(run.directory("train") / MEMBER_INDEX)
        facts["ensemble"] = f"{len(members)} members of {len({member.run for member in members})} runs"
    if "score" in finished:
        settings = run.stage_metadata("score")["settings"]
        facts["score"] = f"{' + '.join(settings['measures'])}, {settings['aggregation']}"
    if "select" in finished:
        facts["search"] = _search(run)
        facts["selection"] = run.stage_metadata("select")["summary"]
    if "retrain" in finished:
        facts["training of each arm"] = _training(run)
    return facts


def _commands(run: Run) -> tuple[tuple[str, str], ...]:
    output = shlex.quote(str(run.cfg.OUTPUT_DIR))
    config = shlex.quote(str(run.output_dir / "config.yaml"))
    return (
        ("Repeat the run elsewhere", f"detcurate run --config-file {config} OUTPUT_DIR output/again"),
        ("Verify the manifest", f"detcurate manifest verify {shlex.quote(str(run.directory('manifest')))}"),
        ("Explain one image", f"detcurate explain IMAGE_ID {output}"),
        ("Write this report again", f"detcurate report {output}"),
    )


def _search(run: Run) -> str:
    """Return the scheme of the search and the sizes of its rounds as text."""
    rounds = [images for images, _ in held_images(run)]
    sizes = [str(sum(len(images) for images in rounds[: number + 1])) for number in range(len(rounds))]
    return f"{run.settings.search.scheme}" + (f", ensembles trained on {', then '.join(sizes)} images" if sizes else "")


def _training(run: Run) -> str:
    """Return the common settings of the trainings of all arms as text."""
    start = ", from the weights of the ensemble's runs" if run.settings.search.scheme == "pretrain" else ""
    return _length(run) + start


def _length(run: Run) -> str:
    solver = run.cfg.SOLVER
    if run.settings.retrain.equal == "epochs":
        epochs = solver.MAX_ITER * solver.IMS_PER_BATCH / len(run.usable_image_ids)
        return f"{epochs:,.1f} epochs for every arm (a smaller subset trains for fewer iterations)"
    return (
        f"{solver.MAX_ITER:,} iterations of {solver.IMS_PER_BATCH} images for every arm "
        "(a smaller subset is seen more often)"
    )
