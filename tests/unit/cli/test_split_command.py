"""``detcurate split``: output and exit status; the split itself is tested in tests/unit/manifest."""

import json

from helpers.commands import coco, rows


def images(**fields: object):
    content = coco()
    for number, image in enumerate(content["images"]):
        image.update({name: f"{value}{number // 2}" for name, value in fields.items()})
    return content


def test_split_writes_both_files_and_prints_their_sizes(write, printed, tmp_path):
    status, text = printed("split", write(coco()), "--fraction", "0.25", "--seed", "3", "-o", tmp_path / "out")
    table = {row[0]: row[1:3] for row in rows(text, ["file", "images"])}
    assert status == 0
    assert table == {"train.json": ("3", "75.0%"), "val.json": ("1", "25.0%")}
    assert text.endswith(f"written to {tmp_path / 'out'}\n")
    for name, count in (("train", 3), ("val", 1)):
        assert len(json.loads((tmp_path / "out" / f"{name}.json").read_text())["images"]) == count


def test_split_by_attribute_keeps_groups_together_and_is_verified(write, printed, tmp_path):
    source, output = write(images(city="c")), tmp_path / "out"
    words = ("split", source, "--fraction", "0.5", "--by", "city", "--stratify", "classes", "-o", output, "--json")
    status, text = printed(*words)
    report = json.loads(text)
    assert (status, report["by"], report["stratified"]) == (0, "city", True)
    cities = [
        {image["city"] for image in json.loads((output / f"{name}.json").read_text())["images"]}
        for name in ("train", "val")
    ]
    assert cities[0] | cities[1] == {"c0", "c1"}
    assert not cities[0] & cities[1]
    assert printed("manifest", "verify", output, "--source", source)[0] == 0


def test_split_unknown_attribute_is_named(write, rejected, tmp_path):
    write(images(city="c"))
    message = rejected("split", tmp_path / "train.json", "--fraction", "0.5", "--by", "ctiy", "-o", tmp_path / "out")
    assert "ctiy" in message
    assert not (tmp_path / "out").exists()
