"""``detcurate import``: import COCO results files of any detector as members with their predictions."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from detcurate.errors import DatasetError, PredictionError
from detcurate.interop.coco_results import Results, index_pool, posterior_form_of, read_results
from detcurate.io.files import add_checksum, sha256_file, sha256_json, write_json
from detcurate.pipeline.context import Run
from detcurate.pipeline.imported_members import (
    DESCRIPTION,
    Import,
    ImportedMember,
    ImportOptions,
    import_directory,
    predictions_digest,
    read_import,
    require_no_ensemble,
)
from detcurate.pipeline.runner import run_pipeline
from detcurate.pipeline.workspace import output_lock
from detcurate.predictions.shards import shard_path, write_shard
from detcurate.structures import POSTERIOR_FORMS

_INCOMING = ".incoming"

_logger = logging.getLogger("detcurate")


@dataclass(frozen=True)
class ResultsFile:
    """A results file, and the run and iteration of the checkpoint that predicted it."""

    path: Path
    run: int
    iteration: int


def import_results(run: Run, files: Sequence[ResultsFile], options: ImportOptions) -> Import:
    """Import results files as the members named by ``CURATE.PREDICT.RESULTS``; all of them or, on an error, none.

    Runs the stage ``pool`` first. An import of the same name is replaced; its files are not read again if they and the
    options are unchanged.

    Args:
        run: The run.
        files: One file a member, in the order of the member numbers.
        options: How the files are read.

    Raises:
        DatasetError: A file cannot be read, or is not a results file.
        PredictionError: Records of a file are invalid, or files have different forms.
        ConfigError: ``OUTPUT_DIR`` holds an ensemble of Detectron2.
    """
    require_no_ensemble(run)
    digests = _require_different(files)
    with output_lock(run):
        run_pipeline(run, until="pool")
        return _import(run, files, options, digests)


def _import(run: Run, files: Sequence[ResultsFile], options: ImportOptions, digests: Sequence[str]) -> Import:
    directory, before = import_directory(run), read_import(import_directory(run))
    named = {member.folder for member in before.members} if before else set()
    try:
        found = Import(directory, predictions_digest(run, options), options, ())
        members = _members(run, found, files, digests, before)
        described = {"digest": found.digest, "options": asdict(options), "members": [asdict(one) for one in members]}
        write_json(directory / DESCRIPTION, add_checksum(described))
        named = {member.folder for member in members}
    finally:
        _remove_unnamed(directory, named)
    return Import(directory, found.digest, options, members)


def _require_different(files: Sequence[ResultsFile]) -> list[str]:
    """Return the digests of the files; raise ``PredictionError`` if two files or checkpoints are equal."""
    first: dict[object, Path] = {}
    digests = []
    for file in files:
        if not file.path.is_file():
            raise DatasetError(f"--member: no such file (got {file.path}).")
        digests.append(sha256_file(file.path))
        for what, key in (
            ("the same bytes", digests[-1]),
            (f"run {file.run}, iteration {file.iteration}", (file.run, file.iteration)),
        ):
            if key in first:
                raise PredictionError(f"--member: {first[key]} and {file.path} both have {what}. Remove one of them.")
            first[key] = file.path
    return digests


def _members(
    run: Run, found: Import, files: Sequence[ResultsFile], digests: Sequence[str], before: Import | None
) -> tuple[ImportedMember, ...]:
    """Return the members; files that are not imported yet are read and written."""
    options = found.options
    pool = index_pool(run.pool, run.usable_image_ids, image_key=options.image_key, category_key=options.category_key)
    known = _complete_members(run, before) if before and before.digest == found.digest else {}
    forms: dict[str, Path] = {}
    members: list[ImportedMember | None] = []
    empty: list[tuple[int, Results]] = []  # without records, they take the form of the others
    for file, digest in zip(files, digests, strict=True):
        member = known.get(digest)
        if member is not None and member.form is not None:
            _require_one_form(forms, member.form, file.path)
            members.append(_renamed(member, file))
            _logger.info("import: %s: unchanged, %s", file.path, _describe(member.counts))
            continue
        results = read_results(
            file.path, pool, score_threshold=options.score_threshold, max_per_image=options.max_per_image
        )
        if results.form is None:
            empty.append((len(members), results))
            members.append(None)
            continue
        _require_one_form(forms, results.form, file.path)
        members.append(_write_member(run, found, file, results, results.form))
        _report(file.path, results.counts)
    for number, results in empty:
        members[number] = _write_member(run, found, files[number], results, next(iter(forms), POSTERIOR_FORMS[0]))
        _report(files[number].path, results.counts)
    return tuple(member for member in members if member is not None)


def _complete_members(run: Run, before: Import) -> dict[str, ImportedMember]:
    """Return the members of an import that have all their files, by the digest of the results file."""
    num_shards = -(-len(run.usable_image_ids) // run.settings.predict.shard_size)
    good = {}
    for member in before.members:
        folder = before.directory / member.folder
        if all(path.is_file() for path in (folder / member.copy, *(shard_path(folder, n) for n in range(num_shards)))):
            good[member.sha256] = member
    return good


def _require_one_form(forms: dict[str, Path], form: str, path: Path) -> None:
    forms.setdefault(form, path)
    if len(forms) > 1:
        got = " and ".join(f"{_FORMS[form]} ({path})" for form, path in forms.items())
        raise PredictionError(f"--member: all results files must have class_probs of one form, or none (got {got}).")


_FORMS = {
    "score": "scores alone",
    "softmax": "class_probs with the background",
    "sigmoid": "class_probs without the background",
}


def _renamed(member: ImportedMember, file: ResultsFile) -> ImportedMember:
    return ImportedMember(
        **{**asdict(member), "run": file.run, "iteration": file.iteration, "file_name": _file_name(file.path)}
    )


def _file_name(path: Path) -> str:
    return path.name.encode("utf-8", "replace").decode()  # the index is UTF-8; a file name may be any bytes


def _write_member(run: Run, found: Import, file: ResultsFile, results: Results, form: str) -> ImportedMember:
    """Write the predictions of one member and a copy of its results file into a folder, atomically."""
    incoming, image_ids = found.directory / _INCOMING, run.usable_image_ids
    shutil.rmtree(incoming, ignore_errors=True)
    incoming.mkdir(parents=True)
    size = run.settings.predict.shard_size
    posterior_form = posterior_form_of(form) or POSTERIOR_FORMS[0]
    for index, first in enumerate(range(0, len(image_ids), size)):
        last = min(first + size, len(image_ids))
        detections = results.detections(first, last, posterior_form=posterior_form)
        write_shard(shard_path(incoming, index), detections, image_ids[first:last])
    copy = "results.json.gz" if results.records.source.is_gzip else "results.json"
    shutil.copyfile(file.path, incoming / copy)
    if sha256_file(incoming / copy) != results.sha256:
        raise DatasetError(f"{file.path}: changed while it was read. Run the same command again.")
    folder = sha256_json([found.digest, results.sha256, posterior_form])[:16]
    shutil.rmtree(found.directory / folder, ignore_errors=True)
    incoming.replace(found.directory / folder)
    return ImportedMember(
        file.run, file.iteration, _file_name(file.path), results.sha256, folder, copy, results.form, results.counts
    )


def _report(path: Path, counts: Mapping[str, int]) -> None:
    _logger.info("import: %s: %s", path, _describe(counts))
    if counts["without_area"]:
        _logger.warning(
            "import: %s: ignored %s boxes without area inside their image", path, f"{counts['without_area']:,}"
        )
    if counts["cut"] > counts["kept"] / 2:
        _logger.warning(
            "import: %s: more than half of the boxes reach beyond their image. bbox must be [x, y, width, height] in "
            "pixels of the stored image.",
            path,
        )


def _describe(counts: Mapping[str, int]) -> str:
    """Return the number of kept detections, and of ignored ones by reason, as text."""
    ignored = [f"{counts[name]:,} {text}" for name, text in _IGNORED.items() if counts[name]]
    kept = f"kept {counts['kept']:,} of {counts['records']:,} detections"
    return kept + (f" (ignored {', '.join(ignored)})" if ignored else "")


_IGNORED = {
    "below_threshold": "below the score threshold",
    "beyond_best": "beyond the limit per image",
    "without_area": "without area",
    "quarantined": "on quarantined images",
}


def _remove_unnamed(directory: Path, named: Collection[str]) -> None:
    """Remove the folders of an import that its description does not name, and the import itself if it is empty."""
    if not directory.is_dir():
        return
    for path in directory.iterdir():
        if path.is_dir() and path.name not in named:
            shutil.rmtree(path)
    if not any(directory.iterdir()):
        directory.rmdir()
