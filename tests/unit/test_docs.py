"""Tests of the documents: settings, links and snippets that they name exist and run."""

import ast
import re
import shlex

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from helpers import REPOSITORY

from detcurate.cli.parser import build_parser
from detcurate.config.declaration import default_config
from detcurate.pipeline.object_table import object_table
from detcurate.pipeline.tables import ImagesTable
from detcurate.score.measures import available_measures
from detcurate.score.scoring import score_images, score_labelled_objects
from detcurate.structures import Detections, Labels

ROOT_DOCUMENTS = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "datasets/README.md"]
DOCUMENTS = [*ROOT_DOCUMENTS, *(str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "docs").rglob("*.md"))]


def snippets(document, language):
    """Return the code blocks of a language in a document."""
    return re.findall(rf"^```{language}\n(.*?)^```", (REPOSITORY / document).read_text(), re.DOTALL | re.MULTILINE)


# Links between pages of docs/ are checked by `make docs`.
@pytest.mark.parametrize("document", ROOT_DOCUMENTS)
def test_links_of_root_documents_have_targets(document):
    path = REPOSITORY / document
    targets = re.findall(r"\]\((?!https?:|#)([^)\s#]+)", path.read_text())
    assert [target for target in targets if not (path.parent / target).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_settings_named_in_documents_exist(document):
    text = (REPOSITORY / document).read_text()
    for key in set(re.findall(r"CURATE(?:\.[A-Z][A-Z_]+)+", text)):
        node = default_config()
        for part in key.split("."):
            assert part in node, f"{key} is not a setting"
            node = node[part]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_code_blocks_of_documents_parse(document):
    for snippet in snippets(document, "python"):
        ast.parse(snippet)
    for snippet in snippets(document, "yaml"):
        assert yaml.safe_load(snippet)


def documented_commands():
    """Return the `detcurate` command lines of the documents' bash blocks, with the document's name."""
    for document in DOCUMENTS:
        for snippet in snippets(document, "bash"):
            for line in snippet.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words[:1] == ["detcurate"]:
                    yield pytest.param(words[1:], id=f"{document}: {' '.join(words)[:70]}")


@pytest.mark.parametrize("arguments", list(documented_commands()))
def test_commands_of_documents_parse(arguments):
    try:
        build_parser().parse_args(arguments)
    except SystemExit as end:
        assert end.code == 0  # --help and --version


def test_readme_fits_its_length():
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= 120


QUERIES = snippets("docs/explanation/scoring.md", "python")


def write_scores(folder):
    """Score seven images by hand-made members; image 6 has a label of another class than the members see."""
    n = 14
    detections = Detections(
        image_ids=np.repeat(np.arange(7), 2),
        member=np.tile([0, 1], 7).astype(np.int32),
        boxes=np.tile(np.array([0, 0, 10, 10], np.float32), (n, 1)),
        scores=np.full(n, 0.75, np.float32),
        class_index=np.zeros(n, np.int32),
        class_probs=np.tile(np.array([0.75, 0.125, 0.125], np.float32), (n, 1)),
    )
    labels = Labels(
        image_ids=np.arange(7),
        annotation_ids=np.arange(7) + 100,
        boxes=np.tile([0.0, 0.0, 10.0, 10.0], (7, 1)),
        class_index=np.array([0, 0, 0, 0, 0, 0, 1]),
        iscrowd=np.zeros(7, np.bool_),
    )
    objects, labelled = score_labelled_objects(detections, labels, num_members=2, measures=available_measures(2))
    scores = score_images(objects, np.arange(7), labels=labelled, weights={"mutual_information": 1.0})
    folder.mkdir()
    pq.write_table(object_table(objects, labelled, ("car", "truck")), folder / "objects.parquet")
    ImagesTable.within(folder).write_scores(scores)


@pytest.mark.parametrize(("query", "found"), list(zip(QUERIES, ("truck", "car", "shape: (6, "), strict=True)))
def test_queries_of_scoring_page_run(query, found, tmp_path, monkeypatch, capsys):
    pytest.importorskip(query.split()[1])
    write_scores(tmp_path / "score")
    monkeypatch.chdir(tmp_path)
    exec(query, {})
    printed = capsys.readouterr().out
    assert found in printed
