"""The subset file and its provenance: a source of 4 images, 3 classes and 5 boxes with awkward formatting."""

import gzip
import hashlib
import json

import numpy as np
import pytest

from detcurate.coco.dataset import image_metadata, read_coco
from detcurate.errors import DatasetError, SelectionError
from detcurate.io import files
from detcurate.manifest import write as subset
from detcurate.manifest.write import build_provenance, subset_bytes, write_manifest

# Numbers, spaces, key order and fields that a parse and a dump would not reproduce.
IMAGES = (
    '{"width":64 , "id": 30, "height": 48, "file_name": "c\\u00e9.jpg", "sequence": "drive-b"}',
    '{"id": 7, "file_name": "ä.jpg", "width": 62, "height": 46, "weather": {"rain": 1.50, "fog": null}}',
    '{"id": 12, "file_name": "sub\\/b.jpg", "width": 63, "height": 47, "sequence": "drive-a"}',
    '{"id": 41, "file_name": "d.jpg", "width": 65, "height": 49, "sequence": "drive-a"}',
)
ANNOTATIONS = (
    '{"id": 0, "image_id": 41, "category_id": 9, "bbox": [1.50, 1e0, 1E2, 96.0], "area": 9216.0}',
    '{"id": 8, "bbox": [0.1, 0, 10, 20], "image_id": 12, "category_id": 2, "occluded": true}',
    '{"image_id": 41, "category_id": 2, "bbox": [5, 6, 7, 8], "segmentation": [[1, 2.0, 3e-1]]}',
    '{"id": 8, "image_id": 30, "category_id": 9, "bbox": [0, 0, 32, 32.00], "iscrowd": 0}',
    '{"id": 5, "image_id": 12, "category_id": 5, "bbox": [-1, -2, 3, 4], "track": 12345678901234567890123}',
)
CATEGORIES = (
    '[{"id": 9, "name": "car"}, {"id": 2, "name": "person"},\n\t{"id": 5, "name": "bike", "supercategory": ""}]'
)
TOP_LEVEL = f'"licenses" : [ ], "categories": {CATEGORIES}, "info": {{"year": 2.0240e3}}'


def source(annotations=ANNOTATIONS):
    return f'{{{TOP_LEVEL}, "images": [{", ".join(IMAGES)}], "annotations": [{",".join(annotations)}], "videos": null}}'


@pytest.fixture
def dataset(tmp_path):
    path = tmp_path / "train.json"
    path.write_text(source(), encoding="utf-8")
    return read_coco(path)


def provenance(dataset, image_ids, **changes: object):
    return build_provenance(
        **{
            "dataset": dataset,
            "image_ids": np.array(image_ids),
            "strategy": "top_n",
            "seed": 3,
            "requested_budget": {"images": 2},
            "config_sha256": "c" * 64,
            "members": [
                {"run": run, "iteration": 10 * run, "sha256": "e" * 64, "path": "/home/me/x"} for run in range(6)
            ],
            "scores_sha256": "5" * 64,
            "versions": {"detcurate": "0.1.0"},
            **changes,
        }
    )


def test_subset_bytes_copies_records_byte_for_byte_in_file_order(dataset):
    text = subset_bytes(dataset, np.array([12, 30])).decode()
    assert text == (
        '{"licenses": [ ],\n"categories": ' + CATEGORIES + ',\n"info": {"year": 2.0240e3},\n'
        f'"images": [\n{IMAGES[0]},\n{IMAGES[2]}\n],\n'
        f'"annotations": [\n{ANNOTATIONS[1]},\n{ANNOTATIONS[3]},\n{ANNOTATIONS[4]}\n],\n"videos": null}}\n'
    )


def test_subset_bytes_keeps_image_without_annotations(dataset):
    subset = json.loads(subset_bytes(dataset, np.array([7])))
    assert [image["id"] for image in subset["images"]] == [7]
    assert subset["annotations"] == []


def test_subset_bytes_of_all_images_gives_source(dataset):
    data = subset_bytes(dataset, dataset.image_ids)
    assert json.loads(data) == json.loads(source())
    assert list(json.loads(data)) == list(json.loads(source()))
    for record in (*IMAGES, *ANNOTATIONS, CATEGORIES):
        assert record.encode() in data


def test_subset_bytes_reads_as_rows_of_source(dataset, tmp_path):
    path = tmp_path / "subset.json"
    path.write_bytes(subset_bytes(dataset, np.array([41, 12])))
    subset = read_coco(path)
    kept = np.isin(dataset.image_index, dataset.subset_rows(subset.image_ids))
    assert subset.image_ids.tolist() == [12, 41]
    np.testing.assert_array_equal(subset.boxes, dataset.boxes[kept])
    np.testing.assert_array_equal(subset.class_index, dataset.class_index[kept])
    assert subset_bytes(subset, subset.image_ids) == path.read_bytes()


def test_subset_bytes_equal_sets_give_equal_bytes(dataset):
    first = subset_bytes(dataset, np.array([12, 30, 41]))
    assert subset_bytes(dataset, np.array([41, 12, 30])) == first
    assert subset_bytes(read_coco(dataset.path), [30, 41, 12]) == first


def test_subset_bytes_unusable_ids_raise(dataset):
    with pytest.raises(SelectionError, match="image_ids.*train.json"):
        subset_bytes(dataset, np.array([], np.int64))
    with pytest.raises(SelectionError, match=r"image_ids.*99"):
        subset_bytes(dataset, np.array([12, 99]))
    with pytest.raises(SelectionError, match="image_ids.*1"):
        subset_bytes(dataset, np.array([12, 12]))


def test_build_provenance_by_hand(dataset):
    found = provenance(dataset, [12, 41])
    assert found["source"] == {
        "file_name": "train.json",
        "sha256": hashlib.sha256(source().encode()).hexdigest(),
        "num_images": 4,
        "num_boxes": 5,
    }
    assert found["subset"] == {
        "file_name": "subset.json",
        "sha256": hashlib.sha256(subset_bytes(dataset, [12, 41])).hexdigest(),
        "num_images": 2,
        "num_boxes": 4,
    }
    assert found["budget"] == {
        "requested": {"images": 2},
        "spent": {"images": 2, "boxes": 4, "cost_seconds": 0.0},
        "seconds_per_image": 0.0,
        "seconds_per_box": 0.0,
    }
    priced = provenance(dataset, [12, 41], seconds_per_image=3.0, seconds_per_box=7.5)
    assert priced["budget"]["spent"]["cost_seconds"] == 2 * 3.0 + 4 * 7.5
    assert {(entry["code"], entry["policy"], entry["count"]) for entry in found["findings"]} == {
        ("missing_id", "warn", 1),
        ("missing_iscrowd", "warn", 4),
        ("missing_area", "warn", 4),
        ("annotation_id_zero", "warn", 1),
        ("duplicate_annotation_id", "warn", 1),
        ("box_partly_outside", "warn", 2),
        ("category_id_gap", "note", 1),
        ("empty_image", "note", 1),
    }
    assert found["histograms"] == {
        "classes": {
            "person": {"before": 2, "after": 2},
            "bike": {"before": 1, "after": 1},
            "car": {"before": 2, "after": 1},
        },
        # 9216 = 96² is large; 200, 56 and 12 are small; 32·32 is medium and stays behind.
        "box_size": {
            "small": {"before": 3, "after": 3},
            "medium": {"before": 1, "after": 0},
            "large": {"before": 1, "after": 1},
        },
        "sequence": {"drive-a": {"before": 2, "after": 2}, "drive-b": {"before": 1, "after": 0}},
        "weather.rain": {"1.5": {"before": 1, "after": 0}},
    }
    assert found["ensemble"][5] == {"run": 5, "iteration": 50, "sha256": "e" * 64}
    assert (found["strategy"], found["seed"], found["versions"]) == ("top_n", 3, {"detcurate": "0.1.0"})
    assert (found["config_sha256"], found["scores_sha256"]) == ("c" * 64, "5" * 64)


def test_build_provenance_holds_no_folder(dataset, tmp_path):
    text = json.dumps(provenance(dataset, [12]))
    assert str(tmp_path) not in text
    assert "/home/me" not in text


def test_histograms_without_sequences_has_no_sequence_field(tmp_path):
    path = tmp_path / "train.json"
    path.write_text(source().replace('"sequence"', '"recording"'), encoding="utf-8")
    assert set(provenance(read_coco(path), [12])["histograms"]) == {"classes", "box_size", "recording", "weather.rain"}


def test_histograms_flatten_metadata_and_omit_fields_of_many_values(tmp_path):
    images = [
        {"id": i, "file_name": f"{i}.jpg", "width": 8, "height": 6, "serial": i,
         "attributes": {"timeofday": "night" if i % 3 else "day", "tags": ["x"], "lens": {"wide": i == 4, "id": 7}}}
        for i in range(70)
    ]  # fmt: skip
    path = tmp_path / "train.json"
    path.write_text(
        json.dumps({"images": images, "annotations": [], "categories": [{"id": 1, "name": "car"}]}), encoding="utf-8"
    )
    dataset = read_coco(path)
    columns = image_metadata(dataset)
    assert list(columns) == ["attributes.lens.id", "attributes.lens.wide", "attributes.timeofday", "serial"]
    assert columns["serial"] == list(range(70))
    counted = provenance(dataset, [0, 1, 4])["histograms"]
    assert counted["attributes.timeofday"] == {"day": {"before": 24, "after": 1}, "night": {"before": 46, "after": 2}}
    assert counted["attributes.lens.wide"] == {"False": {"before": 69, "after": 2}, "True": {"before": 1, "after": 1}}
    assert "serial" not in counted


REPAIRS = dict.fromkeys(
    ("missing_id", "missing_iscrowd", "missing_area", "duplicate_annotation_id", "box_partly_outside"), "repair"
)


def test_subset_bytes_repaired_records_change_repaired_fields_only(dataset):
    repaired = read_coco(dataset.path, REPAIRS)
    lines = subset_bytes(repaired, repaired.image_ids).decode().split("\n")
    found = {json.loads(line.rstrip(","))["bbox"][2]: line.rstrip(",") for line in lines if '"bbox"' in line}
    # The box of image 41, 65x49 px, is cut at the border; id 0, area and the number formats are not touched.
    assert found[63.5] == (
        '{"id":0,"image_id":41,"category_id":9,"bbox":[1.5,1.0,63.5,48.0],"area":9216.0,"iscrowd":0}'
    )
    assert '"id":8,"bbox":[0.1, 0, 10, 20]' in found[10]
    assert '"segmentation":[[1, 2.0, 3e-1]]' in found[7]
    assert json.loads(found[7])["id"] == 9
    assert json.loads(found[32]) == {**json.loads(ANNOTATIONS[3]), "id": 10, "area": 1024.0}
    again = subset_bytes(repaired, repaired.image_ids)
    (dataset.path.parent / "repaired.json").write_bytes(again)
    codes = {finding.code for finding in read_coco(dataset.path.parent / "repaired.json").findings}
    assert codes == {"annotation_id_zero", "category_id_gap", "empty_image"}


@pytest.mark.parametrize("block", [1, 2, 3])
def test_subset_bytes_do_not_depend_on_block_size(dataset, monkeypatch, block):
    """Repaired and unchanged annotations are copied in one block and in separate blocks."""
    repaired = read_coco(dataset.path, {"missing_iscrowd": "repair", "box_partly_outside": "repair"})
    texts = [subset_bytes(one, one.image_ids) for one in (dataset, repaired)]
    assert texts[0] != texts[1]
    monkeypatch.setattr(subset, "_BLOCK", block)
    assert [subset_bytes(one, one.image_ids) for one in (dataset, repaired)] == texts


def test_join_records_by_hand():
    text, spans = np.frombuffer(b"[{}, 3,[1 ]]", np.uint8), np.array([[1, 3], [5, 6], [7, 11]])
    for positions, expected in (([0, 1, 2], b"{},\n3,\n[1 ]"), ([2, 0], b"[1 ],\n{}"), ([1], b"3")):
        joined = np.zeros(len(expected), np.uint8)
        subset.join_records(text, spans, np.array(positions), joined)
        assert joined.tobytes() == expected


def test_subset_bytes_changed_source_raises(dataset):
    dataset.path.write_text(source().replace("2.0240e3", "2.0250e3"), encoding="utf-8")
    with pytest.raises(DatasetError, match=r"train\.json"):
        subset_bytes(dataset, np.array([12]))


@pytest.mark.parametrize("compress", [False, True])
def test_write_manifest_changed_source_leaves_nothing(dataset, tmp_path, compress):
    described = provenance(dataset, [12])
    dataset.path.write_text(source().replace("2.0240e3", "2.0250e3"), encoding="utf-8")
    with pytest.raises(DatasetError, match=r"train\.json"):
        write_manifest(tmp_path / "m", dataset, np.array([12]), described, compress=compress)
    assert not list((tmp_path / "m").iterdir())


def test_write_manifest_compressed_has_same_text_and_reproducible_bytes(dataset, tmp_path):
    ids = np.array([12, 41])
    for name in ("one", "two"):
        written = write_manifest(tmp_path / name, dataset, ids, provenance(dataset, ids), compress=True)
        assert [path.name for path in written] == ["subset.json.gz", "images.txt", "provenance.json"]
    compressed = (tmp_path / "one" / "subset.json.gz").read_bytes()
    assert compressed == (tmp_path / "two" / "subset.json.gz").read_bytes()
    assert compressed[4:8] == bytes(4)  # no time of writing
    assert compressed[3] == 0  # and no file name
    assert gzip.decompress(compressed) == subset_bytes(dataset, ids)
    digests = {name: files.sha256_file(tmp_path / name / "provenance.json") for name in ("one", "two")}
    assert digests["one"] == digests["two"]
    stated = json.loads((tmp_path / "one" / "provenance.json").read_bytes())["subset"]
    assert stated["sha256"] == hashlib.sha256(subset_bytes(dataset, ids)).hexdigest()
    assert read_coco(tmp_path / "one" / "subset.json.gz").image_ids.tolist() == [12, 41]
    # The other form replaces it.
    write_manifest(tmp_path / "one", dataset, ids, provenance(dataset, ids))
    assert not (tmp_path / "one" / "subset.json.gz").exists()


def test_write_manifest_lists_images_in_file_order(dataset, tmp_path):
    ids = np.array([7, 12, 30])
    write_manifest(tmp_path, dataset, ids, provenance(dataset, ids))
    assert (tmp_path / "images.txt").read_text(encoding="utf-8") == "cé.jpg\nä.jpg\nsub/b.jpg\n"


def test_write_manifest_twice_gives_equal_bytes(dataset, tmp_path):
    for folder, ids in (("one", [41, 12]), ("two", [12, 41])):
        write_manifest(tmp_path / folder, dataset, np.array(ids), provenance(dataset, ids))
    for name in ("subset.json", "provenance.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == [
        "images.txt",
        "provenance.json",
        "subset.json",
    ]
    stated = json.loads((tmp_path / "one" / "provenance.json").read_bytes())["subset"]["sha256"]
    assert files.sha256_file(tmp_path / "one" / "subset.json") == stated


@pytest.mark.parametrize("writer", ["write_bytes", "write_json"])
@pytest.mark.parametrize("has_older", [False, True])
def test_write_manifest_failed_write_leaves_nothing(dataset, tmp_path, monkeypatch, writer, has_older):
    folder = tmp_path / "manifest"
    if has_older:
        write_manifest(folder, dataset, np.array([7]), provenance(dataset, [7]))

    def fail(path, value):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, writer, fail)
    with pytest.raises(OSError, match="No space left"):
        write_manifest(folder, dataset, np.array([12]), provenance(dataset, [12]))
    assert not folder.exists() or not list(folder.iterdir())


def test_write_manifest_value_without_json_form_leaves_nothing(dataset, tmp_path):
    with pytest.raises(TypeError):
        write_manifest(tmp_path / "m", dataset, np.array([12]), provenance(dataset, [12], versions={"x": object()}))
    assert not list((tmp_path / "m").iterdir())


def test_write_manifest_provenance_of_other_subset_raises(dataset, tmp_path):
    with pytest.raises(SelectionError, match="provenance"):
        write_manifest(tmp_path / "m", dataset, np.array([12]), provenance(dataset, [30]))
    assert not list((tmp_path / "m").iterdir())


def test_subset_bytes_camvid_by_definition(camvid):
    dataset = read_coco(camvid / "train.json")
    text = json.loads((camvid / "train.json").read_text(encoding="utf-8"))
    assert json.loads(subset_bytes(dataset, dataset.image_ids)) == text
    kept = set(dataset.image_ids[::3].tolist())
    subset = json.loads(subset_bytes(dataset, dataset.image_ids[::3]))
    assert subset["images"] == [image for image in text["images"] if image["id"] in kept]
    assert subset["annotations"] == [record for record in text["annotations"] if record["image_id"] in kept]
    assert subset["categories"] == text["categories"]
