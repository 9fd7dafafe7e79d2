"""``detcurate validate`` and ``detcurate manifest``: what they print, and how they exit."""

import json
import re

import cv2
import numpy as np
import pytest

from detcurate.cli import COMMANDS, main
from detcurate.cli.common import table
from detcurate.coco.dataset import read_coco
from detcurate.coco.validation.findings import RULES
from detcurate.io.files import sha256_json
from detcurate.manifest.write import build_provenance, write_manifest

CATEGORIES = [{"id": 9, "name": "car"}, {"id": 2, "name": "person"}, {"id": 5, "name": "bike"}]
SIZES = {30: (64, 48), 7: (62, 46), 12: (63, 47), 41: (65, 49)}
BOXES = [(41, 9, 20), (12, 2, 8), (41, 2, 40), (30, 9, 33), (12, 5, 9), (41, 9, 31)]


def coco(keys=tuple(SIZES), **changes: object):
    return {
        "images": [
            {"id": key, "file_name": f"{key}.png", "width": SIZES[key][0], "height": SIZES[key][1],
             "weather": "rain" if key < 20 else "clear"}
            for key in keys
        ],
        "annotations": [
            {"id": number, "image_id": image, "category_id": category, "bbox": [1, 2, side, side],
             "area": side * side, "iscrowd": 0}
            for number, (image, category, side) in enumerate(BOXES, start=1)
            if image in keys
        ],
        "categories": CATEGORIES,
        **changes,
    }  # fmt: skip


@pytest.fixture
def write(tmp_path):
    def write_one(content, name="train.json"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write_one


@pytest.fixture
def manifest(tmp_path, write):
    """Return a function that writes a manifest of the ids given."""

    def write_one(*ids: int, name="manifest"):
        source = write(coco(), "train.json")
        settings = {"select": {"strategy": "random", "seed": 5}}
        dataset = read_coco(source)
        provenance = build_provenance(
            dataset=dataset,
            image_ids=np.array(ids),
            strategy="random",
            seed=5,
            requested_budget={"images": len(ids)},
            config_sha256=sha256_json(settings),
            members=[],
            scores_sha256="5" * 64,
            versions={},
        )
        write_manifest(tmp_path / name, dataset, np.array(ids), {**provenance, "settings": settings})
        return tmp_path / name

    return write_one


@pytest.fixture
def said(capsys):
    """Run a command and return its exit status and what it printed."""

    def run(*words: object):
        status = main([str(word) for word in words])
        captured = capsys.readouterr()
        return status, captured.out

    return run


@pytest.fixture
def refused(capsys):
    """Run a command, expect exit status 2, and return its message."""

    def run(*words: object):
        try:
            status = main([str(word) for word in words])
        except SystemExit as stop:  # argparse
            status = stop.code
        captured = capsys.readouterr()
        assert status == 2
        assert captured.out == ""
        assert "Traceback" not in captured.err
        *usage, message = captured.err.rstrip("\n").split("\n")
        assert all(line.startswith(("usage: ", " ")) for line in usage)
        return message

    return run


def rows(text, header):
    """Return the rows of the table in a text whose header begins with some words."""
    lines = text.split("\n")
    start = next(at for at, line in enumerate(lines) if re.split(r"\s{2,}", line)[: len(header)] == header)
    assert set(lines[start + 1]) == {"-", " "}
    end = lines.index("", start) if "" in lines[start:] else len(lines)
    return [tuple(re.split(r"\s{2,}", line.strip())) for line in lines[start + 2 : end]]


def test_tables_line_up():
    lines = table(("name", "count", "share"), [("car", 1234, "9.5%"), ("2024", 7, "100.0%")])
    assert lines == [
        "name  count   share",
        "----  -----  ------",
        "car   1,234    9.5%",
        "2024      7  100.0%",
    ]
    assert table(("a", "bc"), []) == ["a  bc", "-  --"]


def bad():
    """Two errors, one warning and two notes."""
    content = coco()
    content["annotations"][0]["bbox"] = [1, 2, 0, 20]
    content["annotations"][1]["category_id"] = 3
    content["annotations"][2]["category_id"] = 4
    content["annotations"][3]["id"] = 0
    return content


BAD = [
    ("error", "unknown_category", "2"),
    ("error", "invalid_box", "1"),
    ("warn", "annotation_id_zero", "1"),
    ("note", "category_id_gap", "1"),
    ("note", "empty_image", "1"),
]


def test_validate_a_file_without_findings(write, said):
    content = coco(keys=(30, 12, 41), categories=[{"id": number, "name": f"{number}"} for number in range(1, 10)])
    path = write(content)
    status, text = said("validate", path)
    assert (status, text) == (0, f"{path}: 3 images, 6 boxes, 9 classes can be used\n\nnothing was found\n")


def test_validate_a_file_by_its_url(write, said):
    path = write(coco())
    status, text = said("validate", path.as_uri())
    assert (status, text.replace(path.as_uri(), str(path))) == said("validate", path)


def test_validate_tells_findings_as_a_table_and_then_one_by_one(write, said):
    path = write(bad())
    status, text = said("validate", path)
    assert status == 1
    assert text.startswith(f"{path}: 4 images, 3 boxes, 3 classes can be used\n")
    assert rows(text, ["policy", "finding", "records"]) == BAD
    assert text.endswith("\n2 of 5 findings are errors\n")
    lines = text.split("\n")
    at = lines.index("unknown_category: add the category or drop the annotations")
    assert lines[at + 1] == "    --policy unknown_category=repair would drop the annotation"
    assert lines[at + 2].startswith(
        "    annotations[1].category_id must be the id of one of the 3 category records, got 3"
    )
    assert lines[at + 3].startswith("    annotations[2].category_id")


def test_validate_with_policies(write, said):
    path = write(bad())
    status, text = said("validate", path, "--policy", "invalid_box=repair", "--policy", "unknown_category=repair")
    assert status == 0
    assert rows(text, ["policy", "finding", "records"])[:2] == [
        ("repair", "unknown_category", "2"),
        ("repair", "invalid_box", "1"),
    ]
    assert "    repaired: drop the annotation" in text
    assert text.endswith("no finding is an error\n")
    status, text = said("validate", path, "--policy", "empty_image=error")
    assert status == 1
    assert "3 of 5 findings are errors" in text


def test_validate_counts_the_examples_that_it_does_not_show(write, said):
    content = coco()
    for box in content["annotations"]:
        del box["iscrowd"]
    _, text = said("validate", write(content))
    at = text.split("\n").index("    and 3 more")
    assert "annotations[2]" in text.split("\n")[at - 1]


def test_validate_as_json(write, said):
    path = write(bad())
    status, text = said("validate", path, "--json")
    found = json.loads(text)
    assert status == 1
    assert {key: found[key] for key in ("file", "num_images", "num_boxes", "class_names")} == {
        "file": str(path),
        "num_images": 4,
        "num_boxes": 3,
        "class_names": ["person", "bike", "car"],
    }
    assert [(f["policy"], f["code"], str(f["count"])) for f in found["findings"]] == BAD
    assert found["findings"][0]["advice"] == RULES["unknown_category"].advice
    assert len(found["findings"][0]["examples"]) == 2


@pytest.fixture
def images(tmp_path):
    """Image files for three of the four records, one of another size."""
    for key in (30, 7, 12):
        width, height = SIZES[key]
        cv2.imwrite(str(tmp_path / f"{key}.png"), np.zeros((height, width + (key == 7), 3), np.uint8))
    return tmp_path


def test_validate_with_images(write, said, images):
    path = write(coco())
    status, text = said("validate", path, "--images", images, "--num-processes", "1")
    assert status == 1
    assert rows(text, ["policy", "finding", "records"]) == [
        ("error", "missing_image_file", "1"),
        ("error", "image_size_differs", "1"),
        ("note", "category_id_gap", "1"),
        ("note", "empty_image", "1"),
    ]
    assert "41.png (image_id 41): the file is absent" in text
    assert "7.png (image_id 7): it is 63x46, its record says 62x46" in text
    policies = ("--policy", "missing_image_file=warn", "--policy", "image_size_differs=warn")
    assert said("validate", path, "--images", images, "--num-processes", "1", *policies)[0] == 0
    assert said("validate", path)[0] == 0


def test_validate_remembers_images(write, said, images, monkeypatch):
    words = ["validate", write(coco()), "--images", images, "--num-processes", "1", "--cache", images / "cache.json"]
    first = said(*words)
    assert (images / "cache.json").is_file()

    def fail(*_: object, **__: object):
        raise AssertionError("a known image must not be decoded again")

    monkeypatch.setattr("detcurate.coco.image_files.Image.open", fail)
    assert said(*words) == first


def test_validate_camvid(camvid, said):
    status, text = said("validate", camvid / "train.json")
    assert status == 0
    assert "530 images, 6,778 boxes, 4 classes can be used" in text
    assert "3 of 530 images have no annotation" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["validate"], "the following arguments are required: FILE"),
        (["validate", "no.json"], "detcurate: the annotation file must be readable, got No such file or directory"),
        (["validate", "{}"], "Is a directory"),
        (
            ["validate", "s3://key:hunter2@pool/train.json"],
            "FILE must be a URL without credentials, got s3://… with some",
        ),
        (["validate", "{}/train.json", "--policy", "invalid_bx=warn"], "did you mean 'invalid_box'?"),
        (["validate", "{}/train.json", "--policy", "invalid_box"], "must be one of error, repair, got 'invalid_box'"),
        (["validate", "{}/train.json", "--policy", "invalid_box=warn"], "must be one of error, repair"),
        (["validate", "{}/train.json", "--images", "{}/nowhere"], "image_root must be a directory, got"),
        (["validate", "{}/train.json", "--cache", "c.json"], "--cache needs --images"),
        (["validate", "{}/train.json", "--num-processes", "-1"], "--num-processes must be at least 0, got -1"),
        (["validate", "{}/broken.json"], "line 2"),
        (["validate", "{}/empty.json"], "got an empty file"),
        (["manifest"], "the following arguments are required: COMMAND"),
        (["manifest", "sttas", "x"], "invalid choice: 'sttas'"),
        (["manifest", "stats"], "the following arguments are required: M"),
        (["manifest", "stats", "{}/no.json"], "must be readable, got No such file"),
        (["manifest", "stats", "{}"], "holds no subset.json"),
        (["manifest", "diff", "{}/train.json"], "the following arguments are required: B"),
        (["manifest", "diff", "{}/train.json", "{}/broken.json"], "line 2"),
        (["manifest", "verify", "{}"], "provenance.json"),
        (["manifest", "verify", "{}/train.json"], "train.json/provenance.json"),
        (["manifest", "merge", "{}/train.json"], "the following arguments are required: -o/--output"),
        (["manifest", "merge", "{}/train.json", "-o", "{}"], "a file must be accessible, got Is a directory"),
        (["manifest", "merge", "{}/train.json", "-o", "{}/train.json/x"], "a file must be accessible, got Not a dir"),
        (["manifest", "merge", "{}/train.json", "-o", "{}/train.json"], "output: one of the files to merge"),
        (["manifest", "merge", "{}/train.json", "-o", "x", "--on-conflict", "last"], "invalid choice: 'last'"),
        (
            ["valdiate", "{}/train.json"],
            f"one of {', '.join(COMMANDS)}, got 'valdiate' (did you mean 'validate'?)",
        ),
        (
            ["stats", "{}/train.json"],
            f"must be an option or one of {', '.join(COMMANDS)}, got 'stats'",
        ),
    ],
)
def test_bad_arguments_get_one_message(tmp_path, write, refused, words, message):
    write(coco())
    write('{"images": [],\n"annotations": [,]}', "broken.json")
    write(" ", "empty.json")
    assert message in refused(*(word.replace("{}", str(tmp_path)) for word in words))


def test_a_cache_that_cannot_be_written(write, images, capsys):
    path = write(coco())
    words = ["validate", path, "--images", images, "--num-processes", "1", "--cache", images]
    assert main([str(word) for word in words]) == 2
    assert f"detcurate: a file must be accessible, got Is a directory ({images})" in capsys.readouterr().err


def test_debug_adds_the_traceback(capsys, tmp_path):
    assert main(["manifest", "stats", str(tmp_path), "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["validate"], ["manifest"], *(["manifest", c] for c in ("verify", "diff", "stats", "merge"))]
)
def test_help(capsys, words):
    with pytest.raises(SystemExit) as stop:
        main([*words, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert text.startswith(f"usage: detcurate {' '.join(words)} ")
    assert max(map(len, text.split("\n"))) <= 120


def test_verify(manifest, said):
    folder = manifest(12, 41)
    status, text = said("manifest", "verify", folder)
    assert status == 0
    found = {name: (status, detail) for status, name, detail in rows(text, ["status", "check", "detail"])}
    assert found["images"] == ("ok", "2 file names")
    assert found["counts"] == ("ok", "2 images, 5 boxes")
    assert found["source"] == ("absent", "train.json is missing; name it with --source")
    assert text.endswith("as far as could be checked: 5 of 9 checks lack what they need\n")


def test_verify_with_a_source_and_a_run(manifest, said, tmp_path):
    folder = manifest(12, 41)
    (tmp_path / "run" / "score").mkdir(parents=True)
    (tmp_path / "run" / "score" / "images.parquet").write_bytes(b"x")
    words = ("manifest", "verify", folder, "--source", tmp_path / "train.json", "--output-dir", tmp_path / "run")
    status, text = said(*words)
    found = {name: status for status, name, _ in rows(text, ["status", "check", "detail"])}
    assert status == 1
    assert found == {
        "subset": "ok", "images": "ok", "counts": "ok", "config": "ok", "source": "ok", "true subset": "ok",
        "histograms": "ok", "scores": "failed", "members": "absent",
    }  # fmt: skip
    assert text.endswith("\n1 of 9 checks failed, as far as could be checked: 1 of 9 checks lack what they need\n")
    status, text = said(*words, "--json")
    assert status == 1
    assert {check["name"]: check["status"] for check in json.loads(text)} == found


def test_verify_a_changed_subset(manifest, said):
    folder = manifest(12, 41)
    path = folder / "subset.json"
    path.write_text(path.read_text().replace('"width": 63', '"width": 62'))
    status, text = said("manifest", "verify", folder)
    assert status == 1
    assert "\n1 of 9 checks failed" in text
    assert re.search(r"^failed +subset +sha256 of its text is \w{12}…, the provenance states \w{12}…$", text, re.M)


def test_stats(manifest, said):
    status, text = said("manifest", "stats", manifest(7, 12, 41))
    assert status == 0
    assert text.startswith(
        "subset.json: 3 images (1 without a box), 5 boxes\nboxes per image: mean 1.7, median 2, most 3\n"
    )
    assert rows(text, ["classes", "count", "share"]) == [
        ("person", "2", "40.0%"), ("bike", "1", "20.0%"), ("car", "2", "40.0%"),
    ]  # fmt: skip
    assert rows(text, ["box_size", "count", "share"]) == [
        ("small", "4", "80.0%"), ("medium", "1", "20.0%"), ("large", "0", "0.0%"),
    ]  # fmt: skip
    assert rows(text, ["weather", "count", "share"]) == [("clear", "1", "33.3%"), ("rain", "2", "66.7%")]


def test_a_median_between_two_counts_is_not_rounded(write, said):
    assert "median 2.5," in said("manifest", "stats", write(coco(keys=(12, 41))))[1]


def test_stats_as_json(manifest, said):
    status, text = said("manifest", "stats", manifest(7, 12, 41), "--json")
    found = json.loads(text)
    assert status == 0
    assert (found["num_images"], found["num_boxes"], found["num_empty_images"]) == (3, 5, 1)
    assert found["histograms"]["classes"] == {"person": 2, "bike": 1, "car": 2}


def test_a_long_table_shows_what_weighs_most(write, said):
    content = coco(keys=(30,))
    content["images"] = [
        {"id": key, "file_name": f"{key}.jpg", "width": 64, "height": 48, "sequence": f"s{min(key, 13):02d}"}
        for key in range(1, 31)
    ]
    _, text = said("manifest", "stats", write(content))
    found = rows(text, ["sequence", "count", "share"])
    assert found[0] == ("s13", "18", "60.0%")
    assert found[-1] == ("… and 1 more; --json has all",)
    assert len(found) == 13
    smaller = {**content, "images": content["images"][:12] + content["images"][29:]}
    smaller["annotations"] = [box for box in content["annotations"] if box["image_id"] < 13]
    _, text = said("manifest", "diff", write(content, "a.json"), write(smaller, "b.json"))
    assert rows(text, ["sequence", "A", "B"])[0] == ("s13", "18", "1", "60.0%", "7.7%", "-52.3%")


def test_diff(manifest, said):
    first, second = manifest(12, 41, name="one"), manifest(41, 30, 7, name="two")
    status, text = said("manifest", "diff", first, second)
    assert status == 0
    assert text.startswith(
        f"A: 2 images, 5 boxes ({first}/subset.json)\nB: 3 images, 4 boxes ({second}/subset.json)\n\n"
        "images: 1 in both (0 of them changed), 1 only in A, 2 only in B; Jaccard 0.250\n\nclasses: shift 35.0%\n"
    )
    assert rows(text, ["classes", "A", "B", "share of A", "share of B", "change"]) == [
        ("person", "2", "1", "40.0%", "25.0%", "-15.0%"),
        ("bike", "1", "0", "20.0%", "0.0%", "-20.0%"),
        ("car", "2", "3", "40.0%", "75.0%", "+35.0%"),
    ]
    assert rows(text, ["weather", "A"])[0] == ("clear", "1", "2", "50.0%", "66.7%", "+16.7%")


def test_diff_of_one_set_with_itself(manifest, said):
    folder = manifest(12, 41)
    _, text = said("manifest", "diff", folder, folder)
    assert "2 in both (0 of them changed), 0 only in A, 0 only in B; Jaccard 1.000" in text
    assert {row[-1] for row in rows(text, ["classes", "A", "B"])} == {"–"}


def test_diff_as_json(manifest, said):
    status, text = said("manifest", "diff", manifest(12, 41, name="one"), manifest(41, 30, 7, name="two"), "--json")
    images = json.loads(text)["images"]
    assert status == 0
    assert images == {"added": [7, 30], "removed": [12], "kept": [41], "changed": [], "jaccard": 0.25}


def test_merge(manifest, said, tmp_path):
    first, second = manifest(12, 41, name="one"), manifest(41, 30, 7, name="two")
    output = tmp_path / "merged.json.gz"
    status, text = said("manifest", "merge", first, second, "-o", output)
    assert status == 0
    assert rows(text, ["file", "name", "images", "taken"]) == [
        ("1", "subset.json", "2", "2"),
        ("2", "subset.json", "3", "2"),
    ]
    assert text.endswith(f"\n4 images with 6 boxes: {output}\n")
    assert len(read_coco(output)) == 4
    assert (tmp_path / "merged.lineage.json").is_file()


def test_merge_with_conflicts(write, said, refused, tmp_path):
    first, content = write(coco(keys=(12, 41)), "a.json"), coco(keys=(41, 30))
    content["annotations"][0]["bbox"][0] = 2
    content["annotations"][-2]["id"] = 2  # of image 30; an annotation of image 12 has it
    second = write(content, "b.json")
    conflict = "image_id 41 is labelled differently in file 1 (a.json) and file 2 (b.json)"
    assert conflict in refused("manifest", "merge", first, second, "-o", tmp_path / "m.json")
    words = ("manifest", "merge", first, second, "-o", tmp_path / "m.json", "--on-conflict", "first")
    status, text = said(*words)
    assert status == 0
    assert f"\nconflicts: 1; each image is kept as the first of its files has it\n    {conflict}\n\n" in text
    assert text.endswith(f"3 images with 6 boxes, 1 of them with a new id: {tmp_path / 'm.json'}\n")
    status, text = said(*words, "--json")
    lineage = json.loads(text)
    assert status == 0
    assert (lineage["conflicts"], lineage["renumbered"], lineage["num_images"]) == ([conflict], 1, 3)
