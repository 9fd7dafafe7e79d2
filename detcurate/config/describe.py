"""All settings with type, default, range and meaning, read from the pydantic models.

``detcurate config`` prints them, and the documentation's page of settings is generated from them.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Union

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from detcurate.config import CurateSettings
from detcurate.config.base import field_choices, nearest
from detcurate.errors import ConfigError

ROOT = "CURATE"


@dataclass(frozen=True)
class SettingDescription:
    """One setting, as texts for users.

    Args:
        key: The key of the config, such as ``CURATE.SELECT.FRACTION``.
        type: The type, such as ``int`` or ``tuple of str``.
        default: The default as Python, as it can be written in a config or on the command line.
        range: The allowed values: bounds such as ``0 < value <= 1``, or
            ``one of`` some names; empty where the type says it all.
        meaning: One sentence.
        section: The key of the section, such as ``CURATE.SELECT``.
    """

    key: str
    type: str
    default: str
    range: str
    meaning: str
    section: str


_SHARED = (
    SettingDescription(
        "DATASETS.ROOT",
        "str",
        "''",
        "",
        "Folder or URL that paths of CURATE.POOL and CURATE.EVALUATION start from.",
        "",
    ),
    SettingDescription("OUTPUT_DIR", "str", "'./output'", "", "Folder that the run writes to.", ""),
    SettingDescription("SEED", "int", "0", "value >= 0", "Random seed; runs and arms use SEED, SEED + 1, ....", ""),
)
"""Keys outside ``CURATE`` that detcurate reads without Detectron2."""


def describe_settings() -> list[SettingDescription]:
    """Return all settings: the top-level ones, then the sections of ``CURATE`` in the order of the stages.

    Example:
        >>> next(setting for setting in describe_settings() if setting.key == "CURATE.SELECT.FRACTION").range
        '0 < value <= 1'
    """
    return [*_SHARED, *_describe_model(CurateSettings, ROOT)]


def section_meanings() -> dict[str, str]:
    """Return the sections of ``CURATE`` with one sentence on each."""
    return {
        f"{ROOT}.{name.upper()}": field.description or ""
        for name, field in CurateSettings.model_fields.items()
        if _submodel(field) is not None
    }


def find_settings(name: str) -> list[SettingDescription]:
    """Return the setting or the section of a name; upper case and the prefix ``CURATE.`` may be left out.

    Raises:
        ConfigError: No setting or section has this name. The message contains the nearest one.

    Example:
        >>> [setting.key for setting in find_settings("select.fraction")]
        ['CURATE.SELECT.FRACTION']
    """
    settings = describe_settings()
    given = name.upper().strip(".")
    for key in (given, f"{ROOT}.{given}"):
        matching = [setting for setting in settings if setting.key == key or setting.key.startswith(f"{key}.")]
        if matching:
            return matching
    known = {setting.key: setting.key for setting in settings} | {section: section for section in section_meanings()}
    known |= {key.removeprefix(f"{ROOT}."): key for key in list(known)}
    hint = nearest(given, known)
    raise ConfigError(f"{name}: not a setting or section of detcurate.{hint} `detcurate config` lists all settings.")


def accepted_words(key: str) -> tuple[str, ...]:
    """Return the words that a setting accepts beside values of its default's type, such as ``auto``."""
    model: type[BaseModel] = CurateSettings
    *sections, name = [part.lower() for part in key.split(".")[1:]] or [""]
    for section in sections:
        below = _submodel(model.model_fields[section]) if section in model.model_fields else None
        if below is None:
            return ()
        model = below
    if name not in model.model_fields:
        return ()
    annotation = model.model_fields[name].annotation
    options = typing.get_args(annotation) if typing.get_origin(annotation) in (Union, types.UnionType) else ()
    literals = [option for option in options if typing.get_origin(option) is Literal]
    return tuple(word for literal in literals for word in typing.get_args(literal))


def _describe_model(model: type[BaseModel], section: str) -> list[SettingDescription]:
    described = []
    for name, field in model.model_fields.items():
        key, below = f"{section}.{name.upper()}", _submodel(field)
        if below is not None:
            described += _describe_model(below, key)
            continue
        allowed = _range(field, field_choices(model, name))
        described.append(
            SettingDescription(
                key, _type(field.annotation), repr(field.default), allowed, field.description or "", section
            )
        )
    return described


def _submodel(field: FieldInfo) -> type[BaseModel] | None:
    annotation = field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _type(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return type(arguments[0]).__name__
    if origin is tuple:
        return f"tuple of {_type(arguments[0])}"
    if origin in (Union, types.UnionType):
        words = [
            str(word)
            for option in arguments
            if typing.get_origin(option) is Literal
            for word in typing.get_args(option)
        ]
        return " or ".join(
            [*(_type(option) for option in arguments if typing.get_origin(option) is not Literal), *words]
        )
    return str(annotation.__name__)


def _range(field: FieldInfo, choices: tuple[str, ...]) -> str:
    extra: Mapping[str, Any] = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    if "range" in extra:
        return str(extra["range"])
    if choices or typing.get_origin(field.annotation) is Literal:
        return f"one of {', '.join(map(str, choices or typing.get_args(field.annotation)))}"
    bounds: dict[str, Any] = {}
    for constraint in field.metadata:
        for name in ("gt", "ge", "lt", "le"):
            if (bound := getattr(constraint, name, None)) is not None:
                bounds[name] = bound
    low = next((f"{bounds[name]:g} {sign} value" for name, sign in (("gt", "<"), ("ge", "<=")) if name in bounds), "")
    high = next((f"value {sign} {bounds[name]:g}" for name, sign in (("lt", "<"), ("le", "<=")) if name in bounds), "")
    if low and high:
        return f"{low}{high.removeprefix('value')}"
    if low:
        name = "gt" if "gt" in bounds else "ge"
        return f"value {'>' if name == 'gt' else '>='} {bounds[name]:g}"
    return high
