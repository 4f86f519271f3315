"""What holds for every pooling operator that takes maxima and saves their indices."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from harness import EMULATED, Sample, VmapCase, assert_same
from roi_family import (
    PoolingTests,
    box,
    features,
    pooling_samples,
    pooling_vmaps,
    random_boxes,
)
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode

LAYOUTS = (torch.contiguous_format, torch.channels_last)
TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])


def maxima_samples(name: str) -> list[Sample]:
    """Of ``name``, ``name_argmax`` with indices of both widths, and ``name_backward``."""

    def forward(dtype: torch.dtype) -> tuple[Any, ...]:
        x = features(2, 3, 6, 5).to(dtype).requires_grad_()
        return x, random_boxes(3, 2, (12, 10)).float(), 0.5, 2, 3

    def narrow(make: Callable[[torch.dtype], tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
        return lambda dtype: (*make(dtype), True)

    def backward(*narrow: bool) -> Callable[[torch.dtype], tuple[Any, ...]]:
        def make(dtype: torch.dtype) -> tuple[Any, ...]:
            x, boxes, *rest = forward(dtype)
            op = getattr(torch.ops.cvkernels, f"{name}_argmax")
            argmax = op(x.detach(), boxes, *rest, *narrow)[1]
            return features(3, 3, 2, 3).to(dtype), argmax, boxes, *rest, 2, 3, 6, 5

        return make

    wide = pooling_samples(f"{name}_argmax", forward)
    return [
        *pooling_samples(name, forward),
        *wide,
        *(Sample(s.operator, f"{s.name}, narrow", narrow(s.make)) for s in wide),
        Sample(f"{name}_backward", "plain", backward()),
        Sample(f"{name}_backward", "narrow", backward(True)),
    ]


def maxima_vmaps(name: str, pool: Callable[[Tensor, Tensor], Tensor]) -> list[VmapCase]:
    """Of the function, and of the operators with narrow indices."""
    operators = torch.ops.cvkernels

    def forward(x: Tensor, boxes: Tensor) -> Any:
        return getattr(operators, f"{name}_argmax")(x, boxes, 0.5, 3, 2, True)

    def backward(x: Tensor, boxes: Tensor) -> Any:
        out, argmax = forward(x, boxes)
        return getattr(operators, f"{name}_backward")(out, argmax, boxes, 0.5, 3, 2, *x.shape)

    cases = pooling_vmaps(pool, 3)
    make, dims = cases[0].make, cases[0].in_dims
    return [
        *cases,
        VmapCase("narrow", forward, make, dims),
        VmapCase("narrow backward", backward, make, dims),
    ]


class MaximaTests(PoolingTests):
    """``most`` is the number of pixels of the largest map that narrow indices fit."""

    most: int

    def operator(self, suffix: str) -> Callable[..., Any]:
        found: Callable[..., Any] = getattr(torch.ops.cvkernels, self.spec.name + suffix)
        return found

    @pytest.mark.parametrize("memory_format", LAYOUTS, ids=str)
    @pytest.mark.parametrize("count", [3, 40])
    def test_narrow_indices_change_nothing_else(
        self, count: int, memory_format: torch.memory_format, dtype: torch.dtype, device: str
    ) -> None:
        """Few boxes and many go different ways; 37 channels and 35 bins are no whole vectors."""
        x = features(2, 37, 25, 34).to(device, dtype).contiguous(memory_format=memory_format)
        boxes = random_boxes(count, 2, (400, 544)).to(device)
        boxes[::3, 3:] = boxes[::3, 1:3] + 40  # smaller than their grid
        boxes[1, 1:] += 800  # of no pixels
        arguments = boxes, 1 / 16, 5, 7
        wide, narrow = (self.operator("_argmax")(x, *arguments, w) for w in (False, True))
        assert wide[1].dtype == torch.int32 and narrow[1].dtype == torch.int16
        assert narrow[1].stride() == narrow[0].stride()
        assert_same(narrow[0], wide[0])
        assert_same(narrow[1].int(), wide[1])
        assert wide[1][1].max() == -1 and wide[1][2].max() > 0
        upstream = features(*wide[0].shape, seed=5).to(device, dtype)
        upstream = upstream.contiguous(memory_format=memory_format)
        grads = [
            self.operator("_backward")(upstream, argmax, *arguments, *x.shape)
            for _, argmax in (wide, narrow)
        ]
        assert_same(grads[1], grads[0])
        assert grads[0].abs().sum() > 0

    @pytest.mark.parametrize("memory_format", LAYOUTS, ids=str)
    def test_narrow_indices_up_to_the_last(
        self, memory_format: torch.memory_format, device: str
    ) -> None:
        height = next(h for h in range(2, 100) if self.most % h == 0)
        width = self.most // height
        x = torch.zeros(1, 8, height, width, device=device)
        x[..., -1, -1] = 1
        x = x.contiguous(memory_format=memory_format)
        boxes = box((0, 0, 0, width - 1, height - 1)).float().to(device)
        out, argmax = self.operator("_argmax")(x, boxes, 1.0, 1, 1, True)
        assert out.flatten().tolist() == [1] * 8
        assert argmax.flatten().tolist() == [self.most - 1] * 8
        grad = self.operator("_backward")(out, argmax, boxes, 1.0, 1, 1, *x.shape)
        assert_same(grad.contiguous(), x.contiguous())

    def test_narrow_indices_are_refused_where_they_do_not_fit(self, device: str) -> None:
        x = torch.zeros(1, 8, 1, self.most + 1, device=device)
        boxes = box((0, 0, 0, 5, 5)).float().to(device)
        limit = f"input of at most {self.most} pixels (height * width) where narrow"
        message = re.escape(f"{self.spec.name}: expected {limit}, got {self.most + 1}")
        with pytest.raises(ValueError, match=f"^{message}$"):
            self.operator("_argmax")(x, boxes, 1.0, 2, 2, True)
        mode = FakeTensorMode()
        fake = mode.from_tensor(x), mode.from_tensor(boxes)
        with mode, pytest.raises(ValueError, match=f"^{message}$"):
            self.operator("_argmax")(*fake, 1.0, 2, 2, True)
        assert self.operator("_argmax")(x, boxes, 1.0, 2, 2)[1].dtype == torch.int32

    def test_the_function_saves_narrow_indices_where_they_fit(self, device: str) -> None:
        for more, dtype in ((0, torch.int16), (1, torch.int32)):
            x = torch.zeros(1, 8, 1, self.most + more, device=device)
            x[..., -1] = 1
            x.requires_grad_()
            corner = self.most + more - 1
            boxes = box((0, corner - 9, 0, corner, 0)).float().to(device)
            out: Any = self.pool(x, boxes, 1)
            assert [t.dtype for t in out.grad_fn.saved_tensors] == [torch.float32, dtype]
            (grad,) = torch.autograd.grad(out.sum(), x)
            assert_same(grad, x.detach())
            # The operator without indices looks them up again.
            (grad,) = torch.autograd.grad(self.operator("")(x, boxes, 1.0, 1, 1).sum(), x)
            assert_same(grad, x.detach())

    @pytest.mark.parametrize("memory_format", LAYOUTS, ids=str)
    def test_foreign_narrow_indices_of_a_large_map(
        self, memory_format: torch.memory_format, device: str
    ) -> None:
        """They name pixels that narrow indices can name, or none."""
        indices = [5, -1, -2, -(2**15), 2**15 - 1, 5]
        argmax = torch.tensor(indices, dtype=torch.int16, device=device).reshape(1, 6, 1, 1)
        grad = torch.ones(1, 6, 1, 1, device=device)
        boxes = box((0, 0, 0, 259, 255)).to(device)
        out = self.operator("_backward")(
            grad.contiguous(memory_format=memory_format),
            argmax.contiguous(memory_format=memory_format),
            *(boxes, 1.0, 1, 1, 1, 6, 256, 260),
        )
        named = out[0].flatten(1).nonzero().tolist()
        assert named == [[0, 5], [4, 2**15 - 1], [5, 5]] and out.sum().item() == 3

    def test_compiled_sizes_on_both_sides_of_the_limit(self, device: str) -> None:
        counter = CompileCounterWithBackend("aot_eager")
        torch._dynamo.reset()

        @torch.compile(backend=counter, fullgraph=True, dynamic=True)
        def pool(x: Tensor, boxes: Tensor) -> Tensor:
            return self.pool(x * 2, boxes, 3, 0.5) + 1

        beyond = self.most // 100 + 1
        for count, height, width in ((17, 8, 9), (19, 11, 12), (21, 100, beyond), (23, 10, 13)):
            x = features(2, 5, height, width, seed=count).to(device).requires_grad_()
            boxes = random_boxes(count, 2, (2 * height, 2 * width), seed=count).to(device)
            out, expected = pool(x, boxes), self.pool(x * 2, boxes, 3, 0.5) + 1
            assert_same(out, expected)
            assert_same(*(torch.autograd.grad(o.sum(), x)[0] for o in (out, expected)))
        # A program for each side; torch 2.11 makes one for both.
        assert counter.frame_count == (2 if TORCH >= (2, 12) else 1)

    @pytest.mark.skipif(EMULATED, reason="the same graph")
    def test_compiled_sizes_that_are_not_known(self, device: str) -> None:
        torch._dynamo.reset()
        x = features(2, 5, 8, 9).to(device).requires_grad_()
        boxes = random_boxes(7, 2, (16, 18)).to(device)
        torch._dynamo.decorators.mark_unbacked(x, 2)
        compiled = torch.compile(self.pool, backend="aot_eager", fullgraph=True)
        out, expected = compiled(x, boxes, 3, 0.5), self.pool(x, boxes, 3, 0.5)
        assert_same(out, expected)
        assert_same(*(torch.autograd.grad(o.sum(), x)[0] for o in (out, expected)))

    @pytest.mark.skipif(EMULATED, reason="the same program")
    def test_an_exported_program_takes_maps_on_both_sides_of_the_limit(self, device: str) -> None:
        pool = self.pool

        class Model(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.scale = torch.nn.Parameter(torch.ones(()))

            def forward(self, x: Tensor, boxes: Tensor) -> Tensor:
                return pool(x * self.scale, boxes, 3, 0.5)

        model = Model().to(device)
        boxes = random_boxes(7, 2, (16, 18)).to(device)
        size = torch.export.Dim("height", min=2, max=4000), torch.export.Dim("width", max=4000)
        # torch.export reads one switch for both, and conftest set that of convolutions.
        cudnn: Any = torch.backends.cudnn
        precision = cudnn.conv.fp32_precision
        cudnn.conv.fp32_precision = cudnn.rnn.fp32_precision
        try:
            program = torch.export.export(
                model,
                (features(2, 5, 8, 9).to(device), boxes),
                dynamic_shapes=({2: size[0], 3: size[1]}, None),
            ).module()
        finally:
            cudnn.conv.fp32_precision = precision
        for height, width in ((9, 13), (100, self.most // 100 + 1)):
            x = features(2, 5, height, width).to(device)
            assert_same(program(x, boxes), model(x, boxes))
