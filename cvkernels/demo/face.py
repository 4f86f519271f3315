"""``python -m cvkernels demo``: an unmodified face detector finds a real face on these kernels.

Two third-party detectors run with torchvision's operators replaced by ours: facenet-pytorch's MTCNN
with the weights that its package carries, and torchvision's Mask R-CNN with random weights (its
detections mean nothing; it is there because it uses RoI Align). The face goes onto a picture. Every
call that the detectors made of a replaced operator is kept and made again, by torchvision and by
cvkernels in turn, for the table.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from cvkernels.demo._detectors import MaskRcnn, Mtcnn
from cvkernels.demo._input import (
    DemoError,
    check_output,
    check_packages,
    load_image,
    reduced,
    stage,
)
from cvkernels.demo._output import draw, machine, table
from cvkernels.demo._timing import measure, run_recorded

DEFAULT_OUT = "cvkernels_demo.png"
TIMING_SECONDS = 6.0  # Spent on each detector; slow operators take longer, for a few repetitions.


def parser() -> argparse.ArgumentParser:
    """The options of this demo."""
    demo = argparse.ArgumentParser(
        prog="python -m cvkernels demo",
        description=(
            "Finds faces with facenet-pytorch's MTCNN, running on cvkernels, draws them, and "
            "compares each operator with torchvision's."
        ),
        epilog=(
            "Another demo, of the variants of NMS: python -m cvkernels demo nms. "
            "Exit status: 0 when all went well, 1 when a result disagreed, 2 on an error."
        ),
    )
    demo.add_argument(
        "--image", metavar="FILE", help="your photograph (default: scikit-image's astronaut)"
    )
    demo.add_argument(
        "--out", metavar="FILE", default=DEFAULT_OUT, help="the PNG to write (default: %(default)s)"
    )
    demo.add_argument("--json", metavar="FILE", help="also write the faces and the table here")
    return demo


def run(arguments: argparse.Namespace) -> int:
    """Runs this demo; returns the exit status."""
    check_packages(arguments.image)
    out = Path(arguments.out)
    check_output(out, "--out")
    if arguments.json is not None:
        check_output(Path(arguments.json), "--json")
    total = 6
    with stage(1, total, "reading the image"):
        image = load_image(arguments.image)
        small, factor = reduced(image)
    title = arguments.image or "scikit-image's astronaut"
    size = f"{image.width} x {image.height}"
    if factor > 1:
        size += f", reduced to {small.width} x {small.height} for the detectors"
    print(f"      {title}, {size}", file=sys.stderr)

    with stage(2, total, "loading torch, torchvision, MTCNN and the kernels"):
        from cvkernels.compat import torchvision as compat

        try:
            mtcnn = Mtcnn(small)  # First, so that the report lists the name that it imported.
            with compat.patched() as report:
                description = str(report)
        except (ImportError, OSError) as error:
            raise DemoError(str(error)) from error
    for line in description.splitlines():
        print(f"      {line}", file=sys.stderr)

    with stage(3, total, "finding faces with MTCNN on cvkernels"):
        found, _, calls, report = run_recorded(mtcnn)
        faces = mtcnn.faces(found, factor)
    draw(image, faces).save(out, format="PNG")
    print(f"      wrote {out.resolve()}", file=sys.stderr)

    with stage(4, total, "timing MTCNN's operators, torchvision's and ours by turns"):
        rows = measure(mtcnn, calls, report, found, seconds=TIMING_SECONDS)
    with stage(5, total, "running Mask R-CNN (random weights) on cvkernels"):
        mask_rcnn = MaskRcnn(small)
        result, _, calls, report = run_recorded(mask_rcnn)
    with stage(6, total, "timing Mask R-CNN's operators, torchvision's and ours by turns"):
        rows += measure(mask_rcnn, calls, report, result, seconds=TIMING_SECONDS)

    where = machine()
    print()
    print(table(rows))
    print(
        f"\nMilliseconds for all calls of one run, median, by turns in one process on "
        f"{where['processor']}, {where['threads']} threads"
        f"{', emulated CUDA kernels' if where['backend'] == 'emulated' else ''}; "
        f"torch {where['torch']}, torchvision {where['torchvision']}."
    )
    print()
    for face in faces:
        left, top, right, bottom = face.box
        print(
            f"Found a face at x {left:.0f}..{right:.0f}, y {top:.0f}..{bottom:.0f}, "
            f"score {face.score:.6f}."
        )
    if not faces:
        print(f"MTCNN found no face in {title}: the picture has no box on it.")
    print(f"Picture: {out.resolve()}")
    if arguments.json is not None:
        content = {
            "image": title,
            "picture": str(out.resolve()),
            "machine": where,
            "faces": [asdict(face) for face in faces],
            "rows": [asdict(row) for row in rows],
        }
        Path(arguments.json).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        print(f"Table: {Path(arguments.json).resolve()}")
    if not all(row.agree for row in rows if row.calls):
        print("error: some results disagree with torchvision's, see the table", file=sys.stderr)
        return 1
    return 0
