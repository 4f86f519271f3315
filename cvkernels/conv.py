"""Convolutions in one namespace: dense, transposed, depthwise and by explicit columns."""

from __future__ import annotations

from cvkernels.conv2d import Conv2d, SeparableConv2d, conv2d
from cvkernels.conv_transpose2d import ConvTranspose2d, conv_transpose2d
from cvkernels.im2col import col2im, conv2d_im2col, fold, im2col, unfold

__all__ = [
    "Conv2d",
    "ConvTranspose2d",
    "SeparableConv2d",
    "col2im",
    "conv2d",
    "conv2d_im2col",
    "conv_transpose2d",
    "fold",
    "im2col",
    "unfold",
]
