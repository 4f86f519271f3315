"""What people run today where no library offers an operator of the NMS family on this device.

Soft-NMS: the paper's loop in NumPy, and the same loop in plain C++ at -O3 as mmcv's CPU operator
has it (compiled at first use). Matrix NMS: the formulation with whole matrices in PyTorch.
"""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

MIN_SCORE, IOU_THRESHOLD, SIGMA = 1e-3, 0.3, 0.5  # the defaults of soft_nms and matrix_nms


def soft_nms_numpy(boxes: Tensor, scores: Tensor, method: str) -> tuple[Tensor, Tensor]:
    """The paper's loop, vectorised over the remaining boxes."""
    b, s = boxes.numpy(), scores.numpy().copy()
    area = (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
    left, keep, kept_scores = np.arange(len(s)), [], []
    while len(left):
        best = int(np.argmax(s[left]))
        i = left[best]
        if s[i] < MIN_SCORE:
            break
        keep.append(i)
        kept_scores.append(s[i])
        left = np.delete(left, best)
        width = np.minimum(b[i, 2], b[left, 2]) - np.maximum(b[i, 0], b[left, 0])
        height = np.minimum(b[i, 3], b[left, 3]) - np.maximum(b[i, 1], b[left, 1])
        inter = np.maximum(width, 0) * np.maximum(height, 0)
        iou = inter / (area[i] + area[left] - inter)
        if method == "linear":
            s[left] *= np.where(iou > IOU_THRESHOLD, 1 - iou, 1)
        else:
            s[left] *= np.exp(-(iou * iou) / SIGMA)
        left = left[s[left] >= MIN_SCORE]
    index = torch.tensor(np.array(keep, dtype=np.int64))
    return index, torch.tensor(np.array(kept_scores, dtype=np.float32))


@functools.cache
def _plain() -> ctypes.CDLL:
    source = Path(__file__).with_name("soft_nms.cpp")
    folder = tempfile.mkdtemp(prefix="cvkernels-bench-")
    library = Path(folder) / "soft_nms.so"
    compiler = os.environ.get("CXX", "c++")
    command = [compiler, "-O3", "-std=c++17", "-shared", "-fPIC", str(source), "-o", str(library)]
    subprocess.run(command, check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.soft_nms_plain.restype = ctypes.c_int64
    return loaded


def soft_nms_plain(boxes: Tensor, scores: Tensor, method: str) -> tuple[Tensor, Tensor]:
    """The same loop in C++, one thread, one box at a time (soft_nms.cpp)."""
    keep = torch.empty(len(scores), dtype=torch.int64)
    new_scores = torch.empty(len(scores))
    count = _plain().soft_nms_plain(
        ctypes.c_void_p(boxes.data_ptr()),
        ctypes.c_void_p(scores.data_ptr()),
        ctypes.c_int64(len(scores)),
        ctypes.c_int(method == "gaussian"),
        ctypes.c_float(IOU_THRESHOLD),
        ctypes.c_float(SIGMA),
        ctypes.c_float(MIN_SCORE),
        ctypes.c_void_p(keep.data_ptr()),
        ctypes.c_void_p(new_scores.data_ptr()),
    )
    return keep[:count], new_scores[:count]


def matrix_nms_torch(boxes: Tensor, scores: Tensor, kernel: str) -> tuple[Tensor, Tensor]:
    """SOLOv2's matrices of all pairs, on boxes."""
    from torchvision.ops import box_iou

    order = scores.argsort(descending=True, stable=True)
    iou = box_iou(boxes[order], boxes[order]).triu_(diagonal=1)
    compensation = iou.amax(0).expand_as(iou).T
    if kernel == "linear":
        decay = ((1 - iou) / (1 - compensation)).amin(0)
    else:
        decay = torch.exp((compensation.square() - iou.square()) / SIGMA).amin(0)
    new_scores = scores[order] * decay
    best = new_scores.argsort(descending=True, stable=True)
    best = best[new_scores[best] >= MIN_SCORE]
    return order[best], new_scores[best]
