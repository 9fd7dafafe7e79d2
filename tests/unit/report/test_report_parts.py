"""Tables, figures, picks and pictures of the report."""

import base64
import csv
import io
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detcurate.report.figures_arms import arm_figures
from detcurate.report.figures_pool import (
    box_size_figure,
    count_figure,
    score_box_figure,
    score_figures,
    sequence_figure,
)
from detcurate.report.page import json_for_html
from detcurate.report.page_tables import MOST_ROWS, Table, cost_table, kept_table, text, to_csv
from detcurate.report.pictures import (
    encode,
    least_disagreed,
    most_disagreed,
    most_suspected,
    near_duplicates,
    of_minimums,
    part,
    safe_path,
)
from detcurate.report.report_data import Choice, Comparison, Picture, Pool, Scores, Tile
from detcurate.report.svg import axes, draw, label

ATTACK = '</text><script>alert(1)</script> id="x" url(#y) $a$ #0a0b01'


class TestTables:
    def test_to_csv_is_read_back(self):
        rows = (("a,b", 1, None), ('say "no"', 2, 0.5), ("سيارة\nx", 3, 1e-9))
        read = list(csv.reader(io.StringIO(to_csv(Table("t", "", ("name", "n", "x"), rows)).decode())))
        assert read == [["name", "n", "x"], ["a,b", "1", ""], ['say "no"', "2", "0.5"], ["سيارة\nx", "3", "1e-09"]]

    def test_table_shows_first_rows_and_counts_more(self):
        table = Table("t", "", ("n",), tuple((k,) for k in range(MOST_ROWS + 7)))
        assert (len(table.shown.rows), table.more) == (MOST_ROWS, 7)

    def test_cost_table_divides_by_ap(self):
        arms = {"curated": {"figures": {"AP": {"mean": 20.0}}}, "full": {"figures": {"AP": {"mean": None}}}}
        models = [
            {"arm": "curated", "num_images": 100, "num_boxes": 500, "images_seen": 4000},
            {"arm": "curated", "num_images": 100, "num_boxes": 700, "images_seen": 4000},
            {"arm": "full", "num_images": 200, "num_boxes": 900, "images_seen": 4000},
        ]
        table = cost_table(Comparison({"arms": arms}, models, "", "iterations"))
        assert table.rows[0] == ("curated", 20.0, 100, 600, 4000, None, 5.0, 30.0, 200.0)
        assert table.rows[1][-3:] == (None, None, None)
        assert "training seconds" not in table.shown.columns
        assert table.shown.rows[0][-3:] == ("5.0", "30", "200")

    def test_kept_table_share_of_zero_is_unknown(self):
        table = kept_table("classes", "", "class", {"car": {"before": 8, "after": 2}, "bus": {"before": 0, "after": 0}})
        assert table.shown.rows == (("car", "8", "2", "25 %"), ("bus", "0", "0", "–"))
        assert text(None) == "–"


def points(figure):
    axes(figure).bar([label(ATTACK), "سيارة", "日本語"], [1, 2, 3])


class TestSvg:
    def test_draw_escapes_text(self):
        svg = draw("a", points, height=2)
        assert "<script" not in svg
        texts = [found.text for found in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
        assert {"سيارة", "日本語", label(ATTACK)} <= set(texts)

    def test_draw_is_deterministic_with_unique_ids(self):
        first, second = draw("a", points, height=2), draw("b", points, height=2)
        assert first == draw("a", points, height=2)
        ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in (first, second)]
        assert ids[0]
        assert not ids[0] & ids[1]
        assert set(re.findall(r"url\(#([^)]+)\)", first)) <= ids[0]
        assert set(re.findall(r'href="#([^"]+)"', first)) <= ids[0]

    def test_draw_uses_variables_of_page(self):
        svg = draw("a", points, height=2) + draw("b", lambda figure: axes(figure).set_title("x"), height=2)
        assert not re.findall(r"#0a0b\d\d", re.sub(r">[^<]*<", "><", svg))
        assert "var(--ink)" in svg
        assert "<style" not in svg
        assert "<metadata" not in svg

    def test_label_is_one_short_line(self):
        assert label("a\n b\x00") == "a b�"
        assert len(label("x" * 99)) == 26


class TestLearningCurve:
    """What ``detcurate.evaluate`` gives for the arms of a learning curve."""

    points = [
        {"arm": f"random_{share}%", "num_images": size, "mean": mean, "std": 0.5, "values": [mean - 0.5, mean + 0.5]}
        for share, size, mean in ((25, 100, 20.0), (50, 200, 25.0), (100, 400, 28.0))
    ]
    fit = {"asymptote": 32.0, "scale": 120.0, "exponent": 0.5, "smallest": 100, "largest": 400, "rmse": 0.2}
    own = {"num_images": 200, "ap": 27.0, "images": 330.4, "where": "within", "more": 65.0, "interval": None}

    def figure(self, **changes: object):
        curve = {"points": self.points, "fit": self.fit, "why_not": None, "equivalent": self.own, **changes}
        arms = {"curated": {"figures": {"AP": {"values": [27.0], "mean": 27.0, "std": None}}, "per_class": {}}}
        summary = {"arms": arms, "differences": {}, "learning_curve": curve}
        return arm_figures(Comparison(summary, [], "", "iterations"), ())[-1]

    def test_learning_curve_shows_equivalent_random_images(self):
        figure = self.figure()
        assert figure.name == "learning-curve"
        assert "200 images" in figure.about and "330 random images" in figure.about
        assert figure.table.rows[-1] == ("curated", 200, 27.0, None)
        assert len(figure.table.rows) == 4

    def test_learning_curve_claims_nothing_beyond_trained_sizes(self):
        beyond = {**self.own, "images": None, "where": "above"}
        assert "more random images than were trained" in self.figure(equivalent=beyond).about
        few = self.figure(fit=None, equivalent=None, why_not="a learning curve must have at least 3 sizes")
        assert few.about == "a learning curve must have at least 3 sizes"

    def test_arm_figures_without_learning_curve_omit_it(self):
        assert self.figure(points=[]).name == "seeds"


def pool_of(num_boxes, sequence=(0, 0, 0, 1, 1, -1, 1), frame=(0, 1, 2, 5, 6, -1, 9)):
    count = len(num_boxes)
    rows = np.repeat(np.arange(count), num_boxes)
    return Pool(
        image_ids=np.arange(1, count + 1),
        num_boxes=np.asarray(num_boxes),
        sequence=np.asarray(sequence),
        sequence_names=("a", "b"),
        frame_index=np.asarray(frame),
        box_row=rows,
        box_side=np.linspace(4, 150, len(rows)),
        class_names=("car",),
    )


def choice_of(rank, reason=None, reasons=("top_n", "budget"), replaced_by=None):
    rank = np.asarray(rank)
    reason = np.where(rank > 0, 0, 1) if reason is None else np.asarray(reason)
    return Choice(rank, reason, reasons, np.full(len(rank), -1) if replaced_by is None else np.asarray(replaced_by))


class TestFigures:
    pool, choice = pool_of([0, 1, 2, 3, 4, 5, 2]), choice_of([0, 3, 0, 2, 0, 1, 0])

    def test_count_figure_table_equals_data(self):
        counts = {"car": {"before": 4, "after": 1}, "bus": {"before": 9, "after": 9}}
        table = count_figure("c", "class", counts, unit="boxes")
        assert table.table.columns == ("class", "before", "after")
        assert table.table.rows == (("bus", 9, 9), ("car", 4, 1))
        assert "car: 1 of 4 selected" in table.alt
        assert "77 %" in table.about

    def test_box_size_figure_sums_to_boxes(self):
        table = box_size_figure(self.pool, self.choice).table
        assert sum(row[2] for row in table.rows) == 17
        assert sum(row[3] for row in table.rows) == 1 + 3 + 5

    def test_sequence_figure_counts_frames(self):
        figure = sequence_figure(self.pool, self.choice)
        assert figure.table.rows == (
            ("a", 0.0, 1, 0), ("a", 1.0, 1, 1), ("a", 2.0, 1, 0),
            ("b", 5.0, 1, 1), ("b", 6.0, 1, 0), ("b", 9.0, 1, 0),
        )  # fmt: skip
        assert sequence_figure(pool_of([1, 2], (-1, -1), (-1, -1)), choice_of([1, 0])) is None

    def test_score_figures_of_constant_score_and_no_selection(self):
        scores = Scores(np.full(7, 0.5), {"entropy": np.arange(7.0)}, ("entropy",), "max")
        figures = score_figures(scores, None)
        assert [figure.name for figure in figures] == ["scores", "components"]
        assert sum(row[2] for row in figures[0].table.rows) == 7
        assert "not defined" in score_box_figure(self.pool, scores, None).about

    def test_score_box_figure_correlation_equals_scipy(self):
        from scipy.stats import spearmanr

        score = np.array([3.0, 1.0, 2.0, 2.0, 5.0, 4.0, 4.5])
        figure = score_box_figure(self.pool, Scores(score, {}, (), "max"), self.choice)
        expected = f"{spearmanr(self.pool.num_boxes, score).statistic:+.2f}"
        assert f"Rank correlation {expected}" in figure.about

    def test_score_box_figure_of_large_pool_is_sampled(self):
        count = 3_000
        pool = pool_of(np.ones(count, int), np.zeros(count, int), np.arange(count))
        scores = Scores(np.random.default_rng(0).uniform(size=count), {}, (), "max")
        figure = score_box_figure(pool, scores, choice_of(np.arange(count)))
        assert len(figure.table.rows) == 1_200
        assert "A random 1,200 of 3,000 images." in figure.about
        assert len(sequence_figure(pool, choice_of(np.arange(count))).table.rows) == 160


class TestPicks:
    scores = Scores(
        np.array([0.1, 0.9, 0.5, 0.7, 0.3]), {"wrong_class": np.array([0.0, 0.5, 0.49, 0.9, 0.6])}, ("entropy",), "max"
    )

    def test_picks_by_score_are_ordered(self):
        assert most_disagreed(self.scores).rows.tolist() == [1, 3, 2, 4, 0]
        pick = least_disagreed(self.scores, choice_of([0, 1, 0, 2, 0]))
        assert pick.rows.tolist() == [0, 4, 2]
        assert pick.extent == "3 of 3 images"

    def test_most_suspected_excludes_low_scores(self):
        assert most_suspected(self.scores, "wrong_class").rows.tolist() == [3, 4, 1]
        assert most_suspected(self.scores, "missing_label") is None

    @pytest.mark.parametrize("word", ["minimum", "floor"])  # of this version, and of version 0.1
    def test_of_minimums_quotas_take_turns(self, word):
        reasons = ("top_n", f"{word} class bus=2", f"{word} class cyclist=9", "budget")
        pick = of_minimums(choice_of([4, 1, 2, 3, 0], [0, 1, 1, 2, 3], reasons))
        assert pick.rows.tolist() == [1, 3, 2]
        assert not len(of_minimums(choice_of([0, 0, 0, 0, 0])).rows)

    def test_near_duplicates_groups_begin_with_replacement(self):
        reasons = ("top_n", "near_duplicate", "budget")
        choice = choice_of([0, 1, 0, 2, 0, 0, 0], [1, 0, 1, 0, 1, 2, 1], reasons, [1, -1, 3, -1, 3, -1, 3])
        pick = near_duplicates(choice)
        assert pick.rows.tolist() == [3, 2, 4, 6, 1, 0]
        assert pick.group.tolist() == [0, 0, 0, 0, 1, 1]
        assert pick.extent == "2 of 2 groups"


def picture(path, size=(80, 50), key="1"):
    return Picture(key, 1, "a.png", path, size, "", True, "top_n", "", (), (), ())


class TestImages:
    @pytest.mark.parametrize(
        ("name", "found"),
        [
            ("a.jpg", "/pool/a.jpg"),
            ("x/./y/../b c.jpg", "/pool/x/b c.jpg"),
            ("12:00.jpg", "/pool/12:00.jpg"),
            ("日本.jpg", "/pool/日本.jpg"),
            ("../a.jpg", None),
            ("x/../../a.jpg", None),
            ("/etc/passwd", None),
            ("..\\a.jpg", None),
            ("x\\..\\..\\a.jpg", None),
            ("C:\\a.jpg", None),
            ("\\\\host\\a.jpg", None),
            ("a\0.jpg", None),
            ("", None),
            (".", None),
        ],
    )
    def test_safe_path_stays_in_root(self, tmp_path, name, found):
        path = safe_path(Path("/pool"), name)
        assert (None if path is None else path.as_posix()) == found

    def test_part_is_within_image(self):
        whole = Tile("1", "")
        assert part(picture(None), whole) == (0, 0, 80, 50)
        x1, y1, x2, y2 = part(picture(None, (800, 500)), Tile("1", "", (700, 400, 790, 480)))
        assert x1 <= 700 and y1 <= 400 and x2 >= 790 and y2 >= 480
        assert (x2, y2) <= (800, 500)
        assert (x2 - x1) / (y2 - y1) == pytest.approx(1.6)

    def test_encode_names_problem_of_each_image(self, tmp_path):
        Image.new("RGBA", (80, 50), (255, 0, 0, 128)).save(tmp_path / "a.png")
        (tmp_path / "b.png").write_bytes(b"no image")
        paths = [tmp_path / "a.png", tmp_path / "b.png", tmp_path / "c.png", None]
        pictures = tuple(picture(path, key=str(number)) for number, path in enumerate(paths))
        tiles = tuple(Tile(found.key, "") for found in pictures)
        encoded, thumbs = encode(pictures, tiles)
        assert [encoded[str(k)].problem[:20] for k in range(4)] == [
            "", "it does not decode: ", "the file is missing", "its name or a symbol",
        ]  # fmt: skip
        assert list(thumbs) == [tiles[0]]
        data = base64.b64decode(encoded["0"].full.removeprefix("data:image/jpeg;base64,"))
        assert Image.open(io.BytesIO(data)).size == (80, 50)
        assert str(tmp_path) not in encoded["1"].problem

    def test_encode_over_budget_reduces_images(self, tmp_path):
        noise = np.random.default_rng(0).integers(0, 255, (900, 1200, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / "a.png")
        found = picture(tmp_path / "a.png", (1200, 900))
        sizes = []
        for budget in (10**9, 120_000):
            encoded, _ = encode((found,), (Tile("1", ""),), budget=budget)
            data = base64.b64decode(encoded["1"].full.partition(",")[2])
            sizes.append(Image.open(io.BytesIO(data)).size)
        assert sizes[0] == (960, 720)
        assert sizes[1][0] < 960

    def test_encode_applies_exif_orientation(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (50, 80)).save(tmp_path / "a.jpg", exif=exif)
        encoded, _ = encode((picture(tmp_path / "a.jpg", (80, 50)),), (Tile("1", ""),))
        data = base64.b64decode(encoded["1"].full.partition(",")[2])
        assert Image.open(io.BytesIO(data)).size == (80, 50)


def test_json_for_html_cannot_end_script():
    shown = str(json_for_html({"a": "</script><!--", "b": "\u2028&"}))
    assert "<" not in shown and ">" not in shown and "&" not in shown and "\u2028" not in shown
    assert json.loads(shown) == {"a": "</script><!--", "b": "\u2028&"}
