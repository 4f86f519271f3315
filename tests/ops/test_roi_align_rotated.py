"""roi_align_rotated: the generic matrix, then what is particular to the operator."""

from __future__ import annotations

import math
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
from rois import (
    INF,
    NAN,
    family_errors,
    features,
    plane,
    random_boxes,
    random_rotated,
    rows,
    turned,
)
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from cvkernels import reference
from cvkernels.roi_align import roi_align
from cvkernels.roi_align_rotated import RoIAlignRotated, roi_align_rotated

PI = math.pi


def case(
    name: str,
    input: Tensor,
    rois: Tensor | list[Tensor],
    output_size: int | tuple[int, int],
    scale: float = 1.0,
    sampling_ratio: int = 2,
    aligned: bool = True,
    clockwise: bool = False,
    **options: Any,
) -> Case:
    def make() -> Args:
        return {
            "input": input.clone(),
            "rois": [r.clone() for r in rois] if isinstance(rois, list) else rois.clone(),
            "output_size": output_size,
            "spatial_scale": scale,
            "sampling_ratio": sampling_ratio,
            "aligned": aligned,
            "clockwise": clockwise,
        }

    return Case(name, make, **options)


ODD = rows(
    (0, 4, 4, 0, 0, 1),  # a point
    (0, 6, 4, -3, -2, 1),  # negative size
    (1, -30, -35, 20, 10, 1),  # outside
    (1, 70, 5, 20, 7, 2),  # right of the map
    (0, 6, 6, 50, 60, 0.5),  # around the whole map
    (1, 2, 6, 0, 6, 0.3),  # no width
    (0, 0.375, 0.375, 0.25, 0.25, -1),  # inside one pixel
    (1, 6, 6, 9, 0.5, 2.5),  # thin
    (0, 7, 6, 6, 4, 123.25),  # many turns
    columns=6,
)


def make_cases() -> list[Case]:
    lists = [random_rotated(k, 1, (18, 18), seed=k + 1)[:, 1:] for k in (3, 0, 2)]
    kept: dict[str, Any] = {"keeps": ("rois",)}
    wide = random_rotated(5, 2, (144, 128), seed=7)
    # At angles of a quarter turn samples would lie on the rim of the map, where rounding decides.
    return [
        case("small", features(2, 2, 5, 6), random_rotated(3, 2, (10, 12)), 2, 0.5, small=True),
        case(
            "small adaptive",
            features(1, 3, 6, 5),
            random_rotated(2, 1, (6, 5), seed=3),
            (2, 3),
            1.0,
            0,
            False,
            True,
            small=True,
        ),
        case("fpn", features(2, 5, 14, 17), random_rotated(9, 2, (56, 68)), 7, 0.25),
        case(
            "adaptive",
            features(2, 4, 13, 11),
            random_rotated(8, 2, (26, 22)),
            (3, 5),
            0.5,
            -1,
            False,
        ),
        case("clockwise", features(2, 3, 9, 10), random_rotated(6, 2, (9, 10)), 3, clockwise=True),
        case("odd boxes", features(2, 3, 12, 13), ODD, 3, 1.0, 0),
        case("odd boxes legacy", features(2, 3, 12, 13), ODD, 3, 1.0, 2, False),
        case("list", features(3, 3, 9, 9), lists, 4, 0.5),
        case("one channel", features(1, 1, 10, 10), random_rotated(5, 1, (10, 10)), 1, 1.0, 3),
        case("channel tail", features(1, 67, 6, 6), random_rotated(4, 1, (12, 12)), 2, 0.5),
        case("channel blocks", features(1, 128, 5, 5), random_rotated(3, 1, (5, 5)), 2, 1.0, 1),
        case("one pixel", features(2, 3, 1, 1), random_rotated(4, 2, (2, 2)), 2),
        case("crowded", features(1, 4, 6, 7), random_rotated(40, 1, (6, 7), seed=4, spill=0), 3),
        case(
            "image without boxes",
            features(4, 2, 8, 8),
            rows((2, 3.5, 3, 5, 4, 0.7), (0, 4.5, 4.5, 5, 5, -2), columns=6),
            2,
        ),
        case(
            "large grid",
            features(1, 2, 40, 44),
            random_rotated(2, 1, (40, 44), seed=6, spill=0),
            2,
            1.0,
            0,
            False,
        ),
        case(
            "sparse samples",
            features(1, 3, 60, 64),
            random_rotated(3, 1, (60, 64), seed=9, spill=0),
            (1, 2),
        ),
        case("many samples", features(1, 2, 7, 8), random_rotated(2, 1, (7, 8), seed=2), 2, 1.0, 9),
        case("float32 boxes", features(2, 4, 9, 8), wide.float(), 3, 1 / 16, **kept),
        case("float64 boxes", features(2, 4, 9, 8), wide.float().double(), 3, 1 / 16, **kept),
        case("half boxes", features(2, 4, 9, 8), wide.half(), 3, 1 / 16, **kept),
        case("no boxes", features(2, 3, 4, 5), rows(columns=6), 2),
        case("no images", features(0, 3, 4, 5), rows(columns=6), (2, 3)),
        case("no channels", features(2, 0, 4, 5), rows((0, 1, 1, 2, 2, 1), columns=6), 2),
        case("no rows", features(1, 2, 0, 5), rows((0, 1, 1, 2, 2, 1), columns=6), 2),
        case("no columns", features(1, 2, 5, 0), rows((0, 1, 1, 2, 2, 1), columns=6), 2),
    ]


def good(**changes: Any) -> Callable[[], Args]:
    def make() -> Args:
        args: Args = {
            "input": torch.ones(2, 3, 8, 8),
            "rois": torch.ones(4, 6),
            "output_size": 7,
        }
        args.update({k: v() if callable(v) else v for k, v in changes.items()})
        return args

    return make


ERRORS = [
    *family_errors("roi_align_rotated", good, "rois", 6),
    ErrorCase(
        "aligned type",
        good(aligned="yes"),
        "roi_align_rotated: expected aligned to be a bool, got str",
        TypeError,
    ),
    ErrorCase(
        "clockwise type",
        good(clockwise="yes"),
        "roi_align_rotated: expected clockwise to be a bool, got str",
        TypeError,
    ),
]


def make_samples() -> list[Sample]:
    def boxes() -> Tensor:
        return random_rotated(3, 2, (12, 10)).float()

    def forward(dtype: torch.dtype) -> tuple[Any, ...]:
        x = features(2, 3, 6, 5).to(dtype)
        return x.requires_grad_(), boxes(), 0.5, 2, 3, 2, True, False

    def forward_last(dtype: torch.dtype) -> tuple[Any, ...]:
        x = features(2, 3, 6, 5).to(dtype).contiguous(memory_format=torch.channels_last)
        return x.requires_grad_(), boxes(), 0.5, 2, 3, 0, False, True

    def empty(dtype: torch.dtype) -> tuple[Any, ...]:
        x = features(2, 3, 6, 5).to(dtype)
        return x.requires_grad_(), boxes()[:0], 0.5, 2, 3, 2, True, False

    def backward(dtype: torch.dtype) -> tuple[Any, ...]:
        grad = features(3, 3, 2, 3).to(dtype).requires_grad_()
        return grad, boxes(), 0.5, 2, 3, 2, 3, 6, 5, 2, True, False

    return [
        Sample("roi_align_rotated", "plain", forward),
        Sample("roi_align_rotated", "channels_last", forward_last),
        Sample("roi_align_rotated", "no boxes", empty),
        Sample("roi_align_rotated_backward", "plain", backward),
    ]


def make_vmaps() -> list[VmapCase]:
    def pool(x: Tensor, rois: Tensor) -> Tensor:
        return roi_align_rotated(x, rois, 2, 0.5, 2)

    def maps() -> Tensor:
        return features(3, 2, 3, 6, 7)

    def boxes() -> Tensor:
        return torch.stack([random_rotated(4, 2, (12, 14), seed=s) for s in range(3)])

    return [
        VmapCase("both", pool, lambda: (maps(), boxes()), (0, 0)),
        VmapCase("input", pool, lambda: (maps(), boxes()[0]), (0, None)),
        VmapCase("boxes", pool, lambda: (maps()[0], boxes()), (None, 0)),
        VmapCase("inner dims", pool, lambda: (maps().movedim(0, 2), boxes().movedim(0, 1)), (2, 1)),
    ]


class TestRoIAlignRotated(DifferentiableOpTests):
    spec = OpSpec(
        name="roi_align_rotated",
        op=roi_align_rotated,
        reference=reference.roi_align_rotated,
        cases=make_cases(),
        differentiable=("input",),
        memory_format_of="input",
        second_order=lambda args: True,
        errors=ERRORS,
        samples=make_samples(),
        vmaps=make_vmaps(),
    )


# --------------------------------------------------------------------------------------------------
# Hand-worked numbers. The reference has its own in tests/reference; these reach the kernels.


@pytest.mark.parametrize("channels_last", [False, True])
def test_quarter_turns(channels_last: bool, device: str) -> None:
    # Map 10 y + x, box of 4 x 4 about (4, 4), 2 x 2 bins of one sample, aligned: samples 1 from the
    # centre (3.5, 3.5), at 2.5 and 4.5. Upright: 27.5, 29.5 | 47.5, 49.5. A quarter turn counter-
    # clockwise takes the box's right to the map's top: column 1 of the box is the map's row above.
    x = plane(8, 8).to(device)
    if channels_last:
        x = x.expand(1, 2, 8, 8).contiguous(memory_format=torch.channels_last)
    for turns, expected in (
        (0, [[27.5, 29.5], [47.5, 49.5]]),
        (1, [[47.5, 27.5], [49.5, 29.5]]),
        (2, [[49.5, 47.5], [29.5, 27.5]]),
        (3, [[29.5, 49.5], [27.5, 47.5]]),
    ):
        for clockwise in (False, True):
            angle = turns * PI / 2 * (-1 if clockwise else 1)
            rois = rows((0, 4, 4, 4, 4, angle), columns=6).to(device)
            out = roi_align_rotated(x, rois, 2, sampling_ratio=1, clockwise=clockwise)
            assert_close(out[0, 0], torch.tensor(expected), torch.float64)


def test_an_eighth_of_a_turn(device: str) -> None:
    # The same box, one bin across, 2 along: samples at v = -1, 1 on the box's height, u = 0. Turned
    # by 45 degrees counter-clockwise they lie at y = v / sqrt(2), x = v / sqrt(2) from the centre:
    # 10 * 3.5 + 3.5 -+ 11 / sqrt(2).
    rois = rows((0, 4, 4, 4, 4, PI / 4), columns=6).to(device)
    out = roi_align_rotated(plane(8, 8).to(device), rois, (2, 1), sampling_ratio=1)
    expected = torch.tensor([38.5 - 11 / math.sqrt(2), 38.5 + 11 / math.sqrt(2)])
    assert_close(out.flatten(), expected.double(), torch.float32)


def test_hand_worked_gradient(device: str) -> None:
    # One sample at the centre, whatever the angle: (1.5, 2) aligned reads four pixels' quarter.
    x = torch.zeros(1, 1, 4, 4, dtype=torch.float64, device=device, requires_grad=True)
    for angle in (0.0, 0.3, -7.0):
        rois = rows((0, 2.5, 2, 1, 1, angle), columns=6).to(device)
        out = roi_align_rotated(x, rois, 1, sampling_ratio=1)
        (grad,) = torch.autograd.grad(out.sum(), x)
        expected = torch.zeros(4, 4, dtype=torch.float64)
        expected[1, 2] = expected[2, 2] = 0.5  # x = 2 is a pixel's centre, y = 1.5 halfway
        assert_close(grad[0, 0], expected, torch.float64)


# --------------------------------------------------------------------------------------------------
# Against roi_align


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("sampling_ratio", [0, 1, 2, 3])
@pytest.mark.parametrize("channels_last", [False, True])
def test_angle_zero_is_roi_align(
    aligned: bool, sampling_ratio: int, channels_last: bool, device: str
) -> None:
    boxes = random_boxes(6, 2, (26, 30), seed=3).float()
    # A box below 1 pixel is stretched about its centre here, from its corner there.
    boxes[:, 3:] = torch.maximum(boxes[:, 3:], boxes[:, 1:3] + 2)
    for dtype in DTYPES:
        x = features(2, 21, 13, 15).to(device, dtype)
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        x.requires_grad_()
        exact = boxes.to(torch.float64 if dtype == torch.float64 else torch.float32).to(device)
        upright = roi_align(x, exact, (3, 4), 0.5, sampling_ratio, aligned)
        for angle in (0.0, -0.0):
            rotated = roi_align_rotated(
                x, turned(exact, angle), (3, 4), 0.5, sampling_ratio, aligned
            )
            assert_close(rotated, upright, dtype)
            upstream = features(*upright.shape, seed=5).to(device, dtype)
            (a,) = torch.autograd.grad(rotated, x, upstream)
            (e,) = torch.autograd.grad(upright, x, upstream, retain_graph=True)
            assert_close(a, e, dtype)


def test_half_a_turn_reverses_the_bins(device: str) -> None:
    x = features(1, 5, 11, 12).to(device)
    boxes = random_rotated(6, 1, (11, 12), spill=0).to(device)
    half = boxes.clone()
    half[:, 5] += PI
    out = roi_align_rotated(x, boxes, (3, 2), sampling_ratio=2)
    assert_close(
        roi_align_rotated(x, half, (3, 2), sampling_ratio=2), out.flip(2, 3), torch.float64
    )


def test_the_map_turned_with_the_boxes(device: str) -> None:
    # rot90 takes pixel centre (y, x) to (W - 1 - x, y): boxes a quarter further counter-clockwise.
    x = features(1, 3, 9, 12).to(device)
    boxes = random_rotated(8, 1, (9, 12), seed=5).to(device)
    after = boxes.clone()
    after[:, 1], after[:, 2] = boxes[:, 2], 12 - boxes[:, 1]
    after[:, 5] += PI / 2
    out = roi_align_rotated(x, boxes, (3, 2), sampling_ratio=3)
    moved = roi_align_rotated(x.rot90(1, (2, 3)), after, (3, 2), sampling_ratio=3)
    assert_close(moved, out, torch.float64)


# --------------------------------------------------------------------------------------------------
# Not-a-number, infinity, bad indices

BAD = [
    *(tuple(value if i == j else 3.0 for j in range(5)) for i in range(5) for value in (NAN, INF)),
    (3.0, 3.0, 3.0, 3.0, 2.0**21),
    (3.0, 3.0, 3.0, 3.0, -1e30),
    (-INF, INF, INF, INF, -INF),
]


@pytest.mark.parametrize("sampling_ratio", [-1, 2])
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_boxes_without_a_place_give_zeros(
    sampling_ratio: int, aligned: bool, channels_last: bool, device: str
) -> None:
    x = features(1, 3, 6, 6).to(device).abs() + 1
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    rois = rows(*((0, *b) for b in BAD), (0, 3, 3, 4, 4, 1), columns=6).to(device)
    for dtype in DTYPES:
        leaf = x.to(dtype).requires_grad_()
        out = roi_align_rotated(leaf, rois, 2, 1.0, sampling_ratio, aligned)
        assert out[:-1].abs().sum().item() == 0  # false for NaN too
        assert out[-1].min().item() > 0  # its neighbours are not disturbed
        (grad,) = torch.autograd.grad(out.sum(), leaf)
        alone = roi_align_rotated(leaf, rois[-1:], 2, 1.0, sampling_ratio, aligned)
        assert_same(grad, torch.autograd.grad(alone.sum(), leaf)[0])


def test_huge_boxes_end_and_are_bounded(device: str) -> None:
    x = torch.ones(1, 2, 4, 5, device=device, requires_grad=True)
    for size in (1e6, 1e9, 1e18, 1e30, 3e38):
        rois = torch.tensor(
            [[0.0, 2, 2, size, size, 1], [0, 2, 2, size, 1, 0.5], [0, size, -size, size, size, 2]],
            device=device,
        )
        for sampling_ratio in (0, 2):
            out = roi_align_rotated(x, rois, 2, 1.0, sampling_ratio)
            assert bool(((out >= 0) & (out <= 1)).all())
            (grad,) = torch.autograd.grad(out.sum(), x)
            assert bool(grad.isfinite().all())


@pytest.mark.skipif(not EMULATED and "cuda" not in harness.DEVICES, reason="CPU raises instead")
@pytest.mark.parametrize("index", [2.0, -1.0, 1e9, -1e30, NAN, INF])
def test_bad_image_index_gives_zeros_on_devices(index: float) -> None:
    device = "cpu" if EMULATED else "cuda"
    x = (features(2, 3, 6, 6).abs() + 1).to(device).requires_grad_()
    rois = rows((0, 2, 2, 4, 4, 1), (index, 2, 2, 4, 4, 1), (1, 2, 2, 4, 4, 1), columns=6)
    rois = rois.to(device)
    out = roi_align_rotated(x, rois, 2)
    assert out[1].abs().sum().item() == 0
    assert out[0].min().item() > 0 and out[2].min().item() > 0
    (grad,) = torch.autograd.grad(out.sum(), x)
    (expected,) = torch.autograd.grad(roi_align_rotated(x, rois[::2], 2).sum(), x)
    assert_same(grad, expected)


def test_non_finite_features_reach_only_the_bins_that_read_them(device: str) -> None:
    for value in (NAN, INF):
        x = torch.ones(1, 2, 8, 8, device=device)
        x[0, 0, 1, 1] = value
        out = roi_align_rotated(x, torch.tensor([[0.0, 4, 4, 8, 8, 0.01]], device=device), 4)
        assert not bool(out[0, 0, 0, 0].isfinite())
        assert bool((out[0, 0, 2:, 2:] - 1).abs().max() < 1e-6)
        assert bool((out[0, 1] - 1).abs().max() < 1e-6)


def test_an_infinite_gradient_stays_where_it_has_weight(device: str) -> None:
    x = features(1, 2, 16, 16).float().to(device).requires_grad_()
    out = roi_align_rotated(x, torch.tensor([[0.0, 7, 7, 12, 12, 0.3]], device=device), 4)
    grad = torch.zeros_like(out)
    grad[0, 0, 1, 1] = INF
    (found,) = torch.autograd.grad(out, x, grad)
    assert not found.isnan().any()
    assert 4 <= int(found[0, 0].isinf().sum()) <= 16
    assert bool((found[0, 1] == 0).all())


# --------------------------------------------------------------------------------------------------
# The module, autograd, properties


def test_module_is_the_function(device: str) -> None:
    x, rois = features(2, 3, 8, 9).to(device), random_rotated(4, 2, (16, 18)).to(device)
    module = RoIAlignRotated((3, 2), 0.5, 2, clockwise=True)
    assert_same(module(x, rois), roi_align_rotated(x, rois, (3, 2), 0.5, 2, clockwise=True))
    for word in ("output_size=(3, 2)", "spatial_scale=0.5", "sampling_ratio=2", "clockwise=True"):
        assert word in repr(module)
    assert list(module.state_dict()) == []


def test_it_is_found_beside_roi_align() -> None:
    from cvkernels import roi_align as module
    from cvkernels.roi_align import RoIAlignRotated as Module
    from cvkernels.roi_align import roi_align_rotated as function

    assert function is roi_align_rotated and Module is RoIAlignRotated
    with pytest.raises(AttributeError, match="has no attribute 'roi_align_slanted'"):
        _ = module.roi_align_slanted


def test_boxes_receive_no_gradient(device: str) -> None:
    x = features(1, 1, 5, 5).to(device).requires_grad_()
    rois = rows((0, 2, 2, 3, 3, 1), columns=6).to(device).requires_grad_()
    roi_align_rotated(x, rois, 2).sum().backward()
    assert x.grad is not None and rois.grad is None


def test_many_output_gradients_at_once(device: str) -> None:
    for dtype in (torch.float64, torch.bfloat16):
        x = features(2, 3, 8, 8).to(device, dtype).requires_grad_()
        out = roi_align_rotated(x, random_rotated(5, 2, (16, 16)).float().to(device), (2, 3), 0.5)
        upstream = features(4, *out.shape, seed=3).to(device, dtype)
        (together,) = torch.autograd.grad(
            out, x, upstream, is_grads_batched=True, retain_graph=True
        )
        for row, g in zip(together, upstream, strict=True):
            assert_close(row, torch.autograd.grad(out, x, g, retain_graph=True)[0], dtype)


def test_double_backward_is_the_forward(device: str) -> None:
    x = features(2, 3, 8, 8).to(device).requires_grad_()
    rois = random_rotated(5, 2, (16, 16)).to(device)

    def pool(t: Tensor) -> Tensor:
        return roi_align_rotated(t, rois, (2, 3), 0.5, 0)

    g = features(5, 3, 2, 3, seed=2).to(device).requires_grad_()
    v = features(2, 3, 8, 8, seed=3).to(device)
    (grad,) = torch.autograd.grad(pool(x), x, g, create_graph=True)
    (second,) = torch.autograd.grad(grad, g, v)
    assert_close(second, pool(v), torch.float64)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, dict[str, Any]]:
    seed = draw(st.integers(0, 2**31))
    n, c = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    h, w = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    x = features(n, c, h, w, seed=seed)
    if draw(st.booleans()):
        x = x.contiguous(memory_format=torch.channels_last)
    boxes = random_rotated(
        draw(st.integers(1, 6)), n, (h, w), seed=seed + 1, spill=draw(st.floats(0, 1))
    )
    return (
        x,
        boxes,
        {
            "output_size": (draw(st.integers(1, 4)), draw(st.integers(1, 4))),
            "sampling_ratio": draw(st.sampled_from([-1, 0, 1, 2, 3, 7])),
            "aligned": draw(st.booleans()),
            "clockwise": draw(st.booleans()),
        },
    )


@given(problems())
def test_any_problem_matches_the_reference(problem: Any) -> None:
    x, boxes, options = problem
    leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
    wide = x.detach().clone().requires_grad_()
    actual = roi_align_rotated(leaf, boxes, **options)
    expected = reference.roi_align_rotated(wide, boxes, **options)
    assert_close(actual, expected, torch.float64)
    (a,) = torch.autograd.grad(actual.sum(), leaf)
    (e,) = torch.autograd.grad(expected.sum(), wide)
    assert_close(a, e, torch.float64)


@given(problems(), st.integers(0, 2**31))
def test_rows_are_independent_and_move_with_their_boxes(problem: Any, seed: int) -> None:
    x, boxes, options = problem
    order = torch.randperm(len(boxes), generator=torch.Generator().manual_seed(seed))
    out = roi_align_rotated(x, boxes, **options)
    assert_same(roi_align_rotated(x, boxes[order], **options), out[order])
    for row in range(len(boxes)):
        assert_same(roi_align_rotated(x, boxes[row : row + 1], **options), out[row : row + 1])


def test_one_compilation_serves_any_number_of_boxes(device: str) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()

    @torch.compile(backend=counter, fullgraph=True, dynamic=True)
    def pool(x: Tensor, rois: Tensor) -> Tensor:
        return roi_align_rotated(x * 2, rois, 3, 0.5, 2) + 1

    for count, side in ((17, 8), (9, 11), (30, 6)):
        x = features(2, 3, side, side + 1, seed=count).to(device).requires_grad_()
        rois = random_rotated(count, 2, (12, 12), seed=count).to(device)
        out = pool(x, rois)
        assert_same(out, roi_align_rotated(x * 2, rois, 3, 0.5, 2) + 1)
        (grad,) = torch.autograd.grad(out.sum(), x)
        assert grad.abs().sum() > 0
    assert counter.frame_count == 1


def test_layouts_agree(device: str) -> None:
    for dtype in DTYPES:
        x = features(2, 19, 11, 13).to(device, dtype)
        boxes = random_rotated(12, 2, (44, 52)).float().to(device)
        first = roi_align_rotated(x, boxes, (3, 2), 0.25, 0)
        last = x.contiguous(memory_format=torch.channels_last)
        second = roi_align_rotated(last, boxes, (3, 2), 0.25, 0)
        assert second.is_contiguous(memory_format=torch.channels_last)
        assert_close(second, first, dtype)


@pytest.mark.native
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_detector_sized(sampling_ratio: int, channels_last: bool, device: str) -> None:
    """Bands of rows, tiles of channels and threads meet their edges; planes too large to copy."""
    for shape, scale in (((2, 70, 61, 50), 1 / 16), ((1, 40, 300, 310), 1 / 4)):
        x = features(*shape).to(device)
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        x.requires_grad_()
        extent = (shape[2] / scale, shape[3] / scale)
        rois = random_rotated(24, shape[0], extent, spill=0.05).to(device)
        wide = x.detach().cpu().contiguous().requires_grad_()
        expected = reference.roi_align_rotated(wide, rois.cpu(), (7, 6), scale, sampling_ratio)
        upstream = features(*expected.shape, seed=5)
        (e,) = torch.autograd.grad(expected, wide, upstream)
        results = []
        for count in (1, 2, 3):
            with harness.threads(count):
                out = roi_align_rotated(x, rois, (7, 6), scale, sampling_ratio)
                results.append([out, *torch.autograd.grad(out, x, upstream.to(device))])
        assert_close(results[0][0], expected, torch.float64)
        assert_close(results[0][1], e, torch.float64)
        for other in results[1:]:
            for a, b in zip(other, results[0], strict=True):
                assert_same(a, b)


@pytest.mark.gpu
@pytest.mark.skipif(not harness.HAVE_CUDA, reason="no GPU")
@pytest.mark.parametrize("channels_last", [False, True])
def test_neither_pass_waits_for_the_device(channels_last: bool) -> None:
    x = features(2, 32, 20, 22).cuda().half()
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    rois = random_rotated(64, 2, (40, 44)).float().cuda()
    upstream = torch.ones(64, 32, 7, 7, device="cuda", dtype=torch.half)
    expected = torch.autograd.grad(roi_align_rotated(x, rois, 7, 0.5), x, upstream)[0]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        (grad,) = torch.autograd.grad(roi_align_rotated(x, rois, 7, 0.5), x, upstream)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_same(grad, expected)
