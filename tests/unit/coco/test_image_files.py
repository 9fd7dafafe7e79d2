"""Image files: the finding on each kind of broken file, the policies, the cache and the fingerprint."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from detcurate.coco import image_files as images
from detcurate.coco.dataset import inspect_coco, read_coco
from detcurate.coco.image_files import ImageFinding, examine_images, image_fingerprint, log_image_findings
from detcurate.coco.validation.findings import POLICIES, RULES, FindingLog, describe_errors
from detcurate.errors import ConfigError, DatasetError

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
        found = examine_images(pool(tmp_path, [(4, name, *size)]), tmp_path, num_processes=1, desc="check")
        assert [(finding.image_id, finding.file_name) for finding in found] in ([], [(4, name)])
        return found[0] if found else None

    return find


def code(finding):
    return finding and finding.code


def test_readable_image_has_no_error(find, tmp_path):
    (tmp_path / "sub").mkdir()
    picture().save(tmp_path / "sub" / "ä.jpg")
    picture().convert("L").save(tmp_path / "grey.png")
    assert find("sub/ä.jpg") is None
    assert find("grey.png") is None
    picture().save(tmp_path / "png.jpg", "PNG")
    assert find("png.jpg").is_usable


@pytest.mark.parametrize("name", ["none.jpg", "x" * 5_000, "nul\0.jpg"])
def test_missing_file_is_found(find, name):
    assert code(find(name)) == "missing_image_file"


@pytest.mark.parametrize("name", ["folder.jpg", ""])
def test_folder_is_not_an_image(find, tmp_path, name):
    (tmp_path / "folder.jpg").mkdir()
    assert code(find(name)) == "unreadable_image"


@pytest.mark.parametrize("name", ["none", "file"])
def test_image_root_must_be_a_directory(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(DatasetError, match=f"image_root: .*{name}"):
        examine_images(pool(tmp_path, [(4, "x.jpg", *SIZE)]), tmp_path / name, num_processes=1, desc="check")


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_truncated_file_is_unreadable(find, tmp_path, kind):
    path = tmp_path / "x.jpg"
    picture().save(path, kind)
    whole = path.read_bytes()
    for length in (0, 1, 20, len(whole) // 2, len(whole) - len(whole) // 8):
        path.write_bytes(whole[:length])
        assert code(find("x.jpg")) == "unreadable_image"


def test_unreadable_image_is_reported_without_its_folder(find, tmp_path):
    (tmp_path / "x.jpg").write_text("<html>404</html>")
    found = find("x.jpg")
    assert (found.code, found.is_usable) == ("unreadable_image", False)
    assert "'x.jpg'" in found.reason
    assert str(tmp_path) not in found.reason


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns of tags that it skips
def test_any_flipped_bit_gives_a_finding(tmp_path):
    """Decoders raise any exception on broken bytes: a TIFF size that became a fraction raises TypeError."""
    picture().save(tmp_path / "x.tif")
    whole = (tmp_path / "x.tif").read_bytes()
    first = int.from_bytes(whole[4:8], "little")  # of the table of tags
    for number in range(2 * 130):
        damaged = bytearray(whole)
        damaged[first + number // 2] ^= (1, 4)[number % 2]
        (tmp_path / f"{number}.tif").write_bytes(damaged)
    dataset = pool(tmp_path, [(number, f"{number}.tif", *SIZE) for number in range(2 * 130)])
    bad = examine_images(dataset, tmp_path, num_processes=1, desc="check")
    assert sum(not image.is_usable for image in bad) > 50
    assert {image.code for image in bad} <= {"unreadable_image", "image_size_differs", "exif_rotation"}


def test_size_that_differs_from_the_record_is_found(find, tmp_path):
    picture((31, 48)).save(tmp_path / "x.png")
    found = find("x.png")
    assert found.code == "image_size_differs"
    assert "31x48" in found.reason and "48x32" in found.reason


@pytest.mark.parametrize("orientation", range(9))
def test_record_must_have_the_size_after_the_rotation(find, tmp_path, orientation):
    rotated(tmp_path / "x.jpg", orientation)
    upright, other = (SIZE, SIZE[::-1]) if orientation < 5 else (SIZE[::-1], SIZE)
    found = find("x.jpg", upright)
    assert code(found) == (None if orientation < 2 else "exif_rotation")
    assert found is None or found.is_usable
    wrong = find("x.jpg", other)
    assert (wrong.code, wrong.is_usable) == ("image_size_differs", False)


@pytest.mark.parametrize("limit", [1000, 500])  # of 1,536 pixels: Pillow warns, and above twice the limit it raises
@pytest.mark.filterwarnings("default::PIL.Image.DecompressionBombWarning")
def test_decompression_bomb_is_unreadable(find, tmp_path, monkeypatch, limit):
    picture().save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    found = find("x.png")
    assert found.code == "unreadable_image"
    assert "1536 pixels" in found.reason


@pytest.mark.parametrize("num_processes", [1, 2])
def test_findings_are_ordered_by_id_with_any_number_of_processes(tmp_path, num_processes):
    picture().save(tmp_path / "good.jpg")
    ids = [int(i) for i in np.random.default_rng(1).permutation(150)]
    bad = {3, 70, 71, 149}
    dataset = pool(tmp_path, [(i, f"absent-{i}.jpg" if i in bad else "good.jpg", *SIZE) for i in ids])
    found = examine_images(dataset, tmp_path, num_processes=num_processes, desc="check")
    assert [image.image_id for image in found] == sorted(bad)
    assert [image.file_name for image in found] == [f"absent-{i}.jpg" for i in sorted(bad)]


def test_fingerprint_changes_with_files_but_not_folders(tmp_path):
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
        """The names of the images that were decoded, a list that tests clear."""
        names = []
        inspect = images._inspect
        monkeypatch.setattr(images, "_inspect", lambda path: names.append(path.name) or inspect(path))
        return names

    @pytest.fixture
    def examine(self, tmp_path):
        """5 images: two valid, one rotated, one of another size, one missing."""
        for name in ("a.png", "b.png"):
            picture().save(tmp_path / name)
        rotated(tmp_path / "c.jpg", 3)
        picture((31, 48)).save(tmp_path / "d.png")
        names = ("a.png", "b.png", "c.jpg", "d.png", "e.png")
        dataset = pool(tmp_path, [(number, name, *SIZE) for number, name in enumerate(names)])

        def examine(cache=tmp_path / "cache.json"):
            return examine_images(dataset, tmp_path, num_processes=1, desc="check", cache=cache)

        return examine

    def test_cache_avoids_decoding_and_gives_the_same_findings(self, examine, opened):
        first = examine()
        assert [finding.code for finding in first] == ["exif_rotation", "image_size_differs", "missing_image_file"]
        assert sorted(opened) == ["a.png", "b.png", "c.jpg", "d.png", "e.png"]
        opened.clear()
        assert examine() == first == examine(cache=None)
        assert sorted(opened) == ["a.png", "b.png", "c.jpg", "d.png", "e.png"]  # all by the call without a cache

    def test_cache_decodes_changed_files_again(self, examine, opened, tmp_path):
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

    def test_cache_serves_other_records_of_the_same_files(self, examine, opened, tmp_path):
        examine()
        opened.clear()
        dataset = pool(tmp_path, [(8, "d.png", 31, 48), (9, "a.png", 31, 48)])
        cache = tmp_path / "cache.json"
        [found] = examine_images(dataset, tmp_path, num_processes=1, desc="check", cache=cache)
        assert (found.image_id, found.code) == (9, "image_size_differs")
        assert opened == []

    @pytest.mark.filterwarnings("default::PIL.Image.DecompressionBombWarning")
    def test_cache_retries_unreadable_files(self, examine, tmp_path, monkeypatch):
        """The file may be unchanged, but not Pillow's version, the permissions or the memory."""
        limit = Image.MAX_IMAGE_PIXELS
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000)
        assert [finding.code for finding in examine()] == ["unreadable_image"] * 4 + ["missing_image_file"]
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        codes = [finding.code for finding in examine()]
        assert codes == ["exif_rotation", "image_size_differs", "missing_image_file"]

    @pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"a.png": 3}', b'{"a.png": [1]}', b'{"\xff": []}'])
    def test_broken_cache_is_replaced(self, examine, opened, tmp_path, text):
        first = examine()
        whole = (tmp_path / "cache.json").read_bytes()
        (tmp_path / "cache.json").write_bytes(text)
        opened.clear()
        assert examine() == first
        assert len(opened) == 5
        assert (tmp_path / "cache.json").read_bytes() == whole


IMAGE_CODES = {  # code: default policy, other policies
    "missing_image_file": "error warn",
    "unreadable_image": "error warn",
    "image_size_differs": "error warn",
    "unsupported_depth": "error warn",
    "other_image_format": "note error warn",
    "exif_rotation": "warn error note",
    "link_leaves_root": "error warn note",
}


@pytest.mark.parametrize("code", IMAGE_CODES)
def test_image_finding_follows_each_policy(tmp_path, code):
    if code == "unreadable_image":
        (tmp_path / "8.jpg").write_bytes(b"\xff\xd8\xff")
    elif code == "image_size_differs":
        picture(SIZE[::-1]).save(tmp_path / "8.jpg")
    elif code == "unsupported_depth":
        Image.new("I;16", SIZE).save(tmp_path / "8.jpg", "PNG")
    elif code == "other_image_format":
        picture().save(tmp_path / "8.jpg", "PNG")
    elif code == "exif_rotation":
        rotated(tmp_path / "8.jpg", 3)
    elif code == "link_leaves_root":
        elsewhere = tmp_path.with_name(f"{tmp_path.name}-elsewhere.jpg")
        picture().save(elsewhere)
        (tmp_path / "8.jpg").symlink_to(elsewhere)
    found = examine_images(pool(tmp_path, [(8, "8.jpg", *SIZE)]), tmp_path, num_processes=1, desc="check")
    default, *others = IMAGE_CODES[code].split()
    assert (RULES[code].policy, set(RULES[code].allowed)) == (default, {default, *others})
    for policy in (None, *POLICIES):
        if policy not in (None, default, *others):
            with pytest.raises(ConfigError, match=code):
                FindingLog({code: policy})
            continue
        log = FindingLog({code: policy} if policy else {})
        log_image_findings(found, log)
        [finding] = log.findings()
        assert (finding.code, finding.policy, finding.count) == (code, policy or default, 1)
        assert finding.examples[0].startswith("8.jpg (image_id 8): ")
        message = describe_errors([finding], tmp_path)
        assert all(part in message for part in (str(tmp_path), finding.examples[0], RULES[code].advice))


def test_file_name_outside_the_root_is_not_opened(tmp_path):
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
    assert examine_images(dataset, tmp_path / "root", num_processes=1, desc="check") == []


def test_file_name_of_two_lines_is_shown_in_one():
    log = FindingLog()
    log_image_findings([ImageFinding(3, "a\nno finding is an error", "missing_image_file", "gone")], log)
    assert log.findings()[0].examples == (r"'a\nno finding is an error' (image_id 3): gone",)
