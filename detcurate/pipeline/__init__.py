"""The order of the stages; the only orchestrator."""

from detcurate.pipeline.context import Run
from detcurate.pipeline.runner import STAGE_NAMES, dry_run, join_pipeline, run_pipeline

__all__ = ["STAGE_NAMES", "Run", "dry_run", "join_pipeline", "run_pipeline"]
