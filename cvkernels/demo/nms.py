"""``python -m cvkernels demo nms``: one crowded scene under each variant of NMS, side by side.

The scene is what MTCNN's first network proposes on a real photograph before anything is suppressed;
the faces that the whole of MTCNN finds are what the boxes are compared with.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cvkernels.demo._detectors import Mtcnn
from cvkernels.demo._input import (
    DemoError,
    check_output,
    check_packages,
    load_image,
    reduced,
    stage,
)
from cvkernels.demo._output import DOTS, HIGHLIGHT, aligned, machine, number

if TYPE_CHECKING:
    from cvkernels.demo._scene import Result, Scene

DEFAULT_OUT = "cvkernels_demo_nms.png"
COLUMNS = 5
PANEL = 420  # Longer side of the photograph in a panel, in pixels.
_FACE = (255, 255, 255)
_LOW, _HIGH = (60, 90, 255), (255, 210, 0)  # Boxes elsewhere, by score.


def parser() -> argparse.ArgumentParser:
    """The options of this demo."""
    demo = argparse.ArgumentParser(
        prog="python -m cvkernels demo nms",
        description=(
            "Draws the candidate boxes of MTCNN's first network under each variant of NMS, side by "
            "side, and prints what each does to them."
        ),
        epilog="Exit status: 0 when all went well, 2 on an error.",
    )
    demo.add_argument(
        "--image", metavar="FILE", help="your photograph (default: scikit-image's astronaut)"
    )
    demo.add_argument(
        "--out", metavar="FILE", default=DEFAULT_OUT, help="the PNG to write (default: %(default)s)"
    )
    return demo


def run(arguments: argparse.Namespace) -> int:
    """Runs this demo; returns the exit status."""
    check_packages(arguments.image)
    out = Path(arguments.out)
    check_output(out, "--out")
    total = 4
    with stage(1, total, "reading the image"):
        image, _ = reduced(load_image(arguments.image))
    title = arguments.image or "scikit-image's astronaut"
    print(f"      {title}, {image.width} x {image.height}", file=sys.stderr)
    with stage(2, total, "proposing faces with MTCNN's first network"):
        try:
            from cvkernels.demo import _scene

            scene = _scene.crowded(Mtcnn(image))
        except (ImportError, OSError) as error:
            raise DemoError(str(error)) from error
    with stage(3, total, "suppressing with each variant"):
        results = _scene.run_variants(scene)
    with stage(4, total, "drawing"):
        draw(image, title, scene, results).save(out, format="PNG")

    where = machine()
    print()
    print(table(results))
    count = len(scene.faces)
    print(
        f"\n{len(scene.boxes)} candidates, {count} known face{'' if count == 1 else 's'} (what the "
        f"whole of MTCNN finds). IoU threshold {_scene.THRESHOLD}; variants that lower scores drop "
        f"those below {_scene.LEAST_SCORE}.\n"
        f"on a face: boxes of IoU > {_scene.ON_A_FACE} with it, mean over faces. IoU with the face "
        "of the box on it that has the highest score (best), and of the one that fits best "
        "(closest).\n"
        f"Milliseconds of one call, median, on one thread of {where['processor']}"
        f"{', emulated CUDA kernels' if where['backend'] == 'emulated' else ''}.\n"
    )
    print(_scene.GUESSES)
    if not count:
        print(f"MTCNN found no face in {title}: there is nothing to compare the boxes with.")
    print(f"Picture: {out.resolve()}")
    return 0


def table(results: Sequence[Result]) -> str:
    """The results as aligned text."""
    head = (
        "variant",
        "boxes in",
        "boxes out",
        "on a face",
        "IoU best",
        "closest",
        "ms",
        "what changed",
    )
    lines = [head]
    count = len(results[0].boxes) if results else 0
    for result in results:
        lines.append(
            (
                result.variant,
                str(count),
                str(len(result.boxes)),
                number(result.per_face, ".1f"),
                number(result.top_iou, ".3f"),
                number(result.closest_iou, ".3f"),
                number(result.milliseconds, ".3f"),
                result.changed,
            )
        )
    return "\n".join(aligned(lines, left={0, 7}))


# -------------------------------------------------------------------------------------------------
# The picture
# -------------------------------------------------------------------------------------------------


def draw(image: Any, title: str, scene: Scene, results: Sequence[Result]) -> Any:
    """One sheet with a panel for each result, and one that explains the colours."""
    from PIL import Image, ImageDraw, ImageFont

    scale = PANEL / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    # Dark and grey, so that boxes stand out.
    background = image.resize(size).convert("L").point(lambda v: v * 0.5).convert("RGB")
    large, small = ImageFont.load_default(size=20), ImageFont.load_default(size=14)
    gap, caption = 14, 84
    cell = (PANEL + gap, size[1] + caption + gap)
    rows = -(-(len(results) + 1) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * cell[0] + gap, rows * cell[1] + 60), (24, 24, 28))
    canvas = ImageDraw.Draw(sheet)
    count = len(scene.boxes)
    canvas.text(
        (gap, 18),
        f"{count} candidates of MTCNN's first network on {title}, under each variant of NMS",
        fill=(255, 255, 255),
        font=large,
    )

    def at(position: int) -> tuple[int, int]:
        row, column = divmod(position, COLUMNS)
        return gap + column * cell[0], 60 + row * cell[1]

    for position, result in enumerate(results):
        x, y = at(position)
        panel = background.copy()
        _draw_boxes(panel, scale, scene, result)
        sheet.paste(panel, (x, y + caption - gap // 2))
        canvas.text((x, y), result.variant, fill=(255, 255, 255), font=large)
        kept = f"{count} -> {len(result.boxes)} boxes"
        if result.per_face is not None:
            kept += f", {result.per_face:.1f} on a face, IoU {number(result.top_iou, '.2f')}"
        canvas.text((x, y + 26), kept, fill=(200, 200, 200), font=small)
        canvas.text((x, y + 44), result.changed, fill=(200, 200, 200), font=small)
    x, y = at(len(results))
    y += caption
    for colour, text in (
        (_FACE, "a face, as the whole of MTCNN finds it"),
        (DOTS, "the box of the highest score on it: its IoU"),
        (HIGHLIGHT, "other boxes on a face, IoU > 0.3"),
        (_HIGH, "boxes elsewhere, high score"),
        (_LOW, "boxes elsewhere, low score"),
    ):
        canvas.rectangle((x, y + 2, x + 22, y + 16), outline=colour, width=3)
        canvas.text((x + 34, y), text, fill=(200, 200, 200), font=small)
        y += 26
    return sheet


def _draw_boxes(panel: Any, scale: float, scene: Scene, result: Result) -> None:
    from PIL import ImageDraw

    from cvkernels.demo._scene import LEAST_SCORE, ON_A_FACE, box_iou

    canvas = ImageDraw.Draw(panel)

    def outline(box: Sequence[float], colour: tuple[int, ...], width: int) -> None:
        left, top, right, bottom = (side * scale for side in box)
        if right >= left and bottom >= top:
            canvas.rectangle((left, top, right, bottom), outline=colour, width=width)

    overlaps = box_iou(result.boxes, scene.faces)
    on_face = (overlaps > ON_A_FACE).any(1).tolist() if len(scene.faces) else []
    boxes, scores = result.boxes.tolist(), result.scores.tolist()
    order = sorted(range(len(boxes)), key=lambda row: scores[row])  # The best ones on top.
    for row in order:
        if not (on_face and on_face[row]):
            part = min(max((scores[row] - LEAST_SCORE) / (1 - LEAST_SCORE), 0.0), 1.0)
            pairs = zip(_LOW, _HIGH, strict=True)
            outline(boxes[row], tuple(round(a + part * (b - a)) for a, b in pairs), 1)
    for row in order:
        if on_face and on_face[row]:
            outline(boxes[row], HIGHLIGHT, 1)
    for face, box in enumerate(scene.faces.tolist()):
        outline(box, _FACE, 2)
        rows = [row for row in order if float(overlaps[row, face]) > ON_A_FACE]
        if rows:
            outline(boxes[rows[-1]], DOTS, 3)
