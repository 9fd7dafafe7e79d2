"""Helping a run that predicts its pool: other processes, of this or other machines, on the same ``OUTPUT_DIR``.

A helper makes shards and nothing else. The run itself decides what is asked, writes the markers and goes on; the two
meet in the folder alone, shard by shard (:mod:`detcurate.io.leases`).
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
    """Raise ``ConfigError`` where there is no single pass over the pool that others could help with."""
    if run.engine.hands_out_blocks:
        raise ConfigError("--engine must be local with --join, got ray; add nodes to the Ray cluster instead")
    if run.settings.predict.results:
        raise ConfigError("CURATE.PREDICT.RESULTS must be empty with --join, got answers that are there already")
    if builds_up(run):
        raise ConfigError("CURATE.SEARCH.SCHEME must not be build_up with --join: its rounds have no common pool")


def join_predict(run: Run, *, wait_seconds: float) -> None:
    """Make shards of the stage ``predict`` of a run that has begun it, until all are there.

    Args:
        run: With the config of that run.
        wait_seconds: How long it may take to begin.

    Raises:
        ConfigError: It has not begun in time, or with other settings.
        DetcurateError: What asking the members raises.
    """
    patience = _Patience(run, wait_seconds)
    if patience.until(lambda: _state(run)) == "complete":
        _logger.info("predict   is complete; there is nothing to help with")
        return
    again = replace(run, finished_stages={})  # what was read while the run was not yet there may be out of date
    preparation = Preparation(prediction_sets=patience.prediction_sets, folder=patience.folder)
    result = _while_files_vanish(lambda: predict_pool(again, preparation))
    _logger.info("predict   %s: all are there, some of them made here; the run itself goes on", result.summary)


def _state(run: Run) -> str | None:
    """Return the status of the stage when it is of this config, None when that has not begun."""
    try:
        stage = predict_stage(replace(run, finished_stages={}))
        stage_metadata = read_stage_metadata(stage.directory)
    except PredictionError:  # a stage before it has not finished
        return None
    return str(stage_metadata["status"]) if stage_metadata and stage_metadata["digest"] == stage.digest else None


@dataclass(frozen=True)
class _Patience:
    """Waiting for what the run itself prepares."""

    run: Run
    wait_seconds: float

    def until(self, find: Callable[[], Found | None]) -> Found:
        """Return what ``find`` gives once it gives something."""
        end = time.monotonic() + self.wait_seconds
        while (found := find()) is None:
            if time.monotonic() > end:
                raise ConfigError(
                    f"the run of {self.run.output_dir} must have begun to predict, with the same config and KEY VALUE, "
                    f"got none within {self.wait_seconds:g} s; start it first, or wait longer with --join-wait"
                )
            time.sleep(min(_POLL_SECONDS, self.wait_seconds))
        return found

    def prediction_sets(
        self, directory: Location, digest: str, members: Sequence[str], *, num_shards: int
    ) -> list[PredictionSet]:
        """Do as ``prepare_prediction_sets``, but wait for those that another process prepares."""

        def find() -> list[PredictionSet] | None:
            try:
                if read_members(directory) != list(members):  # written when the passes are ready
                    return None
            except PredictionError:
                return None
            found = [one for one in read_prediction_sets(directory) if one.digest == digest]
            return found if {name for one in found for name in one.members}.issuperset(members) else None

        return self.until(find)

    def folder(self, folder: Location, digest: str) -> None:
        """Do as ``prepare_folder``, but wait for another process to do it."""
        self.until(lambda: is_prepared(folder, digest) or None)


def _while_files_vanish(work: Callable[[], Found]) -> Found:
    """Work again when a file half written was removed: a run that is started anew clears away what it finds."""
    while True:
        try:
            return work()
        except FileNotFoundError as error:
            if not is_temporary(error.filename):
                raise
