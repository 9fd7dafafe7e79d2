#!/usr/bin/env python
"""Does the subset train a better detector than all of the pool? Arms, seeds and intervals on the rendered pool.

Each part trains its arms with the same seeds for the same number of iterations, and evaluates the average of each
training's last fifth on images that no arm has seen. Parts are resumable: what is trained is not trained again, and a
part that shares arms with another shares their trainings. Which arms and how many seeds there are stands in ``PARTS``
below, before any result is known; every arm that was trained is in the tables.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from footer import footer
from scipy.stats import spearmanr

from detcurate.config.declaration import load_config
from detcurate.d2.infer.cluster import predict_cluster
from detcurate.ensemble.index import AVERAGE, RUN_INDEX, read_index
from detcurate.evaluate.arm_comparison import summarise
from detcurate.evaluate.bootstrap import image_weights, paired_interval, weighted_ap
from detcurate.evaluate.coco_eval import evaluate_coco
from detcurate.io.files import sha256_json
from detcurate.pipeline import Run, run_pipeline
from detcurate.pipeline.image_similarity import read_pool_embeddings
from detcurate.pipeline.pool_scoring import score_predictions
from detcurate.pipeline.prediction_jobs import count_shards, make_missing_shards, prediction_job, predictions_digest
from detcurate.pipeline.search import search_rounds
from detcurate.pipeline.tables import read_scores, read_selection
from detcurate.pipeline.training_jobs import train_jobs, training_job
from detcurate.predictions.store import open_predictions, prepare_prediction_sets, read_members, read_predictions
from detcurate.score.label_errors import LABEL_ERRORS
from detcurate.score.scoring import combine_images
from detcurate.select.compose import PoolColumns, select
from detcurate.structures import Detections, ImageScores

CONFIG = Path(__file__).with_suffix(".yaml")
REPLICATES = 1000
SIMILARITY = 0.9997
NOISE_FILTER_QUANTILE = 0.8
DEFAULT_MEASURES = ("mutual_information", "iou_dispersion", "existence_entropy")
POOLS = {
    "planted": (),
    # Thinning is left out: what cosine tells copies apart depends on the round's members.
    "built_up": (
        *("CURATE.SEARCH.SCHEME", "build_up", "CURATE.SEARCH.SEED_FRACTION", "0.0625"),
        *("CURATE.SELECT.FRACTION", "0.5"),
    ),
    "clean": ("CURATE.RENDER.NEAR_DUPLICATE_FRACTION", "0.0", "CURATE.RENDER.LABEL_NOISE_FRACTION", "0.0"),
}


@dataclass(frozen=True)
class Arm:
    """A training set.

    Args:
        name: Of the arm.
        fraction: Of the pool.
        rule: A name in ``RULES``.
        options: Of the rule.
        length: Of its training, as a share of the part's iterations: ``fraction`` sees each image as often as the whole
            pool's images are seen.
    """

    name: str
    fraction: float
    rule: str
    options: tuple[tuple[str, Any], ...] = ()
    length: float = 1.0


@dataclass(frozen=True)
class Part:
    """A question: arms that are compared.

    Args:
        pool: A name in ``POOLS``.
        num_seeds: How many times each arm is trained.
        arms: What is compared.
        student: Overrides of the config for what is trained on the arms; the ensemble that scores stays as it is.
    """

    pool: str
    num_seeds: int
    arms: list[Arm]
    student: tuple[str, ...] = ()


def full(run: Run, scores: ImageScores, fraction: float, seed: int) -> np.ndarray:
    """Keep everything."""
    return scores.image_ids


def random(run: Run, scores: ImageScores, fraction: float, seed: int) -> np.ndarray:
    """Draw anew for each seed."""
    return select(scores, budget=round(fraction * len(scores)), strategy="random", seed=seed).selection.image_ids


def curated(
    run: Run,
    scores: ImageScores,
    fraction: float,
    seed: int,
    *,
    measures: Sequence[str] = DEFAULT_MEASURES,
    noise_filter: str = "off",
    similarity: float = SIMILARITY,
    strategy: str = "top_n",
) -> np.ndarray:
    """Drop near-duplicates, take the best-scored: the same images for every seed, but where the order is random."""
    weights = dict.fromkeys(measures, 1.0)
    ranked = combine_images(scores.image_ids, scores.components, weights=weights)
    columns = PoolColumns(
        label_error_score=np.maximum.reduce([scores.components[name] for name in LABEL_ERRORS]),
        embeddings=read_pool_embeddings(run, scores.image_ids),
    )
    log = select(
        ranked,
        budget=round(fraction * len(scores)),
        strategy=strategy,
        seed=seed if strategy == "random" else 0,
        columns=columns,
        noise_filter=noise_filter,
        noise_filter_quantile=NOISE_FILTER_QUANTILE,
        duplicate_similarity=similarity,
    )
    return log.selection.image_ids


def most_boxes(run: Run, scores: ImageScores, fraction: float, seed: int, *, similarity: float) -> np.ndarray:
    """Take the images with the most labelled boxes: what a score is worth beyond buying crowds."""
    boxes = run.pool.boxes_per_image[run.pool.subset_rows(scores.image_ids)].astype(np.float64)
    columns = PoolColumns(embeddings=read_pool_embeddings(run, scores.image_ids))
    ranked = ImageScores(scores.image_ids, boxes, {})
    return select(
        ranked, budget=round(fraction * len(scores)), columns=columns, duplicate_similarity=similarity
    ).selection.image_ids


def built_up(run: Run, scores: ImageScores, fraction: float, seed: int) -> np.ndarray:
    """Take what a search in rounds held when it had grown to the fraction."""
    searched = load_run(run.output_dir.parent, "built_up", (), until="select")
    wanted = round(fraction * len(scores))
    held = [*search_rounds(searched), searched]
    return next(ids for ids in (read_selection(each).image_ids for each in held) if len(ids) == wanted)


def fewer_members(run: Run, scores: ImageScores, fraction: float, seed: int, *, members: Sequence[int]) -> np.ndarray:
    """Do as ``curated`` with some of the members alone; one of them can have its entropy alone."""
    few = score_by(run, tuple(members))
    measures = ("entropy",) if len(members) == 1 else DEFAULT_MEASURES
    return curated(run, few, fraction, seed, measures=measures)


def score_by(run: Run, members: tuple[int, ...]) -> ImageScores:
    """Score the pool by some of the members, once."""
    if members in _scores_by:
        return _scores_by[members]
    names, ids = read_members(run.directory("predict")), run.usable_image_ids
    settings = run.settings.score
    if len(members) == 1:
        settings = settings.model_copy(update={"measures": ("entropy",), "weights": (1.0,)})
    with TemporaryDirectory() as folder:
        components, _ = score_predictions(
            open_predictions(run.directory("predict"), [names[number] for number in members]),
            run.pool,
            ids,
            settings=settings,
            shard_size=run.settings.predict.shard_size,
            trajectories=(),
            objects_path=Path(folder) / "objects.parquet",
            num_processes=1,
        )
    weights = dict(zip(settings.measures, settings.weights, strict=True))
    _scores_by[members] = combine_images(ids, components, weights=weights)
    return _scores_by[members]


_scores_by: dict[tuple[int, ...], ImageScores] = {}
RULES: dict[str, Callable[..., np.ndarray]] = {
    "full": full,
    "random": random,
    "curated": curated,
    "most_boxes": most_boxes,
    "built_up": built_up,
    "fewer_members": fewer_members,
}

MEMBERS = {
    "1 member": (15,),
    "2 members of 2 runs": (7, 15),
    "4 members of 2 runs": (3, 7, 11, 15),
    "8 members of 2 runs": (1, 3, 5, 7, 9, 11, 13, 15),
    "8 members of 1 run": tuple(range(8)),
    "16 members of 2 runs": tuple(range(16)),
}
FULL = Arm("full", 1.0, "full")
CURATED = Arm("curated 50%", 0.5, "curated")
RANDOM = Arm("random 50%", 0.5, "random")
THINNED = Arm("thinned, random order 50%", 0.5, "curated", (("strategy", "random"),))
PARTS: dict[str, Part] = {
    "headline": Part("planted", 10, [FULL, CURATED, THINNED, RANDOM]),
    # Below 30 % the hardest images alone are known to lose: there the score range is covered. At 80 % there is no room
    # for thinning: it leaves 60 % of the planted pool.
    "fractions": Part(
        "planted",
        5,
        [
            FULL,
            Arm("curated 25%", 0.25, "curated", (("strategy", "strata"),)),
            Arm("random 25%", 0.25, "random"),
            Arm("curated 80%", 0.8, "curated", (("similarity", 0.0),)),
            Arm("random 80%", 0.8, "random"),
        ],
    ),
    "control": Part(
        "clean",
        5,
        [FULL, CURATED, Arm("most boxes 50%", 0.5, "most_boxes", (("similarity", 0.0),)), RANDOM],
    ),
    "crowds": Part(
        "planted",
        5,
        [FULL, CURATED, Arm("thinned, most boxes 50%", 0.5, "most_boxes", (("similarity", SIMILARITY),)), THINNED],
    ),
    "schemes": Part(
        "planted",
        3,
        [
            FULL,
            *(
                arm
                for fraction in (0.125, 0.25, 0.5)
                for arm in (
                    Arm(f"build up {fraction:.1%}", fraction, "built_up"),
                    Arm(f"compress {fraction:.1%}", fraction, "curated", (("similarity", 0.0),)),
                    Arm(f"random {fraction:.1%}", fraction, "random"),
                )
            ),
        ],
    ),
    # Of 16 members, 8 a run: the last of each run, its last and middle one, ….
    "members": Part(
        "planted",
        3,
        [
            FULL,
            *(Arm(f"{name} 50%", 0.5, "fewer_members", (("members", members),)) for name, members in MEMBERS.items()),
        ],
    ),
    "steps": Part(
        "planted",
        5,
        [
            FULL,
            CURATED,
            Arm("guard, thinning, scores 50%", 0.5, "curated", (("noise_filter", "drop"),)),
            Arm("guard, scores 50%", 0.5, "curated", (("noise_filter", "drop"), ("similarity", 0.0))),
            Arm("scores alone 50%", 0.5, "curated", (("similarity", 0.0),)),
            RANDOM,
        ],
    ),
    "measures": Part(
        "planted",
        3,
        [
            FULL,
            *(
                Arm(f"{name} 50%", 0.5, "curated", (("measures", (name,)),))
                for name in (
                    "mutual_information",
                    "entropy",
                    "existence_entropy",
                    "iou_dispersion",
                    "el2n",
                    "variability",
                )
            ),
        ],
    ),
    # Three times as long: does the gain survive a training that has seen all of the pool often?
    "longer": Part(
        "planted",
        5,
        [FULL, CURATED, Arm("curated 50%, half as long", 0.5, "curated", length=0.5), RANDOM],
        ("SOLVER.MAX_ITER", "2100"),
    ),
    # Four times the weights.
    "transfer": Part(
        "planted",
        3,
        [FULL, CURATED, RANDOM],
        (
            *("MODEL.TINY_RESNET.STEM_OUT_CHANNELS", "32", "MODEL.TINY_RESNET.WIDTHS", "(48, 80, 128, 192)"),
            *("MODEL.FPN.OUT_CHANNELS", "64", "MODEL.ROI_BOX_HEAD.FC_DIM", "256"),
        ),
    ),
}


@cache
def load_run(output_dir: Path, pool: str, overrides: tuple[str, ...], until: str = "score") -> Run:
    """Return the run of a pool, scored."""
    cfg = load_config(CONFIG, [*POOLS[pool], "OUTPUT_DIR", str(output_dir / pool), *overrides])
    run = Run(cfg, CONFIG)
    run_pipeline(run, until=until)
    return run


def student_of(run: Run, overrides: Sequence[str]) -> tuple[Run, Path]:
    """Return the run by which the arms are trained and evaluated, and the folder of what comes of it."""
    if not overrides:
        return run, run.output_dir
    cfg = run.cfg.clone()
    cfg.defrost()
    cfg.merge_from_list([*overrides])
    cfg.freeze()
    return dataclasses.replace(run, cfg=cfg), run.output_dir / "students" / sha256_json([*overrides])[:12]


def train(run: Run, part: Part, num_seeds: int) -> list[dict[str, Any]]:
    """Train every arm with every seed, and return a row a detector."""
    scores, (student, directory) = read_scores(run), student_of(run, part.student)
    rows, jobs = [], []
    for seed in range(num_seeds):  # seed by seed: what is there when it is cut short is paired
        for arm in part.arms:
            images = np.sort(RULES[arm.rule](run, scores, arm.fraction, seed, **dict(arm.options)))
            num_iterations = round(student.cfg.SOLVER.MAX_ITER * arm.length)
            of_length = "" if arm.length == 1 else f"-{num_iterations}"
            folder = directory / "arms" / (sha256_json(images.tolist())[:12] + of_length)
            job = training_job(student, folder, f"seed-{seed}", 0, seed, (), max_iter=num_iterations)
            images_of_job = dataclasses.replace(job.images, image_ids=tuple(images.tolist()))
            last = num_iterations - 1
            window = {last: tuple(range(last - num_iterations // 5, last + 1, 5))}
            jobs.append(dataclasses.replace(job, images=images_of_job, windows=window))
            rows.append({"arm": arm.name, "seed": seed, "images": images, "directory": jobs[-1].directory})
    by_directory = {job.run_directory: job for job in jobs if not job.is_complete}  # two arms may hold the same images
    train_jobs(student, list(by_directory.values()), desc="train arms")
    for row, job in zip(rows, jobs, strict=True):
        members = read_index(job.run_directory / RUN_INDEX)
        row["member"] = next(member for member in members if member.kind == AVERAGE)
    return rows


def evaluate(run: Run, rows: Sequence[dict[str, Any]], directory: Path) -> None:
    """Add to each row its figures, and its AP on resampled images."""
    image_ids, directory = run.evaluation.image_ids, directory / "arm_predictions"
    weights = {_weights_key(row): (row["directory"] / row["member"].file, row["member"].sha256) for row in rows}
    prediction_sets = prepare_prediction_sets(
        directory, predictions_digest(run, image_ids), list(weights), num_shards=count_shards(run, image_ids)
    )
    for found in prediction_sets:
        requested = [weights[name] for name in found.members if name in weights]
        make_missing_shards(
            run,
            predict_cluster,
            prediction_job(run, "evaluation", found.directory, requested, image_ids),
            desc="predict arms",
        )
    detections = Detections.concatenate([shard for shard, _ in read_predictions(directory, list(weights))])
    resampled, number_of = image_weights(len(image_ids), REPLICATES), {key: n for n, key in enumerate(weights)}
    for row in rows:
        predictions = detections.take(detections.member == number_of[_weights_key(row)])
        row["figures"], table = evaluate_coco(run.evaluation, predictions)
        row["replicates"] = weighted_ap(table, resampled)


def _weights_key(row: dict[str, Any]) -> str:
    return f"{row['directory'].name}/{row['member'].file}@{row['member'].sha256}"


def planted(run: Run) -> dict[str, set[int]]:
    """Return the images with a damaged label, and those that repeat an earlier image of the pool."""
    defects = json.loads((run.directory("pool") / "train-defects.json").read_bytes())
    image_of = dict(
        zip(run.pool.annotation_ids.tolist(), run.pool.image_ids[run.pool.image_index].tolist(), strict=True)
    )
    damaged = {image_of[d["annotation_id"]] for kind in ("wrong_class", "shifted_boxes") for d in defects[kind]}
    damaged |= {image_of[number] for number in defects["spurious_boxes"]}
    damaged |= {box["image_id"] for box in defects["missing_boxes"]}
    return {"damaged": damaged, "groups": [set(group) for group in defects["near_duplicates"]]}


def table(run: Run, rows: Sequence[dict[str, Any]], arms: Sequence[Arm]) -> list[str]:
    """Return the arms side by side: what they hold, their AP, and the difference from full and from random."""
    truth, by_arm = planted(run), {arm.name: [row for row in rows if row["arm"] == arm.name] for arm in arms}
    summary = summarise({name: [row["figures"] for row in found] for name, found in by_arm.items()})["arms"]
    lines = [
        "| arm | images | boxes | damaged | repeated | AP | AP50 | AP rare class | − full | − random |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for arm in arms:
        found = by_arm[arm.name]
        images = set(found[0]["images"].tolist())
        repeats = sum(max(0, len(images & group) - 1) for group in truth["groups"])
        boxes = int(run.pool.boxes_per_image[np.isin(run.pool.image_ids, found[0]["images"])].sum())
        figures, rare = summary[arm.name]["figures"], summary[arm.name]["per_class"].get("bus")
        random_arm = next((a.name for a in arms if a.rule == "random" and a.fraction == arm.fraction), None)
        lines.append(
            f"| {arm.name} | {len(images):,} | {boxes:,} | {len(images & truth['damaged']) / len(images):.0%} | "
            f"{repeats / len(images):.0%} | {_figure(figures['AP'])} | {_figure(figures['AP50'])} | "
            f"{_figure(rare) if rare else '–'} | {_difference(found, by_arm.get('full'))} | "
            f"{_difference(found, by_arm.get(random_arm))} |"
        )
    return lines


def agreement(run: Run) -> list[str]:
    """Return how alike the ensembles of ``MEMBERS`` rank the images to the largest of them."""
    scores = {name: score_by(run, members).image_score for name, members in MEMBERS.items()}
    *_, largest = scores.values()
    lines = [f"| {name} | {spearmanr(values, largest).statistic:.2f} |" for name, values in scores.items()]
    return ["| ensemble | rank correlation with the largest |", "|---|---:|", *lines, ""]


def _figure(figure: dict[str, Any]) -> str:
    return f"{figure['mean']:.1f}" + (f" ± {figure['std']:.1f}" if figure["std"] is not None else "")


def _difference(first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]] | None) -> str:
    """Say the mean difference with both intervals: Student's over the seeds, and the bootstrap's."""
    if not second or first is second or first[0]["arm"] == second[0]["arm"]:
        return "–"
    differences = np.array([a["figures"].AP - b["figures"].AP for a, b in zip(first, second, strict=True)])
    low, high = paired_interval(*(np.column_stack([row["replicates"] for row in rows]) for rows in (first, second)))
    text, n = f"{differences.mean():+.1f}", len(differences)
    if n > 1:
        half = T_95[n - 1] * differences.std(ddof=1) / math.sqrt(n)
        text += f" (seeds {differences.mean() - half:+.1f} to {differences.mean() + half:+.1f};"
    return f"{text} both {low:+.1f} to {high:+.1f})"


T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def main() -> None:
    """Run the parts asked for, and write a table each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="*", choices=list(PARTS), default=list(PARTS), help="(default: all)")
    parser.add_argument("--seeds", type=int, help="fewer seeds than the parts have (default: theirs)")
    parser.add_argument("--output-dir", type=Path, default=Path("output/subset_search"), help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, help="a folder: write subset_search_<part>.md and .json there too")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides of the config")
    arguments = parser.parse_args()
    for part in arguments.parts:
        requested = PARTS[part]
        num_seeds = min(requested.num_seeds, arguments.seeds or requested.num_seeds)
        run = load_run(arguments.output_dir, requested.pool, tuple(arguments.opts))
        rows = train(run, requested, num_seeds)
        student, directory = student_of(run, requested.student)
        evaluate(student, rows, directory)
        solver, changed = student.cfg.SOLVER, " ".join(requested.student)
        lines = [
            f"# Subset search: {part}",
            "",
            f"Pool: {len(run.usable_image_ids):,} rendered images, {run.pool.num_boxes:,} boxes ({requested.pool}). "
            f"Evaluation: {len(run.evaluation):,} images, {run.evaluation.num_boxes:,} boxes. "
            f"Every arm: {num_seeds} seeds, {solver.MAX_ITER:,} iterations of {solver.IMS_PER_BATCH} images, mean of "
            "the last fifth. Differences: 95 % intervals over paired seeds (Student), and over seeds and evaluation "
            "images (bootstrap).",
            "",
            *([f"Trained on the arms: `{changed}`; what scored the pool is as ever.", ""] if changed else []),
            *table(run, rows, requested.arms),
            "",
            *(agreement(run) if part == "members" else []),
            *footer(f"python benchmarks/subset_search.py --parts {part}", packages=("torch",)),
        ]
        text = "\n".join(lines) + "\n"
        print(text)
        if arguments.output:
            (arguments.output / f"subset_search_{part}.md").write_text(text)
            values = [
                {"arm": row["arm"], "seed": row["seed"], "num_images": len(row["images"]), **row["figures"].to_dict()}
                for row in rows
            ]
            (arguments.output / f"subset_search_{part}.json").write_text(json.dumps(values, indent=1) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
