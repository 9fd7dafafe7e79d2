"""Imported members: predictions of any framework's detectors, read from COCO results files.

    imported/NAME/import.json       the members in order, and the digest of the pool and options they were read with
                  <digest>/         the predictions of one member: shard-00000.parquet …, and a copy of its file

``import.json`` is written last and replaced atomically, so an import is complete or absent; folders that it does not
name are removed. A folder is named by the digest of the results file, the pool and the options, so that an unchanged
member is not read again. The stages ``train`` and ``predict`` link these files into their own directories.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from detcurate.ensemble.index import MEMBER_INDEX, RESULTS, Member, verify_member, write_index
from detcurate.errors import ConfigError, PredictionError
from detcurate.io.files import link_or_copy, remove_tree, sha256_file, sha256_json, verify_checksum, write_json
from detcurate.io.safe_loading import MOST_JSON_BYTES, is_inside, read_bytes
from detcurate.pipeline.context import IMPORTED, Run, StageMetadata
from detcurate.pipeline.stage import Stage, StageResult, output_digest, read_stage_metadata
from detcurate.predictions.shards import shard_path
from detcurate.predictions.store import MEMBERS, PredictionSet, set_folders

DESCRIPTION = "import.json"
_SETTING = "CURATE.PREDICT.RESULTS"


@dataclass(frozen=True)
class ImportOptions:
    """How results files are read.

    Args:
        image_key: The meaning of ``image_id``; one of ``detcurate.interop.coco_results.IMAGE_KEYS``.
        category_key: The meaning of ``category_id``; one of ``detcurate.interop.coco_results.CATEGORY_KEYS``.
        score_threshold: Detections with a lower score are ignored.
        max_per_image: The most detections of an image, highest scores first; 0 for no limit.
    """

    image_key: str = "id"
    category_key: str = "id"
    score_threshold: float = 0.05
    max_per_image: int = 100


@dataclass(frozen=True)
class ImportedMember:
    """One member of an import.

    Args:
        run: The run number of the member.
        iteration: The iteration of the member.
        file_name: The name of the results file.
        sha256: The digest of the results file.
        folder: The folder of its predictions, below the import.
        copy: The copy of the results file, in that folder.
        form: The form of its records, see ``detcurate.interop.coco_results.Results``; ``None`` without records.
        counts: The numbers of records, kept detections and ignored ones by reason.
    """

    run: int
    iteration: int
    file_name: str
    sha256: str
    folder: str
    copy: str
    form: str | None
    counts: Mapping[str, int]

    def member(self) -> Member:
        """Return its record in a member index."""
        file = f"run-{self.run}/iter-{self.iteration:07d}/{self.file_name}"
        return Member(self.run, self.iteration, None, None, file, self.sha256, dtype=RESULTS)


@dataclass(frozen=True)
class Import:
    """The content of ``import.json``.

    Args:
        directory: The directory of the import.
        digest: The digest of the pool's images and classes, the options and the shard size.
        options: How the files were read.
        members: The members in the order of their numbers.
    """

    directory: Path
    digest: str
    options: ImportOptions
    members: tuple[ImportedMember, ...]


def import_directory(run: Run) -> Path:
    """Return the directory of the import named by ``CURATE.PREDICT.RESULTS``."""
    return run.output_dir / IMPORTED / run.settings.predict.results


def read_import(directory: Path) -> Import | None:
    """Return the content of ``import.json``, or ``None`` if the file does not exist.

    Raises:
        PredictionError: The file cannot be read, or is damaged.
    """
    path = directory / DESCRIPTION
    if not path.is_file():
        return None
    try:
        value = verify_checksum(read_bytes(path, MOST_JSON_BYTES))
        members = tuple(_plain(ImportedMember(**member)) for member in value["members"])
        return Import(directory, value["digest"], ImportOptions(**value["options"]), members)
    except (ValueError, KeyError, TypeError) as error:
        raise PredictionError(f"{path}: not a valid import ({error}). Delete {directory} and import again.") from error


def _plain(member: ImportedMember) -> ImportedMember:
    """Return a member, which is untrusted input; raise ``ValueError`` if a name is a path or a number is invalid."""
    for name in (member.file_name, member.folder, member.copy):
        if not is_inside(name) or "/" in name or name in (".", ".."):
            raise ValueError(f"file_name, folder and copy must be names without a folder, got {name!r}")
    if not all(type(number) is int and 0 <= number < 2**31 for number in (member.run, member.iteration)):
        raise ValueError(f"run and iteration must be integers from 0, got {member.run!r} and {member.iteration!r}")
    return member


def require_imported(run: Run) -> Import:
    """Return the import named by ``CURATE.PREDICT.RESULTS``.

    Raises:
        PredictionError: The import does not exist.
        ConfigError: ``OUTPUT_DIR`` holds an ensemble of Detectron2, which would be removed.
    """
    require_no_ensemble(run)
    name, found = run.settings.predict.results, read_import(import_directory(run))
    if found is None:
        existing = sorted(path.parent.name for path in (run.output_dir / IMPORTED).glob(f"*/{DESCRIPTION}"))
        raise PredictionError(
            f"{_SETTING}: no such import in {run.output_dir} (got {name!r}; existing: "
            f"{', '.join(existing) or 'none'}). Run `detcurate import {name} --config-file FILE --member RESULTS.json` "
            "first."
        )
    return found


def is_imported(stage_metadata: StageMetadata) -> bool:
    """Return whether the metadata of a stage ``train`` are of imported members."""
    return _SETTING in stage_metadata["settings"]


def require_no_ensemble(run: Run) -> None:
    """Raise ``ConfigError`` if ``OUTPUT_DIR`` holds an ensemble of Detectron2, which an import would replace."""
    stage_metadata = read_stage_metadata(run.directory("train"))
    if stage_metadata is not None and not is_imported(stage_metadata):
        raise ConfigError(
            f"OUTPUT_DIR: holds a trained ensemble, which imported results would replace (got "
            f"{run.directory('train')}). Set another OUTPUT_DIR, or delete that directory."
        )


def predictions_digest(run: Run, options: ImportOptions) -> str:
    """Return the digest of the inputs of an import beside the results files; the pool's labels are not included."""
    pool = run.pool
    rows = pool.subset_rows(run.usable_image_ids)
    by_id = options.image_key == "id"
    names = [pool.original_id(row) for row in rows.tolist()] if by_id else list(pool.file_names)
    return sha256_json(
        {
            "images": run.usable_image_ids.tolist(),
            "sizes": [pool.widths[rows].tolist(), pool.heights[rows].tolist()],
            "names": names,
            "categories": [pool.category_ids.tolist(), list(pool.class_names)],
            "shard_size": run.settings.predict.shard_size,
            "options": asdict(options),
        }
    )


def imported_train_stage(run: Run) -> Stage:
    """Return the stage ``train`` of an import: the member index and the results files."""
    found = require_imported(run)
    settings = {"CURATE.ENSEMBLE": {"num_runs": 0}, _SETTING: run.settings.predict.results}
    inputs = {"imported": sha256_file(found.directory / DESCRIPTION)}
    return Stage("train", run.directory("train"), settings, inputs, lambda: _take_files(run, found))


def _take_files(run: Run, found: Import) -> StageResult:
    directory, members = run.directory("train"), [member.member() for member in found.members]
    for imported, member in zip(found.members, members, strict=True):
        source = found.directory / imported.folder / imported.copy
        verify_member(source, member.sha256, advice=f"Delete {found.directory} and import the results again.")
        link_or_copy(source, directory / member.file)
    write_index(directory / MEMBER_INDEX, members)
    outputs = [directory / MEMBER_INDEX, *(directory / member.file for member in members)]
    return StageResult(outputs, f"linked {len(members)} imported members ({run.settings.predict.results})")


def imported_predict_stage(run: Run) -> Stage:
    """Return the stage ``predict`` of an import: one prediction set a member.

    Raises:
        PredictionError: The import does not exist, or was read with another pool.
    """
    found, name = require_imported(run), run.settings.predict.results
    if predictions_digest(run, found.options) != found.digest:
        raise PredictionError(
            f"{found.directory}: imported with other images, classes or CURATE.PREDICT.SHARD_SIZE. Run "
            f"`detcurate import {name}` again with this config."
        )
    settings = {
        _SETTING: name,
        "CURATE.PREDICT.SHARD_SIZE": run.settings.predict.shard_size,
        "import-results": asdict(found.options),
    }
    inputs = {
        "pool": output_digest(run.stage_metadata("pool")),
        "train": output_digest(run.stage_metadata("train")),
        "imported": sha256_file(found.directory / DESCRIPTION),
    }
    return Stage("predict", run.directory("predict"), settings, inputs, lambda: _link_predictions(run, found))


def _link_predictions(run: Run, found: Import) -> StageResult:
    directory, num_images = run.directory("predict"), len(run.usable_image_ids)
    num_shards = -(-num_images // run.settings.predict.shard_size)
    for path in set_folders(directory):
        remove_tree(path)
    names, written = [], []
    for number, imported in enumerate(found.members):
        member = imported.member()
        names.append(f"{member.file}@{member.sha256}")
        prediction_set = PredictionSet(directory / f"set-{number:02d}", imported.folder, (names[-1],))
        for index in range(num_shards):
            target = shard_path(prediction_set.directory, index)
            link_or_copy(shard_path(found.directory / imported.folder, index), target)
            written.append(target)
        prediction_set.write()
        written.append(prediction_set.description)
    write_json(directory / MEMBERS, names)
    summary = f"linked predictions of {len(names)} imported members on {num_images:,} images ({num_shards} shards)"
    return StageResult([directory / MEMBERS, *written], summary, {"num_members": len(names)})


def imported_plans(run: Run) -> dict[str, str]:
    """Return what the stages ``train`` and ``predict`` would do, as text."""
    found = read_import(import_directory(run))
    members = f"{len(found.members) if found else 0} members, imported as {run.settings.predict.results}"
    return {"train": members, "predict": "the imported predictions"}
