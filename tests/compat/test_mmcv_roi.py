"""mmcv's RoI names, defaults and rules, checked by its algorithms in plain Python."""

from __future__ import annotations

import inspect
import math
import sys
import types
import warnings
from typing import Any

import pytest
import torch
from harness import EMULATED, assert_close, assert_same
from rois import NAN, features, random_boxes, random_rotated
from torch import Tensor

import cvkernels.compat.mmcv as cvmm
from cvkernels.deform_roi_pool import deform_roi_pool
from cvkernels.prroi_pool import prroi_pool
from cvkernels.roi_align import roi_align
from cvkernels.roi_align_rotated import roi_align_rotated

# The constructors of mmcv.ops 2.2.0. A name without a default is required.
PACK = (
    "output_size, output_channels, deform_fc_channels=1024, spatial_scale=1.0, sampling_ratio=0, "
    "gamma=0.1"
)
CONSTRUCTORS = {
    "RoIAlign": (
        "output_size, spatial_scale=1.0, sampling_ratio=0, pool_mode='avg', aligned=True, "
        "use_torchvision=False"
    ),
    "RoIPool": "output_size, spatial_scale=1.0",
    "PrRoIPool": "output_size, spatial_scale=1.0",
    "DeformRoIPool": "output_size, spatial_scale=1.0, sampling_ratio=0, gamma=0.1",
    "DeformRoIPoolPack": PACK,
    "ModulatedDeformRoIPoolPack": PACK,
    "RoIAlignRotated": (
        "output_size, spatial_scale, sampling_ratio=0, aligned=True, clockwise=False"
    ),
}


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_constructor(name: str) -> None:
    shown = []
    for parameter in inspect.signature(getattr(cvmm, name)).parameters.values():
        assert parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        default = parameter.default
        shown.append(parameter.name + ("" if default is inspect._empty else f"={default!r}"))
    assert ", ".join(shown) == CONSTRUCTORS[name]


def test_representations() -> None:
    """As mmcv writes them."""
    align = cvmm.RoIAlign(7, 0.25, 2)
    assert repr(align) == (
        "RoIAlign(output_size=(7, 7), spatial_scale=0.25, sampling_ratio=2, pool_mode=avg, "
        "aligned=True, use_torchvision=False)"
    )
    rotated = cvmm.RoIAlignRotated((3, 2), 1)
    assert repr(rotated) == (
        "RoIAlignRotated(output_size=(3, 2), spatial_scale=1.0, sampling_ratio=0, aligned=True, "
        "clockwise=False)"
    )
    assert repr(cvmm.RoIPool(7)) == "RoIPool(output_size=(7, 7), spatial_scale=1.0)"
    assert repr(cvmm.PrRoIPool(7, 0.5)) == "PrRoIPool(output_size=(7, 7), spatial_scale=0.5)"


# -------------------------------------------------------------------------------------------------
# RoI Align
# -------------------------------------------------------------------------------------------------


def test_roi_align_has_mmcvs_defaults() -> None:
    x, boxes = features(2, 3, 9, 10), random_boxes(5, 2, (9, 10))
    assert_same(cvmm.roi_align(x, boxes, 3), roi_align(x, boxes, 3, 1.0, 0, True))
    most = cvmm.roi_align(x, boxes, (3, 2), 0.5, 2, "max", False)
    assert_same(most, roi_align(x, boxes, (3, 2), 0.5, 2, False, mode="max"))
    assert_same(cvmm.RoIAlign(3)(x, boxes), roi_align(x, boxes, 3, 1.0, 0, True))
    module = cvmm.RoIAlign((3, 2), 0.5, 2, "max", False)
    assert_same(module(x, boxes), most)
    plain = cvmm.RoIAlign((3, 2), 0.5, 2, "max", False, use_torchvision=True)
    assert_same(plain(x, boxes), roi_align(x, boxes, (3, 2), 0.5, 2, False))
    with pytest.raises(ValueError, match="expected mode to be 'avg' or 'max', got 'sum'"):
        cvmm.roi_align(x, boxes, 3, pool_mode="sum")


@pytest.mark.parametrize(
    ("module", "arguments"), [(cvmm.RoIAlign, {}), (cvmm.RoIAlignRotated, {"spatial_scale": 1})]
)
def test_the_old_names(module: Any, arguments: dict[str, Any]) -> None:
    with pytest.warns(DeprecationWarning, match="is deprecated in `RoIAlign") as caught:
        old = module(out_size=7, sample_num=2, **arguments)
    for warning, name in zip(caught, ("out_size", "sample_num"), strict=True):
        assert str(warning.message).startswith(f'"{name}"')
    assert all(warning.filename == __file__ for warning in caught)
    assert (old.output_size, old.sampling_ratio) == ((7, 7), 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module(output_size=7, sampling_ratio=2, **arguments)
    with pytest.raises(TypeError, match="expected output_size or its old name out_size, got both"):
        module(7, out_size=7, output_size=7, **arguments)
    with pytest.raises(TypeError, match="output_size"):
        module(**arguments)


def test_rotated() -> None:
    x, boxes = features(2, 3, 9, 10), random_rotated(5, 2, (9, 10))
    expected = roi_align_rotated(x, boxes, (3, 2), 0.5, 2, False, True)
    assert_same(cvmm.roi_align_rotated(x, boxes, (3, 2), 0.5, 2, False, True), expected)
    assert_same(cvmm.RoIAlignRotated((3, 2), 0.5, 2, False, True)(x, boxes), expected)
    assert_same(
        cvmm.RoIAlignRotated(3, 0.5)(x, boxes), roi_align_rotated(x, boxes, 3, 0.5, 0, True, False)
    )


# -------------------------------------------------------------------------------------------------
# RoI Pool
# -------------------------------------------------------------------------------------------------


def plain_roi_pool(x: Tensor, rois: Tensor, bins: tuple[int, int], scale: float) -> Tensor:
    """mmcv's kernel, a bin at a time."""
    _, c, height, width = x.shape
    out = x.new_zeros((len(rois), c, *bins)) + x.flatten()[:0].sum()
    rows = []
    for image, x1, y1, x2, y2 in rois.tolist():
        left, top = x1 * scale, y1 * scale
        size_w, size_h = (x2 + 1) * scale - left, (y2 + 1) * scale - top
        for i in range(bins[0]):
            for j in range(bins[1]):
                a = min(max(math.floor(j * (size_w / bins[1]) + left), 0), width)
                b = min(max(math.ceil((j + 1) * (size_w / bins[1]) + left), 0), width)
                t = min(max(math.floor(i * (size_h / bins[0]) + top), 0), height)
                s = min(max(math.ceil((i + 1) * (size_h / bins[0]) + top), 0), height)
                if size_w <= 0 or size_h <= 0 or b <= a or s <= t:
                    rows.append(x.new_zeros(c) + x.flatten()[:0].sum())
                else:
                    rows.append(x[int(image), :, t:s, a:b].flatten(1).max(1).values)
    if not rows:
        return out
    return torch.stack(rows).reshape(len(rois), *bins, c).permute(0, 3, 1, 2)


@pytest.mark.parametrize("scale", [1.0, 0.25, 0.3])
@pytest.mark.parametrize("bins", [(1, 1), (3, 2), (7, 7)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_roi_pool(scale: float, bins: tuple[int, int], channels_last: bool) -> None:
    x = features(2, 5, 12, 13)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    boxes = random_boxes(20, 2, (12 / scale, 13 / scale), spill=0.4)
    whole = boxes.round()
    odd = torch.tensor([[0.0, 5, 5, 2, 9], [1, -90, -90, -50, -50], [0, 4, 4, 3, 3.0]]).double()
    rois = torch.cat([boxes, whole, odd])
    out = cvmm.roi_pool(x, rois, bins, scale)
    expected = plain_roi_pool(x, rois, bins, scale)
    assert_same(out, expected)
    assert out.is_contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )
    upstream = features(*out.shape, seed=3)
    (a,) = torch.autograd.grad(out, x, upstream)
    (e,) = torch.autograd.grad(expected, x, upstream)
    assert_close(a, e, torch.float64)
    assert_same(cvmm.RoIPool(bins, scale)(x, rois), out)


def test_roi_pool_edges() -> None:
    x = features(2, 3, 5, 6).float()
    assert cvmm.roi_pool(x, torch.zeros(0, 5), 2).shape == (0, 3, 2, 2)
    out = cvmm.roi_pool(x, torch.tensor([[0.0, NAN, 0, 3, 3], [0, 0, 0, 3, 3]]), 2)
    assert out[0].abs().sum() == 0 and out[1].abs().sum() > 0
    half = cvmm.roi_pool(x.half(), torch.tensor([[1.0, 0, 0, 3, 3]]), 2)
    assert half.dtype is torch.float16
    if not EMULATED:
        with pytest.raises(ValueError, match=r"roi_pool: expected boxes\[:, 0\] in \[0, 2\)"):
            cvmm.roi_pool(x, torch.tensor([[2.0, 0, 0, 3, 3]]), 2)
    with pytest.raises(ValueError, match=r"roi_pool: expected boxes of shape \(K, 5\)"):
        cvmm.roi_pool(x, torch.zeros(3, 4), 2)


# -------------------------------------------------------------------------------------------------
# The others
# -------------------------------------------------------------------------------------------------


def test_prroi_pool() -> None:
    x, boxes = features(2, 3, 9, 10).requires_grad_(), random_boxes(5, 2, (9, 10)).requires_grad_()
    expected = prroi_pool(x, boxes, (3, 2), 0.5)
    assert_same(cvmm.prroi_pool(x, boxes, (3, 2), 0.5), expected)
    out = cvmm.PrRoIPool((3, 2), 0.5)(x, boxes)
    assert_same(out, expected)
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(out.sum(), (x, boxes)))


def test_deform_roi_pool() -> None:
    assert cvmm.deform_roi_pool is deform_roi_pool
    x, boxes = features(2, 3, 9, 10), random_boxes(5, 2, (9, 10))
    offset = features(5, 2, 3, 2, seed=2)
    out = cvmm.DeformRoIPool((3, 2), 0.5, 2, 0.3)(x, boxes, offset)
    assert_same(out, deform_roi_pool(x, boxes, offset, (3, 2), 0.5, 2, 0.3))


# -------------------------------------------------------------------------------------------------
# Patching
# -------------------------------------------------------------------------------------------------


def test_patched_modules_call_these_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    """mmcv's modules look the functions up in their own module, RoIAlignRotated the Function."""
    functions = [name for name in cvmm.__all__ if name.islower() and name != "patched"]
    homes = {name: f"mmcv.ops.{'nms' if 'nms' in name else name}" for name in functions}
    modules = {n: types.ModuleType(n) for n in ("mmcv", "mmcv.ops", *homes.values())}
    for name, home in homes.items():
        original = lambda *args, _name=name: f"mmcv's {_name}"  # noqa: E731
        setattr(modules[home], name, original)
        setattr(modules["mmcv.ops"], name, original)
    rotated = modules["mmcv.ops.roi_align_rotated"]
    applied = type("F", (), {"apply": staticmethod(lambda *args: "mmcv's Function")})
    rotated.RoIAlignRotatedFunction = applied  # type: ignore[attr-defined]
    source = "class RoIAlign:\n    def forward(self, *args):\n        return roi_align(*args)\n"
    exec(source, vars(modules["mmcv.ops.roi_align"]))
    source = (
        "class RoIAlignRotated:\n"
        "    def forward(self, *args):\n"
        "        return RoIAlignRotatedFunction.apply(*args)\n"
    )
    exec(source, vars(rotated))
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    align = modules["mmcv.ops.roi_align"].RoIAlign()
    align_rotated = rotated.RoIAlignRotated()
    x, upright, turned = (
        features(1, 2, 8, 9),
        random_boxes(3, 1, (8, 9)),
        random_rotated(3, 1, (8, 9)),
    )
    before = {name: dict(vars(module)) for name, module in modules.items()}
    with cvmm.patched() as names:
        assert "mmcv.ops.roi_align_rotated.RoIAlignRotatedFunction" in names
        assert len(names) == 2 * len(functions) + 1
        assert_same(align.forward(x, upright, 3), roi_align(x, upright, 3, 1.0, 0, True))
        out = align_rotated.forward(x, turned, 3, 0.5, 2, True, False)
        assert_same(out, roi_align_rotated(x, turned, 3, 0.5, 2))
    assert (align.forward(), align_rotated.forward()) == ("mmcv's roi_align", "mmcv's Function")
    assert {name: dict(vars(module)) for name, module in modules.items()} == before
