"""What all settings have in common."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict, ValidationInfo

from detcurate.errors import ConfigError
from detcurate.io.storage import locate


class Settings(BaseModel):
    """A frozen object that knows its keys and takes no others."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def require_known(name: str, value: str, known: Iterable[str]) -> str:
    """Return ``value`` when it is among ``known``; else raise ``ValueError`` with the nearest name and the list."""
    names = sorted(known)
    if value in names:
        return value
    near = difflib.get_close_matches(value, names, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise ValueError(f"{name} must be one of {', '.join(names)}, got {value!r}{hint}")


def location(text: str, info: ValidationInfo) -> str:
    """Return a text that is a path, or a URL that detcurate reads and that holds no secret."""
    try:
        locate(text, name=str(info.field_name))
    except ConfigError as error:
        raise ValueError(str(error)) from None
    return text
