"""The demo: its errors always, its detectors where their packages are installed."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import EMULATED

import cvkernels.compat.torchvision as cvtv
from cvkernels import demo
from cvkernels.demo import _detectors, _input, _output, _timing, face

pytest.importorskip("torchvision")
Image = pytest.importorskip("PIL.Image")

MISSING = [m for m in ("facenet_pytorch", "skimage") if importlib.util.find_spec(m) is None]
needs_extras = pytest.mark.skipif(
    bool(MISSING), reason=f"{' and '.join(MISSING)} not installed (requirements/demo.txt)"
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(face, "TIMING_SECONDS", 0.1)
    monkeypatch.setattr(_timing, "WHOLE_SECONDS", 0.1)
    monkeypatch.setattr(_timing, "CLEAR_TURNS", 1)


@pytest.fixture
def pretend_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the errors that come after the check of the packages."""
    monkeypatch.setattr(face, "check_packages", lambda _: None)


def fails(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The message of a run that must end with status 2, one line and no traceback."""
    assert demo.main(list(argv)) == 2
    captured = capsys.readouterr()
    line = captured.err.splitlines()[-1]
    assert line.startswith("error: ")
    assert "Traceback" not in captured.err
    assert not captured.out
    assert not cvtv.report().operators
    return line


# -------------------------------------------------------------------------------------------------
# Errors
# -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("pretend_installed")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "there is no file"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.write_text("no pixels here"), "not an image"),
        (lambda path: path.write_bytes(b""), "not an image"),
        (lambda path: truncate(path), "cannot be decoded"),
        (lambda path: Image.new("RGB", (10, 300)).save(path), "at least 24 pixels"),
    ],
    ids=["missing", "folder", "text", "empty", "truncated", "tiny"],
)
def test_bad_images(
    make: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "photo.png"
    make(path)
    out = tmp_path / "out.png"
    text = fails(capsys, "--image", str(path), "--out", str(out))
    assert message in text
    assert "10 x 300" in text or str(path) in text
    assert not out.exists()


def truncate(path: Path) -> None:
    noise = torch.randint(256, (64, 64, 3), dtype=torch.uint8)
    Image.fromarray(noise.numpy()).save(path)
    path.write_bytes(path.read_bytes()[:2000])


@pytest.mark.usefixtures("pretend_installed")
@pytest.mark.parametrize("option", ["--out", "--json"])
def test_bad_outputs(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "does not exist" in fails(capsys, option, str(tmp_path / "nowhere" / "a.png"))
    assert "is a folder" in fails(capsys, option, str(tmp_path))


@pytest.mark.parametrize("module", ["torchvision", "facenet_pytorch", "PIL", "skimage"])
def test_missing_packages(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    installed = importlib.util.find_spec
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name == module else object() if name in MISSING else installed(name),
    )
    text = fails(capsys)
    assert f"needs {module}" in text
    assert "pip install" in text


def test_scikit_image_is_needed_only_for_the_default_photograph(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_input, "installed", lambda module: module != "skimage")
    _input.check_packages("photo.jpg")
    with pytest.raises(demo.DemoError, match="scikit-image"):
        _input.check_packages(None)


def test_unknown_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        demo.main(["--imgae", "x"])
    assert stop.value.code == 2
    assert "--imgae" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------
# Pieces
# -------------------------------------------------------------------------------------------------


def test_images_of_every_mode_become_rgb(tmp_path: Path) -> None:
    for mode in ("1", "L", "LA", "P", "RGBA", "CMYK", "I;16"):
        path = tmp_path / "photo.tif"
        Image.new(mode, (30, 40)).save(path)
        image = _input.load_image(str(path))
        assert (image.mode, image.size) == ("RGB", (30, 40))


def test_rotation_recorded_by_the_camera_is_applied(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    image = Image.new("RGB", (30, 40))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(path, exif=exif)
    assert _input.load_image(str(path)).size == (40, 30)


def test_large_images_are_reduced() -> None:
    small, factor = _input.reduced(Image.new("RGB", (3200, 1000)))
    assert (small.size, factor) == ((1600, 500), 2.0)
    image = Image.new("RGB", (300, 100))
    assert _input.reduced(image) == (image, 1.0)


@pytest.mark.parametrize(
    "box", [[40, 50, 90, 110], [-5, -8, 30, 20], [150, 100, 260, 190]], ids=["in", "corner", "over"]
)
def test_faces_are_drawn(box: list[float]) -> None:
    image = Image.new("RGB", (200, 150))
    found = _detectors.Face(box, 0.98765, [[60, 70], [80, 70], [70, 80], [62, 95], [78, 95]])
    picture = _output.draw(image, [found])
    assert picture.size == image.size
    assert picture.getpixel((60, 70)) == _output.DOTS
    colours = {colour: count for count, colour in picture.getcolors(1 << 20)}
    assert colours[_output.HIGHLIGHT] > 100
    assert image.getcolors() == [(200 * 150, (0, 0, 0))]


def test_agreement() -> None:
    assert _timing.compare(torch.arange(3), torch.arange(3)) == (True, "")
    assert not _timing.compare(torch.arange(3), torch.tensor([0, 2, 1]))[0]
    assert not _timing.compare(torch.arange(3), torch.arange(4))[0]
    one = torch.ones(3)
    assert _timing.compare(one, one + 1e-6)[0]
    assert not _timing.compare(one, one + 1e-4)[0]
    assert not _timing.compare(one, one * float("nan"))[0]
    assert _timing.compare_all([(True, ""), (True, "note"), (True, "")]) == (True, "note")
    assert _timing.compare_all([(True, "note"), (False, "no")]) == (False, "no")


def test_agreement_of_kept_boxes() -> None:
    boxes = torch.tensor([[0.0, 0, 9, 9], [20.0, 20, 29, 29], [40.0, 40, 49, 49]])
    scores, classes = torch.tensor([0.9, 0.5, 0.5]), torch.tensor([0, 1, 1])

    def agree(ours: list[int], theirs: list[int], *arguments: Any) -> tuple[bool, str]:
        return _timing.compare_kept("op", arguments, torch.tensor(ours), torch.tensor(theirs))

    call = (boxes, scores, classes, 0.5)
    assert agree([0, 1, 2], [0, 1, 2], *call) == (True, "")
    assert agree([0, 2, 1], [0, 1, 2], *call) == (True, "equal scores in another order")
    assert not agree([1, 0, 2], [0, 1, 2], *call)[0]  # not by descending score
    assert not agree([0, 1], [0, 1, 2], *call)[0]
    assert not agree([0, 1], [0, 1, 2], boxes, scores, 0.5)[0]
    # Here torchvision is wrong: it keeps one of two boxes of different classes.
    same = torch.tensor([[-9.0, -9.0, -1.0, -1.0]]).repeat(2, 1)
    call = (same, torch.tensor([0.9, 0.8]), torch.tensor([0, 1]), 0.5)
    assert agree([0, 1], [0], *call)[0]
    assert not agree([0], [0, 1], *call)[0]


def test_agreement_of_detections() -> None:
    boxes, scores = torch.arange(40.0).view(10, 4), torch.linspace(1, 0.1, 10)
    theirs = [boxes, scores]
    assert _timing.compare_detections(theirs, theirs) == (True, "10 detections")
    swapped = torch.tensor([1, 0, *range(2, 10)])
    assert _timing.compare_detections([boxes[swapped], scores[swapped]], theirs)[0]
    assert _timing.compare_detections([boxes[:9], scores[:9]], theirs) == (
        True,
        "9 of 10 detections match",
    )
    assert not _timing.compare_detections([boxes[:8], scores[:8]], theirs)[0]
    assert not _timing.compare_detections([boxes + 1, scores], theirs)[0]
    assert not _timing.compare_detections([boxes, scores.flip(0)], theirs)[0]
    assert _timing.compare_detections([(), ()], [(), ()]) == (True, "0 detections")


def test_table() -> None:
    rows = [
        _timing.Row("A", "used", 3, 2.0, 0.5, 4.0, True),
        _timing.Row("A", "unused", 0, note="not called"),
        _timing.Row("B", "wrong", 1, 1.0, 2.0, 0.5, False),
    ]
    text = _output.table(rows)
    lines = text.splitlines()
    assert len(lines) == 1 + 3 + 2  # head and a rule above each detector
    assert "4.00x  yes" in text
    assert "NO" in lines[-1]
    assert "not called" in text


def test_interleaved_runs_both_ways() -> None:
    seen = []
    _timing.interleaved(lambda: seen.append(bool(cvtv.report().operators)), seconds=0, least=2)
    assert sorted(seen) == [False, False, True, True]
    assert seen != sorted(seen)


# -------------------------------------------------------------------------------------------------
# The detectors
# -------------------------------------------------------------------------------------------------


@needs_extras
def test_mtcnn_finds_the_astronaut() -> None:
    mtcnn = _detectors.Mtcnn(_input.load_image(None))
    result, _, calls, report = _timing.run_recorded(mtcnn)
    (found,) = mtcnn.faces(result, 1.0)
    assert found.score > 0.99
    left, top, right, bottom = found.box
    assert 170 < left < 195
    assert 50 < top < 75
    assert 255 < right < 280
    assert 160 < bottom < 185
    assert len(found.landmarks) == 5
    assert all(left < x < right and top < y < bottom for x, y in found.landmarks)
    assert "facenet_pytorch.models.utils.detect_face.batched_nms" in report.names
    rows = {row.operator: row for row in _timing.measure(mtcnn, calls, report, result, seconds=0.1)}
    assert rows[cvtv.BATCHED_NMS].calls >= 5
    assert rows[cvtv.BATCHED_NMS].agree
    assert rows["the whole detector"].agree


@needs_extras
@pytest.mark.native
def test_whole_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, table = tmp_path / "found.png", tmp_path / "found.json"
    assert demo.main(["--out", str(out), "--json", str(table)]) == 0
    captured = capsys.readouterr()
    assert str(out) in captured.out
    assert "Found a face at x 181..268, y 62..172" in captured.out
    assert "[6/6]" in captured.err
    with Image.open(out) as picture:
        assert picture.size == (512, 512)
        assert picture.getpixel((181, 120)) == _output.HIGHLIGHT
    content = json.loads(table.read_text())
    assert len(content["faces"]) == 1
    rows = {(row["detector"], row["operator"]): row for row in content["rows"]}
    assert len(rows) == 2 * (len(cvtv.OPERATORS) + 3)  # two functions, and the whole
    assert all(row["agree"] for row in rows.values() if row["calls"])
    assert rows["MTCNN", cvtv.BATCHED_NMS]["calls"] == 12
    assert rows["Mask R-CNN", cvtv.MULTISCALE]["calls"] == 2
    assert rows["Mask R-CNN", cvtv.MULTISCALE]["ratio"] > 0


@needs_extras
def test_a_picture_without_a_face(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(face, "MaskRcnn", NoDetector)
    photo, out = tmp_path / "wall.png", tmp_path / "out.png"
    Image.new("RGB", (100, 80), (90, 120, 150)).save(photo)
    assert demo.main(["--image", str(photo), "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "found no face" in text
    assert "the whole detector" in text
    assert out.exists()


class NoDetector:
    """Stands for Mask R-CNN where the test is not about it."""

    name = "none"

    def __init__(self, image: Any) -> None:
        del image

    def __call__(self) -> tuple[Any, ...]:
        return ((),)


@pytest.mark.skipif(EMULATED, reason="slow there; MTCNN covers the path")
def test_mask_rcnn_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(256, (96, 128, 3), dtype=torch.uint8, generator=generator).numpy()
    detector = _detectors.MaskRcnn(Image.fromarray(noise))
    result, _, calls, report = _timing.run_recorded(detector)
    rows = {
        row.operator: row for row in _timing.measure(detector, calls, report, result, seconds=0.1)
    }
    assert rows[cvtv.MULTISCALE].agree
    assert rows[cvtv.BATCHED_NMS].agree
    assert rows["the whole detector"].agree
    assert len(result[0]) > 0
