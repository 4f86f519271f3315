"""One module per operator; each gives ``cases() -> list[Case]``."""

from __future__ import annotations

import importlib
import pkgutil

from bench.harness import Case


def names() -> list[str]:
    """Operators that have a bench, in alphabetical order."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def cases(op: str) -> list[Case]:
    """The cases of one operator; ``ValueError`` for an operator without a bench."""
    if op not in names():
        raise ValueError(f"bench: expected an operator out of {', '.join(names())}, got {op!r}")
    found: list[Case] = importlib.import_module(f"{__name__}.{op}").cases()
    return found
