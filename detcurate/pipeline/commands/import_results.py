"""``detcurate import-results``: results files of other frameworks' detectors become members with their answers."""

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
    """A results file, and the checkpoint whose answers it holds."""

    path: Path
    run: int
    iteration: int


def import_results(run: Run, files: Sequence[ResultsFile], options: ImportOptions) -> Import:
    """Import results files as the members that ``CURATE.PREDICT.RESULTS`` names; all of them or, on an error, none.

    The stage ``pool`` is brought up to date first. An import of the same name is replaced; files that were in it, read
    in the same way, are not read again.

    Args:
        run: The run.
        files: One a member, in the order of the members' numbers.
        options: How they are read.

    Raises:
        DatasetError: A file cannot be read, or is no results file.
        PredictionError: Records of a file cannot be used, or files do not go together.
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
        _tidy(directory, named)
    return Import(directory, found.digest, options, members)


def _require_different(files: Sequence[ResultsFile]) -> list[str]:
    """Return the digests of the files, which must differ, and so must the checkpoints."""
    first: dict[object, Path] = {}
    digests = []
    for file in files:
        if not file.path.is_file():
            raise DatasetError(f"--member must name a results file, got no file {file.path}; check the path")
        digests.append(sha256_file(file.path))
        for what, key in (("predictions", digests[-1]), ("a checkpoint", (file.run, file.iteration))):
            if key in first:
                raise PredictionError(
                    f"each --member must be {what} of its own, got {first[key]} and {file.path} with "
                    f"{'the same bytes' if what == 'answers' else f'run {file.run}, iteration {file.iteration}'}; "
                    "leave one out, or name the file that was meant"
                )
            first[key] = file.path
    return digests


def _members(
    run: Run, found: Import, files: Sequence[ResultsFile], digests: Sequence[str], before: Import | None
) -> tuple[ImportedMember, ...]:
    """Return the members, those that are not there yet read and written; the import names the directory and options."""
    options = found.options
    pool = index_pool(run.pool, run.usable_image_ids, image_key=options.image_key, category_key=options.category_key)
    known = _still_good(run, before) if before and before.digest == found.digest else {}
    forms: dict[str, Path] = {}
    members: list[ImportedMember | None] = []
    empty: list[tuple[int, Results]] = []  # what form they have is known when all others are
    for file, digest in zip(files, digests, strict=True):
        member = known.get(digest)
        if member is not None and member.form is not None:
            _require_one_form(forms, member.form, file.path)
            members.append(_renamed(member, file))
            _logger.info("%-9s %s: there already, %s", "import", file.path, _describe(member.counts))
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


def _still_good(run: Run, before: Import) -> dict[str, ImportedMember]:
    """Return the members of an import whose files are all there, by the digest of their results file."""
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
        raise PredictionError(
            f"all results files must say in one way what an object is, got {got}; write class_probs of one form into "
            "all of them, or into none"
        )


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
    return path.name.encode("utf-8", "replace").decode()  # a ledger is UTF-8, a file's name may be any bytes


def _write_member(run: Run, found: Import, file: ResultsFile, results: Results, form: str) -> ImportedMember:
    """Write the answers of one member and a copy of its results file into a folder, which is there whole or not."""
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
        raise DatasetError(
            f"the results file must not change while it is read ({file.path}); run the same command again"
        )
    folder = sha256_json([found.digest, results.sha256, posterior_form])[:16]
    shutil.rmtree(found.directory / folder, ignore_errors=True)
    incoming.replace(found.directory / folder)
    return ImportedMember(
        file.run, file.iteration, _file_name(file.path), results.sha256, folder, copy, results.form, results.counts
    )


def _report(path: Path, counts: Mapping[str, int]) -> None:
    _logger.info("%-9s %s: %s", "import", path, _describe(counts))
    if counts["without_area"]:
        _logger.warning(
            "%-9s %s: %s boxes without area inside their image were left out", "import", path,
            f"{counts['without_area']:,}",
        )  # fmt: skip
    if counts["cut"] > counts["kept"] / 2:
        _logger.warning(
            "%-9s %s: more than half of the boxes reach out of their image; bbox must be [x, y, width, height] in "
            "pixels of the image as it is stored",
            "import",
            path,
        )


def _describe(counts: Mapping[str, int]) -> str:
    """Say how many detections are kept, and what became of the others."""
    left_out = [f"{counts[name]:,} {text}" for name, text in _LEFT_OUT.items() if counts[name]]
    kept = f"{counts['kept']:,} of {counts['records']:,} detections"
    return kept + (f" ({', '.join(left_out)})" if left_out else "")


_LEFT_OUT = {
    "below_threshold": "below the score floor",
    "beyond_best": "beyond the best of their image",
    "without_area": "without area",
    "quarantined": "on images in quarantine",
}


def _tidy(directory: Path, named: Collection[str]) -> None:
    """Remove the folders below an import that its description does not name, and an import without a description."""
    if not directory.is_dir():
        return
    for path in directory.iterdir():
        if path.is_dir() and path.name not in named:
            shutil.rmtree(path)
    if not any(directory.iterdir()):
        directory.rmdir()
