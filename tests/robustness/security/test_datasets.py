"""Untrusted datasets: bombs, nesting, names and links that leave the root, images that start programs."""

from __future__ import annotations

import gzip
import json
import os
import stat
import zlib

import pytest
from PIL import EpsImagePlugin, Image

from detcurate.coco.dataset import read_coco
from detcurate.errors import DatasetError, DetcurateError
from detcurate.interop.corrections.readers import read_corrected
from detcurate.manifest.write import images_text


def test_gzip_bomb_is_refused(tmp_path):
    path = tmp_path / "pool.json.gz"
    with gzip.open(path, "wb") as stream:
        for _ in range(80):
            stream.write(b" " * (1 << 20))
    assert path.stat().st_size < 100_000
    with pytest.raises(DatasetError, match=r"pool.json.gz: .* 200 times"):
        read_coco(path)


@pytest.mark.parametrize("key", ["info", "images", "annotations", "categories"])
def test_deeply_nested_lists_are_refused(tmp_path, write_pool, key):
    path, _ = write_pool()
    coco = json.loads(path.read_text())
    text = json.dumps({**coco, key: "HERE"}).replace('"HERE"', "[" * 900 + "]" * 900)
    path.write_text(text)
    with pytest.raises(DatasetError, match="too many nested lists"):
        read_coco(path)


@pytest.mark.parametrize(
    "name",
    ["../a.png", "/etc/passwd", "x/../../a.png", "..\\a.png", "C:\\a.png"],
)
def test_file_name_outside_root_is_refused(write_pool, name):
    path, _ = write_pool(image={"file_name": name})
    with pytest.raises(DatasetError, match="file_name: "):
        read_coco(path)


def test_line_break_in_file_name_is_escaped_in_images_txt(write_pool):
    path, _ = write_pool(image={"file_name": "a.png\n/etc/passwd"})
    pool = read_coco(path)
    assert images_text(pool, pool.subset_rows(pool.image_ids)) == b"a.png\\n/etc/passwd\n"


@pytest.mark.parametrize("link", ["file", "folder"])
def test_link_out_of_image_root_is_refused(tmp_path, write_pool, link, capsys, done):
    from detcurate.cli import main

    secret = tmp_path / "private"
    secret.mkdir()
    Image.new("RGB", (8, 6)).save(secret / "me.png")
    path, root = write_pool(image={"file_name": "me.png" if link == "file" else "in/me.png"})
    (root / ("me.png" if link == "file" else "in")).symlink_to(secret / "me.png" if link == "file" else secret)
    assert main(["validate", str(path), "--images", str(root)]) != 0
    found = capsys.readouterr()
    assert "link_leaves_root" in found.out + found.err
    done("validate", path, "--images", root, "--policy", "link_leaves_root=note")


def test_image_root_may_be_link(tmp_path, write_pool, done):
    path, root = write_pool()
    (tmp_path / "linked").symlink_to(root)
    assert "link_leaves_root" not in done("validate", path, "--images", tmp_path / "linked")


def test_pipe_among_images_does_not_block(write_pool, capsys):
    from detcurate.cli import main

    path, root = write_pool(image={"file_name": "pipe.png"})
    os.mkfifo(root / "pipe.png")
    assert main(["validate", str(path), "--images", str(root)]) != 0
    assert "not a regular file" in capsys.readouterr().out


def test_eps_with_other_extension_does_not_start_ghostscript(tmp_path, write_pool, monkeypatch, capsys):
    from detcurate.cli import main

    proof, fake = tmp_path / "proof", tmp_path / "bin" / "gs"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\ntouch "{proof}"\necho 10\n')
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    path, root = write_pool(image={"file_name": "photo.jpg"})
    (root / "photo.jpg").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 6\n%%EndComments\n%%BeginPreview\nx\n%%EOF\n"
    )
    main(["validate", str(path), "--images", str(root)])
    assert "unreadable_image" in capsys.readouterr().out
    assert not proof.exists()


def test_image_bomb_is_reported(write_pool, capsys):
    from detcurate.cli import main

    path, root = write_pool(image={"file_name": "bomb.png", "width": 60_000, "height": 60_000})
    Image.new("1", (1, 1)).save(root / "bomb.png")
    data = bytearray((root / "bomb.png").read_bytes())
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    (root / "bomb.png").write_bytes(bytes(data))
    assert main(["validate", str(path), "--images", str(root)]) != 0
    assert "decompression bomb" in capsys.readouterr().out


LAUGHS = '<!DOCTYPE x [<!ENTITY a "ha">{}]><annotations>&a;</annotations>'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize(
    "entities", ['<!ENTITY b "&a;&a;&a;&a;">', '<!ENTITY b SYSTEM "file:///etc/hostname">'], ids=["laughs", "external"]
)
def test_xml_with_entities_is_refused_in_any_encoding(tmp_path, encoding, entities):
    path = tmp_path / "theirs.xml"
    head = "" if encoding == "utf-8" else '<?xml version="1.0" encoding="UTF-16"?>'
    path.write_bytes((head + LAUGHS.format(entities)).encode(encoding))
    with pytest.raises(DatasetError, match="theirs.xml"):
        read_corrected(path)


@pytest.mark.parametrize(
    "text",
    [
        '<?xml version="1.0" encoding="nonsense"?><annotations/>',
        '<?xml version="1.0" encoding="zlib_codec"?><annotations/>',
        "<a>" * 200_000,
        "[" * 100_000,
        '[{"data": {"image": "a"}, "annotations": [{"result": [{"type": "rectangle", "original_width": 1e999}]}]}]',
        "[" + "9" * 5_000 + "]",
        "[1e400, {}]",
    ],
    ids=["encoding", "codec", "deep xml", "deep json", "infinite", "digits", "numbers"],
)
def test_malformed_corrected_labels_are_refused(tmp_path, text):
    path = tmp_path / "theirs"
    path.write_text(text)
    with pytest.raises(DetcurateError):
        read_corrected(path)


@pytest.mark.parametrize("name", ["../../evil.png", "/evil.png"])
def test_export_of_file_name_outside_folder_is_refused(tmp_path, write_pool, name):
    import numpy as np

    from detcurate.interop.export.content import Content

    path, root = write_pool(image={"file_name": name})
    policies = {"absolute_file_name": "warn"}
    with pytest.raises(DatasetError, match="file_name"):
        Content(read_coco(path, policies), root, rows=np.array([0]))


def test_export_escapes_class_names_in_yaml(tmp_path, write_pool):
    import numpy as np
    import yaml

    from detcurate.interop.export.content import Content
    from detcurate.interop.export.formats import Options, write_export

    name = 'car\ntrain: /etc\nx: !!python/object/apply:os.system ["true"]'
    path, root = write_pool(category=name)
    write_export("yolo", tmp_path / "out", {"train": Content(read_coco(path), root, rows=np.array([0]))}, Options())
    found = yaml.safe_load((tmp_path / "out" / "data.yaml").read_text())
    assert found == {"train": "images/train", "val": "images/train", "names": {0: name}}
