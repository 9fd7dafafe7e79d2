"""``detcurate validate FILE``: what is wrong with an annotation file, as a table."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence

from detcurate.cli.common import local_path, say, say_json, table
from detcurate.coco.dataset import CocoDataset, inspect_coco
from detcurate.coco.image_files import examine_images, log_image_findings
from detcurate.coco.validation.findings import RULES, Finding, FindingLog, parse_policies
from detcurate.io.storage import local_file, locate

_WORST_FIRST = ("error", "repair", "warn", "note")
_EPILOG = """\
Each finding has a policy: error stops a curation, warn and note let the record through as it is, repair mends it. Set
others with --policy CODE=POLICY here, and with CURATE.POOL.FINDINGS "('CODE=POLICY',)" in a curation.

exit status: 0 no finding is an error, 1 some are, 2 nothing could be read
"""


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of ``detcurate validate``."""
    parser = argparse.ArgumentParser(
        prog="detcurate validate",
        description="Check a COCO annotation file, and with --images its image files.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE", help="a COCO annotation file, plain or gzip, or its URL")
    parser.add_argument("--images", metavar="DIR", help="decode every image below this image root, or its URL, too")
    parser.add_argument(
        "--cache", type=local_path, metavar="FILE", help="remember what --images found, by size and time"
    )
    parser.add_argument(
        "--policy", action="append", default=[], metavar="CODE=POLICY", help="may be given again for other codes"
    )
    parser.add_argument("--num-processes", type=int, default=0, metavar="N", help="for --images; 0: one a core")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def run(argv: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.cache and not arguments.images:
        parser.error("--cache needs --images")
    if arguments.num_processes < 0:
        parser.error(f"--num-processes must be at least 0, got {arguments.num_processes}")
    policies = parse_policies(arguments.policy)
    dataset, findings = inspect_coco(local_file(arguments.file, name="FILE"), policies)
    if arguments.images:
        findings = (*findings, *_image_findings(dataset, arguments, policies))
        findings = tuple(sorted(findings, key=lambda finding: _WORST_FIRST.index(finding.policy)))
    num_errors = sum(finding.policy == "error" for finding in findings)
    if arguments.json:
        say_json({**_facts(arguments.file, dataset), "findings": [finding.to_dict() for finding in findings]})
    else:
        say(*_report(arguments.file, dataset, findings))
    return 1 if num_errors else 0


def _image_findings(
    dataset: CocoDataset, arguments: argparse.Namespace, policies: Mapping[str, str]
) -> tuple[Finding, ...]:
    log, num_processes = FindingLog(policies), arguments.num_processes or os.cpu_count() or 1
    root = locate(arguments.images, name="--images")
    found = examine_images(dataset, root, num_processes=num_processes, desc="check images", cache=arguments.cache)
    log_image_findings(found, log)
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
    lines = [f"{file}: {facts} can be used", ""]
    if not findings:
        return [*lines, "nothing was found"]
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
