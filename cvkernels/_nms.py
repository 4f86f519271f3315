"""What the modules of the NMS family share: limits, fake sizes, folding of images."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor

from cvkernels import _checks

Result = TypeVar("Result")


def with_autograd(function: Callable[[], Result], device: torch.device) -> Result:
    """Calls ``function`` where autograd records, from inside an operator, where it does not.

    An operator's body runs below autograd, and torch has no public way back up in the same thread;
    a new thread begins at the top. Only backward passes pay for it, about 100 us.
    """
    results: list[Result] = []
    errors: list[BaseException] = []
    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None

    def run() -> None:
        try:
            with torch.cuda.stream(stream), torch.enable_grad():
                results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def limit(op: str, max_output: int | None) -> int:
    """The dispatcher's max_output, where a negative number stands for no limit."""
    if max_output is None:
        return -1
    _checks.limit(op, max_output)
    return max_output


def dynamic_size() -> Any:
    """A size that only data will tell, for fake kernels."""
    return torch.library.get_ctx().new_dynamic_size()


def not_differentiable(operator: str, arguments: int) -> None:
    """Registers that an operator's results, indices, have no gradient."""
    torch.library.register_autograd(
        f"cvkernels::{operator}", lambda ctx, *grads: (None,) * arguments, setup_context=None
    )


def refuse_vmap(operator: str, advice: str) -> None:
    """Registers that an operator cannot be mapped, and what to use instead."""

    @torch.library.register_vmap(f"cvkernels::{operator}")
    def _(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> NoReturn:
        raise NotImplementedError(f"{operator}: expected no vmap, got a mapped call; {advice}")


def fold_vmap(operator: str, tensors: int, function: Callable[..., tuple[Tensor, ...]]) -> None:
    """Registers that a mapped call of a padded operator folds the mapped dimension into B.

    ``tensors`` counts the leading arguments that are tensors [B, ...] or None.
    """

    @torch.library.register_vmap(f"cvkernels::{operator}")
    def _(
        info: Any, in_dims: tuple[int | None, ...], *args: Any
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        size = info.batch_size

        def folded(tensor: Tensor | None, dim: int | None) -> Tensor | None:
            if tensor is None:
                return None
            mapped = (
                tensor.movedim(dim, 0) if dim is not None else tensor.expand(size, *tensor.shape)
            )
            return mapped.flatten(0, 1)

        leading = [folded(args[i], in_dims[i]) for i in range(tensors)]
        results = function(*leading, *args[tensors:])
        return tuple(r.unflatten(0, (size, -1)) for r in results), (0,) * len(results)


def kept_values(values: Tensor, keep: Tensor) -> Tensor:
    """``values`` [B, N] at the kept indices [B, M], 0 where keep is -1."""
    if values.shape[-1] == 0:
        return values.sum(-1, keepdim=True).expand(keep.shape)  # zeros that keep the gradient's way
    return torch.where(keep >= 0, values.gather(-1, keep.clamp(min=0)), 0)


def arithmetic(boxes: Tensor, scores: Tensor) -> torch.dtype:
    """The type in which boxes and scores are computed with."""
    wide = torch.float64 in (boxes.dtype, scores.dtype)
    return torch.float64 if wide else torch.float32


def factor(scores: Tensor, new_scores: Tensor) -> Tensor:
    """What scores were multiplied by; 0 where that cannot be told, for scores of 0 and infinity.

    ``new_scores`` and the result are in the arithmetic type.
    """
    new_scores = new_scores.detach()
    scores = scores.detach().to(new_scores.dtype)
    known = (scores != 0) & new_scores.isfinite()
    return torch.where(known, new_scores / torch.where(known, scores, 1), 0)


def best_first(scores: Tensor, min_score: float, max_output: int | None) -> Tensor:
    """Indices of the scores of at least ``min_score``, descending, ties by index."""
    order = torch.sort(scores.detach(), descending=True, stable=True).indices
    order = order[scores.detach()[order].double() >= min_score]  # as real numbers; not NaN
    return order if max_output is None else order[:max_output]
