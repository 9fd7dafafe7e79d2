"""What can be wrong with a COCO file, and what is done about each: stop, warn, repair, or note."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

from detcurate.errors import ConfigError

POLICIES = ("error", "warn", "repair", "note")
NUM_EXAMPLES = 3
LINK = "link_leaves_root"


@dataclass(frozen=True)
class Rule:
    """What is done about one kind of finding, unless the user says otherwise.

    Args:
        policy: The default: ``error`` stops; ``warn`` and ``note`` keep the record as it is; ``repair`` mends it.
        allowed: The policies that make sense.
        repair: What ``repair`` does; empty where there is no repair.
        advice: What the user can do.
    """

    policy: str
    allowed: tuple[str, ...]
    repair: str
    advice: str


def _rule(policy: str, allowed: str, repair: str, advice: str) -> Rule:
    return Rule(policy, tuple(allowed.split()), repair, advice)


# Strict where keeping the record would lose data or train on nonsense; a warning where other tools stumble; a note
# where nothing is wrong but the user may want to know.
RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "not_finite_number": _rule(
            "error", "error repair", "read NaN and Infinity as null", "write null or drop the record"
        ),
        "malformed_record": _rule("error", "error repair", "drop the record", "mend the record"),
        "string_id": _rule(
            "repair", "error repair", "number them inside; the manifest keeps the texts", "number the records"
        ),
        "large_id": _rule(
            "warn", "error warn note", "", "ids above 2^53 lose digits in tools that read numbers as floats: renumber"
        ),
        "duplicate_image_id": _rule("error", "error repair", "keep the first record of each id", "renumber them"),
        "duplicate_category_id": _rule("error", "error repair", "keep the first record of each id", "renumber them"),
        "duplicate_category_name": _rule("error", "error", "", "rename one of them"),
        "duplicate_annotation_id": _rule(
            "warn", "error warn repair note", "number the later ones on", "tools that index by id keep one of them only"
        ),
        "annotation_id_zero": _rule(
            "warn", "error warn repair note", "give it a new number", "pycocotools takes id 0 for no match: renumber"
        ),
        "missing_id": _rule("warn", "error warn repair note", "number them on", "pycocotools needs an id"),
        "missing_iscrowd": _rule("warn", "error warn repair note", "write 0", "pycocotools needs it: write 0"),
        "missing_area": _rule(
            "warn", "error warn repair note", "write the box's", "pycocotools needs it: write the area"
        ),
        "unknown_image": _rule("error", "error repair", "drop the annotation", "add the image or drop the annotations"),
        "unknown_category": _rule(
            "error", "error repair", "drop the annotation", "add the category or drop the annotations"
        ),
        "category_id_gap": _rule("note", "error warn note", "", "map ids by the categories, never by subtracting 1"),
        "invalid_box": _rule("error", "error repair", "drop the annotation", "drop the annotations"),
        "box_outside_image": _rule("error", "error warn repair note", "drop the annotation", "drop the annotations"),
        "box_partly_outside": _rule("warn", "error warn repair note", "cut the box at the border", "cut the boxes"),
        "normalized_boxes": _rule(
            "error", "error warn note", "", "COCO boxes are in pixels: multiply by the image's width and height"
        ),
        "segmentation_without_box": _rule(
            "error", "error repair", "take the box around the segmentation", "write the box around it"
        ),
        "duplicate_file_name": _rule(
            "warn", "error warn note", "", "the image counts twice and may stand in two splits: join the records"
        ),
        "absolute_file_name": _rule(
            "error", "error warn", "", "write it relative to the image root, so that the set can be moved"
        ),
        "escaping_file_name": _rule("error", "error", "", "file_name must stay inside the image root"),
        LINK: _rule(
            "error", "error warn note", "", "copy the files into the image root, or allow it if the links are your own"
        ),
        "missing_image_file": _rule("error", "error warn", "", "add the files or name another image root"),
        "unreadable_image": _rule("error", "error warn", "", "write the image again or drop its record"),
        "image_size_differs": _rule("error", "error warn", "", "write the image's true size; boxes may be scaled"),
        "unsupported_depth": _rule(
            "error", "error warn", "", "write it with 8 bits a channel: a reader cuts larger values off"
        ),
        "other_image_format": _rule(
            "note", "error warn note", "", "tools that go by the name may fail: name the file as what it is"
        ),
        "exif_rotation": _rule(
            "warn", "error warn note", "", "tools that ignore EXIF see the image turned: store it upright"
        ),
        "no_annotations": _rule("warn", "error warn note", "", "nothing can be learned from it"),
        "empty_image": _rule("note", "error warn note", "", "images without boxes are kept; they teach what is none"),
        "crowd_region": _rule("note", "error warn note", "", "crowd regions are kept, and ignored by the evaluation"),
        "byte_order_mark": _rule("note", "error warn note", "", "some readers refuse it: save as UTF-8 without it"),
    }
)


@dataclass(frozen=True)
class Finding:
    """One kind of thing that was found.

    Args:
        code: A key of ``RULES``.
        policy: What was done about it: ``error``, ``warn``, ``repair`` or ``note``.
        count: How many records.
        examples: The first of them, a sentence each.
        advice: What to do.
    """

    code: str
    policy: str
    count: int
    examples: tuple[str, ...]
    advice: str

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as JSON-able values."""
        return {**asdict(self), "examples": list(self.examples)}

    def sentence(self) -> str:
        """Return the finding in one line."""
        more = f" (and {self.count - 1:,} more)" if self.count > 1 else ""
        repaired = f"; repaired: {RULES[self.code].repair}" if self.policy == "repair" else f"; {self.advice}"
        return f"{self.code}: {self.examples[0]}{more}{repaired}"


def parse_policies(texts: Iterable[str]) -> dict[str, str]:
    """Read policies written as ``code=policy``.

    Raises:
        ConfigError: A code or a policy does not exist, or the policy makes no sense for that code.

    Example:
        >>> parse_policies(["invalid_box=repair"])
        {'invalid_box': 'repair'}
    """
    policies = {}
    for text in texts:
        code, _, policy = text.partition("=")
        if code not in RULES:
            near = difflib.get_close_matches(code, RULES, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ConfigError(f"a policy must be of a known finding, one of {', '.join(RULES)}, got {text!r}{hint}")
        if policy not in RULES[code].allowed:
            raise ConfigError(f"the policy of {code} must be one of {', '.join(RULES[code].allowed)}, got {text!r}")
        policies[code] = policy
    return policies


class FindingLog:
    """Collects findings while a file is read; knows what is to be done about each.

    Args:
        policies: Code -> policy, where they differ from the defaults.
    """

    def __init__(self, policies: Mapping[str, str] = MappingProxyType({})) -> None:
        self._policies = parse_policies(f"{code}={policy}" for code, policy in policies.items())
        self._counts: dict[str, int] = {}
        self._examples: dict[str, list[str]] = {}

    def policy(self, code: str) -> str:
        """Return what is done about a finding."""
        return self._policies.get(code, RULES[code].policy)

    def repairs(self, code: str) -> bool:
        """Tell whether a finding is repaired."""
        return self.policy(code) == "repair"

    def add(self, code: str, example: str, count: int = 1) -> None:
        """Add one record, or several that one example stands for."""
        self._counts[code] = self._counts.get(code, 0) + int(count)
        examples = self._examples.setdefault(code, [])
        if len(examples) < NUM_EXAMPLES:
            examples.append(example)

    def add_many(self, code: str, positions: Sequence[int] | Any, example: Callable[[int], str]) -> None:
        """Add the records at some positions; the text is made for the first of them only."""
        if len(positions):
            self._counts[code] = self._counts.get(code, 0) + len(positions)
            examples = self._examples.setdefault(code, [])
            examples += [example(int(position)) for position in positions[: NUM_EXAMPLES - len(examples)]]

    def findings(self) -> tuple[Finding, ...]:
        """Return what was found, the worst first."""
        found = [
            Finding(code, self.policy(code), count, tuple(self._examples[code]), RULES[code].advice)
            for code, count in self._counts.items()
        ]
        order = list(RULES)
        return tuple(sorted(found, key=lambda f: (_SEVERITY[f.policy], order.index(f.code))))


_SEVERITY = {"error": 0, "repair": 1, "warn": 2, "note": 3}


def describe_errors(findings: Sequence[Finding], path: Any) -> str:
    """Return the message for the findings that stop, one line each when there are several."""
    lines = []
    for finding in findings:
        more = f", and {finding.count - 1:,} more such records" if finding.count > 1 else ""
        repair = f", or set {finding.code}=repair" if "repair" in RULES[finding.code].allowed else ""
        lines.append(f"{finding.examples[0]} ({path}{more}); {finding.advice}{repair}")
    if len(lines) == 1:
        return lines[0]
    return f"{len(lines)} kinds of findings stop the reading of {path}:\n  " + "\n  ".join(lines)
