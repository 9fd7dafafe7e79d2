"""Base class of all settings, and helpers to declare and validate them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from detcurate.errors import ConfigError
from detcurate.io.storage import locate

_CHOICES = "choices"


class Settings(BaseModel):
    """A frozen group of settings that rejects unknown keys and unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _validate_choices(cls, value: Any, info: ValidationInfo) -> Any:
        choices = field_choices(cls, str(info.field_name))
        for name in (value if isinstance(value, tuple) else (value,)) if choices else ():
            require_known(name, choices)
        return value


def named(default: Any, choices: tuple[str, ...], description: str) -> Any:
    """Declare a field that holds a name, or a tuple of names, among ``choices``.

    A misspelt name is reported with the nearest one, which a ``Literal`` does not do.
    """
    return Field(default, description=description, json_schema_extra={_CHOICES: list(choices)})


def field_choices(model: type[BaseModel], field: str) -> tuple[str, ...]:
    """Return the names that a field declared with :func:`named` accepts; none for other fields."""
    extra = model.model_fields[field].json_schema_extra
    choices = extra.get(_CHOICES) if isinstance(extra, dict) else None
    return tuple(str(name) for name in choices) if isinstance(choices, list) else ()


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint at the name nearest to a misspelt one, to be appended to a message; empty when none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def require_known(name: str, choices: Iterable[str]) -> None:
    """Raise ``ValueError`` with all choices and the nearest one unless ``name`` is among them."""
    names = sorted(choices)
    if name not in names:
        raise ValueError(f"must be one of {', '.join(names)} (got {name!r}).{nearest(name, names)}")


def require_distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return names that are at least one and all different; else raise ``ValueError``."""
    if not names or len(set(names)) != len(names):
        raise ValueError(f"must be one or more different names (got {list(names)})")
    return names


def parse_quota(text: str, *, num_names: int) -> tuple[tuple[str, ...], int]:
    """Parse ``class=limit`` (one name) or ``field=value=limit`` (two); the class and the value may contain ``=``.

    Raises:
        ValueError: The text has another form, or the limit is not an integer of at least 0.

    Example:
        >>> parse_quota("traffic light=200", num_names=1), parse_quota("weather=rain=500", num_names=2)
        ((('traffic light',), 200), (('weather', 'rain'), 500))
    """
    name, _, limit = text.rpartition("=")
    names = tuple(name.split("=", num_names - 1))
    if len(names) != num_names or not all(names) or not (limit.isascii() and limit.isdigit()):
        raise ValueError(
            f"a quota must have the form {'class=200' if num_names == 1 else 'field=value=200'} (got {text!r})"
        )
    return names, int(limit)


def location(text: str, info: ValidationInfo) -> str:
    """Return a path, or a URL of a supported kind without credentials; else raise ``ValueError``."""
    name = str(info.field_name).upper()
    try:
        locate(text, name=name)
    except ConfigError as error:
        raise ValueError(str(error).removeprefix(f"{name}: ")) from None
    return text
