"""Every image is looked at once: which of them cannot be used, and why."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from detcurate.coco import image_files as images
from detcurate.coco.dataset import inspect_coco, read_coco
from detcurate.coco.image_files import ImageFinding, examine_images, image_fingerprint, log_image_findings
from detcurate.coco.validation.findings import FindingLog
from detcurate.errors import DatasetError

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
def find(tmp_path):
    """Return a function that gives the finding on one image, or None."""

    def find(name, size=SIZE):
        found = examine_images(pool(tmp_path, [(4, name, *size)]), tmp_path, num_processes=1, desc="look")
        assert [(finding.image_id, finding.file_name) for finding in found] in ([], [(4, name)])
        return found[0] if found else None

    return find


@pytest.fixture
def reason(find):
    """Return a function that gives why an image cannot be used, or None."""

    def reason(name, size=SIZE):
        found = find(name, size)
        return None if found is None or found.is_usable else found.reason

    return reason


def test_whole_images_are_fine_whatever_their_name(reason, tmp_path):
    (tmp_path / "sub").mkdir()
    picture().save(tmp_path / "sub" / "ä.jpg")
    picture().save(tmp_path / "png.jpg", "PNG")
    picture().convert("L").save(tmp_path / "grey.png")
    for name in ("sub/ä.jpg", "png.jpg", "grey.png"):
        assert reason(name) is None


def test_an_absent_file(reason, find, tmp_path):
    assert reason("none.jpg") == "the file is absent"
    assert find("none.jpg").code == "missing_image_file"
    (tmp_path / "folder.jpg").mkdir()
    for name in ("folder.jpg", ""):
        assert reason(name).startswith("it does not decode: ")
        assert find(name).code == "unreadable_image"


@pytest.mark.parametrize("name", ["x" * 5_000, "nul\0.jpg"])
def test_a_name_that_no_file_can_have(find, name):
    assert find(name) == ImageFinding(4, name, "missing_image_file", "the file is absent")


def test_the_image_root_must_be_a_directory(tmp_path):
    (tmp_path / "file").touch()
    for name in ("none", "file"):
        with pytest.raises(DatasetError, match=rf"image_root must be a directory, got .*{name}; name the folder"):
            examine_images(pool(tmp_path, [(4, "x.jpg", *SIZE)]), tmp_path / name, num_processes=1, desc="look")


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
    assert reason("x.jpg") == "it does not decode: cannot identify image file 'x.jpg'"  # and not where it lies


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
    bad = examine_images(dataset, tmp_path, num_processes=1, desc="look")
    assert sum(not image.is_usable for image in bad) > 50
    starts = {"unreadable_image": "it does not decode: ", "image_size_differs": "it is ", "exif_rotation": "it is "}
    assert all(image.reason.startswith(starts[image.code]) for image in bad)


def test_another_size_than_the_record_says(find, tmp_path):
    picture((31, 48)).save(tmp_path / "x.png")
    assert find("x.png") == ImageFinding(4, "x.png", "image_size_differs", "it is 31x48, its record says 48x32")


def test_the_record_has_the_size_after_the_rotation(reason, find, tmp_path):
    for orientation in range(1, 9):
        rotated(tmp_path / "x.jpg", orientation)
        lies = orientation >= 5
        assert (reason("x.jpg") is None) is not lies
        assert (reason("x.jpg", SIZE[::-1]) is None) is lies
        fine = find("x.jpg", SIZE[::-1] if lies else SIZE)
        if orientation == 1:
            assert fine is None
        else:  # it can be used, and is reported all the same
            turned = "it is stored turned, and EXIF data say how"
            assert fine == ImageFinding(4, "x.jpg", "exif_rotation", turned)
            assert fine.is_usable
    assert reason("x.jpg") == "it is 32x48, turned as its EXIF data says, its record says 48x32"


def test_an_orientation_of_zero_is_none(find, tmp_path):
    rotated(tmp_path / "x.jpg", 0)
    assert find("x.jpg") is None


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
    found = examine_images(dataset, tmp_path, num_processes=num_processes, desc="look")
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


class TestCache:
    @pytest.fixture
    def opened(self, monkeypatch):
        """The names of the images that were opened since, to be emptied."""
        names = []
        look = images._look
        monkeypatch.setattr(images, "_look", lambda path: names.append(path.name) or look(path))
        return names

    @pytest.fixture
    def examine(self, tmp_path):
        """5 images: two whole, one turned, one of another size, one absent."""
        for name in ("a.png", "b.png"):
            picture().save(tmp_path / name)
        rotated(tmp_path / "c.jpg", 3)
        picture((31, 48)).save(tmp_path / "d.png")
        names = ("a.png", "b.png", "c.jpg", "d.png", "e.png")
        dataset = pool(tmp_path, [(number, name, *SIZE) for number, name in enumerate(names)])

        def examine(cache=tmp_path / "cache.json"):
            return examine_images(dataset, tmp_path, num_processes=1, desc="look", cache=cache)

        return examine

    def test_nothing_is_opened_twice_and_the_findings_are_the_same(self, examine, opened):
        first = examine()
        assert [finding.code for finding in first] == ["exif_rotation", "image_size_differs", "missing_image_file"]
        assert sorted(opened) == ["a.png", "b.png", "c.jpg", "d.png", "e.png"]
        opened.clear()
        assert examine() == first == examine(cache=None)
        assert sorted(opened) == ["a.png", "b.png", "c.jpg", "d.png", "e.png"]  # all by the one without a cache

    def test_what_has_changed_is_opened_again(self, examine, opened, tmp_path):
        examine()
        opened.clear()
        picture((7, 5)).save(tmp_path / "a.png")
        status = (tmp_path / "b.png").stat()
        os.utime(tmp_path / "b.png", ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
        picture().save(tmp_path / "e.png")
        (tmp_path / "d.png").unlink()
        found = {finding.file_name: finding.code for finding in examine()}
        assert sorted(opened) == ["a.png", "b.png", "d.png", "e.png"]
        assert found == {"a.png": "image_size_differs", "c.jpg": "exif_rotation", "d.png": "missing_image_file"}

    def test_another_record_is_judged_without_a_look(self, examine, opened, tmp_path):
        examine()
        opened.clear()
        dataset = pool(tmp_path, [(8, "d.png", 31, 48), (9, "a.png", 31, 48)])
        cache = tmp_path / "cache.json"
        [found] = examine_images(dataset, tmp_path, num_processes=1, desc="look", cache=cache)
        assert found == ImageFinding(9, "a.png", "image_size_differs", "it is 48x32, its record says 31x48")
        assert opened == []

    @pytest.mark.filterwarnings("default::PIL.Image.DecompressionBombWarning")
    def test_what_does_not_decode_is_tried_again(self, examine, tmp_path, monkeypatch):
        """The file is the same, but what reads it may not be: another Pillow, other rights, more memory."""
        limit = Image.MAX_IMAGE_PIXELS
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000)
        assert [finding.code for finding in examine()] == ["unreadable_image"] * 4 + ["missing_image_file"]
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        codes = [finding.code for finding in examine()]
        assert codes == ["exif_rotation", "image_size_differs", "missing_image_file"]

    @pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"a.png": 3}', b'{"a.png": [1]}', b'{"\xff": []}'])
    def test_a_broken_cache_is_written_again(self, examine, opened, tmp_path, text):
        first = examine()
        whole = (tmp_path / "cache.json").read_bytes()
        (tmp_path / "cache.json").write_bytes(text)
        opened.clear()
        assert examine() == first
        assert len(opened) == 5
        assert (tmp_path / "cache.json").read_bytes() == whole


def test_the_findings_of_images_go_into_a_log():
    log = FindingLog({"image_size_differs": "warn"})
    log_image_findings(
        [
            ImageFinding(3, "c.jpg", "exif_rotation", "it is stored turned"),
            ImageFinding(4, "d.jpg", "missing_image_file", "the file is absent"),
            ImageFinding(5, "e.jpg", "image_size_differs", "it is 1x2"),
            ImageFinding(6, "f.jpg", "missing_image_file", "the file is absent"),
        ],
        log,
    )
    found = [(finding.code, finding.policy, finding.count, finding.examples[0]) for finding in log.findings()]
    assert found == [
        ("missing_image_file", "error", 2, "d.jpg (image_id 4): the file is absent"),
        ("image_size_differs", "warn", 1, "e.jpg (image_id 5): it is 1x2"),
        ("exif_rotation", "warn", 1, "c.jpg (image_id 3): it is stored turned"),
    ]


def test_a_name_that_leads_out_is_a_finding_of_its_record_and_not_looked_at(tmp_path):
    (tmp_path / "root").mkdir()
    picture().save(tmp_path / "secret.png")
    picture().save(tmp_path / "root" / "a.png")
    names = {"id": 1, "name": "car"}
    images = [
        {"id": number, "file_name": name, "width": SIZE[0], "height": SIZE[1]}
        for number, name in enumerate(["a.png", "../secret.png", "../none.png"])
    ]
    path = tmp_path / "train.json"
    path.write_text(json.dumps({"images": images, "annotations": [], "categories": [names]}))
    dataset, findings = inspect_coco(path)
    assert [(found.code, found.count) for found in findings if found.policy == "error"] == [("escaping_file_name", 2)]
    assert examine_images(dataset, tmp_path / "root", num_processes=1, desc="look") == []


def test_a_name_of_two_lines_is_shown_in_one():
    log = FindingLog()
    log_image_findings([ImageFinding(3, "a\nno finding is an error", "missing_image_file", "the file is absent")], log)
    assert log.findings()[0].examples == (r"'a\nno finding is an error' (image_id 3): the file is absent",)
