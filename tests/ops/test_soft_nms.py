"""soft_nms and soft_nms_padded: the generic matrix, then what is particular to them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import harness
import pytest
import torch
from boxes import (
    A_B_C,
    INF,
    NAN,
    SCENES,
    TIED,
    classes,
    crowd,
    random_scores,
    spread,
    whole_boxes,
)
from harness import (
    DTYPES,
    EMULATED,
    Case,
    DifferentiableOpTests,
    OpSpec,
    Sample,
    VmapCase,
    assert_close,
    assert_same,
)
from hypothesis import given
from hypothesis import strategies as st
from nms_family import (
    CRITERIA,
    RANDOM_PROBLEMS,
    assert_agree,
    bad_arguments,
    case,
    random_options,
    random_problem,
)
from torch import Tensor

from cvkernels import reference
from cvkernels.nms import batched_nms, nms
from cvkernels.soft_nms import soft_nms, soft_nms_padded

METHODS = ["linear", "gaussian", "hard"]
PARAMETERS = ["method", "iou_threshold", "sigma", "min_score", "max_output", "criterion", "beta"]


def cases(**options: Any) -> list[Case]:
    def small(name: str, seed: int, **more: Any) -> Case:
        def make() -> tuple[Tensor, Tensor]:
            return spread(14, seed, side=60), random_scores(14, seed)

        return case(name, make, small=True, **{**options, **more})

    found = [small("small", 0), small("small gaussian", 1, method="gaussian", idxs=2)]
    for method in METHODS:
        more = {**options, "method": method}
        found += [case(f"{method}, {name}", make, **more) for name, make in SCENES.items()]
        # Where weights are rounded exponentials, equal scores leave the order to the last bit.
        tied = {n: m for n, m in TIED.items() if method != "gaussian" or n not in UNORDERED}
        found += [case(f"{method}, {name}", make, **more) for name, make in tied.items()]
        found += [
            case(f"{method}, idxs", SCENES["packed"], idxs=3, **more),
            case(f"{method}, min_score", SCENES["packed"], min_score=0.4, **more),
            case(f"{method}, min_score 0", TIED["whole"], min_score=0.0, **more),
        ]
        for criterion in CRITERIA[1:]:
            found += [case(f"{method}, {criterion}", SCENES["packed"], criterion=criterion, **more)]
    found += [case("beta", SCENES["packed"], **options, criterion="diou", beta=0.6)]
    for threshold in (-0.2, 0.0, 0.7, 1.0):
        found += [
            case(f"threshold {threshold}", SCENES["crowd"], **options, iou_threshold=threshold)
        ]
    for sigma in (0.01, 3.0, 1e-300, 1e300):
        more = {**options, "method": "gaussian", "sigma": sigma}
        found += [case(f"sigma {sigma:g}", SCENES["packed"], **more)]
    found += [
        case("float64 scores", SCENES["packed"], **options, keeps=("scores",)),
        case("float64 boxes", SCENES["packed"], **options, keeps=("boxes",)),
    ]
    return found


UNORDERED = ("whole, ties", "odd")


def samples(padded: bool) -> list[Sample]:
    def sample(name: str, *values: Any, count: int = 40, idxs: bool = False) -> Sample:
        def make(dtype: torch.dtype) -> tuple[Any, ...]:
            boxes, scores = crowd(count, 3).to(dtype), random_scores(count).to(dtype)
            groups = classes(count, 2) if idxs else None
            if padded:
                boxes, scores = boxes.view(2, -1, 4), scores.view(2, -1)
                groups = None if groups is None else groups.view(2, -1)
            if name == "gradient":
                scores.requires_grad_()
            return boxes, scores, groups, *values

        return Sample("soft_nms_padded" if padded else "soft_nms", name, make)

    most = 30 if padded else -1
    found = [
        sample("linear", "linear", 0.3, 0.5, 1e-3, most, "iou", 1.0),
        sample("gaussian", "gaussian", 0.3, 0.4, 0.1, 9, "diou", 0.7, idxs=True),
        sample("hard", "hard", 0.3, 0.5, 0.0, most, "giou", 1.0),
        sample("gradient", "gaussian", 0.3, 0.5, 0.2, most, "iou", 1.0),
    ]
    if not padded:
        found += [sample("empty", "linear", 0.3, 0.5, 1e-3, most, "iou", 1.0, count=0)]
    return found


def vmaps() -> list[VmapCase]:
    def plain(boxes: Tensor, scores: Tensor) -> Any:
        return soft_nms_padded(boxes, scores, 9)

    def with_idxs(boxes: Tensor, scores: Tensor, idxs: Tensor) -> Any:
        return soft_nms_padded(boxes, scores, 9, method="gaussian", idxs=idxs)

    def make() -> tuple[Tensor, Tensor]:
        return crowd(120, 3).view(3, 2, 20, 4), random_scores(120).view(3, 2, 20)

    def make_idxs() -> tuple[Tensor, Tensor, Tensor]:
        return *make(), classes(40, 2).view(2, 20)

    def make_inner() -> tuple[Tensor, Tensor]:
        return make()[0].movedim(0, 2), make()[1].movedim(0, 1)

    return [
        VmapCase("both", plain, make, (0, 0)),
        VmapCase("scores only", plain, lambda: (make()[0][0], make()[1]), (None, 0)),
        VmapCase("shared idxs", with_idxs, make_idxs, (0, 0, None)),
        VmapCase("inner dims", plain, make_inner, (2, 1)),
    ]


class TestSoftNms(DifferentiableOpTests):
    spec = OpSpec(
        name="soft_nms",
        op=soft_nms,
        reference=reference.soft_nms,
        cases=[
            *cases(),
            *(case(f"max_output {m}", SCENES["packed"], max_output=m) for m in (0, 1, 9, 10_000)),
        ],
        selects=True,
        dynamic=True,
        differentiable=("scores",),
        second_order=lambda args: True,
        errors=bad_arguments("soft_nms", PARAMETERS),
        samples=samples(padded=False),
    )


class TestSoftNmsPadded(DifferentiableOpTests):
    spec = OpSpec(
        name="soft_nms_padded",
        op=soft_nms_padded,
        reference=reference.soft_nms_padded,
        cases=[
            *cases(padded=25),
            case("no columns", SCENES["packed"], padded=0),
            case("many columns", SCENES["packed"], padded=80),
        ],
        selects=True,
        differentiable=("scores",),
        second_order=lambda args: True,
        errors=bad_arguments("soft_nms_padded", PARAMETERS, padded=True),
        samples=samples(padded=True),
        vmaps=vmaps(),
    )


# --------------------------------------------------------------------------------------------------
# Hand-worked numbers


def test_hand_worked(device: str) -> None:
    boxes = torch.tensor(A_B_C, dtype=torch.float64, device=device)
    scores = torch.tensor([0.9, 0.8, 0.7], dtype=torch.float64, device=device)

    def run(**options: Any) -> tuple[list[int], list[float]]:
        keep, new_scores = soft_nms(boxes, scores, **options)
        return keep.tolist(), new_scores.tolist()

    # A (0.9) leaves B 0.8 (1 - 1/3) and C, 1/9, as it is. C (0.7) leaves B that times 1 - 7/13.
    kept, values = run()
    assert kept == [0, 2, 1] and values == pytest.approx([0.9, 0.7, 0.8 * 2 / 3 * 6 / 13])
    # B 0.8 exp(-2/9), C 0.7 exp(-2/81); C leaves B that times exp(-98/169).
    kept, values = run(method="gaussian")
    assert kept == [0, 2, 1]
    assert values == pytest.approx([0.9, 0.6829276860453921, 0.3587076992562794])
    assert run(method="hard") == ([0, 2], [0.9, 0.7])
    assert run(min_score=0.25)[0] == [0, 2]
    assert run(max_output=1) == ([0], [0.9])
    assert run(idxs=torch.tensor([1, 2, 1], device=device)) == ([0, 1, 2], [0.9, 0.8, 0.7])
    kept, values = run(criterion="diou")  # A and B 10/39, B and C 7/13 - 9/269
    assert kept == [0, 1, 2] and values == pytest.approx([0.9, 0.8, 0.7 * (6 / 13 + 9 / 269)])
    many = scores.new_tensor([[0.9, 0.8, 0.7], [NAN, 0.8, 1e-4]])
    keep, new_scores, count = soft_nms_padded(torch.stack([boxes, boxes]), many, 4)
    assert keep.tolist() == [[0, 2, 1, -1], [1, -1, -1, -1]] and count.tolist() == [3, 1]
    assert new_scores.flatten().tolist() == pytest.approx(
        [0.9, 0.7, 0.8 * 2 / 3 * 6 / 13, 0, 0.8, 0, 0, 0]
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_min_score_is_compared_as_a_real_number(dtype: torch.dtype, device: str) -> None:
    boxes = torch.tensor([[0.0, 0, 10, 1]], dtype=dtype, device=device)
    for value in (0.7, 0.1, 1e-3):
        scores = torch.tensor([value], dtype=dtype, device=device)
        held = float(scores[0])  # what is left of the number
        for least in (value, held, math.nextafter(held, 0), math.nextafter(held, 1)):
            kept = soft_nms(boxes, scores, min_score=least)[0].tolist()
            assert kept == ([0] if held >= least else []), (value, least)


def test_odd_scores(device: str) -> None:
    boxes = torch.tensor([A_B_C[0]] * 4, device=device)
    # Copies have overlap 1 and weight 0; infinity times 0 is no score.
    scores = torch.tensor([INF, INF, -1.0, -INF], device=device)
    keep, new_scores = soft_nms(boxes, scores, min_score=0)
    assert keep.tolist() == [0] and new_scores.tolist() == [INF]
    scores = torch.tensor([0.5, 0.5, 0.9, NAN], device=device)
    assert soft_nms(boxes, scores)[0].tolist() == [2]
    keep, new_scores = soft_nms(boxes, scores, min_score=0)
    assert keep.tolist() == [2, 0, 1] and new_scores.tolist()[1:] == [0, 0]
    assert soft_nms(boxes, scores, min_score=0, method="hard")[0].tolist() == [2]


def test_a_tiny_sigma_lowers_only_what_overlaps(device: str) -> None:
    boxes = torch.tensor(
        [[0.0, 0, 10, 10], [20, 0, 30, 10], [5, 5, 5, NAN], [9, 9, 19, 19]], device=device
    )
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6], device=device)
    for sigma in (1e-300, 1e-44):
        keep, new_scores = soft_nms(boxes, scores, method="gaussian", sigma=sigma)
        assert keep.tolist() == [0, 1, 2] and torch.equal(new_scores, scores[:3])


def test_gradient_is_the_decay(device: str) -> None:
    boxes = torch.tensor(A_B_C, dtype=torch.float64, device=device)
    scores = torch.tensor([0.9, 0.8, 0.7], dtype=torch.float64, device=device, requires_grad=True)
    _, new_scores = soft_nms(boxes, scores)
    (grad,) = torch.autograd.grad(new_scores, scores, scores.new_tensor([1.0, 2, 3]))
    assert grad.tolist() == pytest.approx([1, 3 * 2 / 3 * 6 / 13, 2])  # selected as 0, 2, 1
    zeros = torch.zeros(3, dtype=torch.float64, device=device, requires_grad=True)
    _, new_scores = soft_nms(boxes, zeros, min_score=0)
    assert torch.autograd.grad(new_scores.sum(), zeros)[0].tolist() == [0, 0, 0]


# --------------------------------------------------------------------------------------------------
# Properties


@st.composite
def scenes(draw: st.DrawFn, most: int = 100) -> tuple[Tensor, Tensor, Tensor]:
    """Crowded float32 boxes, scores of which some may be equal, classes."""
    seed, count = draw(st.integers(0, 2**31)), draw(st.integers(0, 30 if EMULATED else most))
    make: Callable[[], Tensor] = draw(
        st.sampled_from(
            [
                lambda: spread(count, seed, side=150),
                lambda: crowd(count, 4, seed),
                lambda: whole_boxes(count, seed),
            ]
        )
    )
    scores = random_scores(count, seed, draw(st.sampled_from([None, 6])))
    return make().float(), scores.float(), classes(count, 3, seed)


@given(scenes(), st.sampled_from(CRITERIA))
def test_threshold_one_keeps_all(scene: tuple[Tensor, ...], criterion: str) -> None:
    boxes, scores, idxs = scene
    keep, new_scores = soft_nms(
        boxes, scores, iou_threshold=1.0, min_score=0, idxs=idxs, criterion=criterion
    )
    order = scores.sort(descending=True, stable=True)
    assert_same(keep, order.indices)
    assert_same(new_scores, order.values)


@given(scenes(), st.sampled_from(CRITERIA), st.sampled_from([-0.1, 0.0, 0.3, 0.7]))
def test_hard_is_nms(scene: tuple[Tensor, ...], criterion: str, threshold: float) -> None:
    boxes, scores, idxs = scene
    options: dict[str, Any] = {"iou_threshold": threshold, "criterion": criterion}
    keep, new_scores = soft_nms(boxes, scores, method="hard", min_score=0, **options)
    assert_same(keep, nms(boxes, scores, **options))
    assert_same(new_scores, scores[keep])
    keep, _ = soft_nms(boxes, scores, method="hard", min_score=0.4, idxs=idxs, **options)
    expected = batched_nms(boxes, scores, idxs, **options)
    assert_same(keep, expected[scores[expected].double() >= 0.4])


@given(scenes(), st.sampled_from(METHODS), st.sampled_from(CRITERIA))
def test_classes_never_interact(scene: tuple[Tensor, ...], method: str, criterion: str) -> None:
    boxes, scores, idxs = scene
    options: dict[str, Any] = {"method": method, "criterion": criterion, "min_score": 0.05}
    keep, new_scores = soft_nms(boxes, scores, idxs=idxs, **options)
    together = dict(zip(keep.tolist(), new_scores.tolist(), strict=True))
    apart = {}
    for c in idxs.unique():
        rows = (idxs == c).nonzero().flatten()
        part, values = soft_nms(boxes[rows], scores[rows], **options)
        apart |= dict(zip(rows[part].tolist(), values.tolist(), strict=True))
    assert together == apart  # to the last bit
    assert new_scores.tolist() == sorted(new_scores.tolist(), reverse=True)


@given(scenes(), st.sampled_from(METHODS))
def test_class_ids_are_only_names(scene: tuple[Tensor, ...], method: str) -> None:
    boxes, scores, idxs = scene
    names = torch.tensor([-(2**63), 2**32, 0])  # equal in their low 32 bits
    expected = soft_nms(boxes, scores, method=method, idxs=idxs)
    for a, e in zip(
        soft_nms(boxes, scores, method=method, idxs=names[idxs]), expected, strict=True
    ):
        assert_same(a, e)


@given(scenes(), st.sampled_from(METHODS), st.sampled_from(CRITERIA))
def test_permuting_boxes_permutes_the_result(
    scene: tuple[Tensor, ...], method: str, criterion: str
) -> None:
    boxes, _, idxs = scene
    generator = torch.Generator().manual_seed(len(boxes))
    scores = torch.rand(len(boxes), generator=generator)
    order = torch.randperm(len(boxes), generator=generator)
    options: dict[str, Any] = {"method": method, "criterion": criterion}
    keep, new_scores = soft_nms(boxes, scores, idxs=idxs, **options)
    again, permuted = soft_nms(boxes[order], scores[order], idxs=idxs[order], **options)
    assert_same(permuted, new_scores)
    assert_same(order[again], keep)


@given(scenes(), st.sampled_from(METHODS), st.sampled_from(CRITERIA), st.sampled_from([-9, 4]))
def test_scaling_by_a_power_of_two_changes_nothing(
    scene: tuple[Tensor, ...], method: str, criterion: str, power: int
) -> None:
    boxes, scores, idxs = scene
    options: dict[str, Any] = {"method": method, "criterion": criterion, "idxs": idxs}
    expected = soft_nms(boxes, scores, **options)
    for a, e in zip(soft_nms(boxes * 2.0**power, scores, **options), expected, strict=True):
        assert_same(a, e)


@given(st.integers(0, 2**31), st.sampled_from(METHODS), st.sampled_from([-4096.0, 64.0, 1024.0]))
def test_shifting_whole_boxes_changes_nothing(seed: int, method: str, shift: float) -> None:
    boxes, scores = whole_boxes(60, seed).float(), random_scores(60, seed, 9).float()
    expected = soft_nms(boxes, scores, method=method)
    for a, e in zip(soft_nms(boxes + shift, scores, method=method), expected, strict=True):
        assert_same(a, e)


@given(scenes(), st.sampled_from(METHODS), st.integers(0, 110), st.integers(1, 3))
def test_padded_is_soft_nms_of_every_image(
    scene: tuple[Tensor, ...], method: str, most: int, images: int
) -> None:
    boxes, scores, idxs = scene
    generator = torch.Generator().manual_seed(len(boxes))
    orders = [torch.randperm(len(boxes), generator=generator) for _ in range(images)]
    many = [torch.stack([t[order] for order in orders]) for t in (boxes, scores, idxs)]
    keep, new_scores, count = soft_nms_padded(*many[:2], most, method=method, idxs=many[2])
    assert keep.shape == new_scores.shape == (images, most)
    for i in range(images):
        every = soft_nms(many[0][i], many[1][i], method=method, idxs=many[2][i])
        some = soft_nms(many[0][i], many[1][i], method=method, idxs=many[2][i], max_output=most)
        assert_same(some[0], every[0][:most])  # a limit gives a prefix
        assert_same(some[1], every[1][:most])
        kept = len(some[0])
        assert count[i] == kept
        assert keep[i].tolist() == some[0].tolist() + [-1] * (most - kept)
        assert_same(new_scores[i, :kept], some[1])
        assert new_scores[i, kept:].tolist() == [0] * (most - kept)


def test_padded_without_images_or_boxes(device: str) -> None:
    for images, count, most in ((0, 5, 3), (2, 0, 3), (2, 5, 0)):
        boxes = torch.ones(images, count, 4, device=device)
        keep, new_scores, kept = soft_nms_padded(boxes, boxes[..., 0], most)
        assert keep.tolist() == [[-1] * most] * images
        assert new_scores.tolist() == [[0.0] * most] * images
        assert kept.tolist() == [0] * images


@pytest.mark.slow
@pytest.mark.parametrize("padded", [False, True], ids=["soft_nms", "soft_nms_padded"])
@pytest.mark.parametrize("method", METHODS)
def test_random_problems(method: str, padded: bool) -> None:
    spec = TestSoftNmsPadded.spec if padded else TestSoftNms.spec
    names = [p for p in PARAMETERS if p not in ("method", "max_output")]
    for seed in range(RANDOM_PROBLEMS):
        args, rng = random_problem(seed)
        args |= random_options(rng, [*names, "width" if padded else "max_output"])
        if padded:
            args |= {k: v[None] for k, v in args.items() if isinstance(v, Tensor)}
        assert_agree(spec, {**args, "method": method}, f"problem {seed}")


# --------------------------------------------------------------------------------------------------
# Many boxes: spatial pruning, blocks and threads against the plain loop


MANY: dict[str, Callable[[int], Tensor]] = {
    "spread": lambda n: spread(n, 5),
    "crowd": lambda n: crowd(n, 40, 5),
    "one cluster": lambda n: crowd(n, 1, 5),
    "whole": lambda n: whole_boxes(n, 5) * 9,
    "line": lambda n: spread(n, 5) * torch.tensor([1.0, 0, 1, 0]) + torch.tensor([0.0, 0, 0, 1]),
    "far": lambda n: spread(n, 5) + 1e6,
    "tiny": lambda n: spread(n, 5) * 1e-15,
    "huge": lambda n: spread(n, 5) * 1e15,
}


@pytest.mark.native
@pytest.mark.parametrize("kind", MANY)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count", [257, 900])
def test_many_boxes(count: int, method: str, kind: str, device: str) -> None:
    boxes = MANY[kind](count).float().to(device)
    scores = random_scores(count, 6).float().to(device)  # no ties
    idxs = classes(count, 5).to(device)
    for options in ({}, {"idxs": idxs}, {"criterion": "diou"}, {"iou_threshold": 0.0}):
        keep, new_scores = soft_nms(boxes, scores, method=method, **options)
        cpu = {k: v.cpu() if isinstance(v, Tensor) else v for k, v in options.items()}
        wanted = reference.soft_nms(boxes.cpu(), scores.cpu(), method=method, **cpu)
        assert_same(keep, wanted[0], str(options))
        assert_close(new_scores, wanted[1], torch.float32, str(options))


@pytest.mark.parametrize(
    "count", [1, 7, 8, 9, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257]
)
def test_every_block_edge(count: int, device: str) -> None:
    """Counts around vector and block widths, where the last box decides and is decided."""
    apart = (10 * torch.arange(float(count), device=device))[:, None] + torch.tensor(
        [0.0, 0, 9, 9], device=device
    )
    scores = 1 - torch.arange(float(count), device=device) / 512
    keep, new_scores = soft_nms(apart, scores)
    assert keep.tolist() == list(range(count)) and torch.equal(new_scores, scores)
    if count > 1:
        apart[-1] = apart[0]  # the worst equals the best, and is gone
        assert soft_nms(apart, scores)[0].tolist() == list(range(count - 1))
        assert soft_nms(apart, scores.flip(0))[0].tolist() == list(range(count - 1, 0, -1))


@pytest.mark.gpu
@pytest.mark.skipif(not harness.HAVE_CUDA, reason="no GPU")
@pytest.mark.parametrize("method", METHODS)
def test_padded_neither_waits_for_the_device_nor_breaks_a_graph(method: str) -> None:
    boxes = crowd(600, 9).view(3, 200, 4).float().cuda()
    scores = random_scores(600).view(3, 200).float().cuda()
    idxs = classes(600, 3).view(3, 200).cuda()
    soft_nms_padded(boxes, scores, 20, method=method, idxs=idxs)  # warm up
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        soft_nms_padded(boxes, scores, 20, method=method, idxs=idxs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = soft_nms_padded(boxes, scores, 20, method=method, idxs=idxs)
    boxes.copy_(crowd(600, 9, seed=4).view(3, 200, 4))
    graph.replay()
    torch.cuda.synchronize()
    expected = soft_nms_padded(boxes, scores, 20, method=method, idxs=idxs)
    for a, e in zip(results, expected, strict=True):
        assert_same(a, e)


def test_soft_nms_cannot_be_vmapped_and_says_so() -> None:
    with pytest.raises((RuntimeError, NotImplementedError), match="soft_nms_padded"):
        torch.vmap(lambda b, s: soft_nms(b, s))(
            spread(20).view(2, 10, 4), random_scores(20).view(2, 10)
        )
