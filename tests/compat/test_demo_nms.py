"""The demo of the NMS variants: its pieces always, MTCNN's scene where its packages are there."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cvkernels import demo, ops
from cvkernels.__main__ import main as cli
from cvkernels.demo import _detectors, _input, _output, _scene, nms

pytest.importorskip("torchvision")
Image = pytest.importorskip("PIL.Image")

MISSING = [m for m in ("facenet_pytorch", "skimage") if importlib.util.find_spec(m) is None]
needs_extras = pytest.mark.skipif(
    bool(MISSING), reason=f"{' and '.join(MISSING)} not installed (requirements/demo.txt)"
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_scene, "TIMING_SECONDS", 0.0)


def two_faces() -> _scene.Scene:
    """Around two faces five candidates each, the better the nearer; and one elsewhere."""
    faces = torch.tensor([[10.0, 10, 50, 50], [60.0, 20, 100, 60]])
    shifts = torch.tensor([3.0, 2, -1, -4, 6])
    boxes = [face + shift for face in faces for shift in shifts]
    boxes.append(torch.tensor([110.0, 70, 119, 79]))
    scores = torch.tensor([0.95, 0.9, 0.8, 0.7, 0.65, 0.94, 0.89, 0.79, 0.69, 0.64, 0.6])
    return _scene.Scene(torch.stack(boxes), scores, faces)


def nothing() -> _scene.Scene:
    return _scene.Scene(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, 4))


# -------------------------------------------------------------------------------------------------
# Pieces
# -------------------------------------------------------------------------------------------------


def test_every_variant_runs() -> None:
    scene = two_faces()
    results = {result.variant: result for result in _scene.run_variants(scene)}
    assert list(results) == [name for name, _, _ in _scene.VARIANTS]
    assert len(results) == 14
    none, hard = results["none"], results["nms"]
    assert len(none.boxes) == 11 and none.per_face == 5 and none.milliseconds is None
    assert hard.keep.tolist() == ops.nms(scene.boxes, scene.scores, 0.5).tolist() == [0, 5, 10]
    assert hard.per_face == 1
    side, shift = 40.0, 3.0
    shared = (side - shift) ** 2
    assert hard.top_iou == pytest.approx(shared / (2 * side**2 - shared))
    assert hard.closest_iou == hard.top_iou
    for result in results.values():
        assert result.boxes.shape == (len(result.keep), 4)
        assert result.scores.shape == result.keep.shape
        assert result.changed
        assert result.variant == "none" or (result.milliseconds or 0) > 0
    # The candidates lie around the face: their mean is nearer to it than the best of them.
    for variant in ("weighted", "cluster weighted", "softer"):
        assert (results[variant].top_iou or 0) > hard.top_iou
        assert "moved by" in results[variant].changed
    assert "lower scores" in results["soft linear"].changed
    assert "higher scores" in results["iou-guided"].changed


def test_guesses() -> None:
    scene = _scene.Scene(
        # Two windows a pixel apart, one that overlaps them by 1/2 and less, one alone.
        torch.tensor([[0.0, 0, 12, 12], [1.0, 0, 13, 12], [8.0, 0, 20, 12], [60.0, 0, 72, 12]]),
        torch.tensor([0.9, 0.8, 0.7, 0.6]),
        torch.zeros(0, 4),
    )
    guesses = _scene.guessed(scene)
    grid = (12 / 6) ** 2 / 12
    spread = torch.tensor([0.25, 0, 0.25, 0])
    torch.testing.assert_close(guesses.variances[0], spread + grid)
    torch.testing.assert_close(guesses.variances[3], torch.full((4,), grid))
    torch.testing.assert_close(guesses.localization, torch.tensor([11 / 26, 11 / 26, 0.0, 0.0]))
    # Survivors at 0.7 are 0, 2 and 3; 0 and 2 share a third of a side, 4 / 20.
    torch.testing.assert_close(
        guesses.densities, torch.tensor([0.2, 0.2, 0.2, 0.0]), atol=0.01, rtol=0
    )
    assert bool((guesses.densities[:2] > 4 / 20 - 1e-6).all())


def test_a_face_without_boxes_counts_as_missed() -> None:
    scene = two_faces()
    scene.faces = torch.cat([scene.faces, torch.tensor([[200.0, 200, 240, 240]])])
    hard = _scene.run_variants(scene)[1]
    assert hard.per_face == pytest.approx(2 / 3)
    assert hard.top_iou == pytest.approx(2 / 3 * 0.748, abs=0.01)


def test_nothing_to_suppress() -> None:
    results = _scene.run_variants(nothing())
    assert all(len(result.boxes) == 0 and result.per_face is None for result in results)
    assert results[1].changed and "as nms" in results[2].changed
    image = Image.new("RGB", (100, 80))
    assert nms.draw(image, "a wall", nothing(), results).size[0] > 5 * nms.PANEL


def test_table() -> None:
    lines = nms.table(_scene.run_variants(two_faces())).splitlines()
    assert len(lines) == 1 + len(_scene.VARIANTS)
    assert lines[0].split()[0] == "variant"
    assert lines[2].startswith("nms ") and " 11 " in lines[2] and " 1.0 " in lines[2]
    assert nms.table([]).startswith("variant")


@pytest.mark.parametrize("size", [(130, 90), (60, 200)])
def test_the_sheet_has_a_panel_for_each_variant(size: tuple[int, int]) -> None:
    scene = two_faces()
    results = _scene.run_variants(scene)
    sheet = nms.draw(Image.new("RGB", size, (90, 120, 150)), "a test", scene, results)
    scale = nms.PANEL / max(size)
    assert sheet.width == nms.COLUMNS * (nms.PANEL + 14) + 14
    assert sheet.height == 3 * (round(size[1] * scale) + 84 + 14) + 60
    colours = {colour: count for count, colour in sheet.getcolors(1 << 24)}
    assert colours[_output.DOTS] > 1000
    assert colours[_output.HIGHLIGHT] > 1000
    assert colours[nms._FACE] > 1000


def test_a_box_inside_out_is_not_drawn() -> None:
    """A merged box may be anything; Pillow refuses one whose corners are exchanged."""
    scene = two_faces()
    scene.boxes[10] = torch.tensor([20.0, 20, 10, 10])
    nms.draw(Image.new("RGB", (130, 90)), "a test", scene, _scene.run_variants(scene))


# -------------------------------------------------------------------------------------------------
# The command
# -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image", "nowhere.png"], "there is no file nowhere.png"),
        (["--out", "nowhere/a.png"], "does not exist"),
        (["--out", "."], "is a folder"),
    ],
)
def test_errors(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(nms, "check_packages", lambda _: None)
    monkeypatch.chdir(tmp_path)
    assert demo.main(["nms", *arguments]) == 2
    captured = capsys.readouterr()
    line = captured.err.splitlines()[-1]
    assert line.startswith("error: ") and message in line
    assert not captured.out
    assert not list(tmp_path.iterdir())


def test_missing_packages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_input, "installed", lambda module: module != "facenet_pytorch")
    assert demo.main(["nms"]) == 2
    assert "needs facenet_pytorch" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "program"), [(["nms"], "cvkernels demo nms"), ([], "cvkernels demo")]
)
def test_help(words: list[str], program: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli(["demo", *words, "--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"python -m {program} [" in text
    assert "demo nms" in text


@pytest.mark.parametrize("words", [["soft"], ["nms", "nms"], ["nms", "--json", "x"]])
def test_unknown_words(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        demo.main(words)
    assert stop.value.code == 2
    assert words[-1] in capsys.readouterr().err


@pytest.fixture(scope="module")
def astronaut() -> _scene.Scene:
    return _scene.crowded(_detectors.Mtcnn(_input.load_image(None)))


@needs_extras
def test_the_scene_is_what_comes_before_suppression(astronaut: _scene.Scene) -> None:
    from facenet_pytorch.models.utils import detect_face

    assert detect_face.generateBoundingBox.__module__ == detect_face.__name__  # as before
    assert len(astronaut.boxes) == len(astronaut.scores) > 250
    assert not astronaut.boxes.is_inference()
    assert bool((astronaut.scores >= 0.6).all())  # MTCNN's threshold for a candidate
    overlaps = _scene.box_iou(astronaut.boxes, astronaut.boxes).fill_diagonal_(0)
    assert int((overlaps > 0.5).any(1).sum()) > 200
    assert astronaut.faces.shape == (1, 4)
    torch.testing.assert_close(
        astronaut.faces[0], torch.tensor([181.0, 62, 268, 172]), atol=2.0, rtol=0
    )


@needs_extras
def test_what_the_readme_says_of_the_variants(astronaut: _scene.Scene) -> None:
    """The order of the table there, not its digits, which depend on the machine's convolutions."""
    results = {result.variant: result for result in _scene.run_variants(astronaut)}
    count: Callable[[str], int] = lambda name: len(results[name].boxes)  # noqa: E731
    place: Callable[[str], Any] = lambda name: results[name].top_iou  # noqa: E731
    assert count("nms") < count("nms diou") < count("adaptive") < count("none")
    assert count("cluster penalty") < count("nms") < count("soft linear") < count("matrix")
    assert count("weighted") == count("cluster weighted") == count("softer") == count("nms")
    assert place("nms") == pytest.approx(0.711, abs=0.02)
    assert place("nms") < place("softer") < place("weighted") < place("iou-guided")
    assert place("cluster weighted") == pytest.approx(place("weighted"), abs=0.01)
    assert place("soft linear") == place("matrix") == place("nms")


@needs_extras
@pytest.mark.native
def test_whole_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "nms.png"
    assert cli(["demo", "nms", "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert str(out) in captured.out
    assert "1 known face (" in captured.out
    assert "[4/4]" in captured.err
    lines = [line.split("  ")[0] for line in captured.out.splitlines()]
    assert all(name in lines for name, _, _ in _scene.VARIANTS)
    with Image.open(out) as picture:
        assert picture.size == (2184, 1614)


@needs_extras
def test_a_picture_without_a_face(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo, out = tmp_path / "wall.png", tmp_path / "out.png"
    Image.new("RGB", (100, 80), (90, 120, 150)).save(photo)
    assert demo.main(["nms", "--image", str(photo), "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "0 known faces" in text and "found no face" in text
    assert out.exists()
