"""Hooks of mkdocs: generate the reference pages from the code, and check links from pages into the repository.

A table on a reference page is read from the object that the program itself uses, so it cannot disagree with it.
"""

from __future__ import annotations

import argparse
import inspect
import json
import logging
import posixpath
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "docs" / "tutorials" / "notebook.ipynb"
REPOSITORY = "https://github.com/detcurate/detcurate/blob/main/"
GENERATED = {
    "CONTRIBUTING.md": "contributing/index.md",
    "CHANGELOG.md": "contributing/changelog.md",
    "docs/tutorials/notebook.ipynb": "tutorials/notebook.md",
}
"""Files of the repository that are pages of the site under another name."""
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)\s#]+)(#[^)\s]*)?(?=[)\s])")
TABLES = "<!-- tables -->"
LOG = logging.getLogger("mkdocs.hooks.detcurate")


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages to the site, and leave the notebook's source out."""
    for path, write in PAGES.items():
        files.append(File.generated(config, path, content=write()))
    for name, data in notebook_pictures().items():
        files.append(File.generated(config, f"tutorials/{name}", content=data))
    source = files.get_file_from_path("tutorials/notebook.ipynb")
    if source is not None:
        files.remove(source)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Insert generated tables, and turn links that leave docs/ into links to the repository."""
    folder = posixpath.dirname(page.file.src_uri)
    if TABLES in markdown:
        markdown = markdown.replace(TABLES, tables_section())

    def replaced(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join("docs", folder, match[1]))
        if target in GENERATED:
            return posixpath.relpath(GENERATED[target], folder) + (match[2] or "")
        if target.startswith("docs/"):
            return match[0]
        if not (ROOT / target).exists():
            LOG.warning("%s links to %s, which does not exist", page.file.src_uri, target)
        return f"{REPOSITORY}{target}{match[2] or ''}"

    return LINK.sub(replaced, markdown)


def cli_page() -> str:
    """Return the reference of the commands, from their parsers."""
    from detcurate.cli.parser import build_parser

    root = build_parser()
    lines = [
        "# Command line",
        "",
        "Generated from the parsers; `detcurate COMMAND --help` prints the same.",
        "",
        *markdown_table(
            ("command", "purpose"), ((f"[`{name}`](#{anchor(name)})", text) for name, text, _ in commands(root))
        ),
        "",
    ]
    for name, text, parser in commands(root):
        lines += [f"## {name}", "", parser.description or text, "", *parser_sections(parser)]
    return "\n".join(lines)


def commands(parser: argparse.ArgumentParser, prefix: str = "") -> list[tuple[str, str, argparse.ArgumentParser]]:
    """Return name, one line of help, and parser of every command that can be run."""
    found = []
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction):
            continue
        texts = {choice.dest: choice.help or "" for choice in action._choices_actions}
        for name, below in action.choices.items():
            nested = commands(below, f"{prefix}{name} ")
            if nested:
                found += nested
            elif name in texts:
                found.append((f"{prefix}{name}", texts[name], below))
    return found


def parser_sections(parser: argparse.ArgumentParser) -> list[str]:
    """Return usage, arguments and examples of a command as Markdown."""
    usage = parser.format_usage().removeprefix("usage: ").rstrip().replace("\n       ", "\n")
    lines = ["```text", usage, "```", ""]
    rows = []
    for action in parser._actions:
        if action.help == argparse.SUPPRESS or isinstance(action, argparse._HelpAction):
            continue
        value = action.metavar or (f"{{{','.join(map(str, action.choices))}}}" if action.choices else action.dest)
        value = f" {value}" if action.nargs != 0 else ""
        names = ", ".join(f"`{option}`" for option in action.option_strings[:-1])
        last = f"`{action.option_strings[-1] if action.option_strings else ''}{value}`".replace("` ", "`")
        rows.append((f"{names}, {last}" if names else last, escaped(expanded_help(action, parser))))
    if rows:
        lines += [*markdown_table(("argument", "meaning"), rows), ""]
    if parser.epilog:
        lines += ["```text", parser.epilog.replace("%(prog)s", parser.prog).strip(), "```", ""]
    return lines


def expanded_help(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    """Return the help of an argument with its default and choices filled in."""
    text = (action.help or "") % {**vars(action), "prog": parser.prog}
    if action.choices and action.metavar and not all(str(choice) in text for choice in action.choices):
        text = f"{text.rstrip('.')}: {', '.join(f'`{choice}`' for choice in action.choices)}"
    return text


def settings_page() -> str:
    """Return the reference of all settings, from the pydantic models."""
    from detcurate.config.describe import describe_settings, section_meanings

    sections: dict[str, list[Any]] = {}
    for setting in describe_settings():
        sections.setdefault(setting.section, []).append(setting)
    meanings = section_meanings()
    lines = [
        "# Settings",
        "",
        "Generated from the settings models. `detcurate config` prints the same, and `detcurate config --diff FILE`",
        "prints the settings that a config changes. Write a setting into a YAML config, or append `KEY VALUE` to",
        "`detcurate run`. Detectron2's keys (`MODEL`, `SOLVER`, `INPUT`, …) are described in its documentation.",
        "",
    ]
    for section, settings in sections.items():
        lines += [f"## {section or 'Top level'}", ""]
        if meanings.get(section):
            lines += [meanings[section], ""]
        rows = [
            (
                f"`{one.key.removeprefix(section).lstrip('.')}`",
                one.type,
                f"`{one.default}`",
                one.range.replace("= ", "=\u00a0"),
                one.meaning,
            )
            for one in settings
        ]
        lines += [*markdown_table(("setting", "type", "default", "range", "meaning"), rows), ""]
    return "\n".join(lines)


def measures_page() -> str:
    """Return the reference of measures, label-error scores, aggregations and strategies, from their docstrings."""
    from detcurate.score.aggregate import AGGREGATIONS
    from detcurate.score.measures import LABEL_MEASURES, MEASURES, SINGLE_MEMBER_MEASURES
    from detcurate.select.strategies import STRATEGIES

    lines = [
        "# Measures",
        "",
        "Generated from the functions. `CURATE.SCORE.MEASURES` names the measures to compute,",
        "`CURATE.SCORE.WEIGHTS` those that make the image score. [Scoring](../explanation/scoring.md) explains how",
        "they fit together. Measures marked ¹ can be computed with a single member.",
        "",
    ]
    for title, text, functions in (
        ("Disagreement between members", "No labels needed. Computed for each cluster of detections.", MEASURES),
        ("Comparison with labels", "Computed for each labelled box.", LABEL_MEASURES),
    ):
        lines += [f"## {title}", "", text, ""]
        for name, function in functions.items():
            lines += [f"### {name}{' ¹' if name in SINGLE_MEMBER_MEASURES else ''}", "", *docstring(function), ""]
    lines += [
        "## Label-error scores",
        "",
        "Columns of `score/objects.parquet`, in [0, 1]; higher = more likely an error.",
        "",
    ]
    lines += [*markdown_table(("score", "meaning"), label_error_rows()), ""]
    lines += [
        "## Aggregations",
        "",
        "`CURATE.SCORE.AGGREGATION`: from the values of an image's objects to one value.",
        "",
    ]
    rows = ((f"`{name}`", summary(function)) for name, function in AGGREGATIONS.items())
    lines += [*markdown_table(("aggregation", "value"), rows), ""]
    lines += ["## Selection strategies", "", "`CURATE.SELECT.STRATEGY`: the order in which images are selected.", ""]
    rows = ((f"`{name}`", summary(function)) for name, function in STRATEGIES.items())
    lines += [*markdown_table(("strategy", "order"), rows), ""]
    return "\n".join(lines)


def label_error_rows() -> Iterable[tuple[str, str]]:
    """Return the label-error scores with their meanings."""
    from detcurate.score.label_errors import LABEL_ERROR_MEANINGS

    return ((f"`{name}`", meaning) for name, meaning in LABEL_ERROR_MEANINGS.items())


def findings_page() -> str:
    """Return the reference of what validation finds in COCO files, from the rules."""
    from detcurate.coco.validation.findings import findings_table

    rows = (
        (f"`{code}`", escaped(meaning), f"`{default}`", others or "–", escaped(repair) or "–")
        for code, default, others, repair, meaning in findings_table()
    )
    return "\n".join(
        [
            "# Findings in COCO files",
            "",
            "Generated from the rules. `detcurate validate` reports these findings. `error` stops, `warn` and `note`",
            "keep the record unchanged, `repair` fixes it while reading. `CURATE.POOL.FINDINGS` or",
            "`--policy CODE=POLICY` changes a policy. [COCO files](../explanation/coco-files.md) explains the reasons.",
            "",
            *markdown_table(("finding", "meaning", "default", "other policies", "repair"), rows),
            "",
        ]
    )


def tables_section() -> str:
    """Return the columns of the tables below OUTPUT_DIR, from their schemas."""
    from detcurate.pipeline import object_table, tables

    lines: list[str] = []
    for table in sorted(subclasses(tables.Table, object_table), key=lambda one: (ORDER.index(one.STAGE), one.FILE)):
        lines += [f"## {table.STAGE}/{table.FILE}", "", *docstring(table), ""]
        rows = (
            (
                f"`{column.name}`",
                f"`{column.dtype}`",
                f"{escaped(column.meaning)}{' *Optional.*' if column.is_optional else ''}",
            )
            for column in table.COLUMNS
        )
        lines += [*markdown_table(("column", "type", "meaning"), rows), ""]
    return "\n".join(lines)


ORDER = ("pool", "train", "predict", "score", "select", "manifest", "retrain", "evaluate", "report")


def subclasses(base: type, *_modules: Any) -> list[Any]:
    """Return the subclasses of a base class that name a file, in the base's module and further imported modules."""
    return [one for one in base.__subclasses__() if hasattr(one, "FILE")]


def root_page(name: str) -> Callable[[], str]:
    """Return a function that reads a document of the repository's root, with its links relative to its page."""

    def write() -> str:
        folder = posixpath.join("docs", posixpath.dirname(GENERATED[name]))

        def replaced(match: re.Match[str]) -> str:
            return posixpath.relpath(match[1], folder) + (match[2] or "")

        return LINK.sub(replaced, (ROOT / name).read_text())

    return write


def notebook_page() -> str:
    """Return the notebook with its stored output as a page."""
    lines = []
    for number, cell in enumerate(json.loads(NOTEBOOK.read_text())["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            lines += [source, ""]
            continue
        lines += ["```python", source, "```", ""]
        for place, output in enumerate(cell["outputs"]):
            data = output.get("data", {})
            if "image/png" in data:
                lines += [f"![Output of the cell above]({picture_name(number, place)})", ""]
            elif "text/html" in data:
                html = re.sub(r"<style.*?</style>", "", "".join(data["text/html"]), flags=re.DOTALL)
                html = re.sub(r' (border|class|style)="[^"]*"', "", html)
                lines += [re.sub(r"\n\s*", "", html), ""]
            else:
                lines += ["```text", "".join(output.get("text", data.get("text/plain", ""))).rstrip(), "```", ""]
    return "\n".join(lines)


def notebook_pictures() -> dict[str, bytes]:
    """Return the pictures of the notebook's stored output by file name."""
    import base64

    return {
        picture_name(number, place): base64.b64decode("".join(output["data"]["image/png"]))
        for number, cell in enumerate(json.loads(NOTEBOOK.read_text())["cells"])
        for place, output in enumerate(cell.get("outputs", []))
        if "image/png" in output.get("data", {})
    }


def picture_name(cell: int, output: int) -> str:
    """Return the file name of a picture of the notebook."""
    return f"notebook-{cell}-{output}.png"


def docstring(of: Any) -> list[str]:
    """Return a Google docstring as Markdown, with its sections as bold paragraphs and without its example."""
    lines: list[str] = []
    for block in inspect.cleandoc(of.__doc__ or "").split("\n\n"):
        head, _, rest = block.partition("\n")
        if head in ("Args:", "Example:"):
            continue
        if head in ("Returns:", "Source:", "Raises:"):
            block = f"**{head.removesuffix(':')}** " + " ".join(line.strip() for line in rest.splitlines())
        lines += [escaped(block.replace("``", "`")), ""]
    return lines[:-1]


def summary(function: Callable[..., Any]) -> str:
    """Return the first paragraph of a docstring as one line."""
    return " ".join(inspect.cleandoc(function.__doc__ or "").split("\n\n")[0].replace("``", "`").split())


def escaped(text: str) -> str:
    """Return a text in which underscores and stars outside of code are not read as Markdown."""
    parts = re.split(r"(`[^`]*`|\*\*\w+\*\*)", text)
    return "".join(part if index % 2 else re.sub(r"([_*<])", r"\\\1", part) for index, part in enumerate(parts))


def anchor(title: str) -> str:
    """Return the anchor that mkdocs gives to a title of plain words."""
    return title.lower().replace(" ", "-")


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return a table as lines of Markdown."""

    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in cells)} |"

    return [line(head), line("---" for _ in head), *(line(row) for row in rows)]


PAGES: Mapping[str, Callable[[], str]] = {
    "reference/cli.md": cli_page,
    "reference/settings.md": settings_page,
    "reference/measures.md": measures_page,
    "reference/findings.md": findings_page,
    "tutorials/notebook.md": notebook_page,
    "contributing/index.md": root_page("CONTRIBUTING.md"),
    "contributing/changelog.md": root_page("CHANGELOG.md"),
}
