"""One description per operator, one matrix of tests for all of them.

A test module declares an :class:`OpSpec` and subclasses :class:`OpTests` (or
:class:`DifferentiableOpTests`); each test below then runs for every case, dtype, layout, device.
``conftest.py`` turns the test functions' argument names into parameters through
:func:`parametrize`. With ``CVKERNELS_BACKEND=emulated`` the same tests reach the CUDA kernels.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

EMULATED = os.environ.get("CVKERNELS_BACKEND") == "emulated"
FIRST_SEED = os.environ.get("CVKERNELS_EMULATION_SEED", "0") == "0"
HAVE_CUDA = torch.cuda.is_available() and not EMULATED
DEVICES = ["cpu", "cuda"] if HAVE_CUDA else ["cpu"]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
LAYOUTS = ["contiguous", "channels_last", "sliced", "unaligned"]

Args = dict[str, Any]


@dataclass(frozen=True)
class Tolerance:
    """How far a result may lie from the float64 reference evaluated on the same, rounded inputs."""

    rtol: float  # of the element itself: the rounding of the result
    atol: float  # of the largest element: cancellation, coordinates rounded in the kernel
    l2: float  # of the whole tensor as a vector
    cosine: float  # 1 - cosine of the angle between the two vectors


# The only tolerances in the test suite. Half formats: results are rounded once, so 1 ulp covers
# them.
TOLERANCES = {
    torch.float16: Tolerance(rtol=2**-10, atol=2e-5, l2=2**-11, cosine=1e-6),
    torch.bfloat16: Tolerance(rtol=2**-7, atol=2e-5, l2=2**-8, cosine=1e-5),
    torch.float32: Tolerance(rtol=1e-5, atol=1e-5, l2=5e-6, cosine=1e-9),
    torch.float64: Tolerance(rtol=1e-12, atol=1e-12, l2=1e-12, cosine=1e-13),
}


@dataclass(frozen=True)
class Case:
    """One set of arguments. ``make`` returns them by name, in float64 and on the CPU."""

    name: str
    make: Callable[[], Args]
    keeps: tuple[str, ...] = ()  # tensors that keep the dtype `make` gave them
    gradient_dtypes: Sequence[torch.dtype] = tuple(DTYPES)  # where the gradient is well defined
    small: bool = False  # used by the slow tests: gradcheck, compile, second order
    emulated: bool = True  # cheap enough for emulated kernels


@dataclass(frozen=True)
class ErrorCase:
    """Arguments that must be refused with exactly this message by operator, fake and reference."""

    name: str
    make: Callable[[], Args]
    message: str
    type: type[Exception] = ValueError
    reads_data: bool = False  # decided by values, which a fake tensor does not have
    fake: bool = True  # the public function reaches the same check with fake tensors


@dataclass(frozen=True)
class Sample:
    """Arguments of one dispatcher operator, for torch.library.opcheck."""

    operator: str  # name in torch.ops.cvkernels
    name: str
    make: Callable[[torch.dtype], tuple[Any, ...]]


@dataclass(frozen=True)
class VmapCase:
    """``function`` over the leading dimension of ``make()`` equals a Python loop over it."""

    name: str
    function: Callable[..., Any]
    make: Callable[[], tuple[Tensor, ...]]
    in_dims: tuple[int | None, ...]


@dataclass(frozen=True)
class OpSpec:
    """Everything the matrix needs to know about one public function."""

    name: str
    op: Callable[..., Any]
    reference: Callable[..., Any]
    cases: Sequence[Case]
    exact: bool = False  # all results are equal, not close; implies selects
    # What is selected depends on rounding: the reference runs in the case's own dtypes, and each
    # result has the dtype of the reference's. Integer results are equal in any operator.
    selects: bool = False
    dynamic: bool = False  # how many rows a result has depends on values
    compiles: bool = True  # not if even the number of results depends on values
    dtypes: Sequence[torch.dtype] = tuple(DTYPES)
    differentiable: tuple[str, ...] = ()  # names of the tensors that receive a gradient
    memory_format_of: str | None = None  # the output keeps the memory format of this argument
    second_order: Callable[[Args], bool] = field(default=lambda args: False)
    errors: Sequence[ErrorCase] = ()
    samples: Sequence[Sample] = ()
    vmaps: Sequence[VmapCase] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "selects", self.selects or self.exact)

    def select(self, **wanted: bool) -> list[Case]:
        cases = [case for case in self.cases if case.emulated or not EMULATED]
        return [c for c in cases if all(getattr(c, key) == value for key, value in wanted.items())]


def parametrize(metafunc: Any, spec: OpSpec) -> None:
    """Gives the arguments of a generic test their values."""

    def use(name: str, values: Sequence[Any], ids: Callable[[Any], str]) -> None:
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, values, ids=ids)

    def by_name(value: Any) -> str:
        return value.name

    cases, small, dtypes, layouts = spec.select(), spec.select(small=True), spec.dtypes, LAYOUTS
    if metafunc.function.__name__ in ("test_cpu_equals_cuda", "test_side_stream") and not HAVE_CUDA:
        cases, small, dtypes = cases[:1], small[:1], dtypes[:1]  # one line that says "skipped"
    if EMULATED and spec.selects and spec.memory_format_of is None:
        # Strides end before the kernel, boxes have no memory format, and another order of threads
        # does not touch them.
        layouts = ["contiguous", "sliced"] if FIRST_SEED else ["contiguous"]
    if spec.selects and not spec.exact and {"case", "layout"} <= set(metafunc.fixturenames):
        # Slow references: small cases in every layout, the others in one after another.
        pairs = [
            (case, layout)
            for i, case in enumerate(cases)
            for layout in (layouts if case.small else [layouts[i % len(layouts)]])
        ]
        metafunc.parametrize(("case", "layout"), pairs, ids=[f"{c.name}-{at}" for c, at in pairs])
    else:
        use("case", cases, by_name)
        use("layout", layouts, str)
    use("small_case", small, by_name)
    use("dtype", dtypes, lambda d: str(d).removeprefix("torch."))
    use("error", spec.errors, by_name)
    use("sample", spec.samples, lambda s: f"{s.operator}-{s.name}")
    use("vmap_case", spec.vmaps, by_name)


# --------------------------------------------------------------------------------------------------
# Building arguments


def lay_out(tensor: Tensor, layout: str) -> Tensor:
    """The same values behind other strides."""
    if layout == "contiguous" or tensor.dim() == 0:
        return tensor.contiguous()
    if layout == "channels_last":  # and column-major for fewer dimensions
        if tensor.dim() == 4:
            return tensor.contiguous(memory_format=torch.channels_last)
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "unaligned":  # contiguous, one element off the allocation's alignment
        storage = tensor.new_empty(tensor.numel() + 1)
        view = storage[1:].view(tensor.shape)
        return view.copy_(tensor)
    assert layout == "sliced"
    bigger = tensor.new_full([2 * size + 3 for size in tensor.shape], 7)
    view = bigger[tuple(slice(2, 2 + 2 * size, 2) for size in tensor.shape)]
    return view.copy_(tensor)


def map_tensors(args: Args, change: Callable[[str, Tensor], Tensor]) -> Args:
    def visit(name: str, value: Any) -> Any:
        if isinstance(value, Tensor):
            return change(name, value)
        if isinstance(value, list) and value and isinstance(value[0], Tensor):
            return [change(name, item) for item in value]
        return value

    return {name: visit(name, value) for name, value in args.items()}


def build(
    case: Case, dtype: torch.dtype = torch.float64, layout: str = "contiguous", device: str = "cpu"
) -> Args:
    """The case's arguments in one dtype, layout and device."""

    def change(name: str, tensor: Tensor) -> Tensor:
        if tensor.is_floating_point() and name not in case.keeps:
            tensor = tensor.to(dtype)
        return lay_out(tensor.to(device), layout)

    return map_tensors(case.make(), change)


def widen(args: Args) -> Args:
    """The same numbers in float64 on the CPU, detached."""
    return map_tensors(
        args,
        lambda name, t: t.detach().cpu().double() if t.is_floating_point() else t.cpu(),
    )


def leaves_of(args: Args, names: Sequence[str]) -> tuple[Tensor, ...]:
    """The tensors of these names, those of lists one by one, which from now on need a gradient."""
    found = []
    for name in names:
        value = args[name]
        for tensor in value if isinstance(value, list) else [value]:
            found.append(tensor.requires_grad_())
    return tuple(found)


def with_leaves(args: Args, names: Sequence[str], leaves: Sequence[Tensor]) -> Args:
    """The arguments with other tensors of these names."""
    left, changed = list(leaves), dict(args)
    for name in names:
        many = isinstance(args[name], list)
        changed[name] = [left.pop(0) for _ in args[name]] if many else left.pop(0)
    return changed


def as_tuple(result: Any) -> tuple[Tensor, ...]:
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)


def with_gradient(result: Any) -> tuple[Tensor, ...]:
    """The results that have a gradient; there is one."""
    found = tuple(r for r in as_tuple(result) if r.requires_grad)
    assert found, "no result has a gradient"
    return found


# --------------------------------------------------------------------------------------------------
# Comparing


def assert_close(actual: Tensor, expected: Tensor, dtype: torch.dtype, what: str = "") -> None:
    """Elementwise, then as a vector, within the table's tolerance for ``dtype``."""
    tolerance = TOLERANCES[dtype]
    assert actual.shape == expected.shape, what
    a, e = actual.detach().cpu().double(), expected.detach().cpu().double()
    if e.numel() == 0:
        return
    assert torch.equal(a.isnan(), e.isnan()), f"{what}: NaN in different places"
    same = e.isnan() | (e.isinf() & (a == e))  # another infinity, or a finite number, is not close
    a, e = torch.where(same, 0.0, a), torch.where(same, 0.0, e)
    scale = e.abs().max()
    excess = (a - e).abs() - (tolerance.rtol * e.abs() + tolerance.atol * scale)
    worst = excess.argmax()
    most = float(excess.flatten()[worst])  # numbers, not tensors, which pytest would print
    assert most <= 0, (
        f"{what}: {int((excess > 0).sum())} of {e.numel()} elements differ; worst "
        f"{a.flatten()[worst]} expected {e.flatten()[worst]} at flat index {int(worst)}"
    )
    if scale > 0:
        a, e = a / scale, e / scale  # squares of large numbers overflow
        norm = float(e.norm())
        distance = float((a - e).norm()) / norm
        assert distance <= tolerance.l2, f"{what}: relative L2 {distance}"
        angle = 1 - float(a.flatten() @ e.flatten()) / (float(a.norm()) * norm)
        assert angle <= tolerance.cosine, f"{what}: 1 - cosine = {angle}"


def assert_same(actual: Tensor, expected: Tensor, what: str = "") -> None:
    """Bit for bit, NaN included."""
    assert actual.dtype == expected.dtype, f"{what}: {actual.dtype} != {expected.dtype}"
    assert actual.shape == expected.shape, f"{what}: {actual.shape} != {expected.shape}"
    a, e = actual.detach().cpu(), expected.detach().cpu()
    if a.is_floating_point():
        bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
        a, e = a.view(bits), e.view(bits)
    assert torch.equal(a, e), f"{what}: {int((a != e).sum())} of {a.numel()} differ: {a} {e}"


def assert_matches(spec: OpSpec, actual: Any, expected: Any, dtype: torch.dtype, what: str) -> None:
    actual, expected = as_tuple(actual), as_tuple(expected)
    assert len(actual) == len(expected), what
    for a, e in zip(actual, expected, strict=True):
        if spec.exact or not e.is_floating_point():
            assert_same(a, e, what)
        elif spec.selects:
            assert a.dtype == e.dtype, what
            assert_close(a, e, e.dtype, what)
        else:
            assert_close(a, e, dtype, what)


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def on_any_threads(run: Callable[[], Any], counts: Sequence[int] = (2, 3, 7)) -> Any:
    """What ``run`` returns, a tensor or some: the same bits for any number of threads."""
    with threads(1):
        one = run()
    for count in counts:
        with threads(count):
            found = run()
        pairs = [(found, one)] if isinstance(one, Tensor) else zip(found, one, strict=True)
        for a, b in pairs:
            assert_same(a, b, f"{count} threads")
    return one


def gradients(spec: OpSpec, function: Callable[..., Any], args: Args, seed: int = 0) -> Any:
    """Result, gradients of the differentiable tensors, and the seeded output gradient used."""
    leaves = []

    def leaf(name: str, tensor: Tensor) -> Tensor:
        if name in spec.differentiable:
            tensor = tensor.detach()  # keeps the layout
            tensor.requires_grad_()
            leaves.append(tensor)
        return tensor

    args = map_tensors(args, leaf)
    result = as_tuple(function(**args))
    generator = torch.Generator().manual_seed(seed)
    upstream = [
        torch.randn(r.shape, generator=generator, dtype=torch.float64).to(r.device, r.dtype)
        for r in with_gradient(result)
    ]
    return result, torch.autograd.grad(with_gradient(result), leaves, upstream), upstream


def reference_gradients(spec: OpSpec, args: Args, upstream: Sequence[Tensor]) -> Any:
    """Gradients of the reference, in float64 unless it selects, for the given output gradients."""
    leaves = []

    def leaf(name: str, tensor: Tensor) -> Tensor:
        if name in spec.differentiable:
            tensor = tensor.clone().requires_grad_()
            leaves.append(tensor)
        return tensor

    args = map_tensors(arguments_of_reference(spec, args), leaf)
    result = with_gradient(spec.reference(**args))
    return torch.autograd.grad(
        result, leaves, [u.cpu().to(r.dtype) for u, r in zip(upstream, result, strict=True)]
    )


def arguments_of_reference(spec: OpSpec, args: Args) -> Args:
    if spec.selects:
        return map_tensors(args, lambda name, t: t.detach().cpu())
    return widen(args)


def expected_of(spec: OpSpec, args: Args) -> Any:
    return spec.reference(**arguments_of_reference(spec, args))


# --------------------------------------------------------------------------------------------------
# The matrix


class OpTests:
    """Tests of any operator."""

    spec: OpSpec

    def test_forward(self, case: Case, dtype: torch.dtype, layout: str, device: str) -> None:
        args = build(case, dtype, layout, device)
        before = map_tensors(args, lambda name, t: t.clone())
        actual = self.spec.op(**args)
        assert_matches(self.spec, actual, expected_of(self.spec, args), dtype, case.name)
        for name, value in args.items():
            if isinstance(value, Tensor):
                assert_same(value, before[name], f"{case.name}: argument {name} was modified")
        for tensor in as_tuple(actual):
            assert tensor.device.type == device
            if not self.spec.selects:
                assert tensor.dtype == dtype
        if self.spec.memory_format_of:
            source, out = args[self.spec.memory_format_of], as_tuple(actual)[0]
            source = source[0] if isinstance(source, list) else source
            last = source.is_contiguous(memory_format=torch.channels_last)
            if last and not source.is_contiguous():  # a tensor may be both
                assert out.is_contiguous(memory_format=torch.channels_last), out.stride()
            else:
                assert out.is_contiguous(), out.stride()

    def test_bitwise_repeatable(self, case: Case, dtype: torch.dtype, device: str) -> None:
        args = build(case, dtype, device=device)

        def run() -> Sequence[Tensor]:
            if self.spec.differentiable:
                result, grads, _ = gradients(self.spec, self.spec.op, args)
                return [*result, *grads]
            return as_tuple(self.spec.op(**args))

        on_any_threads(run, counts=(2,) if EMULATED else (2, 1, 2))

    @pytest.mark.skipif(not HAVE_CUDA, reason="no GPU")
    def test_cpu_equals_cuda(self, case: Case, dtype: torch.dtype) -> None:
        args = build(case, dtype)
        on_cuda = map_tensors(args, lambda name, t: t.cuda())
        assert_matches(self.spec, self.spec.op(**on_cuda), self.spec.op(**args), dtype, case.name)

    @pytest.mark.skipif(not HAVE_CUDA, reason="no GPU")
    def test_side_stream(self, small_case: Case) -> None:
        args = build(small_case, torch.float32, device="cuda")
        expected = expected_of(self.spec, args)
        stream = torch.cuda.Stream()
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):  # the inputs are written on this stream, after a delay
            torch.cuda._sleep(20_000_000)
            late = map_tensors(args, lambda name, t: torch.zeros_like(t).copy_(t))
            actual = self.spec.op(**late)
        stream.synchronize()
        assert_matches(self.spec, actual, expected, torch.float32, small_case.name)

    def test_opcheck(self, sample: Sample, device: str) -> None:
        for dtype in (torch.float32, torch.bfloat16):
            named = {str(i): a for i, a in enumerate(sample.make(dtype))}
            args = tuple(map_tensors(named, lambda name, t: t.to(device)).values())
            operator = getattr(torch.ops.cvkernels, sample.operator).default
            torch.library.opcheck(operator, args)

    @pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
    def test_compile(self, small_case: Case, dynamic: bool, device: str) -> None:
        if not self.spec.compiles:
            pytest.skip("as many results as the values ask for")
        args = build(small_case, torch.float32, device=device)
        torch._dynamo.reset()
        compiled = torch.compile(
            lambda kwargs: self.spec.op(**kwargs),
            backend="aot_eager",
            fullgraph=True,
            dynamic=dynamic,
        )
        for a, b in zip(as_tuple(compiled(args)), as_tuple(self.spec.op(**args)), strict=True):
            assert_same(a, b, small_case.name)
        if self.spec.differentiable:
            eager = gradients(self.spec, self.spec.op, args)[1]
            ours = gradients(self.spec, lambda **kwargs: compiled(kwargs), args)[1]
            for a, b in zip(ours, eager, strict=True):
                assert_same(a, b, f"gradient of {small_case.name}")

    @pytest.mark.slow
    @pytest.mark.native
    def test_compile_inductor(self, device: str) -> None:
        if not self.spec.compiles:
            pytest.skip("as many results as the values ask for")
        case = self.spec.select(small=True)[0]
        args = build(case, torch.float32, device=device)
        torch._dynamo.reset()
        compiled = torch.compile(lambda kwargs: self.spec.op(**kwargs), fullgraph=True)
        for a, b in zip(as_tuple(compiled(args)), as_tuple(self.spec.op(**args)), strict=True):
            assert_same(a, b, case.name)

    def test_vmap(self, vmap_case: VmapCase, device: str) -> None:
        args = tuple(a.to(device) for a in vmap_case.make())
        actual = as_tuple(torch.vmap(vmap_case.function, in_dims=vmap_case.in_dims)(*args))
        size = next(
            a.shape[d] for a, d in zip(args, vmap_case.in_dims, strict=True) if d is not None
        )

        def row(i: int) -> tuple[Tensor, ...]:
            parts = zip(args, vmap_case.in_dims, strict=True)
            return as_tuple(
                vmap_case.function(*(a if d is None else a.select(d, i) for a, d in parts))
            )

        rows = [row(i) for i in range(size)]
        for position, tensor in enumerate(actual):
            expected = torch.stack([r[position] for r in rows])
            if self.spec.exact or not expected.is_floating_point():
                assert_same(tensor, expected, vmap_case.name)
            else:
                assert_close(tensor, expected, tensor.dtype, vmap_case.name)

    @pytest.mark.parametrize("autocast_dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_autocast(
        self, small_case: Case, dtype: torch.dtype, autocast_dtype: torch.dtype, device: str
    ) -> None:
        """Autocast changes neither dtype nor value: half inputs are native and need no cast."""
        args = build(small_case, dtype, device=device)
        expected = as_tuple(self.spec.op(**args))
        with torch.autocast(device, autocast_dtype):
            actual = as_tuple(self.spec.op(**args))
        for a, e in zip(actual, expected, strict=True):
            assert_same(a, e, small_case.name)

    @pytest.mark.parametrize("path", ["op", "fake", "reference"])
    def test_error(self, error: ErrorCase, path: str) -> None:
        if path == "fake":
            if error.reads_data or not error.fake:
                pytest.skip("decided by data, or before any tensor is looked at")
            context: Any = FakeTensorMode()
        else:
            if path == "op" and EMULATED and error.reads_data:
                pytest.skip("device kernels cannot raise on data")
            context = contextlib.nullcontext()
        function = self.spec.reference if path == "reference" else self.spec.op
        with context, pytest.raises(error.type) as caught:
            function(**error.make())
        assert type(caught.value) is error.type
        message = str(caught.value)
        assert message == error.message


class DifferentiableOpTests(OpTests):
    """Tests of an operator with a gradient (and so with results of known number and dimensions)."""

    def test_fake_describes_the_result(self, case: Case, layout: str, device: str) -> None:
        args = build(case, torch.float32, layout, device)
        real = as_tuple(self.spec.op(**args))
        mode = FakeTensorMode(shape_env=ShapeEnv() if self.spec.dynamic else None)
        with mode:
            fakes = as_tuple(self.spec.op(**map_tensors(args, lambda n, t: mode.from_tensor(t))))
        for fake, tensor in zip(fakes, real, strict=True):
            assert (fake.dim(), fake.dtype, fake.device) == (
                tensor.dim(),
                tensor.dtype,
                tensor.device,
            )
            for size, known in zip(fake.shape, tensor.shape, strict=True):
                assert size == known if isinstance(size, int) else self.spec.dynamic
            if tensor.numel() > 0 and not self.spec.dynamic:
                assert fake.stride() == tensor.stride()

    def test_gradient(self, case: Case, dtype: torch.dtype, layout: str, device: str) -> None:
        if dtype not in case.gradient_dtypes:
            pytest.skip("the gradient jumps within one rounding")
        args = build(case, dtype, layout, device)
        _, actual, upstream = gradients(self.spec, self.spec.op, args)
        expected = reference_gradients(self.spec, args, upstream)
        for a, e in zip(actual, expected, strict=True):
            assert a.dtype == (e.dtype if self.spec.selects else dtype) or case.keeps
            # A gradient in a wider dtype than the arithmetic is as exact as the arithmetic.
            narrow = a.dtype == torch.float64 != dtype and not self.spec.selects
            assert_close(a, e, torch.float32 if narrow else a.dtype, f"gradient of {case.name}")

    def test_gradient_of_strided_upstream(self, small_case: Case, layout: str, device: str) -> None:
        """The output gradient may have any strides, expanded ones (from .sum()) included."""
        args = build(small_case, torch.float64, device=device)
        leaves = leaves_of(args, self.spec.differentiable)
        results = with_gradient(self.spec.op(**args))
        generator = torch.Generator().manual_seed(1)
        upstream = [
            torch.randn(r.shape, generator=generator, dtype=r.dtype).to(device) for r in results
        ]
        strided = [lay_out(u, layout) for u in upstream]
        plain = torch.autograd.grad(results, leaves, upstream, retain_graph=True)
        laid_out = torch.autograd.grad(results, leaves, strided, retain_graph=True)
        for a, e in zip(laid_out, plain, strict=True):
            assert_same(a, e, small_case.name)
        ones = [torch.ones_like(r) for r in results]
        ones = torch.autograd.grad(results, leaves, ones, retain_graph=True)
        for a, e in zip(torch.autograd.grad([r.sum() for r in results], leaves), ones, strict=True):
            assert_same(a, e, f"{small_case.name}: expanded")

    def test_gradcheck(self, small_case: Case, device: str) -> None:
        args = build(small_case, device=device)
        names = self.spec.differentiable
        tensors = leaves_of(args, names)
        assert torch.autograd.gradcheck(
            lambda *values: with_gradient(self.spec.op(**with_leaves(args, names, values))),
            tensors,
            fast_mode=EMULATED,
        )

    def test_gradgradcheck(self, small_case: Case, device: str) -> None:
        args = build(small_case, device=device)
        names = self.spec.differentiable
        tensors = leaves_of(args, names)

        def function(*values: Tensor) -> tuple[Tensor, ...]:
            return with_gradient(self.spec.op(**with_leaves(args, names, values)))

        if self.spec.second_order(args):
            assert torch.autograd.gradgradcheck(function, tensors, fast_mode=EMULATED)
            return
        results = function(*tensors)
        upstream = [torch.ones_like(r).requires_grad_() for r in results]
        first = torch.autograd.grad(results, tensors, upstream, create_graph=True)
        with pytest.raises(NotImplementedError, match=f"^{self.spec.name}: "):
            torch.autograd.grad([f.sum() for f in first], upstream)
