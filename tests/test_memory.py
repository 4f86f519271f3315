"""Where large results live."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from cvkernels.roi_align import roi_align

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.native
@pytest.mark.skipif(not HUGE_PAGES.exists(), reason="no transparent huge pages here")
def test_large_results_ask_for_huge_pages() -> None:
    """A kernel's time may otherwise go into first touches of small pages, call after call."""
    boxes = torch.tensor([[0.0, 0, 0, 3, 3]]).expand(2000, 5)
    pooled = roi_align(torch.ones(1, 64, 4, 4), boxes, 7, sampling_ratio=1)
    middle = pooled.data_ptr() + pooled.nbytes // 2
    flags: list[str] = []
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(bounds[1], 16) <= middle < int(bounds[2], 16)
        elif inside and line.startswith("VmFlags:"):
            flags = line.split()[1:]
    assert "hg" in flags
