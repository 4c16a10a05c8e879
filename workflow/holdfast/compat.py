"""torchvision where its compiled operators do not load. Import this module before torchvision.

Some machines hold a CUDA build of torchvision beside a CPU build of torch; there
``import torchvision`` fails with "operator torchvision::nms does not exist". Declaring the schemas
of the two operators that its Python code registers kernels for lets everything else of it work.
"""

import importlib.util
import pathlib

import torch

_library = None


def _declare_missing_operators():
    global _library
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    compiled = list(pathlib.Path(spec.origin).parent.glob("_C*"))
    for path in compiled:
        try:
            torch.ops.load_library(str(path))
        except OSError:
            continue
    _library = torch.library.Library("torchvision", "FRAGMENT")
    boxes = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    for name, schema in (("nms", boxes), ("qnms", boxes)):
        if not hasattr(torch.ops.torchvision, name):
            _library.define(name + schema)


_declare_missing_operators()


def has_torchvision_nms(device="cpu"):
    """Whether torchvision's own non-maximum suppression can run on a device; a CPU build cannot on CUDA."""
    from torchvision.ops import nms

    try:
        nms(torch.zeros(1, 4, device=device), torch.zeros(1, device=device), 0.5)
    except (NotImplementedError, RuntimeError):
        return False
    return True
