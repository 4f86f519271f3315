"""What the references of the RoI family share."""

from __future__ import annotations

import torch
from torch import Tensor


def in_format_of(input: Tensor, output: Tensor) -> Tensor:
    """``output`` in the memory format of ``input``: channels_last, or contiguous."""
    channels_last = input.is_contiguous(memory_format=torch.channels_last)
    if channels_last and not input.is_contiguous():
        return output.contiguous(memory_format=torch.channels_last)
    return output.contiguous()
