"""Whose the results below ``CURATE.STORAGE.ROOT`` are: one ``OUTPUT_DIR``'s, which no other run may overwrite."""

from __future__ import annotations

import orjson

from detcurate.errors import ConfigError
from detcurate.files import remove_tree, sha256_json, write_json
from detcurate.pipeline.context import CANDIDATES, DIRECTORIES, STORED, Run
from detcurate.storage import is_url, locate

_OWNER = "detcurate.json"


def claim_storage_root(run: Run, *, fresh: bool) -> None:
    """Make what ``CURATE.STORAGE.ROOT`` names this ``OUTPUT_DIR``'s; with ``fresh`` empty it of earlier results.

    Raises:
        ConfigError: It is that of another ``OUTPUT_DIR``.
        StorageError: It cannot be read or written.
    """
    if not run.settings.storage.root:
        return
    require_own_root(run)
    root = run.storage_root
    if fresh:
        for name in (*(DIRECTORIES[stage] for stage in STORED), DIRECTORIES["search"], CANDIDATES):
            if (root / name).exists():
                remove_tree(root / name)
    write_json(root / _OWNER, _identity(run))


def require_locations(run: Run) -> None:
    """Raise ``ConfigError`` when a setting is a URL that cannot be used, before its secret is written anywhere."""
    locate(str(run.cfg.DATASETS.ROOT), name="DATASETS.ROOT")
    locate(str(run.cfg.OUTPUT_DIR), name="OUTPUT_DIR")
    if is_url(str(run.cfg.OUTPUT_DIR)):
        raise ConfigError(
            "OUTPUT_DIR must be a folder, got a URL; set CURATE.STORAGE.ROOT to put predictions and scores there"
        )


def require_own_root(run: Run) -> None:
    """Raise ``ConfigError`` when what ``CURATE.STORAGE.ROOT`` names is another ``OUTPUT_DIR``'s."""
    if not run.settings.storage.root:
        return
    try:
        found = orjson.loads((run.storage_root / _OWNER).read_bytes())
    except FileNotFoundError:
        return
    except orjson.JSONDecodeError:
        found = None
    if found != _identity(run):
        raise ConfigError(
            f"CURATE.STORAGE.ROOT must be of this OUTPUT_DIR alone, got one of another ({run.storage_root}); give "
            f"another ROOT, or, when OUTPUT_DIR was moved, delete {_OWNER} there"
        )


def _identity(run: Run) -> dict[str, str]:
    # The folder by its digest: what is in object storage does not tell of the machine.
    return {"config_file": run.config_file.name, "output_dir": sha256_json(str(run.output_dir.resolve()))}
