"""``detcurate validate``: print the defects of an annotation file, and of its images, as a table."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence

from detcurate.cli.common import say, say_json, table
from detcurate.coco.dataset import CocoDataset, inspect_coco
from detcurate.coco.validation.findings import RULES, Finding, FindingLog, parse_policies
from detcurate.errors import ConfigError
from detcurate.io.storage import local_file, locate

_WORST_FIRST = ("error", "repair", "warn", "note")


def run(arguments: argparse.Namespace) -> int:
    """Check a file, print its defects, and return the exit status."""
    if arguments.cache and not arguments.images:
        raise ConfigError("--cache: needs --images, whose result it stores")
    policies = parse_policies(arguments.policy)
    dataset, findings = inspect_coco(local_file(arguments.file, name="FILE"), policies)
    if arguments.images:
        findings = (*findings, *_image_findings(dataset, arguments, policies))
        findings = tuple(sorted(findings, key=lambda finding: _WORST_FIRST.index(finding.policy)))
    if arguments.json:
        say_json({**_facts(arguments.file, dataset), "findings": [finding.to_dict() for finding in findings]})
    else:
        say(*_report(arguments.file, dataset, findings))
    return int(any(finding.policy == "error" for finding in findings))


def _image_findings(
    dataset: CocoDataset, arguments: argparse.Namespace, policies: Mapping[str, str]
) -> tuple[Finding, ...]:
    # Imported here: most calls check annotations alone, and Pillow and the process pool take their time to load.
    from detcurate.coco.image_files import examine_images, log_image_findings

    log, num_processes = FindingLog(policies), arguments.num_processes or os.cpu_count() or 1
    root = locate(arguments.images, name="--images")
    statuses = examine_images(dataset, root, num_processes=num_processes, desc="check images", cache=arguments.cache)
    log_image_findings(statuses, log)
    return log.findings()


def _facts(file: str, dataset: CocoDataset) -> dict[str, object]:
    return {
        "file": file,
        "sha256": dataset.sha256,
        "num_images": len(dataset),
        "num_boxes": dataset.num_boxes,
        "class_names": list(dataset.class_names),
    }


def _report(file: str, dataset: CocoDataset, findings: Sequence[Finding]) -> list[str]:
    facts = f"{len(dataset):,} images, {dataset.num_boxes:,} boxes, {len(dataset.class_names)} classes"
    lines = [f"{file}: {facts} are usable", ""]
    if not findings:
        return [*lines, "no findings"]
    rows = [(finding.policy, finding.code, finding.count) for finding in findings]
    lines += [*table(("policy", "finding", "records"), rows), ""]
    for finding in findings:
        lines.append(f"{finding.code}: {finding.advice}")
        if repair := RULES[finding.code].repair:
            would = f"--policy {finding.code}=repair would {repair}"
            lines.append(f"    repaired: {repair}" if finding.policy == "repair" else f"    {would}")
        lines += [f"    {example}" for example in finding.examples]
        if finding.count > len(finding.examples) > 1:
            lines.append(f"    and {finding.count - len(finding.examples):,} more")
    errors = sum(finding.policy == "error" for finding in findings)
    return [*lines, "", f"{errors} of {len(findings)} findings are errors" if errors else "no finding is an error"]
