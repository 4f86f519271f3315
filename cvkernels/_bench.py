"""Front of ``python -m cvkernels bench``: finds the benches of the source checkout and runs them.

The benches live in ``bench/`` beside ``tests/`` and are not part of the wheel: they serve those who
work on the kernels, and their committed results would only weigh on everyone else.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

_MISSING = """\
cvkernels bench: the benches are part of the source, not of the installed package, and none were
found in {places}. Run it from a checkout:
  git clone <repository of cvkernels> && cd cvkernels && python -m cvkernels bench"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benches.

    Args:
        argv: Arguments without the program's name; None takes them from the command line.

    Returns:
        The exit status: 0 when every case ran and every result was right.
    """
    places = [Path(__file__).resolve().parent.parent, Path.cwd()]
    root = next((place for place in places if (place / "bench" / "cli.py").is_file()), None)
    if root is None:
        print(_MISSING.format(places=" or ".join(dict.fromkeys(map(str, places)))), file=sys.stderr)
        return 2
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    cli = importlib.import_module("bench.cli")
    status: int = cli.main(argv)
    return status


if __name__ == "__main__":
    sys.exit(main())
