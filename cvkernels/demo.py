"""``python -m cvkernels demo``: an unmodified face detector finds a real face on these kernels.

Two third-party detectors run with torchvision's operators replaced by ours: facenet-pytorch's MTCNN
with the weights that its package carries, and torchvision's Mask R-CNN with random weights (its
detections mean nothing; it is there because it uses RoI Align). The face goes onto a picture. Every
call that the detectors made of a replaced operator is kept and made again, by torchvision and by
cvkernels in turn, for the table.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

DEFAULT_OUT = "cvkernels_demo.png"
SMALLEST_SIDE = 24  # MTCNN's smallest face is 20 pixels; it fails on images smaller than that.
LARGEST_SIDE = 1600  # Larger photographs are reduced to this first, or MTCNN takes minutes.
CLEAR_TURNS = 5  # Fewer turns that happen to agree say nothing about which side is faster.
WHOLE_SECONDS = 12.0  # Spent on timing each detector as a whole.
TIMING_SECONDS = 6.0  # Spent on each detector; slow operators take longer, for a few repetitions.

_FACENET = "facenet-pytorch==2.6.0"
_HIGHLIGHT = (57, 255, 106)
_DOTS = (255, 64, 129)


class DemoError(Exception):
    """Something the user can mend; its message says what."""


@dataclass
class Row:
    """One line of the table. Times are milliseconds for all calls of one run of the detector."""

    detector: str
    operator: str
    calls: int
    torchvision_ms: float | None = None
    cvkernels_ms: float | None = None
    ratio: float | None = None
    agree: bool | None = None
    note: str = ""


@dataclass
class Face:
    """One detected face, in pixels of the image as given."""

    box: list[float]
    score: float
    landmarks: list[list[float]]


# -------------------------------------------------------------------------------------------------
# Progress and input
# -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _stage(number: int, total: int, text: str) -> Iterator[None]:
    """Prints ``[2/6] text ... 1.2 s`` on stderr."""
    print(f"[{number}/{total}] {text} ...", end="", file=sys.stderr, flush=True)
    start = time.perf_counter()
    try:
        yield
    except BaseException:
        print(" failed", file=sys.stderr, flush=True)
        raise
    print(f" {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)


def check_packages(image: str | None) -> None:
    """Raises DemoError naming the first missing package and the command that installs it."""
    needed = [
        ("torch", "torch"),
        ("torchvision", "torchvision"),
        ("PIL", "pillow"),
        ("requests", "requests"),  # facenet-pytorch imports these two
        ("tqdm", "tqdm"),
        ("facenet_pytorch", f"--no-deps {_FACENET}"),
    ]
    if image is None:
        needed.append(("skimage", "scikit-image"))
    for module, package in needed:
        if not _installed(module):
            raise DemoError(
                f"the demo needs {module}, which is not installed: pip install {package} "
                "(requirements/demo.txt in the source tree lists all that it needs)"
            )


def _installed(module: str) -> bool:
    if module in sys.modules:
        return sys.modules[module] is not None
    return importlib.util.find_spec(module) is not None


def check_output(path: Path, option: str) -> None:
    """Raises DemoError unless ``path`` can be written, before minutes are spent."""
    folder = path.parent
    if not folder.is_dir():
        raise DemoError(f"{option}: the folder {folder} does not exist")
    if path.is_dir():
        raise DemoError(f"{option}: {path} is a folder, expected a file name")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise DemoError(f"{option}: {path} cannot be written")


def load_image(path: str | None) -> Any:
    """The user's image or scikit-image's astronaut, as an RGB Pillow image."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    if path is None:
        from skimage import data

        # Eileen Collins, NASA, public domain; the file is inside the package.
        pixels: Any = data.astronaut()  # type: ignore[no-untyped-call]
        return Image.fromarray(pixels).convert("RGB")
    try:
        with Image.open(path) as image:
            image.load()
            rgb = ImageOps.exif_transpose(image).convert("RGB")
    except FileNotFoundError:
        raise DemoError(f"--image: there is no file {path}") from None
    except IsADirectoryError:
        raise DemoError(f"--image: {path} is a folder, expected an image file") from None
    except PermissionError:
        raise DemoError(f"--image: {path} cannot be read: permission denied") from None
    except UnidentifiedImageError:
        raise DemoError(f"--image: {path} is not an image that Pillow can read") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DemoError(f"--image: {path} cannot be decoded: {error}") from None
    if min(rgb.size) < SMALLEST_SIDE:
        raise DemoError(
            f"--image: expected at least {SMALLEST_SIDE} pixels on each side, "
            f"got {rgb.width} x {rgb.height}"
        )
    return rgb


def reduced(image: Any) -> tuple[Any, float]:
    """The image with its longer side at most LARGEST_SIDE, and the factor back to the original.

    A very long image stays longer than that, so that its shorter side keeps SMALLEST_SIDE pixels.
    """
    factor = min(max(image.size) / LARGEST_SIDE, min(image.size) / SMALLEST_SIDE)
    if factor <= 1.0:
        return image, 1.0
    size = tuple(max(SMALLEST_SIDE, round(side / factor)) for side in image.size)
    return image.resize(size), factor


# -------------------------------------------------------------------------------------------------
# The two detectors
# -------------------------------------------------------------------------------------------------


class Mtcnn:
    """facenet-pytorch's MTCNN as published: code and weights untouched."""

    name = "MTCNN"

    def __init__(self, image: Any) -> None:
        import numpy as np
        from facenet_pytorch import MTCNN

        self.network = MTCNN(keep_all=True)
        self.image = np.asarray(image)

    def __call__(self) -> tuple[Any, ...]:
        """Boxes, scores and landmarks, or three empty tuples."""
        boxes, scores, landmarks = self.network.detect(self.image, landmarks=True)
        if boxes is None:
            return ((), (), ())
        return (boxes, scores, landmarks)

    def faces(self, result: tuple[Any, ...], factor: float) -> list[Face]:
        """Faces in pixels of the original image, the most certain first."""
        found = [
            Face(
                [float(side) * factor for side in box],
                float(score),
                [[float(x) * factor, float(y) * factor] for x, y in points],
            )
            for box, score, points in zip(*result, strict=True)
        ]
        return sorted(found, key=lambda face: -face.score)


class MaskRcnn:
    """torchvision's Mask R-CNN (ResNet-50 with feature pyramid), random weights from seed 0."""

    name = "Mask R-CNN"

    def __init__(self, image: Any) -> None:
        import numpy as np
        import torch
        from torchvision.models.detection import maskrcnn_resnet50_fpn

        state = torch.random.get_rng_state()
        torch.manual_seed(0)
        # Untrained, every class scores about 1/91 = 0.011: this threshold leaves thousands of
        # boxes to the last NMS. The sizes keep a forward to seconds on two cores.
        self.network = maskrcnn_resnet50_fpn(
            weights=None,
            weights_backbone=None,
            min_size=320,
            max_size=512,
            box_score_thresh=0.0115,
            box_detections_per_img=25,
        ).eval()
        torch.random.set_rng_state(state)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        self.images = [pixels.to(torch.float32) / 255]

    def __call__(self) -> tuple[Any, ...]:
        """Boxes, scores, labels and masks."""
        (result,) = self.network(self.images)
        return (result["boxes"], result["scores"], result["labels"], result["masks"])


# -------------------------------------------------------------------------------------------------
# Recording, checking and timing
# -------------------------------------------------------------------------------------------------

Call = tuple[Any, ...]


def _kept(argument: Any) -> Any:
    """A copy that later in-place changes by the detector do not reach."""
    return argument.detach().clone() if hasattr(argument, "detach") else argument


def run_recorded(detector: Callable[[], Any]) -> tuple[Any, float, dict[str, list[Call]], Any]:
    """Runs the detector with our operators in place.

    Returns:
        Its result, the seconds it took, the arguments of every call of a replaced operator, and
        the report of what was replaced.
    """
    import torch

    from cvkernels.compat import torchvision as compat

    calls: dict[str, list[Call]] = {}

    def keep(name: str, arguments: Call) -> None:
        calls.setdefault(name, []).append(tuple(map(_kept, arguments)))

    with torch.inference_mode(), compat.patched(on_call=keep) as report:
        start = time.perf_counter()
        result = detector()
        seconds = time.perf_counter() - start
    assert report.counts == {name: len(calls.get(name, [])) for name in report.operators}
    return result, seconds, calls, report


def operator(name: str) -> Callable[..., Any]:
    """The operator of that name in a report: whichever implementation is in place when called."""
    import torch
    import torchvision.ops

    if "::" not in name:
        return lambda *arguments: torchvision.ops.boxes.batched_nms(*arguments)
    overload = getattr(torch.ops.torchvision, name.partition("::")[2]).default
    return lambda *arguments: overload(*arguments)


def compare(ours: Any, theirs: Any) -> tuple[bool, str]:
    """Whether two results agree: indices exactly, floats to float32 accuracy of their largest."""
    import torch

    ours, theirs = torch.as_tensor(ours), torch.as_tensor(theirs)
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return False, f"shape {tuple(ours.shape)} and {tuple(theirs.shape)}"
    if torch.equal(ours, theirs):
        return True, ""
    if not ours.is_floating_point():
        return False, f"{int((ours != theirs).sum())} of {ours.numel()} differ"
    difference = float((ours.double() - theirs.double()).abs().max())
    scale = max(float(theirs.double().abs().max()), 1e-30)
    return difference <= 1e-5 * scale, f"largest difference {difference / scale:.0e} of the largest"


def compare_kept(name: str, arguments: Call, ours: Any, theirs: Any) -> tuple[bool, str]:
    """Whether two results of an NMS agree. Runs torchvision's nms, so outside the patch.

    Boxes of equal score may come in any order. Where batched_nms differs, torchvision's nms of one
    class after the other decides: what torchvision's batched_nms does, shifting the coordinates of
    each class, rounds them.
    """
    import torch

    if torch.equal(ours, theirs):
        return True, ""
    boxes, scores, *classes, threshold = arguments
    descending = bool((scores[ours].diff() <= 0).all())
    if descending and torch.equal(ours.sort()[0], theirs.sort()[0]):
        return True, "equal scores in another order"
    if classes and descending:
        kept = []
        for one in classes[0].unique():
            rows = (classes[0] == one).nonzero()[:, 0]
            kept.append(rows[torch.ops.torchvision.nms(boxes[rows], scores[rows], threshold)])
        if torch.equal(ours.sort()[0], torch.cat(kept).sort()[0]):
            return True, f"as torchvision's nms class by class; {name} rounds"
    return False, f"{len(ours)} and {len(theirs)} boxes are kept, or others"


def compare_all(results: Sequence[tuple[bool, str]]) -> tuple[bool, str]:
    """One verdict from that of each call: the first disagreement, or the last note."""
    for agree, note in results:
        if not agree:
            return False, note
    return True, next((note for _, note in reversed(results) if note), "")


def interleaved(
    run: Callable[[], Any], *, seconds: float, least: int = 3, most: int = 51
) -> tuple[float, float, bool]:
    """Times ``run`` with torchvision's operators and with ours, by turns.

    ``run`` must have run once already, both ways.

    Returns:
        The two medians in milliseconds, and whether turn after turn the same one was faster.
    """
    from cvkernels.compat import torchvision as compat

    times: dict[bool, list[float]] = {False: [], True: []}
    stop = time.perf_counter() + seconds
    for turn in range(1, most + 1):
        for ours in (False, True) if turn % 2 else (True, False):
            with compat.patched() if ours else contextlib.nullcontext():
                start = time.perf_counter()
                run()
                elapsed = time.perf_counter() - start
            times[ours].append(elapsed * 1e3)
        if turn >= least and time.perf_counter() > stop:
            break
    faster = {ours < theirs for theirs, ours in zip(times[False], times[True], strict=True)}
    clear = len(faster) == 1 and len(times[True]) >= CLEAR_TURNS
    return statistics.median(times[False]), statistics.median(times[True]), clear


_UNUSED = {
    "torchvision::nms": "not called: batched_nms no longer needs it",
    "torchvision::roi_align": "not called by this detector",
    "torchvision::_roi_align_backward": "not called: training only",
    "torchvision.ops.batched_nms": "not called by this detector",
}


def measure(
    detector: Any, calls: dict[str, list[Call]], report: Any, result: Any, *, seconds: float
) -> list[Row]:
    """The table's rows for one detector: each replaced operator, then the detector as a whole."""
    import torch

    from cvkernels.compat import torchvision as compat

    rows = []
    called = [name for name in report.operators if calls.get(name)]
    with torch.inference_mode():
        for name in report.operators:
            row = Row(detector.name, name, len(calls.get(name, [])))
            rows.append(row)
            if not row.calls:
                row.note = _UNUSED[name]
                continue
            function = operator(name)
            with compat.patched():
                ours = [function(*arguments) for arguments in calls[name]]
            theirs = [function(*arguments) for arguments in calls[name]]
            row.agree, row.note = compare_all(
                [
                    compare_kept(name, arguments, *pair)
                    if pair[1].dtype is torch.int64
                    else compare(*pair)
                    for arguments, *pair in zip(calls[name], ours, theirs, strict=True)
                ]
            )

            def replay(function: Callable[..., Any] = function, name: str = name) -> None:
                for arguments in calls[name]:
                    function(*arguments)

            row.torchvision_ms, row.cvkernels_ms, _ = interleaved(
                replay, seconds=seconds / len(called)
            )
            row.ratio = row.torchvision_ms / row.cvkernels_ms
        whole = Row(detector.name, "the whole detector", 1)
        rows.append(whole)
        theirs = detector()
        whole.agree, whole.note = compare_detections(result, theirs)
        whole.torchvision_ms, whole.cvkernels_ms, clear = interleaved(
            detector, seconds=WHOLE_SECONDS, most=CLEAR_TURNS
        )
        if clear:
            whole.ratio = whole.torchvision_ms / whole.cvkernels_ms
        else:  # The operators are a small part of it, and other work on the machine is not.
            whole.note += ", times equal within noise"
    return rows


def compare_detections(ours: Sequence[Any], theirs: Sequence[Any]) -> tuple[bool, str]:
    """Whether a detector's results agree: boxes, scores and so on, detection by detection.

    Detections are paired by box and score, to 1e-3 of the largest value. Rounding may bring another
    detection over a threshold now and then, so nine in ten have to agree; the note says how many.
    """
    import numpy as np

    mine = [np.asarray(part, dtype=np.float64) for part in ours]
    peer = [np.asarray(part, dtype=np.float64) for part in theirs]
    count = max(len(mine[0]), len(peer[0]))
    scales = [max(float(np.abs(part).max(initial=0.0)), 1e-30) for part in peer]
    left = list(range(len(peer[0])))
    matched = 0
    for row in range(len(mine[0])):
        for other in left:
            if all(
                np.abs(a[row] - b[other]).max() <= 1e-3 * scale
                for a, b, scale in zip(mine, peer, scales, strict=True)
            ):
                left.remove(other)
                matched += 1
                break
    if matched == count:
        return True, f"{count} detection{'' if count == 1 else 's'}"
    return matched >= 0.9 * count, f"{matched} of {count} detections match"


# -------------------------------------------------------------------------------------------------
# Output
# -------------------------------------------------------------------------------------------------


def draw(image: Any, faces: Sequence[Face]) -> Any:
    """A copy of the image with each face's box, score and five landmarks."""
    from PIL import ImageDraw, ImageFont

    picture = image.copy()
    canvas = ImageDraw.Draw(picture)
    stroke = max(2, round(min(picture.size) / 200))
    font = ImageFont.load_default(size=max(12, round(min(picture.size) / 28)))
    for face in faces:
        left, top, right, bottom = face.box
        canvas.rectangle((left, top, right, bottom), outline=_HIGHLIGHT, width=stroke)
        for x, y in face.landmarks:
            radius = 1.5 * stroke
            canvas.ellipse(
                (x - radius, y - radius, x + radius, y + radius),
                fill=_DOTS,
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
        canvas.rectangle((at_x, at_y, at_x + width + 2 * pad, at_y + height + 2 * pad), _HIGHLIGHT)
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
                _number(row.torchvision_ms, ".3f"),
                _number(row.cvkernels_ms, ".3f"),
                _number(row.ratio, ".2f") + ("x" if row.ratio is not None else ""),
                "-" if row.agree is None else "yes" if row.agree else "NO",
                row.note,
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    left = {0, 1, 6, 7}
    texts = []
    for position, line in enumerate(lines):
        if position and line[0] != lines[position - 1][0]:
            texts.append("  ".join("-" * width for width in widths))
        cells = [
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        texts.append("  ".join(cells).rstrip())
    return "\n".join(texts)


def _number(value: float | None, spec: str) -> str:
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


# -------------------------------------------------------------------------------------------------
# Main
# -------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cvkernels demo",
        description=(
            "Finds faces with facenet-pytorch's MTCNN, running on cvkernels, draws them, and "
            "compares each operator with torchvision's."
        ),
        epilog="Exit status: 0 when all went well, 1 when a result disagreed, 2 on an error.",
    )
    parser.add_argument(
        "--image", metavar="FILE", help="your photograph (default: scikit-image's astronaut)"
    )
    parser.add_argument(
        "--out", metavar="FILE", default=DEFAULT_OUT, help="the PNG to write (default: %(default)s)"
    )
    parser.add_argument("--json", metavar="FILE", help="also write the faces and the table here")
    return parser


def _run(arguments: argparse.Namespace) -> int:
    check_packages(arguments.image)
    out = Path(arguments.out)
    check_output(out, "--out")
    if arguments.json is not None:
        check_output(Path(arguments.json), "--json")
    total = 6
    with _stage(1, total, "reading the image"):
        image = load_image(arguments.image)
        small, factor = reduced(image)
    title = arguments.image or "scikit-image's astronaut"
    size = f"{image.width} x {image.height}"
    if factor > 1:
        size += f", reduced to {small.width} x {small.height} for the detectors"
    print(f"      {title}, {size}", file=sys.stderr)

    with _stage(2, total, "loading torch, torchvision, MTCNN and the kernels"):
        from cvkernels.compat import torchvision as compat

        try:
            mtcnn = Mtcnn(small)  # First, so that the report lists the name that it imported.
            with compat.patched() as report:
                description = str(report)
        except (ImportError, OSError) as error:
            raise DemoError(str(error)) from error
    for line in description.splitlines():
        print(f"      {line}", file=sys.stderr)

    with _stage(3, total, "finding faces with MTCNN on cvkernels"):
        found, _, calls, report = run_recorded(mtcnn)
        faces = mtcnn.faces(found, factor)
    draw(image, faces).save(out, format="PNG")
    print(f"      wrote {out.resolve()}", file=sys.stderr)

    with _stage(4, total, "timing MTCNN's operators, torchvision's and ours by turns"):
        rows = measure(mtcnn, calls, report, found, seconds=TIMING_SECONDS)
    with _stage(5, total, "running Mask R-CNN (random weights) on cvkernels"):
        mask_rcnn = MaskRcnn(small)
        result, _, calls, report = run_recorded(mask_rcnn)
    with _stage(6, total, "timing Mask R-CNN's operators, torchvision's and ours by turns"):
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


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo.

    Args:
        argv: arguments without the program's name; None takes them from the command line.

    Returns:
        The exit status: 0, 1 when a result disagreed with torchvision's, 2 on an error.
    """
    arguments = _parser().parse_args(argv)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)
            return _run(arguments)
    except DemoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
