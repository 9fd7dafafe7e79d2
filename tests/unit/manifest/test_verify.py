"""Verification of a run of 5 images, 3 classes, 7 boxes and 2 members, with one change at a time."""

import gzip
import json
import shutil

import numpy as np
import pytest

from detcurate.coco.dataset import read_coco
from detcurate.coco.text import open_source
from detcurate.coco.validation.findings import RULES
from detcurate.ensemble.index import MemberWriter, write_index
from detcurate.errors import DatasetError
from detcurate.io.files import add_checksum, sha256_file, sha256_json, write_json
from detcurate.manifest import expected
from detcurate.manifest.expected import text_sha256
from detcurate.manifest.provenance import read_provenance, subset_path
from detcurate.manifest.verify import verify_manifest
from detcurate.manifest.write import build_provenance, write_manifest

CHECKS = ["subset", "images", "counts", "config", "source", "true subset", "histograms", "scores", "members"]
KEPT = [12, 30, 41]


def coco(**changes: object):
    images = [
        (30, "c.jpg", "night"),
        (7, "ä.jpg", "day"),
        (12, "sub/b.jpg", "day"),
        (41, "d.jpg", "day"),
        (9, "e.jpg", ""),
    ]
    boxes = [(41, 9, 20), (12, 2, 8), (41, 2, 40), (30, 9, 33), (7, 5, 10), (12, 5, 9), (9, 2, 12)]
    return {
        "info": {"year": 2024},
        "images": [
            {"id": key, "file_name": name, "width": 64, "height": 48, "weather": {"light": light}}
            for key, name, light in images
        ],
        "annotations": [
            {"id": number, "image_id": image, "category_id": category, "bbox": [1.5, 2, side, side],
             "area": side * side, "iscrowd": 0}
            for number, (image, category, side) in enumerate(boxes, start=1)
        ],
        "categories": [{"id": 9, "name": "car"}, {"id": 2, "name": "person"}, {"id": 5, "name": "bike"}],
        **changes,
    }  # fmt: skip


def write_run(output, content=None, kept=KEPT, policies=None, compress=False):
    """Write the files of a run: pool, scores, members and a manifest."""
    source = output / "pool" / "train.json"
    source.parent.mkdir(parents=True)
    source.write_text(json.dumps(content or coco(), ensure_ascii=False), encoding="utf-8")
    (output / "score").mkdir()
    (output / "score" / "images.parquet").write_bytes(b"scores of five images")
    writer = MemberWriter(output / "train", run=1, seed=4)
    for iteration in (19, 39):
        writer.save(iteration, 0.1, lambda path, text=f"weights {iteration}": path.write_text(text))
    write_index(output / "train" / "ensemble.jsonl", writer.members())
    settings = {"pool": {"findings": policies or {}}, "select": {"strategy": "top_n", "seed": 3, "num_images": 3}}
    dataset = read_coco(source, policies or {})
    provenance = build_provenance(
        dataset=dataset,
        image_ids=np.array(kept),
        strategy="top_n",
        seed=3,
        requested_budget={"images": 3},
        config_sha256=sha256_json(settings),
        members=[{"run": m.run, "iteration": m.iteration, "sha256": m.sha256} for m in writer.members()],
        scores_sha256=sha256_file(output / "score" / "images.parquet"),
        versions={"detcurate": "0.1.0"},
        seconds_per_image=2.0,
        seconds_per_box=1.5,
    )
    write_manifest(
        output / "manifest", dataset, np.array(kept), {**provenance, "settings": settings}, compress=compress
    )
    return output / "manifest"


@pytest.fixture
def manifest(tmp_path):
    return write_run(tmp_path / "run")


def statuses(manifest, **options: object):
    return {check.name: check.status for check in verify_manifest(manifest, **options)}


def but(status, *names: str):
    return {name: status if name in names else "ok" for name in CHECKS}


def edit(path, change):
    """Change the JSON of a file in place, and its own digest where it has one, as a forger would."""
    value = json.loads(path.read_text(encoding="utf-8"))
    has_checksum = value.pop("sha256", None) is not None
    change(value)
    value = add_checksum(value) if has_checksum else value
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def details(manifest):
    return {check.name: check.detail for check in verify_manifest(manifest)}


@pytest.mark.parametrize("compress", [False, True])
def test_verify_manifest_as_written_is_ok(tmp_path, compress):
    manifest = write_run(tmp_path / "run", compress=compress)
    checks = verify_manifest(manifest)
    assert [check.name for check in checks] == CHECKS
    assert {check.status for check in checks} == {"ok"}
    found = details(manifest)
    assert found["images"] == "3 file names"
    assert found["counts"] == "3 images, 5 boxes, 14 s to annotate"
    assert found["true subset"].startswith("3 of 5 images with all 5 boxes")
    assert found["histograms"] == "box_size, classes, weather.light"
    assert found["members"] == "2 members"
    assert checks[0].to_dict() == {"name": "subset", "status": "ok", "detail": found["subset"]}


def test_verify_manifest_without_run_reports_absent_checks(manifest, tmp_path):
    alone = shutil.copytree(manifest, tmp_path / "elsewhere" / "m")
    (alone / "images.txt").unlink()
    edit(alone / "provenance.json", lambda value: value.pop("settings"))
    absent = ("images", "config", "source", "true subset", "histograms", "scores", "members")
    assert statuses(alone) == but("absent", *absent)
    assert {"train.json", "--source"} <= set(details(alone)["source"].replace(";", "").split())
    source = manifest.parent / "pool" / "train.json"
    assert statuses(alone, source=source) == but("absent", "images", "config", "scores", "members")
    assert statuses(alone, output_dir=manifest.parent) == but("absent", "images", "config")


def test_verify_moved_source_is_found_through_config(manifest, tmp_path):
    output = manifest.parent
    (tmp_path / "data").mkdir()
    (output / "pool" / "train.json").rename(tmp_path / "data" / "train.json")
    absent = ("source", "true subset", "histograms")
    assert statuses(manifest) == but("absent", *absent)
    config = output / "config.yaml"
    config.write_text(f"DATASETS: {{ROOT: {tmp_path}}}\nCURATE: {{POOL: {{ANNOTATIONS: data/train.json}}}}\n")
    assert statuses(manifest) == but("ok")
    for text in ("DATASETS: [", "DATASETS: {}", "7", "a: !!python/object/apply:os.getcwd []", "\x00"):
        config.write_text(text)
        assert statuses(manifest) == but("absent", *absent)
    config.write_text(f"DATASETS: {{ROOT: {tmp_path}}}\nCURATE: {{POOL: {{ANNOTATIONS: no.json}}}}\n")
    assert statuses(manifest) == but("absent", *absent)


def test_verify_missing_member_or_scores_is_absent(manifest):
    (manifest.parent / "train" / "run-1" / "iter-0000039.safetensors").unlink()
    assert statuses(manifest) == but("absent", "members")
    assert "run 1, iteration 39" in details(manifest)["members"]
    kept = (manifest.parent / "score" / "images.parquet").rename(manifest.parent / "kept.parquet")
    assert statuses(manifest) == but("absent", "members", "scores")
    assert statuses(manifest, scores=kept) == but("absent", "members")
    named = {check.name: check for check in verify_manifest(manifest, scores=manifest / "nowhere.parquet")}["scores"]
    assert (named.status, "nowhere.parquet" in named.detail) == ("failed", True)


FILES = {
    "manifest/images.txt": ("images",),
    "pool/train.json": ("source",),
    "score/images.parquet": ("scores",),
    "train/run-1/iter-0000019.safetensors": ("members",),
}


@pytest.mark.parametrize("name", FILES)
def test_verify_changed_byte_fails_check_of_file(manifest, name):
    path = manifest.parent / name
    data = path.read_bytes()
    step = max(1, len(data) // 40)
    for position in (*range(0, len(data), step), len(data) - 1):
        for flip in (0x01, 0x80):  # another letter; no UTF-8 any more
            path.write_bytes(data[:position] + bytes([data[position] ^ flip]) + data[position + 1 :])
            found = statuses(manifest)
            assert [key for key, status in found.items() if status == "failed"] == list(FILES[name]), position
    for changed in (data + b"\n", data[:-1], data.replace(b"\n", b"\r\n") if b"\n" in data else b"", b""):
        path.write_bytes(changed)
        assert statuses(manifest)[FILES[name][0]] == "failed"
    path.write_bytes(data)
    assert statuses(manifest) == but("ok")


def test_verify_changed_byte_of_subset_fails(manifest):
    path = manifest / "subset.json"
    data = path.read_bytes()
    for position in range(0, len(data), 7):
        path.write_bytes(data[:position] + bytes([data[position] ^ 0x02]) + data[position + 1 :])
        found = statuses(manifest)
        assert (found["subset"], found["true subset"]) == ("failed", "failed"), position
        assert {found[name] for name in ("config", "source", "scores", "members")} == {"ok"}


def test_verify_changed_byte_of_provenance_raises_dataset_error(manifest):
    path = manifest / "provenance.json"
    data = path.read_bytes()
    for position in range(0, len(data), 5):
        path.write_bytes(data[:position] + bytes([data[position] ^ 0x01]) + data[position + 1 :])
        try:
            checks = verify_manifest(manifest)
        except DatasetError as error:
            assert "provenance.json" in str(error)
        else:  # a space that has become another, or the name of the digest itself
            assert all(check.status == "ok" for check in checks)


def _set(*keys_and_value: object):
    *keys, last, value = keys_and_value

    def change(tree):
        for key in keys:
            tree = tree[key]
        tree[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        (_set("subset", "sha256", "0" * 64), ("subset",)),
        (_set("subset", "num_images", 4), ("counts",)),
        (_set("subset", "num_boxes", 4), ("counts",)),
        (_set("budget", "spent", "images", 2), ("counts",)),
        (_set("budget", "spent", "boxes", 6), ("counts",)),
        (_set("budget", "spent", "cost_seconds", 13.0), ("counts",)),
        (_set("budget", "seconds_per_box", 1.0), ("counts",)),
        (_set("settings", "select", "num_images", 2), ("config",)),
        (_set("config_sha256", "0" * 64), ("config",)),
        (_set("strategy", "random"), ("config",)),
        (_set("seed", 4), ("config",)),
        (_set("source", "sha256", "0" * 64), ("source",)),
        (_set("source", "num_images", 6), ("source",)),
        (_set("source", "num_boxes", 8), ("source",)),
        (_set("findings", []), ("source",)),
        (_set("settings", "pool", "findings", {"invalid_box": "warn"}), ("config", "source")),
        (_set("settings", "pool", "findings", ["invalid_box"]), ("config", "source")),
        (_set("histograms", "classes", "car", "after", 4), ("histograms",)),
        (_set("histograms", "weather.light", "day", "before", 4), ("histograms",)),
        (_set("scores_sha256", "0" * 64), ("scores",)),
        (_set("ensemble", 1, "sha256", "0" * 64), ("members",)),
    ],
)
def test_verify_false_statement_fails_own_check(manifest, change, failed):
    edit(manifest / "provenance.json", change)
    found = statuses(manifest)
    assert list(found) == CHECKS
    assert tuple(name for name, status in found.items() if status == "failed") == failed
    if "source" in failed:
        assert (found["true subset"], found["histograms"]) == ("absent", "absent")


def test_verify_member_of_unknown_run_is_absent(manifest):
    edit(manifest / "provenance.json", _set("ensemble", 0, "run", 0))
    assert statuses(manifest) == but("absent", "members")


def test_verify_broken_member_index_fails(manifest):
    (manifest.parent / "train" / "ensemble.jsonl").write_text('{"run": 1}\n')
    assert statuses(manifest) == but("failed", "members")


def forge(manifest, change):
    """Change the subset, keep its layout, and make every statement of the provenance about it true again."""
    path, images = manifest / "subset.json", manifest / "images.txt"
    subset = json.loads(path.read_text(encoding="utf-8"))
    change(subset)
    lists = {
        key: "[\n" + ",\n".join(json.dumps(record, ensure_ascii=False) for record in subset[key]) + "\n]"
        for key in ("images", "annotations")
    }
    pieces = [f"{json.dumps(k)}: {lists.get(k) or json.dumps(v, ensure_ascii=False)}" for k, v in subset.items()]
    path.write_text("{" + ",\n".join(pieces) + "}\n", encoding="utf-8")
    images.write_text("".join(f"{image['file_name']}\n" for image in subset["images"]), encoding="utf-8")
    counts = {"num_images": len(subset["images"]), "num_boxes": len(subset["annotations"])}

    def restate(value):
        value["subset"].update(counts, sha256=sha256_file(path))
        value["budget"]["spent"] = {
            "images": counts["num_images"],
            "boxes": counts["num_boxes"],
            "cost_seconds": 2.0 * counts["num_images"] + 1.5 * counts["num_boxes"],
        }

    edit(manifest / "provenance.json", restate)


def test_forge_without_change_keeps_bytes(manifest):
    before = (manifest / "subset.json").read_bytes()
    forge(manifest, lambda subset: None)
    assert (manifest / "subset.json").read_bytes() == before
    assert statuses(manifest) == but("ok")


def _swap_boxes(subset):
    subset["annotations"][0], subset["annotations"][1] = subset["annotations"][1], subset["annotations"][0]


@pytest.mark.parametrize(
    "change",
    [
        lambda subset: subset["annotations"].pop(2),
        lambda subset: subset["annotations"].append({**subset["annotations"][0], "id": 99}),
        lambda subset: subset["annotations"][0]["bbox"].__setitem__(0, 1.25),
        lambda subset: subset["annotations"][0].update(iscrowd=1),
        lambda subset: subset["annotations"][0].update(reviewed=True),
        lambda subset: subset["images"][0].update(width=65),
        lambda subset: subset["images"].append({**subset["images"][0], "id": 99}),
        lambda subset: subset["images"].reverse(),
        lambda subset: subset["categories"].reverse(),
        lambda subset: subset["info"].update(year=2025),
        lambda subset: subset.update(licenses=[]),
        _swap_boxes,
    ],
    ids=["box-dropped", "box-added", "box-moved", "box-crowd", "box-field", "image-width", "image-added", "image-order",
         "category-order", "info", "key-added", "box-order"],
)  # fmt: skip
def test_verify_forged_subset_with_matching_digests_fails_true_subset(manifest, change):
    forge(manifest, change)
    found = statuses(manifest)
    assert {found[name] for name in ("subset", "images", "counts", "config", "source", "scores", "members")} == {"ok"}
    assert found["true subset"] == "failed"


def test_verify_other_choice_of_images_fails_histograms(manifest):
    """The histograms alone tie a manifest to the images that were selected."""

    def without_the_first(subset):
        gone = subset["images"].pop(0)["id"]
        subset["annotations"] = [box for box in subset["annotations"] if box["image_id"] != gone]

    forge(manifest, without_the_first)
    assert statuses(manifest) == but("failed", "histograms")


def test_verify_proven_subset_is_not_parsed(manifest, monkeypatch):
    monkeypatch.setattr(expected, "read_coco", None)
    assert statuses(manifest) == but("ok")
    (manifest / "images.txt").unlink()
    with pytest.raises(TypeError):
        statuses(manifest)


@pytest.mark.parametrize(
    "text",
    [b"", b"\n", b"d.jpg\nsub/b.jpg\n", b"c.jpg\nc.jpg\nsub/b.jpg\n", b"c.jpg\nsub/b.jpg\ne.jpg\n", b"x\n", b"\xff\n",
     b"c.jpg\nsub/b.jpg\nd.jpg"],
    ids=["empty", "blank", "fewer", "twice", "another", "unknown", "no-text", "cut"],
)  # fmt: skip
def test_verify_wrong_image_list_fails_alone(manifest, text):
    """The verification tries the list first, but the results of the other checks must not depend on it."""
    whole = details(manifest)
    (manifest / "images.txt").write_bytes(text)
    assert statuses(manifest) == but("failed", "images")
    assert {**details(manifest), "images": whole["images"]} == whole


def test_verify_reordered_image_list_fails_alone(manifest):
    (manifest / "images.txt").write_bytes(b"d.jpg\nsub/b.jpg\nc.jpg\n")
    assert statuses(manifest) == but("failed", "images")
    assert "images.txt" in details(manifest)["images"]


@pytest.mark.parametrize("name", ["d.jpg", "new\nline.jpg"])
def test_verify_ambiguous_file_names_is_ok(tmp_path, name):
    """Image 30 has the name of image 41, or one that looks like two."""
    content = coco()
    content["images"][0]["file_name"] = name
    assert statuses(write_run(tmp_path / "run", content)) == but("ok")


@pytest.mark.parametrize("extra", [b" ", b"\n", b"{}", b"\0"])
def test_verify_text_after_subset_fails(manifest, extra):
    path = manifest / "subset.json"
    path.write_bytes(path.read_bytes() + extra)
    edit(manifest / "provenance.json", _set("subset", "sha256", sha256_file(path)))
    assert statuses(manifest)["true subset"] == "failed"


def test_verify_record_unknown_to_source_is_counted(manifest):
    forge(manifest, lambda subset: subset["images"][0].update(width=65))
    assert details(manifest)["true subset"].startswith("1 image records of subset.json")


def test_verify_compressed_subset_compares_text(tmp_path):
    manifest = write_run(tmp_path / "run", compress=True)
    path = manifest / "subset.json.gz"
    text = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(text, 1))
    assert statuses(manifest) == but("ok")
    path.write_bytes(gzip.compress(text.replace(b"2024", b"2023")))
    assert statuses(manifest) == but("failed", "subset", "true subset")
    path.write_bytes(path.read_bytes()[:-9])
    found = statuses(manifest)
    assert {found[name] for name in ("subset", "images", "counts", "true subset")} == {"failed"}
    assert found["source"] == "ok"


def test_verify_text_ids_is_ok(tmp_path):
    content = coco()
    for image in content["images"]:
        image["id"] = f"frame-{image['id']}"
    for box in content["annotations"]:
        box["image_id"] = f"frame-{box['image_id']}"
    numbers = {f"frame-{key}": number for number, key in enumerate((12, 30, 41, 7, 9), start=1)}
    manifest = write_run(tmp_path / "run", content, kept=[numbers["frame-30"], numbers["frame-9"]])
    assert statuses(manifest) == but("ok")
    subset = json.loads((manifest / "subset.json").read_text(encoding="utf-8"))
    assert [image["id"] for image in subset["images"]] == ["frame-30", "frame-9"]
    forge(manifest, lambda subset: subset["annotations"].pop())
    assert statuses(manifest)["true subset"] == "failed"


def test_verify_repaired_source_uses_policies_of_run(tmp_path):
    content = coco()
    del content["annotations"][0]["iscrowd"]  # of image 41
    content["annotations"][3]["bbox"] = [1, 2, 0, 5]  # of image 30
    policies = {"missing_iscrowd": "repair", "invalid_box": "repair"}
    manifest = write_run(tmp_path / "run", content, policies=policies)
    assert statuses(manifest) == but("ok")
    edit(manifest / "provenance.json", _set("settings", "pool", "findings", {"missing_iscrowd": "repair"}))
    found = statuses(manifest)
    assert (found["config"], found["source"], found["true subset"]) == ("failed", "failed", "absent")


def test_verify_every_repair_is_derived_again(tmp_path):
    content = coco()
    boxes = content["annotations"]
    del boxes[0]["id"], boxes[0]["iscrowd"], boxes[0]["area"]  # of image 41
    boxes[1]["bbox"] = [-5, 3, 20, 20]  # of image 12
    boxes[2]["id"] = 4  # as the next one
    boxes[3]["score"] = float("nan")
    boxes += [
        {**boxes[1], "id": 50, "bbox": [1, 2, 0, 5]},
        {**boxes[1], "id": 51, "image_id": 99},
        {**boxes[1], "id": 52, "category_id": 99},
        {"id": 53, "image_id": 30, "category_id": 2, "area": 50, "iscrowd": 0, "segmentation": [[1, 2, 11, 2, 11, 7]]},
        {**boxes[1], "id": 0},
        {**boxes[1], "id": 54, "bbox": [500, 2, 5, 5]},
    ]
    content["images"] += [{**content["images"][2], "width": 300}, {"id": 60}]
    content["categories"] += [{"id": 9, "name": "lorry"}]
    repaired = {code for code, rule in RULES.items() if "repair" in rule.allowed}
    manifest = write_run(tmp_path / "run", content, policies=dict.fromkeys(repaired, "repair"))
    assert statuses(manifest) == but("ok")
    # Of images 12, 30 and 41 two boxes, one and two, one from a segmentation and one that had the id 0.
    assert details(manifest)["true subset"].startswith("3 of 5 images with all 7 boxes")
    found = {entry["code"] for entry in read_provenance(manifest)["findings"] if entry["policy"] == "repair"}
    assert found == repaired - {"string_id"}
    assert not {finding.policy for finding in read_coco(manifest / "subset.json").findings} & {"error", "repair"}


def test_verify_accepted_findings_are_accepted_again(tmp_path):
    content = coco()
    content["images"][3]["file_name"] = "/data/d.jpg"
    content["annotations"][0]["bbox"] = [500, 3, 20, 20]
    policies = {"absolute_file_name": "warn", "box_outside_image": "warn"}
    assert statuses(write_run(tmp_path / "run", content, policies=policies)) == but("ok")


def test_verify_other_file_as_source_fails(manifest, tmp_path):
    other = tmp_path / "train.json"
    other.write_text(json.dumps(coco(info={"year": 2023})), encoding="utf-8")
    found = statuses(manifest, source=other)
    assert (found["source"], found["true subset"], found["histograms"]) == ("failed", "absent", "absent")
    assert statuses(manifest, source=tmp_path / "no.json")["source"] == "failed"


def test_verify_folder_without_manifest_raises(manifest, tmp_path):
    with pytest.raises(DatasetError, match=r"nowhere.provenance\.json"):
        verify_manifest(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=r"subset\.json.provenance\.json"):
        verify_manifest(manifest / "subset.json")
    (manifest / "subset.json").rename(manifest / "other.json")
    with pytest.raises(DatasetError, match=rf"{manifest}.*subset\.json"):
        verify_manifest(manifest)
    for text in ("", "[]", "7", "{", '{"subset": {"sha256": "x"}}', '{"source": 1}'):
        (manifest / "provenance.json").write_text(text)
        with pytest.raises(DatasetError, match=r"provenance\.json"):
            read_provenance(manifest)


def test_verify_provenance_without_key_raises(manifest):
    whole = read_provenance(manifest)
    for key in ("source", "budget", "findings", "histograms", "ensemble", "scores_sha256", "config_sha256", "seed"):
        write_json(manifest / "provenance.json", {name: value for name, value in whole.items() if name != key})
        with pytest.raises(DatasetError, match=key):
            verify_manifest(manifest)


def test_subset_path_plain_and_compressed_returns_plain(manifest):
    assert subset_path(manifest) == manifest / "subset.json"
    (manifest / "subset.json.gz").write_bytes(gzip.compress((manifest / "subset.json").read_bytes()))
    assert subset_path(manifest) == manifest / "subset.json"
    plain, packed = (open_source(manifest / name) for name in ("subset.json", "subset.json.gz"))
    assert text_sha256(packed) == text_sha256(plain) != packed.sha256


def test_verify_manifest_of_version_0_1_reads_old_names(manifest):
    output = manifest.parent
    (output / "score").rename(output / "scores")
    (output / "train").rename(output / "ensemble")
    edit(manifest / "provenance.json", lambda value: value["budget"].update(asked=value["budget"].pop("requested")))
    assert statuses(manifest) == but("ok")
    assert read_provenance(manifest)["budget"]["requested"] == {"images": 3}
    (output / "scores" / "images.parquet").write_bytes(b"other scores")
    (output / "ensemble" / "run-1" / "iter-0000019.safetensors").write_text("other weights")
    assert statuses(manifest) == but("failed", "scores", "members")


def test_verify_prefers_new_folder_over_old_one(manifest):
    old = manifest.parent / "scores"
    old.mkdir()
    (old / "images.parquet").write_bytes(b"other scores")
    assert statuses(manifest) == but("ok")
