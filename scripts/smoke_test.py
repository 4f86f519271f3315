"""Runs both operators, forward and backward, against their references; seconds, any torch >= 2.10.

python scripts/smoke_test.py
"""

from __future__ import annotations

import torch

from cvkernels import _load, ops, reference


def check(device: str) -> None:
    torch.manual_seed(0)
    corner = torch.rand(200, 2) * 60
    boxes = torch.cat([corner, corner + 4 + torch.rand(200, 2) * 20], 1)
    scores = torch.rand(200)
    keep = ops.nms(boxes.to(device), scores.to(device), 0.4).cpu()
    if not torch.equal(keep, reference.nms(boxes, scores, 0.4)):
        raise SystemExit(f"smoke test: nms differs from its reference on {device}")

    rois = torch.cat([torch.arange(200).remainder(2)[:, None].double(), boxes.double()], 1)
    results = []
    for op, where in ((ops.roi_align, device), (reference.roi_align, "cpu")):
        features = torch.randn(2, 8, 40, 40, generator=torch.Generator().manual_seed(1)).double()
        features = features.to(where).requires_grad_()
        out = op(features, rois.to(where), (7, 7), 0.5, 2, True)
        out.square().sum().backward()
        assert features.grad is not None
        results.append([out.detach().cpu(), features.grad.cpu()])
    torch.testing.assert_close(*results)


def main() -> None:
    _load.load()
    loaded = _load.info()["loaded"]
    must_have_cuda = torch.version.cuda is not None and _load.library_path("_cuda").exists()
    if ("_cuda" in loaded) != must_have_cuda:
        raise SystemExit(f"smoke test: CUDA {torch.version.cuda}, but loaded {loaded}")
    check("cpu")
    gpu = "no GPU here"
    if torch.cuda.is_available() and "_cuda" in loaded:
        check("cuda")
        gpu = torch.cuda.get_device_name(0)
    print(
        f"ok: torch {torch.__version__}, CUDA {torch.version.cuda}, loaded {' and '.join(loaded)}, "
        f"ran on the CPU and {gpu}"
    )


if __name__ == "__main__":
    main()
