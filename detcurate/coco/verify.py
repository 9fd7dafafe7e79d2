"""Whether a manifest is what its provenance says: every digest derived again, and the subset from its source."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from detcurate.coco.dataset import CocoDataset, Opened, open_coco
from detcurate.coco.evidence import Evidence
from detcurate.coco.findings import parse_policies
from detcurate.coco.manifest import IMAGES_FILE, histograms, images_text
from detcurate.coco.provenance import read_provenance, subset_path
from detcurate.coco.source import open_source
from detcurate.ensemble import CHECKPOINT, LEDGER, read_ledger
from detcurate.errors import DetcurateError, SelectionError
from detcurate.files import sha256_file, sha256_json
from detcurate.storage import Location, RemotePath
from detcurate.untrusted import MOST_YAML_BYTES, is_inside, load_yaml, read_bytes

Status = Literal["ok", "failed", "absent"]


@dataclass(frozen=True)
class Check:
    """One thing that was checked.

    Args:
        name: What.
        status: ``ok``, ``failed``, or ``absent`` when what it needs is not here.
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
    """Check a manifest against its provenance, its source and the run that made it.

    Args:
        directory: The manifest's.
        source: The annotation file that it is a subset of; looked for in the run when absent.
        output_dir: The run's ``OUTPUT_DIR``; the manifest's parent when absent.
        scores: The run's table of image scores; looked for in ``output_dir`` when absent. What a run's config names in
            object storage is not asked for by itself: the run may be a stranger's.

    Returns:
        One row a check: ``subset``, ``images``, ``counts``, ``config``, ``source``, ``true subset``, ``histograms``,
        ``scores`` and ``members``.

    Raises:
        DatasetError: There is no manifest, or its provenance cannot be read.
    """
    provenance = read_provenance(directory)
    output_dir = directory.parent if output_dir is None else output_dir
    evidence = Evidence(directory, subset_path(directory))
    of_source = _check_source(provenance, evidence, source or _find_source(provenance, output_dir))
    return [
        _check("subset", lambda: _same("sha256 of its text", evidence.sha256, provenance["subset"]["sha256"])),
        _check("images", lambda: _images_text(evidence)),
        _check("counts", lambda: _counts(provenance, evidence)),
        _check("config", lambda: _config(provenance)),
        *of_source,
        _check("scores", lambda: _scores(provenance, scores, output_dir)),
        _check("members", lambda: _members(provenance, output_dir)),
    ]


class _AbsentError(Exception):
    """What a check needs is not here."""


def _check(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name, "ok", check())
    except _AbsentError as error:
        return Check(name, "absent", str(error))
    except (DetcurateError, OSError) as error:
        return Check(name, "failed", str(error))


def _same(what: str, found: object, stated: object) -> str:
    if found != stated:
        raise SelectionError(f"{what} is {_short(found)}, the provenance says {_short(stated)}")
    return f"{what} {_short(found)}"


def _short(value: object) -> str:
    return f"{value[:12]}…" if isinstance(value, str) and len(value) == 64 else str(value)


def _images_text(evidence: Evidence) -> str:
    path = evidence.directory / IMAGES_FILE
    if not path.is_file():
        raise _AbsentError(f"no {IMAGES_FILE}")
    dataset, (images, _) = evidence.held
    if path.read_bytes() != images_text(dataset, images):
        raise SelectionError(f"{IMAGES_FILE} lists other images than {evidence.subset.name}")
    return f"{len(images):,} file names"


def _counts(provenance: Mapping[str, Any], evidence: Evidence) -> str:
    budget = provenance["budget"]
    images, boxes = (len(rows) for rows in evidence.held[1])
    cost = images * budget["seconds_per_image"] + boxes * budget["seconds_per_box"]
    _same("the number of images", images, provenance["subset"]["num_images"])
    _same("the number of boxes", boxes, provenance["subset"]["num_boxes"])
    _same("what was spent", {"images": images, "boxes": boxes, "cost_seconds": cost}, budget["spent"])
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
    """Return the pool's annotation file: rendered into the run, or where the run's config says."""
    name = str(provenance["source"]["file_name"])
    rendered = output_dir / "pool" / name
    if is_inside(name) and rendered.is_file():
        return rendered
    try:
        tree: Any = load_yaml(read_bytes(output_dir / "config.yaml", MOST_YAML_BYTES).decode())
        path = Path(str(tree["DATASETS"]["ROOT"])) / str(tree["CURATE"]["POOL"]["ANNOTATIONS"])
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):  # then it is to be named with --source
        return None
    return path if path.is_file() else None


def _check_source(provenance: Mapping[str, Any], evidence: Evidence, source: Path | None) -> list[Check]:
    if source is None:
        hint = f"{provenance['source']['file_name']} is not here; name it with --source"
        return [Check(name, "absent", hint) for name in ("source", "true subset", "histograms")]

    def source_read() -> tuple[CocoDataset, Opened]:
        if evidence.source is None:
            raise _AbsentError("it needs the source that the provenance names")
        return evidence.source

    def true_subset() -> str:
        dataset, _ = source_read()
        images, boxes = evidence.rows
        _same("sha256 of the same images of the source", evidence.derived_sha256(), evidence.sha256)
        return f"{len(images):,} of {len(dataset):,} images, all of their {len(boxes):,} boxes, word for word"

    def same_histograms() -> str:
        dataset, opened = source_read()
        if histograms(dataset, *evidence.rows, opened) != provenance["histograms"]:
            raise SelectionError("the source and the subset have other histograms than the provenance says")
        return ", ".join(provenance["histograms"])

    return [
        _check("source", lambda: _same_source(provenance, evidence, source)),
        _check("true subset", true_subset),
        _check("histograms", same_histograms),
    ]


def _same_source(provenance: Mapping[str, Any], evidence: Evidence, path: Path) -> str:
    """Check the source, and leave it to the evidence when it is what the provenance names."""
    stated = provenance["source"]
    try:
        dataset, opened = open_coco(path, _policies(provenance))
    except DetcurateError:
        # What is wrong with another file than the source does not matter.
        _same("sha256", open_source(path).sha256, stated["sha256"])
        raise
    text = _same("sha256", dataset.sha256, stated["sha256"])
    _same("the number of images", len(dataset), stated["num_images"])
    _same("the number of boxes", dataset.num_boxes, stated["num_boxes"])
    found = [{"code": f.code, "policy": f.policy, "count": f.count} for f in dataset.findings]
    _same("what was found in it", found, provenance["findings"])
    evidence.source = dataset, opened
    return text


def _policies(provenance: Mapping[str, Any]) -> dict[str, str]:
    """Return the policies that the source was read with."""
    policies = provenance.get("settings", {}).get("pool", {}).get("findings", {})
    if not isinstance(policies, dict):
        raise SelectionError(f"the findings in the settings must be policies by code, got {policies!r}")
    return parse_policies(f"{code}={policy}" for code, policy in policies.items())


def _scores(provenance: Mapping[str, Any], named: Location | None, output_dir: Path) -> str:
    path = named or output_dir / "scores" / "images.parquet"
    if not path.is_file():
        if named is not None:
            raise SelectionError(f"the scores must be there, got no such file ({named}); check the path")
        raise _AbsentError("scores/images.parquet is not here; name it with --scores")
    # What is attached to an object is what somebody said of it.
    found = path.sha256(always_read=True) if isinstance(path, RemotePath) else sha256_file(path)
    return _same("sha256", found, provenance["scores_sha256"])


def _members(provenance: Mapping[str, Any], output_dir: Path) -> str:
    directory = output_dir / "ensemble"
    if not (directory / LEDGER).is_file():
        raise _AbsentError("the ensemble is not here")
    files = {(member.run, *member.key): directory / member.file for member in read_ledger(directory / LEDGER)}
    for member in provenance["ensemble"]:
        key = (member["run"], member["iteration"], member.get("kind", CHECKPOINT))
        if key not in files or not files[key].is_file():
            raise _AbsentError(f"run {key[0]}, iteration {key[1]} is not here")
        _same(f"sha256 of run {key[0]}, iteration {key[1]}", sha256_file(files[key]), member["sha256"])
    return f"{len(provenance['ensemble'])} members"
