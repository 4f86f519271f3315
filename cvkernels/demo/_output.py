"""The picture, the table and the machine."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cvkernels.demo._detectors import Face
from cvkernels.demo._timing import Row

HIGHLIGHT = (57, 255, 106)
DOTS = (255, 64, 129)


def draw(image: Any, faces: Sequence[Face]) -> Any:
    """A copy of the image with each face's box, score and five landmarks."""
    from PIL import ImageDraw, ImageFont

    picture = image.copy()
    canvas = ImageDraw.Draw(picture)
    stroke = max(2, round(min(picture.size) / 200))
    font = ImageFont.load_default(size=max(12, round(min(picture.size) / 28)))
    for face in faces:
        left, top, right, bottom = face.box
        canvas.rectangle((left, top, right, bottom), outline=HIGHLIGHT, width=stroke)
        for x, y in face.landmarks:
            radius = 1.5 * stroke
            canvas.ellipse(
                (x - radius, y - radius, x + radius, y + radius),
                fill=DOTS,
                outline=(255, 255, 255),
                width=max(1, stroke // 3),
            )
        text = f"face {face.score:.6f}"
        text_left, text_top, text_right, text_bottom = canvas.textbbox((0, 0), text, font=font)
        pad = 2 * stroke
        width, height = text_right - text_left, text_bottom - text_top
        at_y = top - height - 2 * pad
        if at_y < 0:  # No room above the box: below its upper edge.
            at_y = max(0.0, top)
        at_x = min(max(0.0, left), max(0.0, picture.width - width - 2 * pad))
        canvas.rectangle((at_x, at_y, at_x + width + 2 * pad, at_y + height + 2 * pad), HIGHLIGHT)
        origin = (at_x + pad - text_left, at_y + pad - text_top)
        canvas.text(origin, text, fill=(0, 0, 0), font=font)
    return picture


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned text."""
    head = ("detector", "operator", "calls", "torchvision ms", "cvkernels ms", "ratio", "agree", "")
    lines = [head]
    for row in rows:
        lines.append(
            (
                row.detector,
                row.operator,
                str(row.calls),
                number(row.torchvision_ms, ".3f"),
                number(row.cvkernels_ms, ".3f"),
                number(row.ratio, ".2f") + ("x" if row.ratio is not None else ""),
                "-" if row.agree is None else "yes" if row.agree else "NO",
                row.note,
            )
        )
    texts = aligned(lines, left={0, 1, 6, 7})
    rule = "  ".join("-" * max(map(len, column)) for column in zip(*lines, strict=True))
    for position in range(len(lines) - 1, 0, -1):
        if lines[position][0] != lines[position - 1][0]:
            texts.insert(position, rule)
    return "\n".join(texts)


def aligned(lines: Sequence[tuple[str, ...]], *, left: set[int]) -> list[str]:
    """Cells in columns; those in ``left`` begin at their left edge, the others end at the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def number(value: float | None, spec: str) -> str:
    """The number, or a dash where there is none."""
    return "-" if value is None else format(value, spec)


def machine() -> dict[str, Any]:
    """What the times were measured on."""
    import platform

    import torch
    import torchvision

    import cvkernels
    from cvkernels import _load

    build = _load.info().get("build", {})
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                processor = line.partition(":")[2].strip()
                break
    return {
        "cvkernels": cvkernels.__version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "processor": processor,
        "threads": torch.get_num_threads(),
        "cpu_isa": build.get("cpu_isa"),
        "backend": _load.backend(),
    }
