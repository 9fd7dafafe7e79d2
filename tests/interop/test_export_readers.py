"""Readers of the other tools on exported files: they find the exported boxes, names and scores.

The packages of Label Studio and FiftyOne pin versions that conflict with ours: each test needs its package installed.
"""

import dataclasses
import json

import numpy as np
import pytest
from helpers.export_content import HARD_NAMES, content, file_name

from detcurate.interop.corrections.apply import apply_corrections
from detcurate.interop.corrections.readers import read_corrected
from detcurate.interop.export.formats import Options, write_export

# image -> (class, left, top, width, height) of its labels, crowd regions left out
EXPECTED = {
    file_name(12): [(HARD_NAMES[5], 36, 5, 10.5, 12), (HARD_NAMES[2], 3, 5, 10.25, 12)],
    file_name(41): [(HARD_NAMES[9], 1.5, 5, 10.5, 12), (HARD_NAMES[2], 30.25, 5, 10.5, 12)],
}
SEEN = {
    file_name(12): [(HARD_NAMES[5], 3.5, 5, 9.5, 12.5)],
    file_name(41): [(HARD_NAMES[11], 50, 6.5, 10.5, 13.5), (HARD_NAMES[9], 4, 8, 8, 12.25)],
}


@pytest.fixture
def found(tmp_path):
    return content(tmp_path, names=HARD_NAMES)


def same_boxes(got, expected, tolerance):
    assert got.keys() == expected.keys()
    for name, boxes in expected.items():
        assert [box[0] for box in sorted(got[name])] == [box[0] for box in sorted(boxes)]
        for box, other in zip(sorted(got[name]), sorted(boxes), strict=True):
            assert box[1:] == pytest.approx(other[1:], abs=tolerance)


@pytest.mark.filterwarnings("ignore")  # warnings of its dependencies
def test_datumaro_reads_cvat(tmp_path, found):
    dm = pytest.importorskip("datumaro", reason="Datumaro is not installed: pip install 'detcurate[interop]'")
    write_export("cvat", tmp_path / "out", {"train": found}, Options(images="link"))
    dataset = dm.Dataset.import_from(str(tmp_path / "out"), "cvat")
    labels = [label.name for label in dataset.categories()[dm.AnnotationType.label]]
    assert labels == list(found.class_names)
    boxes, proposed = {}, {}
    for item in dataset:
        assert (tmp_path / "out" / "images" / f"{item.id}.png").is_file()
        for box in item.annotations:
            of = proposed if box.attributes["proposal"] else boxes
            of.setdefault(f"{item.id}.png", []).append((labels[box.label], *box.get_bbox()))
    same_boxes(boxes, EXPECTED, 0.01)
    same_boxes(proposed, {file_name(41): SEEN[file_name(41)]}, 0.01)
    ids = {str(box.attributes["annotation_id"]) for item in dataset for box in item.annotations}
    assert {"101", "102", "103", "105"} <= ids


@pytest.mark.filterwarnings("ignore")
def test_supervision_reads_yolo(tmp_path, found):
    sv = pytest.importorskip("supervision", reason="supervision is not installed: pip install 'detcurate[interop]'")
    write_export("yolo", tmp_path / "out", {"train": found}, Options(images="link"))
    got = {}
    for key in (12, 41):
        folder = (tmp_path / "out" / "labels" / "train" / file_name(key)).parent
        dataset = sv.DetectionDataset.from_yolo(
            images_directory_path=str((tmp_path / "out" / "images" / "train" / file_name(key)).parent),
            annotations_directory_path=str(folder),
            data_yaml_path=str(tmp_path / "out" / "data.yaml"),
        )
        assert dataset.classes == list(found.class_names)
        ((_, _, detections),) = [entry for entry in dataset if entry[0].endswith(f"{key}.png")]
        got[file_name(key)] = [
            (dataset.classes[class_id], x1, y1, x2 - x1, y2 - y1)
            for (x1, y1, x2, y2), class_id in zip(detections.xyxy, detections.class_id, strict=True)
        ]
    same_boxes(got, EXPECTED, 1e-4)


@pytest.mark.filterwarnings("ignore")
def test_datumaro_reads_yolo(tmp_path, found):
    dm = pytest.importorskip("datumaro", reason="Datumaro is not installed: pip install 'detcurate[interop]'")
    flat = dataclasses.replace(found, rows=found.rows[:1])  # it does not read folders below that of the labels
    write_export("yolo", tmp_path / "out", {"train": flat, "val": flat}, Options(images="link"))
    dataset = dm.Dataset.import_from(str(tmp_path / "out"), "yolo")
    labels = [label.name for label in dataset.categories()[dm.AnnotationType.label]]
    assert labels == list(found.class_names)
    got = {
        f"{item.id}.png": [(labels[box.label], *box.get_bbox()) for box in item.annotations]
        for item in dataset
        if item.subset == "train"
    }
    same_boxes(got, {file_name(12): EXPECTED[file_name(12)]}, 1e-3)


@pytest.mark.filterwarnings("ignore")
def test_fiftyone_importer_reads_both_files_without_database(tmp_path, found):
    coco = pytest.importorskip("fiftyone.utils.coco", reason="FiftyOne is not installed")
    write_export("fiftyone", tmp_path / "out", {"train": found}, Options())
    for name, expected, extra in (("labels.json", EXPECTED, "track"), ("label_errors.json", SEEN, "kind")):
        importer = coco.COCODetectionDatasetImporter(
            data_path=str(found.image_root), labels_path=str(tmp_path / "out" / name), extra_attrs=True
        )
        got = {}
        with importer:
            for path, metadata, label in importer:
                image = path.removeprefix(f"{found.image_root}/")
                for detection in label["detections"].detections:
                    if detection.iscrowd:
                        continue
                    assert detection[extra]
                    x, y, width, height = detection.bounding_box
                    sides = (x * metadata.width, y * metadata.height, width * metadata.width, height * metadata.height)
                    got.setdefault(image, []).append((detection.label, *sides))
        same_boxes(got, expected, 1e-6)


@pytest.mark.filterwarnings("ignore")
def test_fiftyone_exporter_round_trips_labels(tmp_path, found):
    """Its COCO importer and exporter renumber images and boxes, but keep the labels."""
    coco = pytest.importorskip("fiftyone.utils.coco", reason="FiftyOne is not installed")
    write_export("fiftyone", tmp_path / "out", {"train": found}, Options())
    paths = {"data_path": str(found.image_root), "labels_path": str(tmp_path / "out" / "labels.json")}
    importer = coco.COCODetectionDatasetImporter(**paths)
    exporter = coco.COCODetectionDatasetExporter(
        labels_path=str(tmp_path / "corrected.json"), export_media=False, rel_dir=str(found.image_root)
    )
    with importer, exporter:
        for path, metadata, label in importer:
            exporter.export_sample(path, label["detections"], metadata)
    lineage = apply_corrections(found.dataset, [read_corrected(tmp_path / "corrected.json")], tmp_path / "new.json")
    assert lineage["images"] == {"changed": 0, "confirmed": 2, "not_reviewed": 3}
    assert lineage["boxes"]["unchanged"] == 4


@pytest.mark.filterwarnings("ignore")
def test_cvat_sdk_accepts_labels_of_task(tmp_path, found):
    models = pytest.importorskip("cvat_sdk.models", reason="cvat-sdk is not installed")
    _, labels = write_export("cvat", tmp_path / "out", {"train": found}, Options())
    requests = [
        models.PatchedLabelRequest(
            name=spec["name"],
            type=spec["type"],
            attributes=[models.AttributeRequest(**attribute) for attribute in spec["attributes"]],
        )
        for spec in json.loads(labels.read_text(encoding="utf-8"))
    ]
    task = models.TaskWriteRequest(name="relabel", labels=requests)
    assert [label["name"] for label in task.to_dict()["labels"]] == list(found.class_names)


@pytest.mark.filterwarnings("ignore")
def test_label_studio_accepts_config_and_tasks(tmp_path, found):
    """Label Studio validates the tasks against the labeling interface and converts them to COCO."""
    interface = pytest.importorskip("label_studio_sdk.label_interface", reason="label-studio-sdk is not installed")
    converter = pytest.importorskip("label_studio_sdk.converter")
    tasks_file, config_file = write_export("label-studio", tmp_path / "out", {"train": found}, Options())
    config, tasks = config_file.read_text(encoding="utf-8"), json.loads(tasks_file.read_text(encoding="utf-8"))
    view = interface.LabelInterface(config)
    view.validate()
    assert view.get_tag("label").labels == list(found.class_names)
    for task in tasks:
        assert view.validate_task({"data": task["data"]})  # the SDK calls its other checks without an argument
        for prediction in task["predictions"]:
            assert view.validate_prediction(prediction)
        for annotation in task["annotations"]:
            assert view.validate_annotation(annotation)
    (tmp_path / "tasks").mkdir()
    numbered = [{"id": number, **task} for number, task in enumerate(tasks, start=1)]  # as its server does
    (tmp_path / "tasks" / "tasks.json").write_text(json.dumps(numbered))
    converter.Converter(config, str(tmp_path), download_resources=False).convert_to_coco(
        str(tmp_path / "tasks"), str(tmp_path / "coco"), is_dir=True
    )
    value = json.loads((tmp_path / "coco" / "result.json").read_text(encoding="utf-8"))
    names = {record["id"]: record["name"] for record in value["categories"]}
    assert set(names.values()) == set(HARD_NAMES.values())
    images = {
        record["id"]: (file_name(12) if "12.png" in record["file_name"] else file_name(41))
        for record in value["images"]
    }
    got = {}
    for record in value["annotations"]:
        got.setdefault(images[record["image_id"]], []).append((names[record["category_id"]], *record["bbox"]))
    same_boxes(got, EXPECTED, 1e-6)


def test_pycocotools_reads_fiftyone_export(tmp_path, found, capsys):
    from pycocotools.coco import COCO

    write_export("fiftyone", tmp_path / "out", {"train": found}, Options())
    labels = COCO(str(tmp_path / "out" / "labels.json"))
    seen = labels.loadRes(json.loads((tmp_path / "out" / "label_errors.json").read_text())["annotations"])
    assert np.isclose([seen.anns[key]["score"] for key in seen.getAnnIds(imgIds=[41])], [0.625, 0.5]).all()
