"""Tests of the views for notebooks and of the notebook in ``docs/``."""

import re
import subprocess
import sys

import matplotlib
import pytest
from helpers import REPOSITORY
from helpers.export_content import curate_played_members

from detcurate.api import Manifest, Pool, Scores, Selection
from detcurate.errors import ConfigError, DatasetError, PredictionError
from detcurate.pipeline.object_table import ObjectsTable

NOTEBOOK = REPOSITORY / "docs" / "tutorials" / "notebook.ipynb"
VIEWS = (Pool, Scores, Selection, Manifest)


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return curate_played_members(
        tmp_path_factory.mktemp("viewed"), "CURATE.SELECT.NUM_IMAGES", 9, "CURATE.SELECT.SEQUENCE_GAP", 2
    )


@pytest.fixture
def ax():
    matplotlib.use("agg")
    from matplotlib.figure import Figure

    return Figure().subplots()


def test_notebook_executes_with_stored_output(tmp_path):
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed: pip install 'detcurate[notebook]'")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: pip install 'detcurate[notebook]'")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed: pip install 'detcurate[notebook]'")
    pytest.importorskip("pandas", reason="pandas is not installed: pip install 'detcurate[notebook]'")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    stored = printed(notebook)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert (tmp_path / "train-2.json").is_file()
    found = printed(notebook)
    for pattern in (r"Pool\(.*\)", r"Selection\(.*\)", r"Manifest\(\d+ of \d+ images, \d+ of \d+ boxes"):
        assert re.search(pattern, found)[0] == re.search(pattern, stored)[0], (
            "docs/tutorials/notebook.ipynb is outdated: execute and save it"
        )


def printed(notebook):
    return "".join(out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", []))


def test_notebook_contains_no_absolute_path():
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert not re.search(r'[" =](/[a-z]+){2,}', text)


def test_views_repr_summarizes_run(output):
    pool, scores, selection, manifest = (view.open(output) for view in VIEWS)
    assert re.fullmatch(r"Pool\(train\.json: 26 images, \d+ boxes of 7 classes\)", repr(pool))
    assert re.fullmatch(r"Scores\(26 images, image_score \d\.\d+ to \d\.\d+, 20 components\)", repr(scores))
    assert re.fullmatch(r"Selection\(9 of 26 images; top_n 9, budget \d+, sequence_gap \d+\)", repr(selection))
    assert re.fullmatch(r"Manifest\(9 of 26 images, \d+ of \d+ boxes by top_n; (\w+ \d+(, )?){3}\)", repr(manifest))
    assert [len(view) for view in (pool, scores, selection, manifest)] == [26, 26, 9, 9]


def test_views_to_pandas_returns_rows_of_run(output):
    pytest.importorskip("pandas")
    pool, scores, selection, manifest = (view.open(output) for view in VIEWS)
    images = pool.to_pandas()
    assert images["num_boxes"].sum() == len(pool.boxes_to_pandas()) == pool.dataset.num_boxes
    assert list(images.columns) == ["image_id", "file_name", "width", "height", "sequence", "num_boxes"]
    ranked = scores.to_pandas()
    assert ranked["image_score"].is_monotonic_decreasing
    assert set(ranked["image_id"]) == set(images["image_id"])
    rows = selection.to_pandas()
    assert rows["rank"].tolist()[:9] == list(range(1, 10))
    assert rows["rank"].isna().sum() == 17
    gaps = rows[rows["reason"] == "sequence_gap"]
    assert len(gaps)
    assert set(gaps["replaced_by"]) <= set(images["image_id"])
    assert rows[rows["reason"] == "budget"]["replaced_by"].isna().all()
    assert set(manifest.to_pandas()["image_id"]) == set(rows["image_id"][:9])
    label_errors = manifest.label_errors_to_pandas()
    assert label_errors["label_error_score"].is_monotonic_decreasing
    assert label_errors[label_errors["kind"] == "missing_label"]["labelled"].isna().all()
    wrong_class = label_errors[label_errors["kind"] == "wrong_class"]
    assert (wrong_class["labelled"] != wrong_class["consensus"]).all()
    first = label_errors["image_id"].iloc[0]
    objects = scores.objects_to_pandas(first)
    assert set(objects["image_id"]) == {first}
    assert len(scores.objects_to_pandas()) > len(objects)


def test_plots_draw_on_given_axes(output, ax):
    pool, scores, selection, manifest = (view.open(output) for view in VIEWS)
    counts = pool.dataset.class_counts()
    assert pool.plot_classes(ax) is ax
    assert sorted(bar.get_width() for bar in ax.patches) == sorted(counts.tolist())
    ax.clear()
    assert sum(bar.get_height() for bar in scores.plot_distribution(ax, "wrong_class").patches) == 26
    assert ax.get_xlabel() == "wrong_class"
    ax.clear()
    assert len(scores.plot_against(ax).collections[0].get_offsets()) == 26
    ax.clear()
    bars = {
        label.get_text(): bar
        for label, bar in zip(selection.plot_reasons(ax).get_yticklabels(), ax.patches, strict=True)
    }
    assert bars["top_n"].get_width() == 9
    assert not bars["top_n"].get_hatch()
    assert bars["budget"].get_hatch()
    ax.clear()
    manifest.plot_before_after(ax, "box_size")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["pool", "subset"]
    assert sum(bar.get_width() for bar in ax.containers[0]) == pytest.approx(100)
    ax.clear()
    worst = manifest.label_errors[0]
    image_id = pool.dataset.original_id(worst.image_row)
    pool.plot_image(image_id, ax, manifest.label_errors)
    about = [label_error for label_error in manifest.label_errors if label_error.image_row == worst.image_row]
    assert len(ax.lines) == len(about) + pool.dataset.boxes_per_image[worst.image_row]
    ax.figure.canvas.draw()


def test_plots_show_names_without_mathtext(tmp_path, ax):
    from helpers.export_content import write_pool

    pool = Pool.read(write_pool(tmp_path, names={9: "a $x^$ <b>", 2: "$_$", 5: "b", 11: "c"}).path, tmp_path / "images")
    cbook = pytest.importorskip("matplotlib.cbook")
    pool.plot_image(41, ax)
    drawn = [text.get_text() for text in ax.texts]
    ax.clear()
    pool.plot_classes(ax)
    ax.figure.canvas.draw()
    drawn += [label.get_text() for label in ax.get_yticklabels()]
    assert {text.replace("\\", "") for text in drawn} >= {"a $x^$ <b>", "$_$", "b", "c"}
    assert not any(cbook.is_math_text(text) for text in drawn)


@pytest.mark.parametrize("view", VIEWS)
def test_view_open_folder_without_run_raises(view, tmp_path):
    with pytest.raises(ConfigError, match=re.escape(str(tmp_path))):
        view.open(tmp_path)


def test_plot_image_unknown_id_raises(output, ax):
    with pytest.raises(DatasetError, match=r"train\.json.*999|999.*train\.json"):
        Pool.open(output).plot_image(999, ax)


@pytest.mark.parametrize(
    ("view", "plot", "column"), [(Scores, "plot_distribution", "score"), (Manifest, "plot_before_after", "colour")]
)
def test_plot_unknown_column_raises(output, ax, view, plot, column):
    with pytest.raises(ConfigError, match=f"got '?{column}"):
        getattr(view.open(output), plot)(ax, column)


def test_objects_to_pandas_missing_file_raises(output, tmp_path):
    scores = Scores.open(output)
    without = Scores(scores.images, ObjectsTable.within(tmp_path), scores.pool)
    with pytest.raises(PredictionError, match=r"objects\.parquet"):
        without.objects_to_pandas()


def test_to_pandas_without_pandas_names_extra(output, monkeypatch):
    pool = Pool.open(output)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigError, match=r"pandas.*detcurate\[notebook\]"):
        pool.to_pandas()


def test_api_import_loads_no_matplotlib_pandas_or_torch():
    code = (
        "import sys, detcurate.api; print([name for name in ('matplotlib', 'pandas', 'torch') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"
