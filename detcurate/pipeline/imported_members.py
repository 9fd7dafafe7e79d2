"""Members that are known by their answers alone: COCO results files of any framework's detectors.

    imported/NAME/import.json       which members there are, in order, and what they were read against
                  <digest>/         the answers of one: shard-00000.parquet …, results.json (a copy of the file)

``import.json`` is written last and replaced as one, so an import is there whole or not at all; folders that it does
not name are removed. A folder is named by the digest of the file and of what it was read against, so a member that is
imported again is not read again. The stages ``train`` and ``predict`` link these files into their own directories.
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
        image_key: What ``image_id`` is; one of ``detcurate.interop.coco_results.IMAGE_KEYS``.
        category_key: What ``category_id`` is; one of ``detcurate.interop.coco_results.CATEGORY_KEYS``.
        score_threshold: The least score that is kept.
        max_per_image: The most detections of an image, the best; 0 for no limit.
    """

    image_key: str = "id"
    category_key: str = "id"
    score_threshold: float = 0.05
    max_per_image: int = 100


@dataclass(frozen=True)
class ImportedMember:
    """One member of an import.

    Args:
        run: Of the member.
        iteration: Likewise.
        file_name: What the results file was called.
        sha256: Of the results file.
        folder: Where its answers are, below the import.
        copy: The copy of the results file, in that folder.
        form: What its records say, as in ``detcurate.interop.coco_results.Results``; ``None`` when it has none.
        counts: How many records there were, and what became of them.
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
        """Return its line in an ensemble's ledger."""
        file = f"run-{self.run}/iter-{self.iteration:07d}/{self.file_name}"
        return Member(self.run, self.iteration, None, None, file, self.sha256, dtype=RESULTS)


@dataclass(frozen=True)
class Import:
    """What ``import.json`` says.

    Args:
        directory: The import's.
        digest: Of what the files were read against: images, classes, options, size of a shard.
        options: How they were read.
        members: In the order of their numbers.
    """

    directory: Path
    digest: str
    options: ImportOptions
    members: tuple[ImportedMember, ...]


def import_directory(run: Run) -> Path:
    """Return the directory of the import that ``CURATE.PREDICT.RESULTS`` names."""
    return run.output_dir / IMPORTED / run.settings.predict.results


def read_import(directory: Path) -> Import | None:
    """Return what ``import.json`` says, or ``None`` when there is none.

    Raises:
        PredictionError: It cannot be read.
    """
    path = directory / DESCRIPTION
    if not path.is_file():
        return None
    try:
        value = verify_checksum(read_bytes(path, MOST_JSON_BYTES))
        members = tuple(_plain(ImportedMember(**member)) for member in value["members"])
        return Import(directory, value["digest"], ImportOptions(**value["options"]), members)
    except (ValueError, KeyError, TypeError) as error:
        raise PredictionError(
            f"an import must be described by JSON from detcurate ({path}): {error}; delete {directory} and import again"
        ) from error


def _plain(member: ImportedMember) -> ImportedMember:
    """Return a member of an import that may be a stranger's; raises ``ValueError`` for a name that is a path."""
    for name in (member.file_name, member.folder, member.copy):
        if not is_inside(name) or "/" in name or name in (".", ".."):
            raise ValueError(f"file_name, folder and copy must be names without a folder, got {name!r}")
    if not all(type(number) is int and 0 <= number < 2**31 for number in (member.run, member.iteration)):
        raise ValueError(f"run and iteration must be integers from 0, got {member.run!r} and {member.iteration!r}")
    return member


def require_imported(run: Run) -> Import:
    """Return the import that ``CURATE.PREDICT.RESULTS`` names.

    Raises:
        PredictionError: It is not there.
        ConfigError: ``OUTPUT_DIR`` holds an ensemble of Detectron2, which would be removed.
    """
    require_no_ensemble(run)
    name, found = run.settings.predict.results, read_import(import_directory(run))
    if found is None:
        there = sorted(path.parent.name for path in (run.output_dir / IMPORTED).glob(f"*/{DESCRIPTION}"))
        raise PredictionError(
            f"{_SETTING} must name results that were imported into {run.output_dir} ({', '.join(there) or 'none'}), "
            f"got {name!r}; run `detcurate import {name} --config-file FILE --member RESULTS.json` first"
        )
    return found


def is_imported(stage_metadata: StageMetadata) -> bool:
    """Tell from the marker of a stage ``train`` whether its members are imported answers."""
    return _SETTING in stage_metadata["settings"]


def require_no_ensemble(run: Run) -> None:
    """Raise ``ConfigError`` when ``OUTPUT_DIR`` holds an ensemble of Detectron2, which an import would replace."""
    stage_metadata = read_stage_metadata(run.directory("train"))
    if stage_metadata is not None and not is_imported(stage_metadata):
        raise ConfigError(
            f"OUTPUT_DIR must not hold an ensemble of its own beside imported results, got one in "
            f"{run.directory('train')}; give another OUTPUT_DIR, or delete that directory"
        )


def predictions_digest(run: Run, options: ImportOptions) -> str:
    """Return the digest of what answers depend on beside the file they come from: not on the pool's labels."""
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
    """Build the stage ``train`` of an import: a ledger of the results files, and the files themselves."""
    found = require_imported(run)
    settings = {"CURATE.ENSEMBLE": {"num_runs": 0}, _SETTING: run.settings.predict.results}
    inputs = {"imported": sha256_file(found.directory / DESCRIPTION)}
    return Stage("train", run.directory("train"), settings, inputs, lambda: _take_files(run, found))


def _take_files(run: Run, found: Import) -> StageResult:
    directory, members = run.directory("train"), [member.member() for member in found.members]
    for imported, member in zip(found.members, members, strict=True):
        source = found.directory / imported.folder / imported.copy
        verify_member(source, member.sha256, advice=f"delete {found.directory} and import the results again")
        link_or_copy(source, directory / member.file)
    write_index(directory / MEMBER_INDEX, members)
    outputs = [directory / MEMBER_INDEX, *(directory / member.file for member in members)]
    return StageResult(outputs, f"{len(members)} members, imported as {run.settings.predict.results}")


def imported_predict_stage(run: Run) -> Stage:
    """Build the stage ``predict`` of an import: a pass for each member.

    Raises:
        PredictionError: The import is not there, or was read against another pool.
    """
    found, name = require_imported(run), run.settings.predict.results
    if predictions_digest(run, found.options) != found.digest:
        raise PredictionError(
            f"imported results must be of the pool's images and classes and of CURATE.PREDICT.SHARD_SIZE as they are "
            f"now, got others ({found.directory}); run `detcurate import {name}` again with this config"
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
        taken = PredictionSet(directory / f"set-{number:02d}", imported.folder, (names[-1],))
        for index in range(num_shards):
            target = shard_path(taken.directory, index)
            link_or_copy(shard_path(found.directory / imported.folder, index), target)
            written.append(target)
        taken.write()
        written.append(taken.description)
    write_json(directory / MEMBERS, names)
    summary = f"{num_images:,} images by {len(names)} imported members in {num_shards} shards"
    return StageResult([directory / MEMBERS, *written], summary, {"num_members": len(names)})


def imported_plans(run: Run) -> dict[str, str]:
    """Say what the stages ``train`` and ``predict`` would do."""
    found = read_import(import_directory(run))
    members = f"{len(found.members) if found else 0} members, imported as {run.settings.predict.results}"
    return {"train": members, "predict": "the answers that were imported"}
