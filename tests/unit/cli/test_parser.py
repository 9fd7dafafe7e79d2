"""The tree of parsers: commands, help, aliases, types of arguments, handlers."""

import argparse
import inspect
import subprocess
import sys

import pytest
from helpers import REPOSITORY

from detcurate.choices import STAGES
from detcurate.cli import build_parser, main
from detcurate.cli.arguments import config_file, integer, local_path, number
from detcurate.cli.parser import command_names, load_handler
from detcurate.interop.export.label_studio import LOCAL_FILES
from detcurate.pipeline.imported_members import ImportOptions
from detcurate.version import __version__

COMMANDS = (
    "run", "validate", "split", "manifest", "ensemble", "import", "rank", "explain", "report", "export", "relabel",
    "config",
)  # fmt: skip
HEAVY = ("numpy", "pydantic", "numba", "pyarrow", "torch", "cv2", "yaml", "orjson", "multiprocessing")


def leaves(parser, words=()):
    """Yield the words and the parser of each command that has no commands of its own."""
    below = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield words, parser
    for name, child in below[0].items() if below else ():
        yield from leaves(child, (*words, name))


LEAVES = dict(leaves(build_parser()))


def test_parser_has_all_commands():
    assert command_names(build_parser()) == COMMANDS
    assert {words[0] for words in LEAVES} == set(COMMANDS)
    assert {words for words in LEAVES if len(words) == 2} == {
        ("manifest", "verify"), ("manifest", "diff"), ("manifest", "stats"), ("manifest", "merge"),
        ("ensemble", "add"), ("ensemble", "list"), ("relabel", "apply"),
    }  # fmt: skip


@pytest.mark.parametrize("words", LEAVES, ids=" ".join)
def test_command_has_a_handler_and_help_with_an_example(words, capsys):
    handler = load_handler(LEAVES[words].get_default("handler"))
    assert list(inspect.signature(handler).parameters) == ["arguments"]
    with pytest.raises(SystemExit) as stop:
        main([*words, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert text.startswith(f"usage: detcurate {' '.join(words)} [-h] ")
    assert f"\n  detcurate {' '.join(words)}" in text.partition("example")[2]
    assert LEAVES[words].description.endswith(".")
    assert max(map(len, text.split("\n"))) <= 120


@pytest.mark.parametrize("words", [(), ("--help",)])
def test_detcurate_without_a_command_lists_each_in_one_line(words, capsys):
    try:
        assert main(words) == 0
    except SystemExit as stop:
        assert stop.code == 0
    text = capsys.readouterr().out
    listed = text.partition("commands:\n")[2].partition("\n\n")[0].split("\n")
    assert tuple(line.split()[0] for line in listed) == COMMANDS
    assert all(len(line.split()) > 3 for line in listed)


def test_version_prints_the_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert (stop.value.code, capsys.readouterr().out) == (0, f"detcurate {__version__}\n")


@pytest.mark.parametrize("words", [["--help"], ["--version"], [], ["run", "--help"], ["manifest", "verify", "--help"]])
def test_help_and_version_import_no_heavy_module(words):
    code = f"""
import sys
from detcurate.cli import main
try:
    main({words!r})
except SystemExit:
    pass
print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""
    environment = {"PYTHONPATH": str(REPOSITORY), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout
    assert done.stderr == "[]\n"


@pytest.fixture
def parsed(monkeypatch):
    """Return a function that runs the command line and gives the arguments that reached a handler."""

    def run(*words: str):
        caught = []
        monkeypatch.setattr("detcurate.cli.load_handler", lambda name: lambda arguments: caught.append(arguments) or 0)
        assert main(words) == 0
        return caught[0]

    return run


@pytest.mark.parametrize(
    "words",
    [
        ("run", "SEED", "3", "--config-file", "a.yaml", "--until", "score", "OUTPUT_DIR", "x"),
        ("--config-file", "a.yaml", "SEED", "3", "OUTPUT_DIR", "x", "--until", "score"),
        ("--until", "score", "--config-file", "a.yaml", "SEED", "3", "OUTPUT_DIR", "x"),
        ("SEED", "3", "OUTPUT_DIR", "x", "--config-file", "a.yaml", "--until", "score"),
        ("SEED", "3", "OUTPUT_DIR", "x", "--config-file=a.yaml", "--until", "score"),
    ],
)
def test_run_options_and_overrides_may_be_mixed_and_run_left_out(parsed, words):
    arguments = parsed(*words)
    assert (arguments.command, str(arguments.config_file), arguments.until) == ("run", "a.yaml", "score")
    assert arguments.opts == ["SEED", "3", "OUTPUT_DIR", "x"]


def test_import_results_is_an_alias_of_import(parsed, capsys):
    words = ("yolo", "--config-file", "a.yaml", "--member", "b.json", "--score-floor", "0.5")
    old, new = parsed("import-results", *words), parsed("import", *words)
    assert vars(old) == vars(new)
    assert new.score_threshold == 0.5
    assert "import-results is now named import" in capsys.readouterr().err


def test_relabel_apply_overrides_follow_the_corrected_files(parsed):
    arguments = parsed(
        "relabel", "apply", "a.xml", "b.xml", "-o", "new.json", "--config-file", "c", "--opts", "SEED", "3"
    )
    assert (arguments.corrected, arguments.opts) == (["a.xml", "b.xml"], ["SEED", "3"])


def test_config_file_option_accepts_a_shipped_config(parsed):
    path = parsed("run", "--config-file", "detcurate://quickstart.yaml").config_file
    assert path.read_text() == (REPOSITORY / "configs" / "quickstart.yaml").read_text()
    assert str(config_file("configs/quickstart.yaml")) == "configs/quickstart.yaml"


def test_config_file_option_unknown_shipped_config_is_reported(rejected):
    assert "quickstrat.yaml" in rejected("run", "--config-file", "detcurate://quickstrat.yaml")


def test_parser_defaults_are_those_of_the_code(parsed):
    words = ("yolo", "--config-file", "a.yaml", "--member", "b.json")
    arguments, options = parsed("import", *words), ImportOptions()
    for name in ("image_key", "category_key", "score_threshold", "max_per_image"):
        assert getattr(arguments, name) == getattr(options, name)
    assert parsed("export", "cvat", "output", "-o", "x").url == LOCAL_FILES


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["validate"], ["FILE"]),
        (["validate", "a.json", "--imags", "b"], ["--imags", "b"]),
        (["manifest"], ["COMMAND"]),
        (["manifest", "sttas", "x"], ["'sttas'", "stats"]),
        (["manifest", "stats"], ["M"]),
        (["manifest", "diff", "a"], ["B"]),
        (["manifest", "merge", "a"], ["-o/--output"]),
        (["manifest", "merge", "a", "-o", "x", "--on-conflict", "last"], ["--on-conflict", "'last'", "first"]),
        (["split", "a.json", "-o", "x"], ["--fraction"]),
        (["split", "a.json", "-o", "x", "--fraction", "1"], ["--fraction", "got 1", "(0, 1)"]),
        (["split", "a.json", "-o", "x", "--fraction", "nan"], ["--fraction", "got nan"]),
        (["split", "a.json", "-o", "x", "--fraction", "0.2", "--seed", "-1"], ["--seed", "got -1"]),
        (["ensemble"], ["COMMAND"]),
        (["ensemble", "remove"], ["'remove'", "add", "list"]),
        (["ensemble", "add", "d", "--config-file", "c", "--run", "-1"], ["--run", "got -1"]),
        (["export", "cvta", "o", "-o", "x"], ["FORMAT", "'cvta'", "cvat"]),
        (["export", "cvat", "o", "-o", "s3://me:hunter2@b/x"], ["-o", "s3://"]),
        (["import", "x", "--config-file", "c", "--member", "m", "--score-threshold", "2"], ["threshold", "got 2"]),
        (
            ["import", "x", "--config-file", "c", "--member", "m", "--max-per-image", "-1"],
            ["--max-per-image", "got -1"],
        ),
        (["run"], ["--config-file"]),
        (["run", "--config-file", "c", "--until", "scor"], ["--until", "'scor'", *STAGES]),
        (["run", "--config-file", "c", "--until", "score", "--only", "score"], ["--only", "--until"]),
        (["run", "--config-file", "c", "--join", "--join-wait", "nan"], ["--join-wait", "got nan"]),
        (["run", "--config-file", "c", "--join", "--join-wait", "inf"], ["--join-wait", "got inf"]),
        (["run", "--config-file", "c", "--num-gpus", "-1"], ["--num-gpus", "got -1"]),
        (["run", "--config-file", "c", "--num-gpus", "two"], ["--num-gpus", "got two"]),
        (["run", "--config-file", "c", "--num-machines", "0"], ["--num-machines", "got 0"]),
        (["run", "--config-file", "c", "--num-machines", "2", "--machine-rank", "2"], ["--machine-rank", "got 2"]),
        (["run", "--config-file", "c", "--join", "--dry-run"], ["--join", "--dry-run"]),
        (["run", "--config-file", "c", "--join", "--fresh"], ["--join", "--fresh"]),
        (["run", "--config-file", "c", "--join", "--wait"], ["--join", "--wait"]),
        (["run", "--config-file", "c", "--ray-address", "h:1"], ["--ray-address", "local"]),
        (["valdiate", "a.json"], ["valdiate", "'validate'"]),
        (["stats", "a.json"], ["stats", "--help"]),
        (["config", "SELECT.FRACTOIN"], ["SELECT.FRACTOIN", "'SELECT.FRACTION'"]),
        (["config", "SELECT", "--diff", "a.yaml"], ["SELECT", "--diff"]),
        (["config", "--diff", "a.yaml"], ["a.yaml"]),
    ],
)
def test_invalid_arguments_are_named_in_one_message(rejected, words, parts):
    message = rejected(*words)
    assert message.startswith("detcurate")
    for part in parts:
        assert part in message
    assert "hunter2" not in message


def test_debug_option_adds_the_traceback(capsys, tmp_path):
    assert main(["manifest", "stats", str(tmp_path), "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_local_path_rejects_a_url_without_repeating_it():
    assert str(local_path("a:b/c")) == "a:b/c"
    with pytest.raises(argparse.ArgumentTypeError, match="s3://") as error:
        local_path("s3://me:hunter2@bucket/x")
    assert "hunter2" not in str(error.value)


def test_number_and_integer_accept_their_bounds_only():
    assert (integer(0)("0"), integer(1)("7"), number(0)("0.5"), number(0, 1)("1"), number(0, 1)("0")) == (
        0,
        7,
        0.5,
        1,
        0,
    )
    for parse, text in (
        (integer(1), "0"),
        (integer(0), "1.5"),
        (number(0, 1), "1.1"),
        (number(0, 1, is_open=True), "0"),
    ):
        with pytest.raises(argparse.ArgumentTypeError, match=f"got {text}"):
            parse(text)
