"""deform_roi_pool: the generic matrix, then what is particular to the operator and its modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import harness
import pytest
import torch
from harness import (
    DTYPES,
    EMULATED,
    Args,
    Case,
    DifferentiableOpTests,
    ErrorCase,
    OpSpec,
    Sample,
    VmapCase,
    assert_close,
    assert_same,
)
from hypothesis import given
from hypothesis import strategies as st
from rois import INF, NAN, family_errors, features, plane, random_boxes, rows
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from cvkernels import reference
from cvkernels.deform_roi_pool import (
    DeformRoIPool,
    DeformRoIPoolPack,
    ModulatedDeformRoIPoolPack,
    deform_roi_pool,
)
from cvkernels.roi_align import roi_align

SINGLE = (torch.float32, torch.float64)


def shifts(boxes: int, bins: int | tuple[int, int], seed: int = 3, size: float = 1.0) -> Tensor:
    height, width = bins if isinstance(bins, tuple) else (bins, bins)
    return size * features(boxes, 2, height, width, seed=seed)


def case(
    name: str,
    input: Tensor,
    rois: Tensor | list[Tensor],
    output_size: int | tuple[int, int],
    scale: float = 1.0,
    sampling_ratio: int = 2,
    gamma: float = 0.3,
    offset: Tensor | str | None = "random",
    **options: Any,
) -> Case:
    count = sum(len(r) for r in rois) if isinstance(rois, list) else len(rois)

    def make() -> Args:
        given = shifts(count, output_size) if isinstance(offset, str) else offset
        return {
            "input": input.clone(),
            "rois": [r.clone() for r in rois] if isinstance(rois, list) else rois.clone(),
            "offset": given if given is None else given.clone(),
            "output_size": output_size,
            "spatial_scale": scale,
            "sampling_ratio": sampling_ratio,
            "gamma": gamma,
        }

    return Case(name, make, **options)


ODD = rows(
    (0, 4, 4, 4, 4),  # a point
    (0, 9, 6, 3, 2),  # corners exchanged
    (1, -40, -40, -20, -30),  # outside
    (1, 60, 2, 80, 9),  # right of the map
    (0, -3, -3, 50, 50),  # around the whole map
    (1, 2, 3, 2, 9),  # no width
    (0, 0.25, 0.25, 0.5, 0.5),  # inside one pixel
)


def make_cases() -> list[Case]:
    lists = [random_boxes(k, 1, (18, 18), seed=k + 1)[:, 1:] for k in (3, 0, 2)]
    wide = random_boxes(5, 2, (144, 128), seed=7)
    kept: dict[str, Any] = {"keeps": ("rois", "offset")}
    # Half formats round boxes and offsets onto pixel centres, where the derivative jumps.
    jumpy: dict[str, Any] = {"gradient_dtypes": SINGLE}
    return [
        case("small", features(2, 2, 5, 6), random_boxes(3, 2, (10, 12)), 2, 0.5, small=True),
        case(
            "small adaptive",
            features(1, 3, 6, 5),
            random_boxes(2, 1, (6, 5)),
            (2, 3),
            1.0,
            0,
            small=True,
        ),
        case("fpn", features(2, 5, 14, 17), random_boxes(9, 2, (56, 68)), 7, 0.25),
        case("adaptive", features(2, 4, 13, 11), random_boxes(8, 2, (26, 22)), (3, 5), 0.5, -1),
        case("odd boxes", features(2, 3, 12, 13), ODD, 3, 1.0, 0, **jumpy),
        case("odd boxes sampled", features(2, 3, 12, 13), ODD, 3, 1.0, 2, 0.1, **jumpy),
        case("list", features(3, 3, 9, 9), lists, 4, 0.5),
        case("one channel", features(1, 1, 10, 10), random_boxes(5, 1, (10, 10)), 1, 1.0, 3),
        case("channel tail", features(1, 67, 6, 6), random_boxes(4, 1, (12, 12)), 2, 0.5),
        case("channel blocks", features(1, 128, 5, 5), random_boxes(3, 1, (5, 5)), 2, 1.0, 1),
        case("one pixel", features(2, 3, 1, 1), random_boxes(4, 2, (2, 2)), 2),
        case("crowded", features(1, 4, 6, 7), random_boxes(40, 1, (6, 7), seed=4, spill=0), 3),
        case(
            "far shifts",
            features(1, 3, 20, 22),
            random_boxes(6, 1, (20, 22), seed=5),
            3,
            gamma=2.0,
        ),
        case("backwards", features(1, 3, 8, 9), random_boxes(5, 1, (8, 9)), 2, gamma=-0.5),
        case("no reach", features(1, 3, 8, 9), random_boxes(5, 1, (8, 9)), 2, gamma=0.0),
        case(
            "image without boxes",
            features(4, 2, 8, 8),
            rows((2, 1, 1, 6, 5.25), (0, 2, 2, 7, 7.5)),
            2,
        ),
        case(
            "large grid",
            features(1, 2, 40, 44),
            random_boxes(2, 1, (40, 44), seed=6, spill=0),
            2,
            1.0,
            0,
        ),
        case("float32 boxes", features(2, 4, 9, 8), wide.float(), 3, 1 / 16, **kept),
        case(
            "float32 boxes, half offsets",
            features(2, 4, 9, 8),
            wide.float(),
            3,
            1 / 16,
            offset=shifts(5, 3).half(),
            **kept,
        ),
        case("no offset", features(2, 4, 9, 8), random_boxes(6, 2, (9, 8)), 3, offset=None),
        case("no boxes", features(2, 3, 4, 5), rows(), 2),
        case("no images", features(0, 3, 4, 5), rows(), (2, 3)),
        case("no channels", features(2, 0, 4, 5), rows((0, 0, 0, 2, 2)), 2),
        case("no rows", features(1, 2, 0, 5), rows((0, -1, -1, 2, 2)), 2),
        case("no columns", features(1, 2, 5, 0), rows((0, 0, 0, 2, 2)), 2),
    ]


def good(**changes: Any) -> Callable[[], Args]:
    def make() -> Args:
        args: Args = {
            "input": torch.ones(2, 3, 8, 8),
            "rois": torch.ones(4, 5),
            "offset": torch.ones(4, 2, 7, 7),
            "output_size": 7,
        }
        args.update({k: v() if callable(v) else v for k, v in changes.items()})
        return args

    return make


def plain(**changes: Any) -> Callable[[], Args]:
    return good(**{"offset": None, **changes})


def offset_error(name: str, offset: Any, text: str, *rest: Any) -> ErrorCase:
    message = f"deform_roi_pool: expected {text}"
    return ErrorCase(f"offset {name}", good(offset=offset), message, *rest)


FLOATS = "float16, bfloat16, float32 or float64"
ERRORS = [
    *family_errors("deform_roi_pool", good, "rois", 5),
    *[
        ErrorCase(f"plain {e.name}", e.make, e.message, e.type, reads_data=e.reads_data)
        for e in family_errors("deform_roi_pool", plain, "rois", 5)
    ],
    offset_error("type", [1, 2], "offset to be a tensor, got list", TypeError),
    offset_error(
        "dtype", lambda: torch.ones(4, 2, 7, 7).int(), f"offset of dtype {FLOATS}, got int32"
    ),
    offset_error(
        "device",
        lambda: torch.ones(4, 2, 7, 7, device="meta"),
        "offset on the device of input (cpu), got meta",
    ),
    offset_error(
        "planes",
        lambda: torch.ones(4, 3, 7, 7),
        "offset of shape (4, 2, 7, 7), got (4, 3, 7, 7)",
    ),
    offset_error(
        "bins",
        lambda: torch.ones(4, 2, 7, 6),
        "offset of shape (4, 2, 7, 7), got (4, 2, 7, 6)",
    ),
    offset_error(
        "rows", lambda: torch.ones(3, 2, 7, 7), "offset of shape (4, 2, 7, 7), got (3, 2, 7, 7)"
    ),
    offset_error("dims", lambda: torch.ones(4), "offset of shape (4, 2, 7, 7), got (4,)"),
    *[
        ErrorCase(
            f"{word} gamma {value}",
            make(gamma=value),
            f"deform_roi_pool: expected gamma to be finite, got {value:g}",
        )
        for word, make in (("shifted", good), ("plain", plain))
        for value in (NAN, INF)
    ],
    ErrorCase(
        "gamma type",
        good(gamma="0.1"),
        "deform_roi_pool: expected gamma to be a number, got str",
        TypeError,
    ),
]


def make_samples() -> list[Sample]:
    def tensors(dtype: torch.dtype, last: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        x = features(2, 3, 6, 5).to(dtype)
        if last:
            x = x.contiguous(memory_format=torch.channels_last)
        offset = shifts(3, (2, 3), size=0.3).float().requires_grad_()
        return x.requires_grad_(), random_boxes(3, 2, (12, 10)).float(), offset

    def forward(dtype: torch.dtype) -> tuple[Any, ...]:
        return *tensors(dtype), 0.5, 2, 3, 2, 0.3

    def forward_last(dtype: torch.dtype) -> tuple[Any, ...]:
        return *tensors(dtype, last=True), 0.5, 2, 3, 0, 0.3

    def empty(dtype: torch.dtype) -> tuple[Any, ...]:
        x, rois, offset = tensors(dtype)
        return x, rois[:0], offset.detach()[:0].requires_grad_(), 0.5, 2, 3, 2, 0.3

    def backward(dtype: torch.dtype) -> tuple[Any, ...]:
        _, rois, offset = tensors(dtype)
        grad = features(3, 3, 2, 3).to(dtype)
        return grad, rois, offset.detach(), 0.5, 2, 3, 2, 3, 6, 5, 2, 0.3

    def offset_backward(dtype: torch.dtype) -> tuple[Any, ...]:
        x, rois, offset = (t.detach() for t in tensors(dtype))
        return x, rois, offset, features(3, 3, 2, 3).to(dtype), 0.5, 2, 3, 2, 0.3

    return [
        Sample("deform_roi_pool", "plain", forward),
        Sample("deform_roi_pool", "channels_last", forward_last),
        Sample("deform_roi_pool", "no boxes", empty),
        Sample("deform_roi_pool_backward", "plain", backward),
        Sample("deform_roi_pool_offset_backward", "plain", offset_backward),
    ]


def make_vmaps() -> list[VmapCase]:
    def pool(x: Tensor, rois: Tensor, offset: Tensor) -> Tensor:
        return deform_roi_pool(x, rois, offset, 2, 0.5, 2, 0.3)

    def maps() -> Tensor:
        return features(3, 2, 3, 6, 7)

    def boxes() -> Tensor:
        return torch.stack([random_boxes(4, 2, (12, 14), seed=s) for s in range(3)])

    def offsets() -> Tensor:
        return features(3, 4, 2, 2, 2, seed=5)

    return [
        VmapCase("all", pool, lambda: (maps(), boxes(), offsets()), (0, 0, 0)),
        VmapCase("input", pool, lambda: (maps(), boxes()[0], offsets()[0]), (0, None, None)),
        VmapCase("boxes", pool, lambda: (maps()[0], boxes(), offsets()[0]), (None, 0, None)),
        VmapCase("offset", pool, lambda: (maps()[0], boxes()[0], offsets()), (None, None, 0)),
        VmapCase(
            "inner dims",
            pool,
            lambda: (maps().movedim(0, 2), boxes().movedim(0, 1), offsets().movedim(0, 3)),
            (2, 1, 3),
        ),
    ]


class TestDeformRoIPool(DifferentiableOpTests):
    spec = OpSpec(
        name="deform_roi_pool",
        op=deform_roi_pool,
        reference=reference.deform_roi_pool,
        cases=make_cases(),
        differentiable=("input", "offset"),
        memory_format_of="input",
        second_order=lambda args: args["offset"] is None,
        errors=ERRORS,
        samples=make_samples(),
        vmaps=make_vmaps(),
    )


# --------------------------------------------------------------------------------------------------
# Hand-worked numbers. The reference has its own in tests/reference; these reach the kernels.


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_shift_moves_the_bin(channels_last: bool, device: str) -> None:
    # Map 10 y + x. Box (1, 1)-(5, 3), aligned: x from 0.5, 4 wide, y from 0.5, 2 high. One row of
    # two bins, one sample each: x = 1.5, 3.5; y = 1.5. Offsets in units of gamma = 0.25 times 4
    # and 2 pixels: bin 0 by (2, 0) -> x + 2; bin 1 by (-1, 3) -> x - 1, y + 1.5.
    x = plane(8, 8).to(device).expand(1, 3, 8, 8)
    x = x.contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )
    offset = torch.tensor([[2.0, -1.0], [0.0, 3.0]], device=device).reshape(1, 2, 1, 2)
    rois = rows((0, 1, 1, 5, 3)).to(device)
    out = deform_roi_pool(x, rois, offset, (1, 2), 1.0, 1, 0.25)
    assert out[0].tolist() == [[[18.5, 32.5]]] * 3


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_gradient_of_a_shift(channels_last: bool, device: str) -> None:
    # The same bins: on 10 y + x a shift of one pixel adds 1 along x and 10 along y, an offset of 1
    # shifts by gamma * 4 = 1 and gamma * 2 = 0.5 pixels. Three channels add up.
    x = plane(8, 8).to(device).expand(1, 3, 8, 8)
    x = x.contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )
    offset = torch.tensor([[2.0, -1.0], [0.0, 3.0]], dtype=torch.float64, device=device)
    offset = offset.reshape(1, 2, 1, 2).requires_grad_()
    out = deform_roi_pool(x, rows((0, 1, 1, 5, 3)).to(device), offset, (1, 2), 1.0, 1, 0.25)
    upstream = torch.tensor([1.0, 2.0], dtype=torch.float64, device=device).expand(1, 3, 1, 2)
    (grad,) = torch.autograd.grad(out, offset, upstream)
    assert grad.tolist() == [[[[3.0, 6.0]], [[15.0, 30.0]]]]


def test_the_gradient_where_a_coordinate_is_clamped(device: str) -> None:
    # One bin with one sample; offsets put it at x = -0.5 (clamped to 0), 0 (to the right), 0.5, 6
    # (to the right), 7 (the last pixel: clamped) and 7.5; y = 2. Along x the derivative is 1 where
    # it is not clamped, along y always 10.
    xs = [-0.5, 0.0, 0.5, 6.0, 7.0, 7.5]
    rois = rows((0, 3, 2, 5, 3)).expand(len(xs), 5).to(device)  # centre (4 - 0.5, 2.5 - 0.5)
    offset = torch.zeros(len(xs), 2, 1, 1, dtype=torch.float64, device=device)
    offset[:, 0, 0, 0] = (torch.tensor(xs, dtype=torch.float64) - 3.5) / 2
    offset.requires_grad_()
    out = deform_roi_pool(plane(8, 8).to(device), rois, offset, 1, 1.0, 1, 1.0)
    assert out.flatten().tolist() == [20, 20, 20.5, 26, 27, 27]
    (grad,) = torch.autograd.grad(out.sum(), offset)
    assert grad[:, 0, 0, 0].tolist() == [0, 2, 2, 2, 0, 0]
    assert grad[:, 1, 0, 0].tolist() == [10.0] * len(xs)


def test_hand_worked_gradient_of_the_input(device: str) -> None:
    # A sample at (0.5, 0.5), a pixel to the right and two down: a quarter each of four pixels.
    x = torch.zeros(1, 1, 4, 4, dtype=torch.float64, device=device, requires_grad=True)
    offset = torch.tensor([10.0, 20.0], device=device).reshape(1, 2, 1, 1)
    out = deform_roi_pool(x, rows((0, 0.5, 0.5, 1.5, 1.5)).to(device), offset, 1, sampling_ratio=1)
    (grad,) = torch.autograd.grad(out.sum(), x)
    expected = torch.zeros(4, 4, dtype=torch.float64)
    expected[2:4, 1:3] = 0.25
    assert_close(grad[0, 0], expected, torch.float64)


# --------------------------------------------------------------------------------------------------
# Against roi_align


@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("channels_last", [False, True])
def test_without_offsets_it_is_roi_align(
    sampling_ratio: int, channels_last: bool, device: str
) -> None:
    for dtype in DTYPES:
        x = features(2, 21, 13, 15).to(device, dtype)
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        x.requires_grad_()
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        boxes = random_boxes(6, 2, (26, 30), seed=3).to(device, wide)
        plain = roi_align(x, boxes, (3, 4), 0.5, sampling_ratio, True)
        upstream = features(*plain.shape, seed=5).to(device, dtype)
        (expected,) = torch.autograd.grad(plain, x, upstream)
        for offset in (None, boxes.new_zeros(0), boxes.new_zeros(6, 2, 3, 4)):
            out = deform_roi_pool(x, boxes, offset, (3, 4), 0.5, sampling_ratio)
            assert_close(out, plain, dtype)
            assert_close(torch.autograd.grad(out, x, upstream)[0], expected, dtype)


@pytest.mark.parametrize("sampling_ratio", [0, 1, 3])
def test_a_bin_is_roi_align_of_the_shifted_bin(sampling_ratio: int, device: str) -> None:
    x = features(2, 5, 13, 15).to(device)
    boxes = random_boxes(4, 2, (26, 30), seed=9)
    offset = shifts(4, (2, 3))
    size = boxes[:, 3:] - boxes[:, 1:3]
    bins = []
    for i in range(2):
        for j in range(3):
            bin_size = size / torch.tensor([3.0, 2.0])
            corner = boxes[:, 1:3] + torch.tensor([float(j), float(i)]) * bin_size
            corner = corner + 0.3 * size * offset[:, :, i, j]
            rows_of_bins = torch.cat([boxes[:, :1], corner, corner + bin_size], 1).to(device)
            bins.append(roi_align(x, rows_of_bins, 1, 0.5, sampling_ratio, True))
    expected = torch.stack(bins, -1).reshape(4, 5, 2, 3)
    out = deform_roi_pool(x, boxes.to(device), offset.to(device), (2, 3), 0.5, sampling_ratio, 0.3)
    assert_close(out, expected, torch.float64)


def test_one_offset_for_all_bins_moves_the_box(device: str) -> None:
    x = features(1, 3, 12, 12).to(device)
    boxes = rows((0, 2, 3, 7, 8), (0, 1, 1, 9, 5)).to(device)
    offset = torch.tensor([2.0, -1.0], dtype=torch.float64, device=device)
    out = deform_roi_pool(x, boxes, offset[None, :, None, None].expand(2, 2, 3, 3), 3)
    moved = boxes.clone()
    size = boxes[:, 3:] - boxes[:, 1:3]
    moved[:, 1:] += (0.1 * size * offset).repeat(1, 2)
    assert_close(out, roi_align(x, moved, 3, 1.0, 0, True), torch.float64)


# --------------------------------------------------------------------------------------------------
# Not-a-number, infinity, bad indices


BAD_BOXES = [
    [NAN] * 4,
    [NAN, 0, 4, 4],
    [0, 0, 4, NAN],
    [INF, 0, 4, 4],
    [0, 0, INF, 4],
    [-INF, 0, 4, 4],
    [-INF, -INF, INF, INF],
    [INF] * 4,
]


@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("channels_last", [False, True])
def test_non_finite_boxes_give_zeros(sampling_ratio: int, channels_last: bool, device: str) -> None:
    x = features(1, 3, 6, 6).to(device).abs() + 1
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    rois = rows(*((0, *b) for b in BAD_BOXES), (0, 1, 1, 4, 4)).to(device)
    for dtype in DTYPES:
        leaf = x.to(dtype).requires_grad_()
        offset = torch.full((len(rois), 2, 2, 2), 0.25, device=device, requires_grad=True)
        out = deform_roi_pool(leaf, rois, offset, 2, 1.0, sampling_ratio)
        assert out[:-1].abs().sum().item() == 0  # false for NaN too
        assert out[-1].min().item() > 0  # its neighbours are not disturbed
        grad, grad_offset = torch.autograd.grad(out.sum(), (leaf, offset))
        assert grad_offset[:-1].abs().sum().item() == 0
        assert grad_offset[-1].abs().sum().item() > 0
        alone = deform_roi_pool(leaf, rois[-1:], offset[-1:], 2, 1.0, sampling_ratio)
        assert_same(grad, torch.autograd.grad(alone.sum(), leaf)[0])


@pytest.mark.parametrize("value", [NAN, INF, -INF, 1e30])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_bad_offset_spoils_its_own_bin_only(
    value: float, channels_last: bool, device: str
) -> None:
    x = features(1, 3, 8, 8).to(device).float().abs() + 1
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    rois = torch.tensor([[0.0, 1, 1, 7, 7]], device=device)
    for sampling_ratio in (0, 2, 7):
        offset = torch.full((1, 2, 3, 3), 0.5, device=device)
        whole = deform_roi_pool(x, rois, offset, 3, 1.0, sampling_ratio)
        spoilt = offset.clone()
        spoilt[0, 1, 1, 2] = value
        spoilt.requires_grad_()
        out = deform_roi_pool(x, rois, spoilt, 3, 1.0, sampling_ratio)
        assert out[0, :, 1, 2].abs().sum().item() == 0
        mask = torch.ones_like(out)
        mask[0, :, 1, 2] = 0
        assert_same(out * mask, whole * mask)
        grads = torch.autograd.grad(out.sum(), (x, spoilt))
        assert_close(
            grads[0],
            torch.autograd.grad((whole * mask).sum(), x)[0],
            torch.float32,
        )
        assert bool(grads[1].isfinite().all()) and grads[1][0, :, 1, 2].abs().sum().item() == 0


def test_huge_boxes_end_and_are_bounded(device: str) -> None:
    x = torch.ones(1, 2, 4, 4, device=device, requires_grad=True)
    for size in (1e6, 1e9, 1e18, 1e30, 3e38):
        rois = torch.tensor([[0.0, 0, 0, size, size], [0, -size, -size, size, size]], device=device)
        offset = torch.zeros(2, 2, 2, 2, device=device)
        offset[0] = 1e-3
        offset.requires_grad_()
        for sampling_ratio in (0, 2):
            out = deform_roi_pool(x, rois, offset, 2, 1.0, sampling_ratio)
            assert bool(((out >= 0) & (out <= 1)).all())
            for grad in torch.autograd.grad(out.sum(), (x, offset)):
                assert bool(grad.isfinite().all())


@pytest.mark.skipif(not EMULATED and "cuda" not in harness.DEVICES, reason="CPU raises instead")
@pytest.mark.parametrize("index", [2.0, -1.0, 1e9, -1e30, NAN, INF])
def test_bad_image_index_gives_zeros_on_devices(index: float) -> None:
    device = "cpu" if EMULATED else "cuda"
    x = (features(2, 3, 6, 6).abs() + 1).to(device).requires_grad_()
    rois = rows((0, 0, 0, 4, 4), (index, 0, 0, 4, 4), (1, 0, 0, 4, 4)).to(device)
    offset = shifts(3, 2, size=0.2).to(device).requires_grad_()
    out = deform_roi_pool(x, rois, offset, 2)
    assert out[1].abs().sum().item() == 0
    assert out[0].min().item() > 0 and out[2].min().item() > 0
    grads = torch.autograd.grad(out.sum(), (x, offset))
    assert grads[1][1].abs().sum().item() == 0
    kept = deform_roi_pool(x, rois[::2], offset[::2], 2)
    assert_same(grads[0], torch.autograd.grad(kept.sum(), x)[0])


def test_an_infinite_gradient_stays_where_it_has_weight(device: str) -> None:
    x = features(1, 2, 16, 16).float().to(device).requires_grad_()
    offset = torch.full((1, 2, 4, 4), 0.25, device=device)
    out = deform_roi_pool(x, torch.tensor([[0.0, 1, 1, 13, 13]], device=device), offset, 4)
    grad = torch.zeros_like(out)
    grad[0, 0, 1, 1] = INF
    (found,) = torch.autograd.grad(out, x, grad)
    assert not found.isnan().any()
    assert 9 <= int(found[0, 0].isinf().sum()) <= 16
    assert bool((found[0, 1] == 0).all())


# --------------------------------------------------------------------------------------------------
# The modules


def test_module_is_the_function(device: str) -> None:
    x, rois = features(2, 3, 8, 9).to(device), random_boxes(4, 2, (16, 18)).to(device)
    offset = shifts(4, (3, 2)).to(device)
    module = DeformRoIPool((3, 2), 0.5, 2, 0.3)
    assert_same(module(x, rois, offset), deform_roi_pool(x, rois, offset, (3, 2), 0.5, 2, 0.3))
    assert_same(module(x, rois), deform_roi_pool(x, rois, None, (3, 2), 0.5, 2))
    for word in ("output_size=(3, 2)", "spatial_scale=0.5", "sampling_ratio=2", "gamma=0.3"):
        assert word in repr(module)
    assert list(module.state_dict()) == []
    assert DeformRoIPool(7).output_size == (7, 7)


# Names and shapes of mmcv 2.2.0's parameters, for 3 x 2 bins, 4 channels and 8 hidden units.
OFFSET_LAYERS = {
    "offset_fc.0.weight": (8, 24),
    "offset_fc.0.bias": (8,),
    "offset_fc.2.weight": (8, 8),
    "offset_fc.2.bias": (8,),
    "offset_fc.4.weight": (12, 8),
    "offset_fc.4.bias": (12,),
}
MASK_LAYERS = {
    "mask_fc.0.weight": (8, 24),
    "mask_fc.0.bias": (8,),
    "mask_fc.2.weight": (6, 8),
    "mask_fc.2.bias": (6,),
}


@pytest.mark.parametrize(
    ("module", "layers"),
    [
        (DeformRoIPoolPack, OFFSET_LAYERS),
        (ModulatedDeformRoIPoolPack, {**OFFSET_LAYERS, **MASK_LAYERS}),
    ],
)
def test_packs_have_mmcvs_parameters(module: Any, layers: dict[str, tuple[int, ...]]) -> None:
    pack = module((3, 2), 4, 8, 0.5, 2, 0.3)
    assert {name: tuple(value.shape) for name, value in pack.state_dict().items()} == layers
    last = [name for name in layers if name.split(".")[1] == ("4" if "offset" in name else "2")]
    for name, value in pack.state_dict().items():
        assert bool((value == 0).all()) == (name in last)


def test_a_new_pack_pools_as_roi_align(device: str) -> None:
    x = features(2, 4, 8, 9).float().to(device)
    rois = random_boxes(4, 2, (16, 18)).float().to(device)
    pooled = roi_align(x, rois, (3, 2), 0.5, 2, True)
    pack = DeformRoIPoolPack((3, 2), 4, 8, 0.5, 2).to(device)
    assert_close(pack(x, rois), pooled, torch.float32)
    modulated = ModulatedDeformRoIPoolPack((3, 2), 4, 8, 0.5, 2).to(device)
    assert_close(modulated(x, rois), pooled / 2, torch.float32)  # the sigmoid of 0


@pytest.mark.parametrize("module", [DeformRoIPoolPack, ModulatedDeformRoIPoolPack])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_pack_is_its_parts(module: Any, channels_last: bool, device: str) -> None:
    torch.manual_seed(0)
    pack = module((3, 2), 4, 8, 0.5, 2, 0.3).to(device)
    for parameter in pack.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = features(2, 4, 8, 9).float().to(device)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    rois = random_boxes(4, 2, (16, 18)).float().to(device)
    pooled = deform_roi_pool(x, rois, None, (3, 2), 0.5, 2)
    rows_of_boxes = pooled.reshape(4, -1)
    offset = pack.offset_fc(rows_of_boxes).view(4, 2, 3, 2)
    expected = deform_roi_pool(x, rois, offset, (3, 2), 0.5, 2, 0.3)
    if module is ModulatedDeformRoIPoolPack:
        expected = expected * pack.mask_fc(rows_of_boxes).view(4, 1, 3, 2)
    out = pack(x, rois)
    assert_close(out, expected, torch.float32)
    wanted = [x, *pack.parameters()]
    found = torch.autograd.grad(out.square().sum(), wanted)
    for a, e in zip(found, torch.autograd.grad(expected.square().sum(), wanted), strict=True):
        assert_close(a, e, torch.float32)
        assert float(a.abs().sum()) > 0


def test_packs_under_autocast(device: str) -> None:
    """The linear layers compute in bfloat16; the map keeps its dtype."""
    pack = ModulatedDeformRoIPoolPack(2, 3, 8).to(device)
    x, rois = features(1, 3, 8, 8).float().to(device), rows((0, 1, 1, 6, 7)).float().to(device)
    with torch.autocast(device, torch.bfloat16):
        out = pack(x, rois)
    assert_close(out, roi_align(x, rois, 2, 1.0, 0, True) / 2, torch.float32)


# --------------------------------------------------------------------------------------------------
# Autograd, properties


def test_boxes_receive_no_gradient(device: str) -> None:
    for offset in (None, shifts(1, 2).to(device).requires_grad_()):
        x = features(1, 1, 5, 5).to(device).requires_grad_()
        rois = rows((0, 0, 0, 4, 4)).to(device).requires_grad_()
        deform_roi_pool(x, rois, offset, 2).sum().backward()
        assert x.grad is not None and rois.grad is None
        assert offset is None or offset.grad is not None


def test_only_the_gradients_asked_for(device: str) -> None:
    x, offset = features(1, 2, 6, 6).to(device), shifts(1, 2, size=0.2).to(device)
    rois = rows((0, 0, 0, 4, 4)).to(device)
    both = [x.clone().requires_grad_(), offset.clone().requires_grad_()]
    expected = torch.autograd.grad(deform_roi_pool(both[0], rois, both[1], 2).sum(), both)
    assert_same(
        torch.autograd.grad(deform_roi_pool(both[0], rois, offset, 2).sum(), both[0])[0],
        expected[0],
    )
    assert_same(
        torch.autograd.grad(deform_roi_pool(x, rois, both[1], 2).sum(), both[1])[0], expected[1]
    )


def test_many_output_gradients_at_once(device: str) -> None:
    for dtype in (torch.float64, torch.bfloat16):
        x = features(2, 3, 8, 8).to(device, dtype).requires_grad_()
        offset = shifts(5, (2, 3), size=0.3).to(device, dtype).requires_grad_()
        rois = random_boxes(5, 2, (16, 16)).float().to(device)
        out = deform_roi_pool(x, rois, offset, (2, 3), 0.5, 2)
        upstream = features(4, *out.shape, seed=3).to(device, dtype)
        leaves = (x, offset)
        together = torch.autograd.grad(
            out, leaves, upstream, is_grads_batched=True, retain_graph=True
        )
        for row, g in enumerate(upstream):
            alone = torch.autograd.grad(out, leaves, g, retain_graph=True)
            for t, a in zip(together, alone, strict=True):
                assert_close(t[row], a, dtype)


def test_double_backward_without_offsets_is_the_forward(device: str) -> None:
    x = features(2, 3, 8, 8).to(device).requires_grad_()
    rois = random_boxes(5, 2, (16, 16)).to(device)
    g = features(5, 3, 2, 3, seed=2).to(device).requires_grad_()
    v = features(2, 3, 8, 8, seed=3).to(device)
    out = deform_roi_pool(x, rois, None, (2, 3), 0.5)
    (grad,) = torch.autograd.grad(out, x, g, create_graph=True)
    (second,) = torch.autograd.grad(grad, g, v)
    assert_close(second, deform_roi_pool(v, rois, None, (2, 3), 0.5), torch.float64)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
    seed = draw(st.integers(0, 2**31))
    n, c = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    h, w = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    x = features(n, c, h, w, seed=seed)
    if draw(st.booleans()):
        x = x.contiguous(memory_format=torch.channels_last)
    boxes = random_boxes(
        draw(st.integers(1, 6)), n, (h, w), seed=seed + 1, spill=draw(st.floats(0, 1))
    )
    bins = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    options = {
        "output_size": bins,
        "sampling_ratio": draw(st.sampled_from([-1, 0, 1, 2, 3, 7])),
        "gamma": draw(st.sampled_from([0.1, 1.0, -0.25])),
    }
    return x, boxes, shifts(len(boxes), bins, seed=seed + 2), options


@given(problems())
def test_any_problem_matches_the_reference(problem: Any) -> None:
    x, boxes, offset, options = problem
    ours = [x.clone(memory_format=torch.preserve_format), offset.clone()]
    theirs = [x.clone(), offset.clone()]
    for leaf in (*ours, *theirs):
        leaf.requires_grad_()
    actual = deform_roi_pool(ours[0], boxes, ours[1], **options)
    expected = reference.deform_roi_pool(theirs[0], boxes, theirs[1], **options)
    assert_close(actual, expected, torch.float64)
    found = torch.autograd.grad(actual.sum(), ours)
    for a, e in zip(found, torch.autograd.grad(expected.sum(), theirs), strict=True):
        assert_close(a, e, torch.float64)


@given(problems(), st.integers(0, 2**31))
def test_rows_are_independent_and_move_with_their_boxes(problem: Any, seed: int) -> None:
    x, boxes, offset, options = problem
    order = torch.randperm(len(boxes), generator=torch.Generator().manual_seed(seed))
    out = deform_roi_pool(x, boxes, offset, **options)
    assert_same(deform_roi_pool(x, boxes[order], offset[order], **options), out[order])
    for row in range(len(boxes)):
        part = slice(row, row + 1)
        assert_same(deform_roi_pool(x, boxes[part], offset[part], **options), out[part])


def test_one_compilation_serves_any_number_of_boxes(device: str) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()

    @torch.compile(backend=counter, fullgraph=True, dynamic=True)
    def pool(x: Tensor, rois: Tensor, offset: Tensor) -> Tensor:
        # dynamic=True takes a default of 0.1 for a dynamic number and begins anew.
        return deform_roi_pool(x * 2, rois, offset, 3, 0.5, 2, 0.1) + 1

    for count, side in ((17, 8), (9, 11), (30, 6)):
        x = features(2, 4, side, side + 1, seed=count).to(device).requires_grad_()
        rois = random_boxes(count, 2, (12, 12), seed=count).to(device)
        offset = shifts(count, 3).to(device).requires_grad_()
        out = pool(x, rois, offset)
        assert_same(out, deform_roi_pool(x * 2, rois, offset, 3, 0.5, 2) + 1)
        for grad in torch.autograd.grad(out.sum(), (x, offset)):
            assert grad.abs().sum() > 0
    assert counter.frame_count == 1


def test_layouts_agree(device: str) -> None:
    for dtype in DTYPES:
        x = features(2, 19, 11, 13).to(device, dtype).requires_grad_()
        boxes = random_boxes(12, 2, (44, 52)).float().to(device)
        offset = shifts(12, (3, 2)).float().to(device).requires_grad_()
        last = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
        first = deform_roi_pool(x, boxes, offset, (3, 2), 0.25, 0)
        second = deform_roi_pool(last, boxes, offset, (3, 2), 0.25, 0)
        assert second.is_contiguous(memory_format=torch.channels_last)
        assert_close(second, first, dtype)
        upstream = features(*first.shape, seed=4).to(device, dtype)
        one = torch.autograd.grad(first, (x, offset), upstream)
        # An output gradient in the other layout than the map's.
        other = torch.autograd.grad(second, (last, offset), upstream)
        for a, e in zip(other, one, strict=True):
            assert_close(a, e, dtype)


@pytest.mark.native
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_detector_sized(sampling_ratio: int, channels_last: bool, device: str) -> None:
    """Bands of rows, tiles of channels and threads meet their edges; planes too large to copy."""
    for shape, scale in (((2, 70, 61, 50), 1 / 16), ((1, 40, 300, 310), 1 / 4)):
        x = features(*shape).to(device)
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        extent = (shape[2] / scale, shape[3] / scale)
        rois = random_boxes(24, shape[0], extent, spill=0.05).to(device)
        offset = shifts(24, (7, 6)).to(device)
        ours = [x.requires_grad_(), offset.requires_grad_()]
        theirs = [t.detach().cpu().contiguous().requires_grad_() for t in ours]
        expected = reference.deform_roi_pool(
            theirs[0], rois.cpu(), theirs[1], (7, 6), scale, sampling_ratio
        )
        upstream = features(*expected.shape, seed=5)
        wanted = [expected, *torch.autograd.grad(expected, theirs, upstream)]
        results = []
        for count in (1, 2, 3):
            with harness.threads(count):
                out = deform_roi_pool(*ours[:1], rois, ours[1], (7, 6), scale, sampling_ratio)
                results.append([out, *torch.autograd.grad(out, ours, upstream.to(device))])
        for a, e in zip(results[0], wanted, strict=True):
            assert_close(a, e, torch.float64)
        for other in results[1:]:
            for a, b in zip(other, results[0], strict=True):
                assert_same(a, b)


@pytest.mark.gpu
@pytest.mark.skipif(not harness.HAVE_CUDA, reason="no GPU")
@pytest.mark.parametrize("channels_last", [False, True])
def test_no_pass_waits_for_the_device(channels_last: bool) -> None:
    x = features(2, 32, 20, 22).cuda().half()
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    leaves = [x.requires_grad_(), shifts(64, 7).cuda().half().requires_grad_()]
    rois = random_boxes(64, 2, (40, 44)).float().cuda()
    upstream = torch.ones(64, 32, 7, 7, device="cuda", dtype=torch.half)
    expected = torch.autograd.grad(
        deform_roi_pool(leaves[0], rois, leaves[1], 7, 0.5), leaves, upstream
    )
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = deform_roi_pool(leaves[0], rois, leaves[1], 7, 0.5)
        found = torch.autograd.grad(out, leaves, upstream)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for a, e in zip(found, expected, strict=True):
        assert_same(a, e)
