"""Every image is looked at once: which of them cannot be used, and why."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from detcurate.coco.dataset import read_coco
from detcurate.coco.images import find_bad_images, image_fingerprint

SIZE = (48, 32)  # width, height
ORIENTATION = 0x0112


def picture(size=SIZE):
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))


def rotated(path, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    picture().save(path, "JPEG", exif=exif)


def pool(folder, records):
    """Write a COCO file of (id, file_name, width, height) and read it."""
    images = [dict(zip(("id", "file_name", "width", "height"), record, strict=True)) for record in records]
    path = folder / "train.json"
    path.write_text(json.dumps({"images": images, "annotations": [], "categories": [{"id": 1, "name": "car"}]}))
    return read_coco(path)


@pytest.fixture
def reason(tmp_path):
    """Return a function that gives why a file is bad, or None."""

    def ask(name, size=SIZE):
        found = find_bad_images(pool(tmp_path, [(4, name, *size)]), tmp_path, num_processes=1, desc="look")
        assert [(bad.image_id, bad.file_name) for bad in found] in ([], [(4, name)])
        return found[0].reason if found else None

    return ask


def test_whole_images_are_fine_whatever_their_name(reason, tmp_path):
    (tmp_path / "sub").mkdir()
    picture().save(tmp_path / "sub" / "ä.jpg")
    picture().save(tmp_path / "png.jpg", "PNG")
    picture().convert("L").save(tmp_path / "grey.png")
    for name in ("sub/ä.jpg", "png.jpg", "grey.png"):
        assert reason(name) is None


def test_an_absent_file(reason, tmp_path):
    assert reason("none.jpg") == "the file is absent"
    (tmp_path / "folder.jpg").mkdir()
    assert reason("folder.jpg").startswith("it does not decode: ")


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_truncated_file(reason, tmp_path, kind):
    path = tmp_path / "x.jpg"
    picture().save(path, kind)
    whole = path.read_bytes()
    for length in (0, 1, 20, len(whole) // 2, len(whole) - len(whole) // 8):
        path.write_bytes(whole[:length])
        assert reason("x.jpg").startswith("it does not decode: ")


def test_a_file_that_is_no_image(reason, tmp_path):
    (tmp_path / "x.jpg").write_text("<html>404</html>")
    assert reason("x.jpg").startswith("it does not decode: cannot identify image file")


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow tells of what it reads past
def test_no_flipped_bit_stops_the_search(tmp_path):
    """Broken bytes make a decoder raise anything: a size of a TIFF that has become a fraction is a TypeError."""
    picture().save(tmp_path / "x.tif")
    whole = (tmp_path / "x.tif").read_bytes()
    first = int.from_bytes(whole[4:8], "little")  # where the table of tags begins
    for number in range(2 * 130):
        damaged = bytearray(whole)
        damaged[first + number // 2] ^= (1, 4)[number % 2]
        (tmp_path / f"{number}.tif").write_bytes(damaged)
    dataset = pool(tmp_path, [(number, f"{number}.tif", *SIZE) for number in range(2 * 130)])
    bad = find_bad_images(dataset, tmp_path, num_processes=1, desc="look")
    assert len(bad) > 50
    assert all(image.reason.startswith(("it does not decode: ", "it is ")) for image in bad)


def test_another_size_than_the_record_says(reason, tmp_path):
    picture((31, 48)).save(tmp_path / "x.png")
    assert reason("x.png") == "it is 31x48, its record says 48x32"


def test_the_record_has_the_size_after_the_rotation(reason, tmp_path):
    for orientation in range(1, 9):
        rotated(tmp_path / "x.jpg", orientation)
        lies = orientation >= 5
        assert (reason("x.jpg") is None) is not lies
        assert (reason("x.jpg", SIZE[::-1]) is None) is lies
    assert reason("x.jpg") == "it is 32x48, its record says 48x32"


@pytest.mark.parametrize("limit", [1000, 500])  # of 1,536 pixels: Pillow warns, and above twice the limit it raises
@pytest.mark.filterwarnings("default::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb(reason, tmp_path, monkeypatch, limit):
    picture().save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    assert reason("x.png").startswith("it does not decode: Image size (1536 pixels) exceeds limit of ")


@pytest.mark.parametrize("num_processes", [1, 2])
def test_the_bad_ones_come_by_id_whoever_looks(tmp_path, num_processes):
    picture().save(tmp_path / "good.jpg")
    ids = [int(i) for i in np.random.default_rng(1).permutation(150)]
    bad = {3, 70, 71, 149}
    dataset = pool(tmp_path, [(i, f"absent-{i}.jpg" if i in bad else "good.jpg", *SIZE) for i in ids])
    found = find_bad_images(dataset, tmp_path, num_processes=num_processes, desc="look")
    assert [image.image_id for image in found] == sorted(bad)
    assert [image.file_name for image in found] == [f"absent-{i}.jpg" for i in sorted(bad)]


def test_the_fingerprint_sees_changes_and_not_folders(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    prints = []
    for folder in (here, there):
        folder.mkdir()
        for name in ("a.jpg", "b.jpg"):
            picture().save(folder / name)
            os.utime(folder / name, ns=(10**18, 10**18))
    dataset = pool(tmp_path, [(1, "a.jpg", *SIZE), (2, "b.jpg", *SIZE), (3, "absent.jpg", *SIZE)])
    prints.append(image_fingerprint(dataset, here))
    assert image_fingerprint(dataset, there) == prints[0]
    os.utime(here / "b.jpg", ns=(10**18, 10**18 + 10**9))
    prints.append(image_fingerprint(dataset, here))
    (here / "a.jpg").unlink()
    prints.append(image_fingerprint(dataset, here))
    (here / "absent.jpg").touch()
    prints.append(image_fingerprint(dataset, here))
    assert len(set(prints)) == 4
