"""The implementations that a bench times: ours, torchvision's, and our pure-PyTorch reference."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

OURS, TORCHVISION, REFERENCE = "cvkernels", "torchvision", "reference"
_SOURCES = {  # library -> module of an operator's functions
    OURS: "cvkernels.{op}",
    TORCHVISION: "torchvision.ops",
    REFERENCE: "cvkernels.reference.{op}",
}


@dataclass(frozen=True)
class Libraries:
    """Which implementation stands for ours, and which are its peers.

    Attributes:
        ours: Library timed as ours. Set to torchvision, it times torchvision against itself, and
            the ratios show the machine's noise.
        peers: Libraries to time beside it; the first that is present gives the printed ratio.
    """

    ours: str = OURS
    peers: tuple[str, ...] = (TORCHVISION, REFERENCE)

    def find(self, op: str, function: str) -> dict[str, Callable[..., Any]]:
        """Every peer's `function` that can be imported, by library name."""
        return {name: f for name in self.peers if (f := load(name, op, function)) is not None}

    def our(self, op: str, function: str) -> Callable[..., Any]:
        """Our `function`; `RuntimeError` that says why where it cannot be had."""
        try:
            found = _import(self.ours, op, function)
        except ImportError as error:  # says itself what is missing and how to get it
            raise RuntimeError(f"bench: {error}") from error
        if found is None:
            raise RuntimeError(f"bench: {self.ours} has no {function}")
        return found


def load(library: str, op: str, function: str) -> Callable[..., Any] | None:
    """One library's function, or None where the library (or that operator in it) is absent."""
    try:
        return _import(library, op, function)
    except ImportError:
        return None


def _import(library: str, op: str, function: str) -> Callable[..., Any] | None:
    module = importlib.import_module(_SOURCES[library].format(op=op))
    found: Callable[..., Any] | None = getattr(module, function, None)
    return found
