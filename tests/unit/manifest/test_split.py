"""Splits of small pools: properties of any pool, and cases by hand with 6 images, 2 classes and 3 sequences."""

import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detcurate.coco.dataset import read_coco
from detcurate.errors import ConfigError, DatasetError
from detcurate.io.files import add_checksum, sha256_file, sha256_json
from detcurate.manifest.provenance import read_provenance
from detcurate.manifest.split import group_numbers, group_values, write_split
from detcurate.manifest.stratify import choose_validation
from detcurate.manifest.verify import verify_manifest
from detcurate.manifest.write import subset_bytes

CHECKS = ["train", "val", "config", "source", "true subsets", "partition", "groups", "histograms"]


def coco(images, classes, boxes):
    """Return a COCO file as text: images as (file_name, fields), boxes as (image, class), with awkward spaces."""
    image_texts = [
        json.dumps({"width": 64, "id": 10 + 3 * at, "height": 48, "file_name": name, **fields}, separators=(" , ", ":"))
        for at, (name, fields) in enumerate(images)
    ]
    box_texts = [
        f'{{"id": {at + 1},"image_id": {10 + 3 * image}, "category_id": {5 + number}, "bbox": [1.50, 1e0, 8, 6],'
        '"area": 48.00, "iscrowd": 0}'
        for at, (image, number) in enumerate(boxes)
    ]
    categories = [{"id": 5 + number, "name": f"class-{number}"} for number in range(classes)]
    return (
        f'{{"info": {{"year": 2.0240e3}}, "images": [{", ".join(image_texts)}], "licenses": [ ],\n'
        f'"annotations": [{",".join(box_texts)}], "categories": {json.dumps(categories)}}}'
    )


def write(path: Path, *content: object):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(coco(*content), encoding="utf-8")
    return path


def names(path: Path):
    return [image["file_name"] for image in json.loads(path.read_text())["images"]]


def by_sequence(*lengths: int, **fields: object):
    """Return images of as many sequences as there are lengths."""
    return [(f"s{s}/{k}.jpg", {"sequence": f"s{s}", **fields}) for s, n in enumerate(lengths) for k in range(n)]


@pytest.fixture
def source(tmp_path):
    """Sequences of 3, 2 and 1 images; class 0 is in all of them, class 1 in the last alone."""
    boxes = [(0, 0), (1, 0), (2, 0), (3, 0), (4, 0), (5, 0), (5, 1), (5, 1)]
    return write(tmp_path / "all.json", by_sequence(3, 2, 1), 2, boxes)


@st.composite
def pools(draw):
    """Draw 2 to 12 images, of which some have a value of ``city``, and up to 20 boxes of 3 classes."""
    num_images = draw(st.integers(2, 12))
    cities = draw(st.lists(st.sampled_from(["a", "b", "c", "d", None]), min_size=num_images, max_size=num_images))
    images = [(f"{at}.jpg", {} if city is None else {"city": city}) for at, city in enumerate(cities)]
    boxes = draw(st.lists(st.tuples(st.integers(0, num_images - 1), st.integers(0, 2)), max_size=20))
    return images, 3, boxes


SLOW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
OPTIONS = {
    "fraction": st.floats(0.05, 0.95),
    "stratify": st.booleans(),
    "seed": st.integers(0, 3),
}


@SLOW
@given(pool=pools(), **OPTIONS)
def test_split_any_pool_is_partition_of_verbatim_records_without_shared_group(
    pool, fraction, stratify, seed, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("split")
    source = write(folder / "all.json", *pool)
    cities = [fields.get("city") for _, fields in pool[0]]
    if not any(cities) or (None not in cities and len(set(cities)) == 1):
        with pytest.raises(ConfigError, match="by"):
            write_split(source, folder / "out", fraction=fraction, by="city", stratify=stratify, seed=seed)
        assert not (folder / "out").exists()
        return
    report = write_split(source, folder / "out", fraction=fraction, by="city", stratify=stratify, seed=seed)
    text = source.read_text()
    whole, parts = json.loads(text), {}
    for name in ("train", "val"):
        part_text = (folder / "out" / f"{name}.json").read_text()
        parts[name] = json.loads(part_text)
        assert len(parts[name]["images"]) == report.parts[name].num_images > 0
        assert len(parts[name]["annotations"]) == report.parts[name].num_boxes
        records = [line.rstrip(",") for line in part_text.splitlines() if line.startswith('{"width"')]
        records += [line.rstrip(",") for line in part_text.splitlines() if line.startswith('{"id": ')]
        assert len(records) == len(parts[name]["images"]) + len(parts[name]["annotations"])
        assert all(record in text for record in records)
        assert '"info": {"year": 2.0240e3}' in part_text
        assert list(parts[name]) == list(whole)
        ids = {image["id"] for image in parts[name]["images"]}
        assert parts[name]["annotations"] == [box for box in whole["annotations"] if box["image_id"] in ids]
    assert sorted(parts["train"]["images"] + parts["val"]["images"], key=lambda image: image["id"]) == whole["images"]
    train, val = ({image.get("city") for image in parts[name]["images"]} - {None} for name in ("train", "val"))
    assert not train & val
    assert {check.status for check in verify_manifest(folder / "out")} == {"ok"}


@SLOW
@given(pool=pools(), **OPTIONS)
def test_split_same_seed_writes_same_bytes(pool, fraction, stratify, seed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("split")
    source = write(folder / "all.json", *pool)
    for name in ("a", "b"):
        write_split(source, folder / name, fraction=fraction, stratify=stratify, seed=seed)
    for name in ("train.json", "val.json", "provenance.json"):
        assert (folder / "a" / name).read_bytes() == (folder / "b" / name).read_bytes()


@SLOW
@given(num_images=st.integers(2, 60), fraction=st.floats(0.01, 0.99), seed=st.integers(0, 5))
def test_split_single_images_has_nearest_possible_share(num_images, fraction, seed, tmp_path_factory):
    images = [(f"{at}.jpg", {}) for at in range(num_images)]
    dataset = read_coco(write(tmp_path_factory.mktemp("split") / "all.json", images, 1, [(0, 0)]))
    chosen = choose_validation(dataset, np.arange(num_images), fraction=fraction, stratify=False, seed=seed)
    possible = range(1, num_images)  # neither side is empty
    best = min(abs(count - fraction * num_images) for count in possible)
    assert abs(int(chosen.sum()) - fraction * num_images) == pytest.approx(best, abs=1e-6)


@SLOW
@given(
    sizes=st.lists(st.integers(0, 6), min_size=1, max_size=5).filter(any),
    per_val=st.integers(2, 5),
    seed=st.integers(0, 5),
)
def test_stratify_single_images_of_divisible_classes_is_exact(sizes, per_val, seed, tmp_path_factory):
    boxes = [(at, number) for at, number in enumerate(np.repeat(np.arange(len(sizes)), sizes).repeat(per_val))]
    images = [(f"{at}.jpg", {}) for at in range(len(boxes))]
    dataset = read_coco(write(tmp_path_factory.mktemp("split") / "all.json", images, len(sizes), boxes))
    chosen = choose_validation(dataset, np.arange(len(boxes)), fraction=1 / per_val, stratify=True, seed=seed)
    of_val = np.bincount(dataset.class_index[chosen[dataset.image_index]], minlength=len(sizes))
    np.testing.assert_array_equal(of_val, sizes)


def objective(counts, chosen, fraction):
    """Return the sum of squared deviations by definition; the last column counts images."""
    total = counts.sum(axis=0)
    present = total > 0
    deviation = counts[chosen].sum(axis=0)[present] / total[present] - fraction
    weights = np.ones(counts.shape[1])
    weights[-1] = counts.shape[1] - 1
    return float(weights[present] @ deviation**2)


@SLOW
@given(pool=pools(), fraction=st.floats(0.05, 0.95), seed=st.integers(0, 3))
def test_stratify_any_pool_has_no_better_neighbour(pool, fraction, seed, tmp_path_factory):
    dataset = read_coco(write(tmp_path_factory.mktemp("split") / "all.json", *pool))
    num_images = len(dataset)
    chosen = choose_validation(dataset, np.arange(num_images), fraction=fraction, stratify=True, seed=seed)
    counts = np.zeros((num_images, 4))
    np.add.at(counts, (dataset.image_index, dataset.class_index), 1)
    counts[:, -1] = 1
    found = objective(counts, chosen, fraction)
    for moved in (*((at,) for at in range(num_images)), *itertools.combinations(range(num_images), 2)):
        other = chosen.copy()
        other[list(moved)] ^= True
        is_swap = len(moved) == 2 and chosen[moved[0]] != chosen[moved[1]]
        if (len(moved) == 1 or is_swap) and 0 < other.sum() < num_images:
            assert found <= objective(counts, other, fraction) + 1e-9


def test_split_records_with_sequence_are_grouped_by_it_without_by(source, tmp_path):
    report = write_split(source, tmp_path / "out", fraction=1 / 3)
    assert (report.by, report.is_default_by, report.num_ungrouped) == ("sequence", True, 0)
    assert names(tmp_path / "out" / "val.json") == ["s1/0.jpg", "s1/1.jpg"]
    assert (report.parts["val"].num_groups, report.parts["train"].num_groups) == (1, 2)
    assert any("sequence" in note and "default" in note for note in report.notes())
    assert not write_split(source, tmp_path / "named", fraction=1 / 3, by="sequence").is_default_by


def test_split_by_file_name_divides_sequences(source, tmp_path):
    report = write_split(source, tmp_path / "out", fraction=0.5, by="file_name")
    assert (report.by, report.parts["val"].num_images, report.parts["train"].num_groups) == ("file_name", 3, 3)
    assert any("--by" in note for note in report.notes())


def test_split_records_without_sequence_are_divided_by_image(tmp_path):
    source = write(tmp_path / "all.json", [(f"{at}.jpg", {}) for at in range(5)], 1, [(0, 0)])
    report = write_split(source, tmp_path / "out", fraction=0.4)
    assert (report.by, report.is_default_by, report.parts["val"].num_images) == ("file_name", False, 2)


def test_split_by_nested_attribute_counts_images_without_value(tmp_path):
    images = [
        ("a.jpg", {"attributes": {"site": 1}}),
        ("b.jpg", {"attributes": {"site": 1}}),
        ("c.jpg", {}),
        ("d.jpg", {}),
    ]
    report = write_split(
        write(tmp_path / "all.json", images, 1, []), tmp_path / "out", fraction=0.5, by="attributes.site"
    )
    assert report.num_ungrouped == 2
    sides = [set(names(tmp_path / "out" / f"{name}.json")) for name in ("train", "val")]
    assert {"a.jpg", "b.jpg"} in sides
    assert any("attributes.site" in note and "2 images" in note for note in report.notes())


def test_group_numbers_same_file_name_joins_values(tmp_path):
    images = [("a.jpg", {"city": "x"}), ("b.jpg", {"city": "y"}), ("b.jpg", {"city": "x"}), ("c.jpg", {"city": "z"}),
              ("a.jpg", {}), ("e.jpg", {})]  # fmt: skip
    dataset = read_coco(write(tmp_path / "all.json", images, 1, []))
    groups = group_numbers(dataset, group_values(dataset, "city")).tolist()
    assert groups[0] == groups[1] == groups[2] == groups[4]
    assert len({groups[0], groups[3], groups[5]}) == 3
    write_split(dataset.path, tmp_path / "out", fraction=0.5, by="city")
    assert {check.status for check in verify_manifest(tmp_path / "out")} == {"ok"}


def test_split_stratified_reports_class_in_single_group(source, tmp_path):
    report = write_split(source, tmp_path / "out", fraction=1 / 3, stratify=True)
    rare = report.classes[1]
    assert (rare.num_boxes, rare.num_groups, rare.target) == (2, 1, 1 / 3)
    assert rare.num_val_boxes in (0, 2)
    assert rare in report.unbalanced
    assert report.in_one_group == (rare,)
    assert sum("class-1" in note for note in report.notes()) == 2
    record = report.to_dict()
    assert json.loads(json.dumps(record)) == record
    assert record["in_one_group"] == ["class-1"]
    assert record["classes"]["class-1"]["actual"] == rare.actual
    assert read_provenance(tmp_path / "out")["classes"] == record["classes"]


def test_split_balanced_classes_reports_none(tmp_path):
    boxes = [(at, number) for at in range(10) for number in (0, 1)]
    source = write(tmp_path / "all.json", [(f"{at}.jpg", {}) for at in range(10)], 2, boxes)
    report = write_split(source, tmp_path / "out", fraction=0.2, stratify=True)
    assert (report.unbalanced, report.in_one_group, report.val_share) == ((), (), 0.2)


def test_stratify_skewed_sequences_beats_unstratified(tmp_path):
    """Of 12 sequences, class 1 is frequent in three; its share is nearer to the fraction with stratification."""
    images = by_sequence(*[5] * 12)
    boxes = [(at, 0) for at in range(60)] + [(at, 1) for at in range(0, 15) for _ in range(4)]
    source = write(tmp_path / "all.json", images, 2, boxes)
    deviations = {
        stratify: [
            abs(
                write_split(source, tmp_path / f"{stratify}{seed}", fraction=1 / 3, stratify=stratify, seed=seed)
                .classes[1]
                .actual
                - 1 / 3
            )
            for seed in range(12)
        ]
        for stratify in (True, False)
    }
    assert max(deviations[True]) < 1e-9 < max(deviations[False])


@pytest.mark.parametrize("seed", range(3))
def test_stratify_share_of_images_weighs_as_all_classes(tmp_path, seed):
    """Of 12 images of class 0 and one of each of three others, 4 of class 0 balance it, but 5 of 15 images are wanted.

    With 5, class 0 deviates by 1/12 instead of the images by 1/15, which count four times: 1/144 < 4/225.
    """
    boxes = [(at, max(at - 11, 0)) for at in range(15)]
    source = write(tmp_path / "all.json", [(f"{at}.jpg", {}) for at in range(15)], 4, boxes)
    report = write_split(source, tmp_path / "out", fraction=1 / 3, stratify=True, seed=seed)
    assert [share.num_val_boxes for share in report.classes] == [5, 0, 0, 0]


def test_split_other_seed_gives_other_images(tmp_path):
    source = write(tmp_path / "all.json", [(f"{at}.jpg", {}) for at in range(40)], 1, [])
    found = set()
    for seed in range(4):
        write_split(source, tmp_path / f"{seed}", fraction=0.25, seed=seed)
        found.add(tuple(names(tmp_path / f"{seed}" / "val.json")))
    assert len(found) == 4
    times = Counter(itertools.chain.from_iterable(found))
    assert max(times.values()) < 4


def test_split_two_groups_never_leaves_a_side_empty(tmp_path):
    source = write(tmp_path / "all.json", by_sequence(7, 9), 1, [])
    for fraction, expected in ((0.01, 7), (0.99, 9)):
        report = write_split(source, tmp_path / f"{fraction}", fraction=fraction)
        assert report.parts["val"].num_images == expected
        assert any("images" in note and f"{fraction:.1%}" in note for note in report.notes())


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_split_fraction_out_of_range_raises(source, tmp_path, fraction):
    with pytest.raises(ConfigError, match=rf"fraction.*{fraction}"):
        write_split(source, tmp_path / "out", fraction=fraction)


def test_split_negative_seed_raises(source, tmp_path):
    with pytest.raises(ConfigError, match=r"seed.*-1"):
        write_split(source, tmp_path / "out", fraction=0.5, seed=-1)


def test_split_unknown_attribute_names_known_ones(tmp_path):
    source = write(tmp_path / "all.json", by_sequence(1, 1, weather={"light": "day"}), 1, [])
    with pytest.raises(ConfigError, match=r"by.*weather\.lihgt.*file_name, sequence, weather\.light.*'weather\.light'"):
        write_split(source, tmp_path / "out", fraction=0.5, by="weather.lihgt")


def test_split_sequence_without_sequences_raises(tmp_path):
    source = write(tmp_path / "all.json", [("a.jpg", {"city": "x"}), ("b.jpg", {})], 1, [])
    with pytest.raises(ConfigError, match=r"by.*'sequence'.*file_name, city"):
        write_split(source, tmp_path / "out", fraction=0.5, by="sequence")


@pytest.mark.parametrize(("images", "by"), [(by_sequence(4), "sequence"), ([("a.jpg", {})], "file_name")])
def test_split_single_group_raises(tmp_path, images, by):
    source = write(tmp_path / "all.json", images, 1, [])
    with pytest.raises(ConfigError, match=rf"by.*{by}"):
        write_split(source, tmp_path / "out", fraction=0.5)
    assert not (tmp_path / "out").exists()


def test_split_existing_output_raises_and_stays(source, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    write_split(source, output, fraction=0.5)  # an empty folder may be there
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    with pytest.raises(ConfigError, match=rf"output.*{output}"):
        write_split(source, output, fraction=0.3)
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    with pytest.raises(ConfigError, match=rf"output.*{source}"):
        write_split(source, source, fraction=0.3)


def test_split_unreadable_source_leaves_nothing(tmp_path):
    source = tmp_path / "all.json"
    source.write_text("{")
    with pytest.raises(DatasetError, match=r"all\.json"):
        write_split(source, tmp_path / "out", fraction=0.5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.json"]


def test_split_failed_write_leaves_nothing(source, tmp_path, monkeypatch):
    def fail(*_: object):
        raise OSError("no space")

    monkeypatch.setattr("detcurate.manifest.split.write_subset", fail)
    with pytest.raises(OSError, match="no space"):
        write_split(source, tmp_path / "out", fraction=0.5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.json"]


def test_split_repaired_source_is_verified_with_its_policies(tmp_path):
    source = write(tmp_path / "all.json", by_sequence(2, 2), 1, [(0, 0), (1, 0), (3, 0)])
    source.write_text(source.read_text().replace("[1.50, 1e0, 8, 6]", "[1, 2, 0, 6]", 1))
    with pytest.raises(DatasetError, match="invalid_box"):
        write_split(source, tmp_path / "out", fraction=0.5)
    report = write_split(source, tmp_path / "out", fraction=0.5, policies={"invalid_box": "repair"})
    assert sum(part.num_boxes for part in report.parts.values()) == 2
    assert {check.status for check in verify_manifest(tmp_path / "out")} == {"ok"}


@pytest.fixture
def split(source, tmp_path):
    write_split(source, tmp_path / "out", fraction=1 / 3)
    return tmp_path / "out"


def statuses(directory, **options: object):
    return {check.name: check.status for check in verify_manifest(directory, **options)}


def failed(directory):
    return [name for name, status in statuses(directory).items() if status == "failed"]


def edit(path, change):
    """Change a JSON file and its own digest, as a forger would."""
    value = json.loads(path.read_text())
    value.pop("sha256")
    change(value)
    path.write_text(json.dumps(add_checksum(value)))


def forge(directory, **texts: str):
    """Replace parts, and state their new digests and counts."""

    def restate(value):
        for name, text in texts.items():
            path = directory / f"{name}.json"
            path.write_text(text)
            content = json.loads(text)
            value["parts"][name].update(
                sha256=sha256_file(path), num_images=len(content["images"]), num_boxes=len(content["annotations"])
            )

    edit(directory / "provenance.json", restate)


def test_verify_split_as_written_is_ok(split):
    assert statuses(split) == dict.fromkeys(CHECKS, "ok")
    provenance = read_provenance(split)
    assert provenance["parts"]["val"] == {
        "file_name": "val.json", "sha256": sha256_file(split / "val.json"), "num_images": 2, "num_boxes": 2,
        "num_groups": 1,
    }  # fmt: skip
    assert provenance["config_sha256"] == sha256_json(provenance["settings"])
    assert provenance["histograms"]["sequence"]["s1"] == {"before": 2, "train": 0, "val": 2}


def test_verify_split_without_source_is_absent_where_needed(split, source, tmp_path):
    moved = source.rename(tmp_path / "moved.json")
    absent = ("source", "true subsets", "histograms")
    assert statuses(split) == {name: "absent" if name in absent else "ok" for name in CHECKS}
    assert statuses(split, source=moved) == dict.fromkeys(CHECKS, "ok")
    moved.write_text(moved.read_text() + "\n")
    found = statuses(split, source=moved)
    assert (found["source"], found["true subsets"], found["histograms"]) == ("failed", "absent", "absent")


@pytest.mark.parametrize("name", ["train", "val"])
def test_verify_split_changed_byte_fails(split, name):
    path = split / f"{name}.json"
    text = path.read_bytes()
    path.write_bytes(text.replace(b"48.00", b"47.00", 1))
    assert failed(split) == [name, "true subsets"]
    path.write_bytes(text + b"\n")
    assert failed(split) == [name, "true subsets"]
    path.unlink()
    assert name in failed(split)


def test_verify_split_forged_part_is_no_true_subset(split):
    forge(split, val=(split / "val.json").read_text().replace("48.00", "47.00", 1))
    assert failed(split) == ["true subsets"]


def test_verify_split_image_on_both_sides_fails(split, source, tmp_path):
    """The forged train.json is the whole source, a true subset of itself."""
    dataset = read_coco(source)
    forge(split, train=subset_bytes(dataset, dataset.image_ids).decode())
    assert failed(split) == ["partition", "groups"]


def test_verify_split_missing_image_fails(split, source):
    dataset = read_coco(source)
    kept = dataset.image_ids[[0, 1, 2]]  # without the last sequence, which is in neither then
    forge(split, train=subset_bytes(dataset, kept).decode())
    assert failed(split) == ["partition"]


def test_verify_split_group_on_both_sides_fails(split, source):
    dataset = read_coco(source)
    sides = {"train": [0, 1, 3, 5], "val": [2, 4]}
    forge(split, **{name: subset_bytes(dataset, dataset.image_ids[rows]).decode() for name, rows in sides.items()})
    assert "groups" in failed(split)
    assert "partition" not in failed(split)
    detail = {check.name: check.detail for check in verify_manifest(split)}["groups"]
    assert "sequence" in detail
    assert "s0, s1" in detail


def _set(*keys_and_value: object):
    *keys, last, value = keys_and_value

    def change(tree):
        for key in keys:
            tree = tree[key]
        tree[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (_set("parts", "val", "sha256", "0" * 64), ["val"]),
        (_set("parts", "train", "num_boxes", 7), ["train"]),
        (_set("seed", 1), ["config"]),
        (_set("settings", "split", "fraction", 0.5), ["config", "histograms"]),
        (_set("settings", "split", "by", "city"), ["config", "histograms"]),
        (_set("source", "sha256", "0" * 64), ["source"]),
        (_set("source", "num_images", 7), ["source", "partition"]),
        (_set("findings", [{"code": "crowd_region", "policy": "note", "count": 1}]), ["source"]),
        (_set("classes", "class-1", "num_groups", 2), ["histograms"]),
        (_set("histograms", "classes", "class-0", "val", 3), ["histograms"]),
    ],
)  # fmt: skip
def test_verify_split_false_statement_fails_own_check(split, change, expected):
    edit(split / "provenance.json", change)
    assert failed(split) == expected


@pytest.mark.parametrize("key", ["source", "parts", "settings", "classes", "histograms", "seed", "config_sha256"])
def test_read_provenance_split_without_key_raises(split, key):
    edit(split / "provenance.json", lambda value: value.pop(key))
    with pytest.raises(DatasetError, match=r"provenance\.json"):
        verify_manifest(split)


def test_read_provenance_split_changed_byte_raises(split):
    path = split / "provenance.json"
    path.write_bytes(path.read_bytes().replace(b'"seed": 0', b'"seed": 1'))
    with pytest.raises(DatasetError, match=r"provenance\.json"):
        verify_manifest(split)
