"""The conv2d reference against numbers worked by hand and against convolution by FFT."""

from __future__ import annotations

import pytest
import torch
from harness import assert_close, assert_same
from torch import Tensor

from cvkernels.reference import conv2d

pytestmark = pytest.mark.native  # no kernel runs here


def t(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_one_output_by_hand() -> None:
    # 1*10 + 2*20 + 3*30 + 4*40 = 300, and the bias.
    out = conv2d(t([[[[1, 2], [3, 4]]]]), t([[[[10, 20], [30, 40]]]]), t([5]))
    assert_same(out, t([[[[305]]]]))


def test_the_kernel_is_not_flipped() -> None:
    row = t([[[[1, 2, 3, 4]]]])
    # 1*1 + 2*10, 2*1 + 3*10, 3*1 + 4*10
    assert conv2d(row, t([[[[1, 10]]]])).flatten().tolist() == [21, 32, 43]


def test_stride_padding_dilation() -> None:
    row, ones = t([[[[1, 2, 3, 4, 5]]]]), t([[[[1, 1]]]])
    assert conv2d(row, ones, stride=2).flatten().tolist() == [3, 7]
    assert conv2d(row, ones, stride=(1, 3)).flatten().tolist() == [3, 9]
    # Rows of zeros above and below: 3 rows, only the middle one sees the map.
    out = conv2d(row, ones, padding=1)
    assert out[0, 0].tolist() == [[0] * 6, [1, 3, 5, 7, 9, 5], [0] * 6]
    # Taps two apart: 1 + 3, 2 + 4, 3 + 5.
    assert conv2d(row, ones, dilation=2).flatten().tolist() == [4, 6, 8]


def test_same_and_valid() -> None:
    row = t([[[[1, 2, 3, 4]]]])
    # An even kernel pads one more on the right: 1+2, 2+3, 3+4, 4+0.
    assert conv2d(row, t([[[[1, 1]]]]), padding="same").flatten().tolist() == [3, 5, 7, 4]
    assert conv2d(row, t([[[[1, 1, 1]]]]), padding="same").flatten().tolist() == [3, 6, 9, 7]
    # Dilated by 2, three taps: two zeros on each side.
    out = conv2d(row, t([[[[1, 10, 100]]]]), padding="same", dilation=2)
    assert out.flatten().tolist() == [310, 420, 31, 42]
    assert conv2d(row, t([[[[1, 1]]]]), padding="valid").flatten().tolist() == [3, 5, 7]


def test_channels_and_groups() -> None:
    pixel = t([1, 10, 100, 1000]).reshape(1, 4, 1, 1)
    weight = t([[1, 2, 3, 4], [0, 1, 0, 1]]).reshape(2, 4, 1, 1)
    assert conv2d(pixel, weight).flatten().tolist() == [4321, 1010]
    # Two groups: channels 0, 1 to the first filter, 2, 3 to the second.
    weight = t([[1, 2], [3, 4]]).reshape(2, 2, 1, 1)
    assert conv2d(pixel, weight, groups=2).flatten().tolist() == [21, 4300]
    # Depthwise.
    weight = t([2, 3, 4, 5]).reshape(4, 1, 1, 1)
    assert conv2d(pixel, weight, groups=4).flatten().tolist() == [2, 30, 400, 5000]


def test_activations() -> None:
    x, one = t([-1, 0, 2]).reshape(1, 1, 1, 3), t([[[[1]]]])

    def act(name: str) -> list[float]:
        return [round(v, 6) for v in conv2d(x, one, activation=name).flatten().tolist()]

    assert act("relu") == [0, 0, 2]
    # sigmoid(-1) = 0.268941, sigmoid(2) = 0.880797
    assert act("silu") == [-0.268941, 0, 1.761594]
    # Phi(-1) = 0.158655, Phi(2) = 0.977250
    assert act("gelu") == [-0.158655, 0, 1.9545]
    assert act("gelu_tanh") == [-0.158808, 0, 1.954598]


def test_gradients_by_hand() -> None:
    x = t([[[[1, 2, 3]]]]).requires_grad_()
    w = t([[[[10, 100]]]]).requires_grad_()
    b = t([0]).requires_grad_()
    conv2d(x, w, b).backward(t([[[[1, 2]]]]))
    assert x.grad.flatten().tolist() == [10, 120, 200]
    assert w.grad.flatten().tolist() == [1 * 1 + 2 * 2, 1 * 2 + 2 * 3]
    assert b.grad.tolist() == [3]


def test_unbatched_and_empty() -> None:
    x = torch.randn(3, 5, 4, dtype=torch.float64)
    w = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    assert_same(conv2d(x, w), conv2d(x[None], w)[0])
    assert conv2d(x[None][:0], w).shape == (0, 2, 4, 3)
    assert conv2d(x[None, :0], w[:, :0], t([1, 2])).sum() == 4 * 3 * 3


@pytest.mark.parametrize("seed", range(3))
def test_against_the_fft(seed: int) -> None:
    """Correlation is a product with a conjugate in the frequency domain."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 3, 9, 11, generator=generator, dtype=torch.float64)
    w = torch.randn(4, 3, 3, 5, generator=generator, dtype=torch.float64)
    size = (9 + 2, 11 + 4)
    spectrum = torch.fft.rfft2(w, size).conj()[None] * torch.fft.rfft2(x, size)[:, None]
    full = torch.fft.irfft2(spectrum.sum(2), size)
    assert_close(conv2d(x, w), full[:, :, :7, :7], torch.float64)
