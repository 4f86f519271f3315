"""Run unmodified torchvision models, and whatever else calls torchvision's operators, on cvkernels.

Usage::

    import cvkernels.compat.torchvision as cvtv

    with cvtv.patched(count=True) as report:
        detector(images)
    print(report)

What is replaced while the patch is in place (it is process-wide, not per thread):

* The dispatcher operators ``torchvision::nms``, ``roi_align``, ``roi_pool``, ``ps_roi_align`` and
  ``ps_roi_pool`` on every device for which cvkernels has a kernel (CPU, and CUDA where the CUDA
  library is loaded). Forward and backward are always replaced together. torchvision's autograd
  formula stays in charge, so double backward remains its business.
* Their autocast rule on those devices. torchvision copies the whole feature map to float32 and the
  result back; the kernels here read half precision and accumulate in float32, so no copy is made.
  The dtype of the result is the same either way: that of the feature map.
* The shape functions of the RoI operators (key ``Meta``), because features and boxes may now differ
  in dtype. Sizes and strides stay torchvision's: the result is always NCHW-contiguous.
* The Python function ``torchvision.ops.batched_nms``: one call that compares class ids exactly, in
  place of a loop over classes or a shift of the coordinates. Modules bind that function by name
  (``from torchvision.ops import batched_nms``), so every module attribute in ``sys.modules`` that
  *is* torchvision's function is rebound, in any package; modules imported later find the
  replacement in torchvision. A reference that is not a module attribute (a closure, a
  ``functools.partial``, a class attribute) keeps torchvision's function, which still reaches
  the replaced ``torchvision::nms`` beneath. On removal, every module attribute that is the
  replacement becomes the original again, and a reference that leaked elsewhere calls the original.
* The Python function beneath ``torchvision.ops.MultiScaleRoIAlign``, in the same way: one launch
  for all levels of a pyramid, in place of a loop that picks, pools and puts back each level's boxes
  and waits for the device at each. Boxes get the levels that torchvision gives them. Maps of
  different dtypes, a level mapper of one's own, a single map and a ``torch.jit`` or ONNX graph
  take torchvision's way, and with it the replaced ``torchvision::roi_align``.

What differs from torchvision, deliberately: half and bfloat16 work on CPU, boxes and scores may
differ in dtype, an out-of-range batch index or a NaN box does not crash the process,
``batched_nms`` is exact for negative coordinates and large class ids, a box with a NaN score is
never kept, ``roi_pool`` sees NaN features as the greatest, ``ps_roi_align`` gives zero for a box
without size (torchvision: NaN), and the gradient of ``ps_roi_pool`` is that of its result at the
rim of the map too. Under autocast torchvision shifts the classes apart in half precision, which
rounds the coordinates; here nothing is shifted, so other boxes may be kept than without the patch.
Bad arguments raise ``RuntimeError``, as torchvision's operators do.

``torch.compile``: a graph holds calls of the dispatcher operators and so follows the patch; a
graph that inlined ``batched_nms`` is recompiled when the function changes. A graph compiled under
the patch *and* under autocast feeds half features to RoI Align, which torchvision refuses on CPU
once the patch is gone: call ``torch.compiler.reset()`` then.
During ``torch.jit`` tracing ``batched_nms`` is torchvision's, so that an exported graph holds no
operator of ours.

Not reached: on CUDA with ``torch.use_deterministic_algorithms(True)`` torchvision's function
``roi_align`` calls no operator but a Python formula of its own, and so never ours.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from cvkernels import _load
from cvkernels.compat import _torchvision_kernels as _kernels
from cvkernels.compat._torchvision_kernels import OPERATORS, Kernel

__all__ = [
    "BATCHED_NMS",
    "MULTISCALE",
    "OPERATORS",
    "Report",
    "counts",
    "install",
    "patched",
    "report",
    "uninstall",
]

#: The names under which the Python functions appear in reports.
BATCHED_NMS = "torchvision.ops.batched_nms"
MULTISCALE = "torchvision.ops.MultiScaleRoIAlign"

OnCall = Callable[[str, tuple[Any, ...]], None]
_Library: Any = torch.library.Library  # Its methods carry no types.

# Device key -> the libraries (cvkernels._load) any of which brings kernels for it.
_DEVICE_KEYS = {"CPU": ("_C", "_emulated"), "CUDA": ("_cuda",)}
_OURS = __name__.rpartition(".")[0] + "."  # modules that hold torchvision's functions to call them
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


# -------------------------------------------------------------------------------------------------
# Reports
# -------------------------------------------------------------------------------------------------


@dataclass
class Report:
    """What one ``install()`` or ``patched()`` replaced, and how often it was called.

    Attributes:
        operators: replaced operator -> the dispatch keys it was replaced for (``("Python",)`` for
            a Python function). Empty when nothing is replaced.
        names: the module attributes that were rebound, as ``"module.attribute"``, sorted.
        skipped: what was left to torchvision -> why.
        counting: whether calls are counted.
    """

    operators: dict[str, tuple[str, ...]] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    skipped: dict[str, str] = field(default_factory=dict)
    counting: bool = False
    _on_call: OnCall | None = field(default=None, repr=False)
    _start: dict[str, int] = field(default_factory=dict, repr=False)
    _final: dict[str, int] | None = field(default=None, repr=False)

    @property
    def counts(self) -> dict[str, int]:
        """Calls of each replaced operator while this report was being counted.

        Raises:
            RuntimeError: if counting was not asked for (``count=True``).
        """
        if not self.counting:
            raise RuntimeError(
                "cvkernels.compat.torchvision: calls were not counted; "
                "ask for it with install(count=True) or patched(count=True)"
            )
        if self._final is not None:
            return dict(self._final)
        with _counter_lock:
            return {name: _calls[name] - self._start.get(name, 0) for name in self.operators}

    def __str__(self) -> str:
        if not self.operators:
            return "cvkernels.compat.torchvision: nothing is replaced"
        calls = self.counts if self.counting else {}
        width = max(map(len, self.operators))
        lines = ["cvkernels.compat.torchvision replaces"]
        for name, keys in self.operators.items():
            line = f"  {name:<{width}}  {' '.join(keys)}"
            if self.counting:
                line += f"  ({calls[name]} call{'' if calls[name] == 1 else 's'})"
            lines.append(line)
        lines += [f"  rebound {name}" for name in self.names]
        lines += [f"  left {name}: {reason}" for name, reason in self.skipped.items()]
        return "\n".join(lines)


# -------------------------------------------------------------------------------------------------
# The replacement of batched_nms
# -------------------------------------------------------------------------------------------------


# TorchScript compiles the first branch of these two and does not look at the second.
def _batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        keep: Tensor = torch.ops.cvkernels.nms(
            boxes, scores, idxs, iou_threshold, -1, "iou", 1.0, None
        )
        return keep
    else:  # noqa: RET505
        return _batched_nms_eager(boxes, scores, idxs, iou_threshold)


def _batched_nms_counted(
    boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float
) -> Tensor:
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        keep: Tensor = torch.ops.cvkernels.nms(
            boxes, scores, idxs, iou_threshold, -1, "iou", 1.0, None
        )
        return keep
    else:  # noqa: RET505
        if _state.active and not torch.compiler.is_compiling():
            _record(BATCHED_NMS, (boxes, scores, idxs, iou_threshold))
        return _batched_nms_eager(boxes, scores, idxs, iou_threshold)


def _batched_nms_eager(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    keep: Tensor
    if (
        not _state.active  # A reference that outlived the patch.
        or boxes.device.type not in _state.devices
        or boxes.dim() != 2  # torchvision takes an empty tensor of any rank.
        or torch._C._get_tracing_state() is not None  # torch.jit.is_tracing(), without the detour
    ):
        keep = _state.originals[BATCHED_NMS](boxes, scores, idxs, iou_threshold)
        return keep
    if idxs.dtype not in _INTEGERS:
        # torchvision takes any dtype. Equal numbers have equal bits once -0.0 has become 0.0.
        idxs = (idxs.double() + 0.0).view(torch.int64)
    nms = torch.ops.cvkernels.nms.default
    if torch.compiler.is_compiling():
        keep = nms(boxes, scores, idxs, iou_threshold, -1, "iou", 1.0, None)
        return keep
    try:
        keep = nms(boxes, scores, idxs, iou_threshold, -1, "iou", 1.0, None)
    except ValueError as error:
        raise RuntimeError(str(error)) from error
    return keep


# -------------------------------------------------------------------------------------------------
# Counting and listening
# -------------------------------------------------------------------------------------------------

_counter_lock = threading.Lock()  # Autograd runs backward passes in threads of its own.
_calls: dict[str, int] = dict.fromkeys([*OPERATORS, BATCHED_NMS, MULTISCALE], 0)


def _record(name: str, arguments: tuple[Any, ...]) -> None:
    with _counter_lock:
        _calls[name] += 1
    for on_call in _state.listeners:
        on_call(name, arguments)


def _counted(name: str, kernel: Kernel) -> Kernel:
    def counting_kernel(*arguments: Any) -> Any:
        _record(name, arguments)
        return kernel(*arguments)

    return counting_kernel


# -------------------------------------------------------------------------------------------------
# State
# -------------------------------------------------------------------------------------------------


class _State:
    """Who asked for the patch, and what is in place because of it. Guarded by ``_lock``."""

    def __init__(self) -> None:
        self.installed: Report | None = None  # by install()
        self.contexts: list[Report] = []  # by patched(), innermost of each thread last
        self.library: Any = None
        self.counting = False
        self.listeners: tuple[OnCall, ...] = ()
        self.active = False
        self.devices: frozenset[str] = frozenset()
        self.originals: dict[str, Any] = {}  # Python functions by their name in reports
        self.replacements: dict[str, Any] = {}
        self.operators: dict[str, tuple[str, ...]] = {}
        self.names: tuple[str, ...] = ()
        self.skipped: dict[str, str] = {}


_lock = threading.RLock()
_state = _State()


def _import_torchvision() -> ModuleType:
    """torchvision, checked to be one whose operators this module knows."""
    try:
        torchvision = importlib.import_module("torchvision")
        boxes = importlib.import_module("torchvision.ops.boxes")
        has_operators = importlib.import_module("torchvision.extension")._has_ops()
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "torchvision":
            raise
        raise ImportError(
            "cvkernels.compat.torchvision needs torchvision, which is not installed: "
            f"pip install torchvision (the release that goes with torch {torch.__version__})"
        ) from error
    except (RuntimeError, OSError) as error:
        raise ImportError(
            "cvkernels.compat.torchvision: torchvision is installed but cannot be imported "
            f"({error}); install the release that goes with torch {torch.__version__}"
        ) from error
    version = getattr(torchvision, "__version__", "of unknown version")
    if not has_operators:
        raise ImportError(
            f"cvkernels.compat.torchvision: torchvision {version} could not load its operators; "
            f"install the release that goes with torch {torch.__version__}"
        )
    for name, expected in OPERATORS.items():
        try:
            schema = torch._C._get_schema(name, "")
        except RuntimeError as error:
            raise ImportError(
                f"cvkernels.compat.torchvision: torchvision {version} is not supported: "
                f"it has no operator {name}"
            ) from error
        actual = str(schema).removeprefix(name)
        if actual != expected:
            raise ImportError(
                f"cvkernels.compat.torchvision: torchvision {version} is not supported: "
                f"expected {name}{expected}, got {name}{actual}"
            )
    poolers = importlib.import_module("torchvision.ops.poolers")
    for module, function in ((boxes, "batched_nms"), (poolers, "_multiscale_roi_align")):
        if not callable(getattr(module, function, None)):
            raise ImportError(
                f"cvkernels.compat.torchvision: torchvision {version} is not supported: "
                f"it has no function {module.__name__}.{function}"
            )
    return boxes


def _rebind(old: Any, new: Any) -> tuple[str, ...]:
    """Point every module attribute that is ``old`` at ``new``; returns their dotted names."""
    names = []
    for module_name, module in list(sys.modules.items()):
        if not isinstance(module, ModuleType) or module_name.startswith(_OURS):
            continue
        namespace = vars(module)  # Not getattr: a lazy module must not be made to load.
        for attribute, value in list(namespace.items()):
            if value is old:
                namespace[attribute] = new
                names.append(f"{module_name}.{attribute}")
    return tuple(sorted(names))


def _register(counting: bool) -> None:
    """Put the kernels in place, in front of those of an earlier call, and drop the earlier ones."""
    operators: dict[str, list[str]] = {name: [] for name in OPERATORS}
    skipped: dict[str, str] = {}
    devices = []
    library = _Library("torchvision", "IMPL")

    def replace(name: str, kernel: Kernel, key: str) -> None:
        library.impl(name, kernel, key, allow_override=True)
        operators[name].append(key)

    try:
        for device_key, libraries in _DEVICE_KEYS.items():
            if not set(libraries) & set(_load._loaded):
                skipped[device_key] = f"{' or '.join(libraries)} is not loaded"
                continue
            devices.append(device_key.lower())
            for name, kernel in _kernels.of_device(device_key).items():
                replace(name, _counted(name, kernel) if counting else kernel, device_key)
            for name in _kernels.AUTOCAST:
                replace(name, torch.library.fallthrough_kernel, f"Autocast{device_key}")
        for name, kernel in _kernels.META.items():
            replace(name, kernel, "Meta")
    except BaseException:
        library._destroy()
        raise
    previous, _state.library = _state.library, library
    if previous is not None:
        previous._destroy()
    _state.devices = frozenset(devices)
    _state.operators = {name: tuple(keys) for name, keys in operators.items()}
    _state.operators |= dict.fromkeys((BATCHED_NMS, MULTISCALE), ("Python",))
    _state.skipped = skipped


def _apply() -> None:
    """Bring what is in place in line with who asks for it. The caller holds ``_lock``."""
    requests = [*_state.contexts, *([_state.installed] if _state.installed is not None else [])]
    counting = any(request.counting for request in requests)
    listeners = tuple(request._on_call for request in requests if request._on_call)
    if not requests:
        if not _state.active:
            return
        _state.active, _state.listeners = False, ()
        for name, original in _state.originals.items():
            _rebind(_state.replacements[name], original)
        if _state.library is not None:
            _state.library._destroy()
        _state.library = None
        _state.operators, _state.names, _state.skipped = {}, (), {}
        return
    if _state.active and counting == _state.counting:
        _state.listeners = listeners
        return
    boxes = _import_torchvision()
    importlib.import_module("cvkernels.ops")  # Load the kernels, register the fakes.
    _load.load()
    poolers = importlib.import_module("cvkernels.compat._torchvision_poolers")
    with warnings.catch_warnings():
        # Older torch warns, once a process, that a kernel is being overridden. That is the point.
        warnings.filterwarnings("ignore", message="(?s).*Overriding a previously registered kernel")
        _register(counting)
    if not _state.active:
        _state.originals = {BATCHED_NMS: boxes.batched_nms, MULTISCALE: poolers.original}
        current = _state.originals
    else:
        current = _state.replacements
    _state.counting, _state.listeners = counting, listeners
    _state.replacements = {
        BATCHED_NMS: _batched_nms_counted if counting else _batched_nms,
        MULTISCALE: poolers.replacement,
    }
    _state.active = True
    names = [_rebind(old, _state.replacements[name]) for name, old in current.items()]
    _state.names = tuple(sorted(name for some in names for name in some))


def _fill(report: Report) -> Report:
    report.operators = dict(_state.operators)
    report.names = _state.names
    report.skipped = dict(_state.skipped)
    with _counter_lock:
        report._start = dict(_calls)
    return report


def _finish(report: Report) -> None:
    if report.counting:
        report._final = report.counts


# -------------------------------------------------------------------------------------------------
# Public functions
# -------------------------------------------------------------------------------------------------


def install(*, count: bool = False) -> Report:
    """Replace torchvision's operators until ``uninstall()``. Calling it again changes nothing.

    Args:
        count: count the calls of each operator (a lock and an addition a call). If the operators
            are installed already without counting, counting starts now.

    Returns:
        The report of the installation; ``print(report)`` lists what was replaced.

    Raises:
        ImportError: torchvision is missing, broken, or of an unsupported version.

    Example:
        >>> import cvkernels.compat.torchvision as cvtv  # doctest: +SKIP
        >>> print(cvtv.install())  # doctest: +SKIP
    """
    with _lock:
        if _state.installed is not None and (_state.installed.counting or not count):
            return _state.installed
        previous = _state.installed
        _state.installed = Report(counting=count)
        try:
            _apply()
        except BaseException:
            _state.installed = previous
            raise
        return _fill(_state.installed)


def uninstall() -> None:
    """Undo ``install()``. Without one it does nothing.

    Inside ``with patched()`` the operators stay replaced until that block ends. Do not call it
    while another thread is inside one of the operators.
    """
    with _lock:
        if _state.installed is not None:
            _finish(_state.installed)
            _state.installed = None
            _apply()


@contextlib.contextmanager
def patched(*, count: bool = False, on_call: OnCall | None = None) -> Iterator[Report]:
    """Replace torchvision's operators inside a ``with`` block (or a decorated function).

    Blocks nest, within each other and within ``install()``; what was in place before is in place
    after, also when the block raises. The patch is process-wide: other threads see it too.

    Args:
        count: count the calls of each operator.
        on_call: called before each call with the operator's name and the tuple of its arguments;
            it must not keep the tensors unless it copies them. Turns counting on.

    Yields:
        The report; ``report.counts`` stays readable after the block.

    Raises:
        ImportError: torchvision is missing, broken, or of an unsupported version.
    """
    report = Report(counting=count or on_call is not None, _on_call=on_call)
    with _lock:
        _state.contexts.append(report)
        try:
            _apply()
        except BaseException:
            _state.contexts.pop()
            raise
        _fill(report)
    try:
        yield report
    finally:
        with _lock:
            _finish(report)
            _state.contexts = [other for other in _state.contexts if other is not report]
            _apply()


def report() -> Report:
    """What is replaced now: the innermost active report, or an empty one."""
    with _lock:
        if _state.contexts:
            return _state.contexts[-1]
        return _state.installed if _state.installed is not None else Report()


def counts() -> dict[str, int]:
    """``report().counts``: calls of each replaced operator so far.

    Raises:
        RuntimeError: if counting was not asked for.
    """
    return report().counts
