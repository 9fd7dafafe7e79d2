"""A pool with 1 % broken images: listed and excluded, or the run stops."""

import json
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from detcurate.cli import main
from detcurate.coco.dataset import read_coco
from detcurate.coco.image_files import examine_images

SIZE = (96, 64)
NUM_IMAGES, NUM_EVALUATION = 800, 3


def chunk(kind, data):
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def write_bomb(path, side):
    """Write a complete black PNG with ``side`` pixels a side, one bit each, without holding it in memory."""
    packer = zlib.compressobj(9)
    row = bytes(1 + side // 8)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = side.to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))


def picture(number=0):
    return Image.fromarray(np.random.default_rng(number).integers(0, 255, (SIZE[1], SIZE[0], 3), np.uint8))


def truncated(path):
    picture().save(path)
    path.write_bytes(path.read_bytes()[:900])


def turned(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture().save(path, exif=exif)


def deep(path):
    Image.fromarray(np.linspace(0, 65535, SIZE[0] * SIZE[1]).astype(np.uint16).reshape(SIZE[::-1])).save(path, "PNG")


# Each defect with the start of its reason; the files in FINE are read correctly.
WAYS = {
    "truncated.jpg": (truncated, "does not decode: "),
    "empty.jpg": (lambda path: path.write_bytes(b""), "does not decode: cannot identify image file"),
    "absent.jpg": (lambda path: None, "file not found"),
    "page.jpg": (lambda path: path.write_text("<html>404</html>"), "does not decode: cannot identify image file"),
    "turned.jpg": (turned, "the image is 64x96 after its EXIF rotation, its record says 96x64"),
    "deep.png": (deep, "more than 8 bits per channel (mode I;16)"),
    "bomb.png": (lambda path: write_bomb(path, 60_000), "does not decode: Image size (3600000000 pixels) exceeds"),
    "large.png": (lambda path: write_bomb(path, 10_000), "does not decode: Image size (100000000 pixels) exceeds"),
}
FINE = {
    "named.jpg": lambda path: picture(1).save(path, "PNG"),
    "inks.jpg": lambda path: picture(1).convert("CMYK").save(path, quality=100, subsampling=0),
    "see-through.png": lambda path: picture(1).convert("RGBA").save(path),
    "few.png": lambda path: picture(1).quantize(64).save(path),
    "grey.png": lambda path: picture(1).convert("L").save(path),
}


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """The folder of a pool of 800 images with 8 unusable and 5 odd ones, and the names of the 8."""
    folder = tmp_path_factory.mktemp("pool")
    (folder / "images").mkdir()
    names = [*WAYS, *FINE, *(f"{number}.jpg" for number in range(NUM_IMAGES - len(WAYS) - len(FINE)))]
    names = np.random.default_rng(2).permutation(names).tolist()
    for name in names:
        (WAYS[name][0] if name in WAYS else FINE.get(name, picture().save))(folder / "images" / name)
    for file, shown in (("train.json", names), ("val.json", [f"{number}.jpg" for number in range(NUM_EVALUATION)])):
        images = [
            {"id": number, "file_name": name, "width": SIZE[0], "height": SIZE[1]} for number, name in enumerate(shown)
        ]
        boxes = [
            {"id": 1 + number, "image_id": number, "category_id": 1, "bbox": [2, 3, 20, 10], "area": 200, "iscrowd": 0}
            for number in range(len(shown))
        ]
        content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "car"}]}
        (folder / file).write_text(json.dumps(content))
    return folder, {number: name for number, name in enumerate(names) if name in WAYS}


@pytest.fixture
def look(pool, tmp_path, capsys):
    """Return a function that runs the stage pool and returns status, output and OUTPUT_DIR."""
    folder, _ = pool
    config, output = tmp_path / "odd.yaml", tmp_path / "output"
    config.write_text(f'DATASETS: {{ROOT: "{folder}"}}\nOUTPUT_DIR: "{output}"\nCURATE: {{NUM_PROCESSES: 1}}\n')

    def look(*more: str):
        status = main(["--config-file", str(config), "--until", "pool", *more])
        captured = capsys.readouterr()
        return status, captured.out + captured.err, output

    return look


def test_bad_images_stop_run_and_are_listed(look, pool):
    status, text, output = look()
    assert status == 2
    assert "8 images" in text
    first = min(pool[1])
    assert f"{pool[1][first]} (image_id {first}): {WAYS[pool[1][first]][1]}" in text
    listed = output / "cache" / "bad-images.txt"
    assert str(listed) in text
    assert "CURATE.POOL.BAD_IMAGES" in text
    named = [line.partition(": ")[0] for line in listed.read_text().splitlines()]
    assert named == [f"{pool[1][image_id]} (image_id {image_id})" for image_id in sorted(pool[1])]
    assert not (output / "pool" / "pool.json").exists()


def test_quarantine_lists_and_excludes_bad_images(look, pool):
    status, text, output = look("CURATE.POOL.BAD_IMAGES", "quarantine")
    assert status == 0, text
    assert "8 images quarantined (pool/pool.json)" in text
    listed = json.loads((output / "pool" / "pool.json").read_bytes())["quarantined"]
    assert {entry["image_id"]: entry["file_name"] for entry in listed} == pool[1]
    for entry in listed:
        assert entry["reason"].startswith(WAYS[entry["file_name"]][1]), entry


def test_odd_images_are_read_correctly(pool):
    read_image = pytest.importorskip("detectron2.data.detection_utils").read_image
    folder, _ = pool
    plain = np.asarray(picture(1))[:, :, ::-1].astype(int)
    grey = np.repeat(np.asarray(picture(1).convert("L"))[:, :, None], 3, 2).astype(int)
    for name, off in (("named.jpg", 0), ("inks.jpg", 3), ("see-through.png", 0), ("few.png", 40), ("grey.png", 0)):
        got = read_image(str(folder / "images" / name), "BGR").astype(int)
        assert got.shape == (SIZE[1], SIZE[0], 3)
        assert np.abs(got - (grey if name == "grey.png" else plain)).mean() <= off, name


def test_image_with_sixteen_bits_would_be_read_as_white(pool):
    """The reason for excluding them: nearly all of an even ramp becomes white."""
    read_image = pytest.importorskip("detectron2.data.detection_utils").read_image
    got = read_image(str(pool[0] / "images" / "deep.png"), "BGR")
    assert (got == 255).mean() > 0.99


def test_image_with_other_extension_is_reported(pool):
    folder, _ = pool
    dataset = read_coco(folder / "train.json")
    found = examine_images(dataset, folder / "images", num_processes=1, desc="look")
    usable = {(finding.file_name, finding.code, finding.reason) for finding in found if finding.is_usable}
    assert usable == {("named.jpg", "other_image_format", "format PNG, extension of JPEG")}


def test_image_bomb_needs_no_memory(pool, measured):
    """Inspect 3.6 gigapixels in a separate process, to measure its peak."""
    folder, _ = pool
    program = (
        "import resource, sys; from pathlib import Path; from detcurate.coco.image_files import _inspect; "
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; found = _inspect(Path(sys.argv[1])); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, found.error)"
    )
    bomb = folder / "images" / "bomb.png"
    done = subprocess.run([sys.executable, "-c", program, bomb], capture_output=True, text=True, check=True)
    more_kb, error = done.stdout.split(" ", 1)
    assert error.startswith("Image size (3600000000 pixels)")
    assert int(more_kb) < 20_000
    measured("memory of a bomb, MB", "", int(more_kb) / 1000)


def test_image_that_breaks_before_training_is_named(tmp_path):
    pytest.importorskip("detectron2")
    from detectron2.config import get_cfg
    from detectron2.data import DatasetMapper

    from detcurate.config.declaration import load_config_text  # noqa: F401  registers CURATE
    from detcurate.d2.train.data import SeededDataset
    from detcurate.errors import DatasetError

    truncated(tmp_path / "x.jpg")
    record = {"file_name": str(tmp_path / "x.jpg"), "image_id": 7, "width": SIZE[0], "height": SIZE[1]}
    mapped = SeededDataset([{**record, "annotations": []}], DatasetMapper(get_cfg(), is_train=True), 0)
    with pytest.raises(DatasetError, match=r"x.jpg.*image_id 7.*truncated"):
        mapped[0]
