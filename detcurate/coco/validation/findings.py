"""The findings of the validation of a COCO file, and the policy of each: error, warn, repair or note."""

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
    """The treatment of one kind of finding.

    Args:
        policy: The default policy: ``error`` stops, ``warn`` and ``note`` keep the record as it is, ``repair`` fixes
            it.
        allowed: The policies that can be set.
        repair: The effect of ``repair`` as an imperative phrase; empty where there is no repair.
        advice: What the user can do, as a sentence.
        meaning: What was found, as a sentence.
    """

    policy: str
    allowed: tuple[str, ...]
    repair: str
    advice: str
    meaning: str


# Error where keeping the record would lose data or train on wrong labels; warn where other tools fail; note where
# nothing is wrong but the user may want to know.
_RULES = (
    ("not_finite_number", "error", "error repair",
     "read NaN and Infinity as null",
     "Write null or drop the record.",
     "The file contains NaN or Infinity, which are not JSON."),
    ("malformed_record", "error", "error repair",
     "drop the record",
     "Fix the record.",
     "A record is not an object, lacks a required field, or has a value of the wrong type."),
    ("string_id", "repair", "error repair",
     "assign integer ids; the manifest keeps the original ones",
     "Use integer ids.",
     "An id is a string, or an integer of more than 64 bits."),
    ("large_id", "warn", "error warn note",
     "",
     "Use smaller ids: tools that read numbers as floats confuse ids above 2^53.",
     "An id is above 2^53."),
    ("duplicate_image_id", "error", "error repair",
     "keep the first record of each id",
     "Use unique ids.",
     "Two images have the same id."),
    ("duplicate_category_id", "error", "error repair",
     "keep the first record of each id",
     "Use unique ids.",
     "Two categories have the same id."),
    ("duplicate_category_name", "error", "error",
     "",
     "Rename one of them.",
     "Two categories have the same name."),
    ("duplicate_annotation_id", "warn", "error warn repair note",
     "assign new ids to all but the first",
     "Use unique ids: tools that index by id keep only one of them.",
     "Two annotations have the same id."),
    ("annotation_id_zero", "warn", "error warn repair note",
     "assign a new id",
     "Use ids from 1: pycocotools takes id 0 for an unmatched annotation.",
     "An annotation has id 0."),
    ("missing_id", "warn", "error warn repair note",
     "assign an id",
     "Write an id: pycocotools needs it.",
     "An annotation has no id."),
    ("missing_iscrowd", "warn", "error warn repair note",
     "write 0",
     "Write 0: pycocotools needs the field.",
     "An annotation has no `iscrowd`."),
    ("missing_area", "warn", "error warn repair note",
     "write the area of the box",
     "Write the area: pycocotools needs it.",
     "An annotation has no `area`."),
    ("unknown_image", "error", "error repair",
     "drop the annotation",
     "Add the image or drop the annotations.",
     "An annotation refers to an image that is not in the file."),
    ("unknown_category", "error", "error repair",
     "drop the annotation",
     "Add the category or drop the annotations.",
     "An annotation refers to a category that is not in the file."),
    ("category_id_gap", "note", "error warn note",
     "",
     "Map ids with the category records, never by subtracting 1.",
     "The category ids are not 1 to the number of categories."),
    ("invalid_box", "error", "error repair",
     "drop the annotation",
     "Drop the annotations.",
     "A box is not four finite numbers with a width and height above 0."),
    ("box_outside_image", "error", "error warn repair note",
     "drop the annotation",
     "Drop the annotations.",
     "A box lies entirely outside its image."),
    ("box_partly_outside", "warn", "error warn repair note",
     "clip the box to the image",
     "Clip the boxes.",
     "A box extends more than 1 px beyond its image."),
    ("normalized_boxes", "error", "error warn note",
     "",
     "Multiply the boxes by the width and height of the image: COCO boxes are in pixels.",
     "Most boxes are in fractions of the image size."),
    ("segmentation_without_box", "error", "error repair",
     "use the box around the segmentation",
     "Write the box around the segmentation.",
     "An annotation has a segmentation but no box."),
    ("duplicate_file_name", "warn", "error warn note",
     "",
     "Join the records: the image counts twice and may be in two splits.",
     "Two images have the same `file_name`."),
    ("absolute_file_name", "error", "error warn",
     "",
     "Write it relative to the image root, so that the dataset can be moved.",
     "A `file_name` is an absolute path."),
    ("escaping_file_name", "error", "error",
     "",
     "Use a path inside the image root.",
     "A `file_name` leads outside the image root."),
    (LINK, "error", "error warn note",
     "",
     "Copy the files into the image root, or set link_leaves_root=note if the links are yours.",
     "An image file, or a folder on its path, is a link to outside the image root."),
    ("missing_image_file", "error", "error warn",
     "",
     "Add the files or name another image root.",
     "An image file does not exist."),
    ("unreadable_image", "error", "error warn",
     "",
     "Save the image again or drop its record.",
     "An image file cannot be decoded."),
    ("image_size_differs", "error", "error warn",
     "",
     "Write the true size of the image; its boxes may have to be scaled.",
     "The size in the record differs from the size of the image file."),
    ("unsupported_depth", "error", "error warn",
     "",
     "Save the image with 8 bits per channel: readers clip larger values.",
     "An image has more than 8 bits per channel."),
    ("other_image_format", "note", "error warn note",
     "",
     "Rename the file: tools that go by the extension may fail.",
     "The extension of an image file differs from its format."),
    ("exif_rotation", "warn", "error warn note",
     "",
     "Save the image upright: tools that ignore EXIF show it rotated.",
     "An image is rotated by its EXIF data."),
    ("no_annotations", "warn", "error warn note",
     "",
     "Add annotations: a detector cannot learn from this file.",
     "The file has no usable annotation."),
    ("empty_image", "note", "error warn note",
     "",
     "No action needed: images without boxes are kept as negative examples.",
     "An image has no usable annotation."),
    ("crowd_region", "note", "error warn note",
     "",
     "No action needed: crowd regions are kept, and ignored by the evaluation.",
     "An annotation is a crowd region."),
    ("byte_order_mark", "note", "error warn note",
     "",
     "Save the file as UTF-8 without a byte order mark, which some readers refuse.",
     "The file begins with a byte order mark."),
)  # fmt: skip
RULES: Mapping[str, Rule] = MappingProxyType(
    {code: Rule(policy, tuple(allowed.split()), *texts) for code, policy, allowed, *texts in _RULES}
)


def findings_table() -> list[tuple[str, str, str, str, str]]:
    """Return a row for each finding: its code, default policy, other policies, repair and meaning.

    Example:
        >>> findings_table()[1][:4]
        ('malformed_record', 'error', 'repair', 'drop the record')
    """
    return [
        (
            code,
            rule.policy,
            ", ".join(policy for policy in rule.allowed if policy != rule.policy),
            rule.repair,
            rule.meaning,
        )
        for code, rule in RULES.items()
    ]


@dataclass(frozen=True)
class Finding:
    """All records with one kind of finding.

    Args:
        code: A key of ``RULES``.
        policy: The policy that was applied: ``error``, ``warn``, ``repair`` or ``note``.
        count: The number of records.
        examples: The first of them, a phrase each.
        advice: What the user can do, as a sentence.
    """

    code: str
    policy: str
    count: int
    examples: tuple[str, ...]
    advice: str

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as values that JSON can store."""
        return {**asdict(self), "examples": list(self.examples)}

    def sentence(self) -> str:
        """Return the finding in one line."""
        more = f", and {self.count - 1:,} more" if self.count > 1 else ""
        remedy = f"Repaired: {RULES[self.code].repair}." if self.policy == "repair" else self.advice
        return f"{self.code}: {self.examples[0]}{more}. {remedy}"


def parse_policies(texts: Iterable[str]) -> dict[str, str]:
    """Read policies written as ``code=policy``.

    Raises:
        ConfigError: A code or a policy does not exist, or the policy is not allowed for that code.

    Example:
        >>> parse_policies(["invalid_box=repair"])
        {'invalid_box': 'repair'}
    """
    policies = {}
    for text in texts:
        code, _, policy = text.partition("=")
        if code not in RULES:
            near = difflib.get_close_matches(code, RULES, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Use one of {', '.join(RULES)}."
            raise ConfigError(f"policy of a finding: unknown finding (got {text!r}). {hint}")
        if policy not in RULES[code].allowed:
            allowed = ", ".join(RULES[code].allowed)
            raise ConfigError(f"policy of {code}: not allowed (got {text!r}). Use one of {allowed}.")
        policies[code] = policy
    return policies


class FindingLog:
    """Collects the findings of one file and knows the policy of each.

    Args:
        policies: Code -> policy, where it differs from the default.
    """

    def __init__(self, policies: Mapping[str, str] = MappingProxyType({})) -> None:
        self._policies = parse_policies(f"{code}={policy}" for code, policy in policies.items())
        self._counts: dict[str, int] = {}
        self._examples: dict[str, list[str]] = {}

    def policy(self, code: str) -> str:
        """Return the policy of a finding."""
        return self._policies.get(code, RULES[code].policy)

    def repairs(self, code: str) -> bool:
        """Return whether a finding is repaired."""
        return self.policy(code) == "repair"

    def add(self, code: str, example: str, count: int = 1) -> None:
        """Add one record, or several with one common example."""
        self._counts[code] = self._counts.get(code, 0) + int(count)
        examples = self._examples.setdefault(code, [])
        if len(examples) < NUM_EXAMPLES:
            examples.append(example)

    def add_many(self, code: str, positions: Sequence[int] | Any, example: Callable[[int], str]) -> None:
        """Add the records at some positions; ``example`` is called for the first of them only."""
        if len(positions):
            self._counts[code] = self._counts.get(code, 0) + len(positions)
            examples = self._examples.setdefault(code, [])
            examples += [example(int(position)) for position in positions[: NUM_EXAMPLES - len(examples)]]

    def findings(self) -> tuple[Finding, ...]:
        """Return the findings, most severe first."""
        found = [
            Finding(code, self.policy(code), count, tuple(self._examples[code]), RULES[code].advice)
            for code, count in self._counts.items()
        ]
        order = list(RULES)
        return tuple(sorted(found, key=lambda f: (_SEVERITY[f.policy], order.index(f.code))))


_SEVERITY = {"error": 0, "repair": 1, "warn": 2, "note": 3}


def describe_errors(findings: Sequence[Finding], path: object) -> str:
    """Return the message for the findings with the policy ``error``, a line each when there are several."""
    lines = []
    for finding in findings:
        more = f", and {finding.count - 1:,} more" if finding.count > 1 else ""
        rule = RULES[finding.code]
        repair = f" Or set {finding.code}=repair to {rule.repair}." if rule.repair else ""
        lines.append(f"{path}: {finding.examples[0]}{more}. {finding.advice}{repair}")
    if len(lines) == 1:
        return lines[0]
    return f"{path}: {len(lines)} kinds of findings are errors.\n  " + "\n  ".join(lines)
