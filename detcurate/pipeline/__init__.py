"""The order of the stages; the only orchestrator."""

from detcurate.pipeline.context import Run
from detcurate.pipeline.run import STAGES, dry_run, run_pipeline

__all__ = ["STAGES", "Run", "dry_run", "run_pipeline"]
