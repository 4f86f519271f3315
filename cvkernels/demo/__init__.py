"""``python -m cvkernels demo [nms]``: the operators at work on a photograph."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence

from cvkernels.demo._input import DemoError

__all__ = ["DemoError", "main"]

DEMOS = ("nms",)  # The modules beside cvkernels.demo.face, which is the demo without a name.


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a demo.

    Args:
        argv: "nms" or nothing, then the arguments of that demo; None takes the command line.

    Returns:
        The exit status: 0, 1 when a result disagreed with torchvision's, 2 on an error.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    name = words.pop(0) if words and words[0] in DEMOS else "face"
    demo = importlib.import_module(f"cvkernels.demo.{name}")
    arguments = demo.parser().parse_args(words)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)
            return int(demo.run(arguments))
    except DemoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
