"""Verify a manifest or a split: derive every digest again, and each file from its source."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from detcurate.coco.dataset import CocoDataset, Opened, open_coco
from detcurate.coco.text import open_source
from detcurate.coco.validation.findings import parse_policies
from detcurate.ensemble.index import CHECKPOINT, MEMBER_INDEX, read_index
from detcurate.errors import ConfigError, DetcurateError, SelectionError
from detcurate.io.files import sha256_file, sha256_json
from detcurate.io.safe_loading import MOST_YAML_BYTES, is_inside, load_yaml, read_bytes
from detcurate.io.storage import Location, RemotePath
from detcurate.legacy import FOLDERS, warn_renamed
from detcurate.manifest.expected import ExpectedSubset
from detcurate.manifest.provenance import is_split, read_provenance, subset_path
from detcurate.manifest.split import (
    FILE_NAME,
    PARTS,
    class_records,
    class_shares,
    group_numbers,
    group_values,
    split_histograms,
)
from detcurate.manifest.write import IMAGES_FILE, histograms, images_text

Status = Literal["ok", "failed", "absent"]
_MOST_GROUPS = 3  # named in a detail


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Args:
        name: The check.
        status: ``ok``, ``failed``, or ``absent`` when a file that it needs is missing.
        detail: What was found.
    """

    name: str
    status: Status
    detail: str

    def to_dict(self) -> dict[str, str]:
        """Return the check as JSON-able values."""
        return asdict(self)


def verify_manifest(
    directory: Path, *, source: Path | None = None, output_dir: Path | None = None, scores: Location | None = None
) -> list[Check]:
    """Check a manifest against its provenance, its source and the run that made it; or a split against its source.

    Args:
        directory: The folder of a manifest, or of a split.
        source: The annotation file that it is a subset of; searched for below ``output_dir`` when absent.
        output_dir: The run's ``OUTPUT_DIR``; the parent of ``directory`` when absent.
        scores: The run's table of image scores; searched for in ``output_dir`` when absent. Object storage that the
            config of the run names is not accessed, because the run may be untrusted.

    Returns:
        One row a check. Of a manifest: ``subset``, ``images``, ``counts``, ``config``, ``source``, ``true subset``,
        ``histograms``, ``scores`` and ``members``. Of a split: ``train``, ``val``, ``config``, ``source``,
        ``true subsets``, ``partition``, ``groups`` and ``histograms``.

    Raises:
        DatasetError: The folder holds neither, or its provenance cannot be read.
    """
    provenance = read_provenance(directory)
    output_dir = directory.parent if output_dir is None else output_dir
    source = source or _find_source(provenance, output_dir)
    if is_split(provenance):
        return _verify_split(directory, provenance, source)
    expected = ExpectedSubset(subset_path(directory), directory / IMAGES_FILE)
    # The source comes first: a subset that it proves need not be parsed by the other checks.
    of_source = [
        _check("source", lambda: _verified_source(provenance, source, [expected])),
        _check("true subset", lambda: _true_subset(expected)),
        _check("histograms", lambda: _histograms(provenance, expected)),
    ]
    return [
        _check("subset", lambda: _same("sha256 of its text", expected.sha256, provenance["subset"]["sha256"])),
        _check("images", lambda: _images(expected)),
        _check("counts", lambda: _counts(provenance, expected)),
        _check("config", lambda: _config(provenance)),
        *of_source,
        _check("scores", lambda: _scores(provenance, scores, output_dir)),
        _check("members", lambda: _members(provenance, output_dir)),
    ]


class _AbsentError(Exception):
    """A file that a check needs is missing."""


def _check(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name, "ok", check())
    except _AbsentError as error:
        return Check(name, "absent", str(error))
    except (DetcurateError, OSError) as error:
        return Check(name, "failed", str(error))


def _same(name: str, found: object, stated: object) -> str:
    if found != stated:
        raise SelectionError(f"{name} is {_short(found)}, the provenance states {_short(stated)}")
    return f"{name} {_short(found)}"


def _short(value: object) -> str:
    return f"{value[:12]}…" if isinstance(value, str) and len(value) == 64 else str(value)


def _images(expected: ExpectedSubset) -> str:
    path = expected.image_list
    if path is None or not path.is_file():
        raise _AbsentError(f"{IMAGES_FILE} is missing")
    dataset, (images, _) = expected.held
    if path.read_bytes() != images_text(dataset, images):
        raise SelectionError(f"{IMAGES_FILE} lists other images than {expected.subset.name}")
    return f"{len(images):,} file names"


def _counts(provenance: Mapping[str, Any], expected: ExpectedSubset) -> str:
    budget = provenance["budget"]
    images, boxes = (len(rows) for rows in expected.held[1])
    cost = images * budget["seconds_per_image"] + boxes * budget["seconds_per_box"]
    _same("the number of images", images, provenance["subset"]["num_images"])
    _same("the number of boxes", boxes, provenance["subset"]["num_boxes"])
    _same("the spent budget", {"images": images, "boxes": boxes, "cost_seconds": cost}, budget["spent"])
    return f"{images:,} images, {boxes:,} boxes" + (f", {cost:,.0f} s to annotate" if cost else "")


def _config(provenance: Mapping[str, Any]) -> str:
    if "settings" not in provenance:
        raise _AbsentError("the provenance holds no settings")
    selection = provenance["settings"].get("select", {})
    for name in ("strategy", "seed"):
        if name in selection:
            _same(f"the {name} in the settings", selection[name], provenance[name])
    return _same("sha256 of the settings", sha256_json(provenance["settings"]), provenance["config_sha256"])


def _find_source(provenance: Mapping[str, Any], output_dir: Path) -> Path | None:
    """Return the source where it is usual: rendered into the run, named by the run's config, or beside a split."""
    name = str(provenance["source"]["file_name"])
    usual = output_dir / name if is_split(provenance) else output_dir / "pool" / name
    if is_inside(name) and usual.is_file():
        return usual
    try:
        tree: Any = load_yaml(read_bytes(output_dir / "config.yaml", MOST_YAML_BYTES).decode())
        path = Path(str(tree["DATASETS"]["ROOT"])) / str(tree["CURATE"]["POOL"]["ANNOTATIONS"])
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):  # then --source has to name it
        return None
    return path if path.is_file() else None


def _verified_source(provenance: Mapping[str, Any], path: Path | None, parts: Sequence[ExpectedSubset]) -> str:
    """Check the source; once it is verified, derive the parts from it."""
    stated = provenance["source"]
    if path is None:
        raise _AbsentError(f"{stated['file_name']} is missing; name it with --source")
    try:
        dataset, opened = open_coco(path, _policies(provenance))
    except DetcurateError:
        # The findings in a file that is not the source do not matter.
        _same("sha256", open_source(path).sha256, stated["sha256"])
        raise
    detail = _same("sha256", dataset.sha256, stated["sha256"])
    _same("the number of images", len(dataset), stated["num_images"])
    _same("the number of boxes", dataset.num_boxes, stated["num_boxes"])
    found = [{"code": f.code, "policy": f.policy, "count": f.count} for f in dataset.findings]
    _same("the list of findings", found, provenance["findings"])
    for part in parts:
        part.source = dataset, opened
    return detail


def _policies(provenance: Mapping[str, Any]) -> dict[str, str]:
    """Return the policies that the source was read with."""
    policies = provenance.get("settings", {}).get("pool", {}).get("findings", {})
    if not isinstance(policies, dict):
        raise SelectionError(f"settings.pool.findings: not policies by code (got {policies!r})")
    return parse_policies(f"{code}={policy}" for code, policy in policies.items())


def _source_of(expected: ExpectedSubset) -> tuple[CocoDataset, Opened]:
    if expected.source is None:
        raise _AbsentError("the source that the provenance names is needed; name it with --source")
    return expected.source


def _true_subset(expected: ExpectedSubset) -> str:
    dataset, _ = _source_of(expected)
    images, boxes = expected.rows
    _same("sha256 of the same images of the source", expected.derived_sha256(), expected.sha256)
    return f"{len(images):,} of {len(dataset):,} images with all {len(boxes):,} boxes, byte for byte"


def _histograms(provenance: Mapping[str, Any], expected: ExpectedSubset) -> str:
    dataset, opened = _source_of(expected)
    if histograms(dataset, *expected.rows, opened) != provenance["histograms"]:
        raise SelectionError("the histograms of the source and the subset differ from those of the provenance")
    return ", ".join(provenance["histograms"])


def _run_file(output_dir: Path, stage: str, name: str) -> Path | None:
    """Return a file of a stage of the run, also from the folder that version 0.1 gave the stage; None if missing."""
    for folder in (stage, FOLDERS[stage]):
        if (output_dir / folder / name).is_file():
            if folder != stage:
                warn_renamed(f"{folder}/", f"{stage}/")
            return output_dir / folder / name
    return None


def _scores(provenance: Mapping[str, Any], named: Location | None, output_dir: Path) -> str:
    if named is not None and not named.is_file():
        raise SelectionError(f"scores: no such file (got {named}). Check the path.")
    path = named or _run_file(output_dir, "score", "images.parquet")
    if path is None:
        raise _AbsentError("score/images.parquet is missing; name it with --scores")
    # A digest in the metadata of an object is untrusted, so the object itself is read.
    found = path.sha256(always_read=True) if isinstance(path, RemotePath) else sha256_file(path)
    return _same("sha256", found, provenance["scores_sha256"])


def _members(provenance: Mapping[str, Any], output_dir: Path) -> str:
    index = _run_file(output_dir, "train", MEMBER_INDEX)
    if index is None:
        raise _AbsentError("the ensemble is missing")
    paths = {(member.run, *member.key): index.parent / member.file for member in read_index(index)}
    for member in provenance["ensemble"]:
        key = (member["run"], member["iteration"], member.get("kind", CHECKPOINT))
        if key not in paths or not paths[key].is_file():
            raise _AbsentError(f"run {key[0]}, iteration {key[1]} is missing")
        _same(f"sha256 of run {key[0]}, iteration {key[1]}", sha256_file(paths[key]), member["sha256"])
    return f"{len(provenance['ensemble'])} members"


def _verify_split(directory: Path, provenance: Mapping[str, Any], source: Path | None) -> list[Check]:
    parts = {name: ExpectedSubset(directory / f"{name}.json") for name in PARTS}
    return [
        *(_check(name, partial(_part, provenance, name, part)) for name, part in parts.items()),
        _check("config", lambda: _split_config(provenance)),
        _check("source", lambda: _verified_source(provenance, source, list(parts.values()))),
        _check("true subsets", lambda: "; ".join(f"{name}: {_true_subset(part)}" for name, part in parts.items())),
        _check("partition", lambda: _partition(provenance, parts)),
        _check("groups", lambda: _groups(provenance, parts)),
        _check("histograms", lambda: _split_histograms(provenance, parts)),
    ]


def _part(provenance: Mapping[str, Any], name: str, part: ExpectedSubset) -> str:
    stated = provenance["parts"][name]
    _same("sha256", part.sha256, stated["sha256"])
    _same("the number of images", len(part.parsed), stated["num_images"])
    _same("the number of boxes", part.parsed.num_boxes, stated["num_boxes"])
    return f"sha256 {_short(part.sha256)}, {len(part.parsed):,} images, {part.parsed.num_boxes:,} boxes"


def _split_config(provenance: Mapping[str, Any]) -> str:
    _same("the seed in the settings", provenance["settings"]["split"]["seed"], provenance["seed"])
    return _same("sha256 of the settings", sha256_json(provenance["settings"]), provenance["config_sha256"])


def _partition(provenance: Mapping[str, Any], parts: Mapping[str, ExpectedSubset]) -> str:
    train, val = (
        {part.parsed.original_id(row) for row in range(len(part.parsed))} for part in (parts["train"], parts["val"])
    )
    if train & val:
        raise SelectionError(f"{len(train & val):,} images are in train and in val")
    _same("the number of images in train and val", len(train) + len(val), provenance["source"]["num_images"])
    return f"{len(train):,} and {len(val):,} images, none in both, together all of the source"


def _groups(provenance: Mapping[str, Any], parts: Mapping[str, ExpectedSubset]) -> str:
    """Check, without the source, that no group and no file name is on both sides."""
    by = provenance["settings"]["split"]["by"]
    counts = []
    for attribute in dict.fromkeys((FILE_NAME, by)):
        train, val = (_values(part.parsed, attribute) for part in (parts["train"], parts["val"]))
        if train & val:
            shown = ", ".join(sorted(train & val)[:_MOST_GROUPS])
            raise SelectionError(f"{len(train & val):,} values of {attribute} are in train and in val: {shown}")
        counts.append(f"{len(train):,} and {len(val):,} values of {attribute}")
    return f"{counts[-1]}, none in both"


def _values(dataset: CocoDataset, by: str) -> set[str]:
    try:
        return {value for value in group_values(dataset, by) if value is not None}
    except ConfigError:  # no image of this side has the attribute
        return set()


def _split_histograms(provenance: Mapping[str, Any], parts: Mapping[str, ExpectedSubset]) -> str:
    """Check the counts of the values and of the classes against the source."""
    dataset, opened = _source_of(parts["val"])
    split = provenance["settings"]["split"]
    is_val = np.zeros(len(dataset), bool)
    is_val[parts["val"].rows[0]] = True
    groups = group_numbers(dataset, group_values(dataset, split["by"], opened))
    classes = class_records(class_shares(dataset, groups, is_val, split["fraction"]))
    if split_histograms(dataset, is_val, opened) != provenance["histograms"] or classes != provenance["classes"]:
        raise SelectionError("the histograms of the source and its parts differ from those of the provenance")
    return ", ".join(provenance["histograms"])
