"""``detcurate manifest verify | diff | stats | merge``: output, exit status and errors."""

import json
import re

import pytest
from helpers.commands import coco, rows

from detcurate.coco.dataset import read_coco


def test_verify_without_its_source_reports_absent_checks(manifest, printed):
    folder = manifest(12, 41)
    status, text = printed("manifest", "verify", folder)
    assert status == 0
    found = {name: (status, detail) for status, name, detail in rows(text, ["status", "check", "detail"])}
    assert found["images"] == ("ok", "2 file names")
    assert found["counts"] == ("ok", "2 images, 5 boxes")
    assert found["source"] == ("absent", "train.json is missing; name it with --source")
    assert text.endswith("; 5 of 9 checks were skipped because a file is absent\n")


def test_verify_with_source_and_run_runs_those_checks(manifest, printed, tmp_path):
    folder = manifest(12, 41)
    (tmp_path / "run" / "score").mkdir(parents=True)
    (tmp_path / "run" / "score" / "images.parquet").write_bytes(b"x")
    words = ("manifest", "verify", folder, "--source", tmp_path / "train.json", "--output-dir", tmp_path / "run")
    status, text = printed(*words)
    found = {name: status for status, name, _ in rows(text, ["status", "check", "detail"])}
    assert status == 1
    assert found == {
        "subset": "ok", "images": "ok", "counts": "ok", "config": "ok", "source": "ok", "true subset": "ok",
        "histograms": "ok", "scores": "failed", "members": "absent",
    }  # fmt: skip
    assert text.endswith("\n1 of 9 checks failed; 1 of 9 checks were skipped because a file is absent\n")
    status, text = printed(*words, "--json")
    assert status == 1
    assert {check["name"]: check["status"] for check in json.loads(text)} == found


def test_verify_changed_subset_fails(manifest, printed):
    folder = manifest(12, 41)
    path = folder / "subset.json"
    path.write_text(path.read_text().replace('"width": 63', '"width": 62'))
    status, text = printed("manifest", "verify", folder)
    assert status == 1
    assert "\n1 of 9 checks failed" in text
    assert re.search(r"^failed +subset +sha256 of its text is \w{12}…, the provenance states \w{12}…$", text, re.M)


def test_stats_prints_counts_and_histograms(manifest, printed):
    status, text = printed("manifest", "stats", manifest(7, 12, 41))
    assert status == 0
    assert text.startswith(
        "subset.json: 3 images (1 without a box), 5 boxes\nboxes per image: mean 1.7, median 2, maximum 3\n"
    )
    assert rows(text, ["classes", "count", "share"]) == [
        ("person", "2", "40.0%"), ("bike", "1", "20.0%"), ("car", "2", "40.0%"),
    ]  # fmt: skip
    assert rows(text, ["box_size", "count", "share"]) == [
        ("small", "4", "80.0%"), ("medium", "1", "20.0%"), ("large", "0", "0.0%"),
    ]  # fmt: skip
    assert rows(text, ["weather", "count", "share"]) == [("clear", "1", "33.3%"), ("rain", "2", "66.7%")]


def test_stats_median_between_two_counts_is_not_rounded(write, printed):
    assert "median 2.5," in printed("manifest", "stats", write(coco(keys=(12, 41))))[1]


def test_stats_json_has_counts_and_histograms(manifest, printed):
    status, text = printed("manifest", "stats", manifest(7, 12, 41), "--json")
    found = json.loads(text)
    assert status == 0
    assert (found["num_images"], found["num_boxes"], found["num_empty_images"]) == (3, 5, 1)
    assert found["histograms"]["classes"] == {"person": 2, "bike": 1, "car": 2}


def test_stats_and_diff_long_table_keeps_the_largest_rows(write, printed):
    content = coco(keys=(30,))
    content["images"] = [
        {"id": key, "file_name": f"{key}.jpg", "width": 64, "height": 48, "sequence": f"s{min(key, 13):02d}"}
        for key in range(1, 31)
    ]
    _, text = printed("manifest", "stats", write(content))
    found = rows(text, ["sequence", "count", "share"])
    assert found[0] == ("s13", "18", "60.0%")
    assert found[-1] == ("… and 1 more; --json lists all",)
    assert len(found) == 13
    smaller = {**content, "images": content["images"][:12] + content["images"][29:]}
    smaller["annotations"] = [box for box in content["annotations"] if box["image_id"] < 13]
    _, text = printed("manifest", "diff", write(content, "a.json"), write(smaller, "b.json"))
    assert rows(text, ["sequence", "A", "B"])[0] == ("s13", "18", "1", "60.0%", "7.7%", "-52.3%")


def test_diff_prints_images_and_shifts(manifest, printed):
    first, second = manifest(12, 41, name="one"), manifest(41, 30, 7, name="two")
    status, text = printed("manifest", "diff", first, second)
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


def test_diff_equal_manifests_have_no_change(manifest, printed):
    folder = manifest(12, 41)
    _, text = printed("manifest", "diff", folder, folder)
    assert "2 in both (0 of them changed), 0 only in A, 0 only in B; Jaccard 1.000" in text
    assert {row[-1] for row in rows(text, ["classes", "A", "B"])} == {"–"}


def test_diff_json_lists_image_ids(manifest, printed):
    status, text = printed("manifest", "diff", manifest(12, 41, name="one"), manifest(41, 30, 7, name="two"), "--json")
    images = json.loads(text)["images"]
    assert status == 0
    assert images == {"added": [7, 30], "removed": [12], "kept": [41], "changed": [], "jaccard": 0.25}


def test_merge_writes_the_union_and_its_lineage(manifest, printed, tmp_path):
    first, second = manifest(12, 41, name="one"), manifest(41, 30, 7, name="two")
    output = tmp_path / "merged.json.gz"
    status, text = printed("manifest", "merge", first, second, "-o", output)
    assert status == 0
    assert rows(text, ["file", "name", "images", "taken"]) == [
        ("1", "subset.json", "2", "2"),
        ("2", "subset.json", "3", "2"),
    ]
    assert text.endswith(f"\n4 images with 6 boxes: {output}\n")
    assert len(read_coco(output)) == 4
    assert (tmp_path / "merged.lineage.json").is_file()


def test_merge_conflict_stops_or_keeps_the_first_file(write, printed, rejected, tmp_path):
    first, content = write(coco(keys=(12, 41)), "a.json"), coco(keys=(41, 30))
    content["annotations"][0]["bbox"][0] = 2
    content["annotations"][-2]["id"] = 2  # of image 30; an annotation of image 12 has it
    second = write(content, "b.json")
    conflict = "image_id 41 is labelled differently in file 1 (a.json) and file 2 (b.json)"
    assert conflict in rejected("manifest", "merge", first, second, "-o", tmp_path / "m.json")
    words = ("manifest", "merge", first, second, "-o", tmp_path / "m.json", "--on-conflict", "first")
    status, text = printed(*words)
    assert status == 0
    assert f"\nconflicts: 1; the labels of the first file were kept\n    {conflict}\n\n" in text
    assert text.endswith(f"3 images with 6 boxes, 1 of them with a new id: {tmp_path / 'm.json'}\n")
    status, text = printed(*words, "--json")
    lineage = json.loads(text)
    assert status == 0
    assert (lineage["conflicts"], lineage["renumbered"], lineage["num_images"]) == ([conflict], 1, 3)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["stats", "{}/no.json"], ["{}/no.json", "No such file"]),
        (["stats", "{}"], ["{}", "subset.json"]),
        (["diff", "{}/train.json", "{}/broken.json"], ["broken.json", "line 2"]),
        (["verify", "{}"], ["{}", "provenance.json"]),
        (["verify", "{}/train.json"], ["train.json", "provenance.json"]),
        (["merge", "{}/train.json", "-o", "{}"], ["{}: Is a directory"]),
        (["merge", "{}/train.json", "-o", "{}/train.json/x"], ["{}/train.json", "Not a directory"]),
        (["merge", "{}/train.json", "-o", "{}/train.json"], ["{}/train.json"]),
        (["merge", "{}/train.json", "-o", "s3://bucket/x.json"], ["-o", "s3://"]),
    ],
)
def test_manifest_error_names_the_option_or_file(tmp_path, write, rejected, words, parts):
    write(coco())
    write('{"images": [],\n"annotations": [,]}', "broken.json")
    message = rejected("manifest", *(word.replace("{}", str(tmp_path)) for word in words))
    for part in parts:
        assert part.replace("{}", str(tmp_path)) in message
