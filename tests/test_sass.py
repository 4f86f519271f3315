"""The machine code of the CUDA kernels, where it was built and can be read."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import check_sass  # noqa: E402

pytestmark = pytest.mark.native
BUILD = ROOT / os.environ.get("CVKERNELS_BUILD_DIR", "build/kernels")

TEXT = """
code for sm_90a
        Function : wide
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P0 LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;
        /*0020*/                   EXIT ;
        Function : spilled
        /*0000*/                   STL [R1], R4 ;
code for sm_80
        Function : wide
        /*0000*/                   LDG.E R4, [R2.64] ;
"""


def test_machine_code_is_parsed() -> None:
    found = list(check_sass.parse(TEXT))
    assert [(k.name, k.arch) for k in found] == [
        ("wide", "sm_90a"),
        ("spilled", "sm_90a"),
        ("wide", "sm_80"),
    ]
    assert found[0].opcodes == {"LDC", "LDG.E.128.CONSTANT", "EXIT"}
    assert [k.problem for k in found] == [None, "uses local memory", None]


def test_rules_know_their_kernels() -> None:
    def kernel(name: str, *opcodes: str) -> check_sass.Kernel:
        return check_sass.Kernel(name, "sm_90a", frozenset(opcodes))

    name = "void cvk::roi_align_forward_kernel<cvk::half_t, 8, false, true>(cvk::Params)"
    assert kernel(name, "LDG.E").problem == "has no 16-byte load"
    assert kernel(name, "LDG.E.128").problem is None
    for free in (name.replace("8, false", "1, false"), name.replace("8, false", "1, true")):
        assert kernel(free, "LDG.E").problem is None
    with_axis = "void cvk::x_forward_kernel<cvk::Axis<float>, float, 4, false>(cvk::Params)"
    assert kernel(with_axis, "LDG.E").problem == "has no 16-byte load"
    product = "void cvk::x_mma_kernel<float, (cvk::GemmMath)1, cvk::Shape<64, 4> >(cvk::P<float>)"
    assert kernel(product, "FFMA").problem == "has no tensor-core instruction"
    assert kernel(product, "HMMA.1688.F32.TF32", "LDGSTS.E").problem == "has no 16-byte copy"
    assert kernel(product, "HMMA.1688.F32.TF32", "LDGSTS.E.BYPASS.128").problem is None
    assert kernel(product, "DMMA.884", "LDGSTS.E.BYPASS.128").problem is None
    group = (
        "void cvk::x_mma_kernel<T, (cvk::GemmMath)4, cvk::GemmWarpgroupShape<64, 4> >(cvk::P<T>)"
    )
    assert kernel(group, "HMMA.16816.F32", "LDGSTS.E.128").problem == "has no warpgroup instruction"
    assert kernel(group, "HGMMA.64x64x16.F32", "LDGSTS.E.128").problem is None
    elsewhere = check_sass.Kernel(group, "sm_80", frozenset({"BPT.TRAP", "EXIT"}))
    assert elsewhere.problem is None
    empty = check_sass.Kernel(group, "sm_80", frozenset({"EXIT"}))
    assert empty.problem == "is no trap"


@pytest.mark.slow
@pytest.mark.skipif(check_sass.find_tool() is None, reason="cuobjdump is not installed")
@pytest.mark.skipif(shutil.which("c++filt") is None, reason="c++filt is not installed")
@pytest.mark.skipif(not list(BUILD.glob("**/cvk_cuda.dir")), reason="no CUDA build")
def test_channels_last_forward_kernels_load_16_bytes() -> None:
    found = check_sass.kernels(BUILD, check_sass.find_tool() or "")
    assert [f"{k.arch} {k.name}: {k.problem}" for k in found if k.problem] == []
    # A pyramid is pooled by roi_align's kernels; only levels alone have a kernel of their own.
    assert any("multiscale_roi_align_levels_kernel" in k.name for k in found)
    # The kernel of maxima is told by its parameters.
    named = re.compile(r"(?:roi_max_forward_kernel<cvk::)?(\w+?)(?:_forward|Params<)")
    wide = {match[1] for k in found if k.is_wide if (match := named.search(k.name))}
    assert {"RoiPool", "ContextAwareRoiPool"} <= wide
    assert {"deform_roi_pool", "prroi_pool", "roi_align", "roi_align_rotated"} <= wide
    products = {match[1] for k in found if (match := re.search(r"(tapped_\w+)_mma_kernel", k.name))}
    assert products == {"tapped_product", "tapped_weight"}
