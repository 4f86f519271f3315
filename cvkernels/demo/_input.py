"""What both demos do first: look for packages, outputs and the photograph; and say so."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SMALLEST_SIDE = 24  # MTCNN's smallest face is 20 pixels; it fails on images smaller than that.
LARGEST_SIDE = 1600  # Larger photographs are reduced to this first, or MTCNN takes minutes.

_FACENET = "facenet-pytorch==2.6.0"


class DemoError(Exception):
    """Something the user can mend; its message says what."""


@contextlib.contextmanager
def stage(number: int, total: int, text: str) -> Iterator[None]:
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
        if not installed(module):
            raise DemoError(
                f"the demo needs {module}, which is not installed: pip install {package} "
                "(requirements/demo.txt in the source tree lists all that it needs)"
            )


def installed(module: str) -> bool:
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
