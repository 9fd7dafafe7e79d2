"""Help a run predict its pool, from other processes or machines with the same ``OUTPUT_DIR``.

A helper only predicts shards. The run itself decides what to predict, writes the stage metadata and continues. The
processes share nothing but the folder, and lease it shard by shard (:mod:`detcurate.io.leases`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from detcurate.errors import ConfigError, PredictionError
from detcurate.io.files import is_temporary
from detcurate.io.storage import Location
from detcurate.pipeline.context import Run
from detcurate.pipeline.prediction_jobs import Preparation
from detcurate.pipeline.search import builds_up
from detcurate.pipeline.stage import read_stage_metadata
from detcurate.pipeline.stages.predict import predict_pool, predict_stage
from detcurate.predictions.store import PredictionSet, is_prepared, read_members, read_prediction_sets

_POLL_SECONDS = 1.0

_logger = logging.getLogger("detcurate")

Found = TypeVar("Found")


def require_joinable(run: Run) -> None:
    """Raise ``ConfigError`` if a run has no single prediction of the pool that others can help with."""
    if run.engine.assigns_blocks:
        raise ConfigError("--engine: must be local with --join (got ray). Add nodes to the Ray cluster instead.")
    if run.settings.predict.results:
        raise ConfigError(f"CURATE.PREDICT.RESULTS: must be empty with --join (got {run.settings.predict.results!r}).")
    if builds_up(run):
        raise ConfigError("CURATE.SEARCH.SCHEME: rounds cannot be joined (got build_up). Omit --join.")


def join_predict(run: Run, *, wait_seconds: float) -> None:
    """Predict shards of the stage ``predict`` that another process has started, until all are complete.

    Args:
        run: A run with the config of that process.
        wait_seconds: The longest wait for the stage to start.

    Raises:
        ConfigError: The stage has not started in time, or with other settings.
        DetcurateError: The prediction fails.
    """
    patience = _Patience(run, wait_seconds)
    if patience.until(lambda: _state(run)) == "complete":
        _logger.info("predict: complete, nothing left to help with")
        return
    again = replace(run, finished_stages={})  # metadata read while waiting may be out of date
    preparation = Preparation(prediction_sets=patience.prediction_sets, folder=patience.folder)
    result = _while_files_vanish(lambda: predict_pool(again, preparation))
    _logger.info("predict: %s; all shards are complete, the run itself continues", result.summary)


def _state(run: Run) -> str | None:
    """Return the status of the stage, or None if it has not started with this config."""
    try:
        stage = predict_stage(replace(run, finished_stages={}))
        stage_metadata = read_stage_metadata(stage.directory)
    except PredictionError:  # a stage before it has not finished
        return None
    return str(stage_metadata["status"]) if stage_metadata and stage_metadata["digest"] == stage.digest else None


@dataclass(frozen=True)
class _Patience:
    """Waits until the run itself has prepared something."""

    run: Run
    wait_seconds: float

    def until(self, find: Callable[[], Found | None]) -> Found:
        """Return the result of ``find`` once it is not None."""
        end = time.monotonic() + self.wait_seconds
        while (found := find()) is None:
            if time.monotonic() > end:
                raise ConfigError(
                    f"{self.run.output_dir}: no run with this config and KEY VALUE started to predict within "
                    f"{self.wait_seconds:g} s. Start it first, or wait longer with --join-wait."
                )
            time.sleep(min(_POLL_SECONDS, self.wait_seconds))
        return found

    def prediction_sets(
        self, directory: Location, digest: str, members: Sequence[str], *, num_shards: int
    ) -> list[PredictionSet]:
        """Return the prediction sets that another process prepares, as ``prepare_prediction_sets`` does."""

        def find() -> list[PredictionSet] | None:
            try:
                if read_members(directory) != list(members):  # written when the prediction sets are ready
                    return None
            except PredictionError:
                return None
            found = [one for one in read_prediction_sets(directory) if one.digest == digest]
            return found if {name for one in found for name in one.members}.issuperset(members) else None

        return self.until(find)

    def folder(self, folder: Location, digest: str) -> None:
        """Wait until another process has prepared a folder, as ``prepare_folder`` does."""
        self.until(lambda: is_prepared(folder, digest) or None)


def _while_files_vanish(work: Callable[[], Found]) -> Found:
    """Call ``work`` again if a temporary file was removed: a run that starts clears temporary files."""
    while True:
        try:
            return work()
        except FileNotFoundError as error:
            if not is_temporary(error.filename):
                raise
