"""Whether a manifest is what its provenance says: every digest derived again, and the subset from its source."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from detcurate.coco.dataset import CocoDataset, Opened, open_coco, read_coco
from detcurate.coco.text import Source, open_source
from detcurate.coco.validation.findings import parse_policies
from detcurate.ensemble.index import CHECKPOINT, MEMBER_INDEX, read_index
from detcurate.errors import DetcurateError, SelectionError
from detcurate.io.files import sha256_file, sha256_json
from detcurate.io.safe_loading import MOST_YAML_BYTES, is_inside, load_yaml, read_bytes
from detcurate.io.storage import Location, RemotePath
from detcurate.manifest.provenance import AS_WRITTEN, read_provenance, subset_path
from detcurate.manifest.write import IMAGES_FILE, histograms, images_text, kept_rows, subset_digest, subset_pieces

Rows = tuple[np.ndarray, np.ndarray]
"""Rows of images, (K,) int64, and of annotations, (M,) int64, both ascending."""


@dataclass
class ExpectedSubset:
    """A manifest's files, each opened and read when it is first needed, and once.

    Most manifests are what they say. So the list of images is believed first: when the text of these images of the
    source is the subset's, byte for byte, nothing of the subset has to be parsed. Else the subset is read.

    Args:
        directory: The manifest's.
        subset: Its annotation file.
        source: The source and its records, once it is known to be what the provenance names.
    """

    directory: Path
    subset: Path
    source: tuple[CocoDataset, Opened] | None = None

    @cached_property
    def text(self) -> Source:
        """The subset's text."""
        return open_source(self.subset)

    @cached_property
    def sha256(self) -> str:
        """Digest of the subset's text, whether it is compressed or not."""
        return text_sha256(self.text)

    @cached_property
    def proven(self) -> Rows | None:
        """The rows of the source whose text the subset is; None when that is not known so easily."""
        if self.source is None:
            return None
        dataset, opened = self.source
        images = _named_rows(dataset, self.directory / IMAGES_FILE)
        if images is None:
            return None
        image_ids = dataset.image_ids[images]
        is_same = _is_text(self.text.content, subset_pieces(dataset, image_ids, opened))
        return kept_rows(dataset, image_ids) if is_same else None

    @cached_property
    def held(self) -> tuple[CocoDataset, Rows]:
        """A dataset, and its rows that the subset holds: of the source when that is proven, else of the subset."""
        if self.source is not None and self.proven is not None:
            return self.source[0], self.proven
        dataset = read_coco(self.subset, AS_WRITTEN)
        return dataset, (np.arange(len(dataset)), np.arange(dataset.num_boxes))

    @cached_property
    def rows(self) -> Rows:
        """The rows of the source whose image records the subset holds.

        Raises:
            SelectionError: The source is not known, or the subset holds an image record that does not stand in it.
        """
        dataset, opened = self._known_source()
        return self.proven or kept_rows(dataset, _source_image_ids(dataset, opened, self.held[0]))

    def derived_sha256(self) -> str:
        """Return the digest of the subset that the source gives for the same images."""
        if self.proven is not None:
            return self.sha256  # both texts were compared byte for byte
        dataset, opened = self._known_source()
        return subset_digest(dataset, dataset.image_ids[self.rows[0]], opened)

    def _known_source(self) -> tuple[CocoDataset, Opened]:
        if self.source is None:
            raise SelectionError(f"the source of {self.subset} must be known, got none; name it with --source")
        return self.source


def text_sha256(source: Source) -> str:
    """Return the SHA-256 of an annotation file's text, whether it is compressed or not."""
    return hashlib.sha256(source.content).hexdigest() if source.is_gzip else source.sha256


def _named_rows(dataset: CocoDataset, path: Path) -> np.ndarray | None:
    """Return the rows of the images that a list names, None when it is no list of images of the dataset."""
    try:
        names = path.read_bytes().decode().split("\n")[:-1]
    except (OSError, UnicodeDecodeError):
        return None
    row_of = {name: row for row, name in enumerate(dataset.file_names)}
    rows = np.array([row_of.get(name, -1) for name in names], np.int64)
    return rows if len(rows) and rows.min() >= 0 and len(np.unique(rows)) == len(rows) else None


def _is_text(text: memoryview, pieces: Iterable[Any]) -> bool:
    """Tell whether a text is what some pieces are together."""
    characters, at = np.frombuffer(text, np.uint8), 0
    for piece in pieces:
        expected = np.frombuffer(piece, np.uint8)
        if not np.array_equal(characters[at : at + len(expected)], expected):
            return False
        at += len(expected)
    return at == len(characters)


def _source_image_ids(dataset: CocoDataset, opened: Opened, subset: CocoDataset) -> np.ndarray:
    """Return the source's ids of the images whose records the subset holds."""
    records, _ = opened
    row_of = {records[position]: row for row, position in enumerate(dataset.image_positions.tolist())}
    kept, _ = subset.open()
    rows = [row_of.get(kept[position]) for position in range(len(kept))]
    unexpected = sum(row is None for row in rows)
    if unexpected:
        raise SelectionError(f"{unexpected:,} image records of {subset.path.name} do not stand in {dataset.path.name}")
    return dataset.image_ids[np.array(rows, np.int64)]


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
    expected = ExpectedSubset(directory, subset_path(directory))
    of_source = _check_source(provenance, expected, source or _find_source(provenance, output_dir))
    return [
        _check("subset", lambda: _same("sha256 of its text", expected.sha256, provenance["subset"]["sha256"])),
        _check("images", lambda: _images_text(expected)),
        _check("counts", lambda: _counts(provenance, expected)),
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


def _images_text(expected: ExpectedSubset) -> str:
    path = expected.directory / IMAGES_FILE
    if not path.is_file():
        raise _AbsentError(f"no {IMAGES_FILE}")
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


def _check_source(provenance: Mapping[str, Any], expected: ExpectedSubset, source: Path | None) -> list[Check]:
    if source is None:
        hint = f"{provenance['source']['file_name']} is not here; name it with --source"
        return [Check(name, "absent", hint) for name in ("source", "true subset", "histograms")]

    def source_read() -> tuple[CocoDataset, Opened]:
        if expected.source is None:
            raise _AbsentError("it needs the source that the provenance names")
        return expected.source

    def true_subset() -> str:
        dataset, _ = source_read()
        images, boxes = expected.rows
        _same("sha256 of the same images of the source", expected.derived_sha256(), expected.sha256)
        return f"{len(images):,} of {len(dataset):,} images, all of their {len(boxes):,} boxes, word for word"

    def same_histograms() -> str:
        dataset, opened = source_read()
        if histograms(dataset, *expected.rows, opened) != provenance["histograms"]:
            raise SelectionError("the source and the subset have other histograms than the provenance says")
        return ", ".join(provenance["histograms"])

    return [
        _check("source", lambda: _same_source(provenance, expected, source)),
        _check("true subset", true_subset),
        _check("histograms", same_histograms),
    ]


def _same_source(provenance: Mapping[str, Any], expected: ExpectedSubset, path: Path) -> str:
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
    expected.source = dataset, opened
    return text


def _policies(provenance: Mapping[str, Any]) -> dict[str, str]:
    """Return the policies that the source was read with."""
    policies = provenance.get("settings", {}).get("pool", {}).get("findings", {})
    if not isinstance(policies, dict):
        raise SelectionError(f"the findings in the settings must be policies by code, got {policies!r}")
    return parse_policies(f"{code}={policy}" for code, policy in policies.items())


def _scores(provenance: Mapping[str, Any], named: Location | None, output_dir: Path) -> str:
    path = named or output_dir / "score" / "images.parquet"
    if not path.is_file():
        if named is not None:
            raise SelectionError(f"the scores must be there, got no such file ({named}); check the path")
        raise _AbsentError("score/images.parquet is not here; name it with --scores")
    # What is attached to an object is what somebody said of it.
    found = path.sha256(always_read=True) if isinstance(path, RemotePath) else sha256_file(path)
    return _same("sha256", found, provenance["scores_sha256"])


def _members(provenance: Mapping[str, Any], output_dir: Path) -> str:
    directory = output_dir / "train"
    if not (directory / MEMBER_INDEX).is_file():
        raise _AbsentError("the ensemble is not here")
    files = {(member.run, *member.key): directory / member.file for member in read_index(directory / MEMBER_INDEX)}
    for member in provenance["ensemble"]:
        key = (member["run"], member["iteration"], member.get("kind", CHECKPOINT))
        if key not in files or not files[key].is_file():
            raise _AbsentError(f"run {key[0]}, iteration {key[1]} is not here")
        _same(f"sha256 of run {key[0]}, iteration {key[1]}", sha256_file(files[key]), member["sha256"])
    return f"{len(provenance['ensemble'])} members"
