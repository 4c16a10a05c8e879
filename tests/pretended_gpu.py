"""A GPU that is only pretended, so that a machine without one finds out what a GPU would refuse.

Tensors stay on the CPU and compute there; what is remembered is on which device they are said to be. What
CUDA refuses is refused: operations on tensors of both devices (numbers without dimensions and indices from
the CPU are allowed), NumPy arrays of tensors on the GPU, and random numbers there from the CPU's generators.
Results equal the CPU's, bit for bit: nothing is said of a GPU's arithmetic, its kernels or its memory.
"""

import contextlib

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

GPU = torch.device("cuda", 0)
CPU, CUDA, ANY = "cpu", "cuda", "any"
DEVICE, IS_CUDA = torch.Tensor.device.__get__, torch.Tensor.is_cuda.__get__


class Memory:
    """Where the storages are that are not just on the CPU; held, so that no address is used again.

    CPU, CUDA, or ANY: zeros that autograd puts in the place of a gradient, there as much as here.
    """

    def __init__(self):
        self.places = {}

    def of(self, tensor):
        return self.places.get(tensor.untyped_storage().data_ptr(), (None, CPU))[1]

    def has(self, tensor):
        return self.of(tensor) == CUDA

    def take(self, found, place=CUDA):
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor) and tensor.numel():
                storage = tensor.untyped_storage()
                self.places[storage.data_ptr()] = storage, place
        return found

    def copy(self, tensor, there):
        if not tensor.numel() or self.has(tensor) == there:
            return tensor
        return Copy.apply(tensor, there, self)


class Copy(torch.autograd.Function):
    """A tensor on the other device; its gradient goes back to the first."""

    @staticmethod
    def forward(ctx, tensor, there, memory):
        ctx.there, ctx.memory = there, memory
        with _disable_current_modes():
            copy = tensor.clone()
        return memory.take(copy) if there else copy

    @staticmethod
    def backward(ctx, slope):
        with _disable_current_modes():
            copy = slope.clone()
        return copy if ctx.there else ctx.memory.take(copy), None, None


class Operations(TorchDispatchMode):
    """Refuses what mixes devices; results are where the inputs are."""

    def __init__(self, memory):
        super().__init__()
        self.memory = memory

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        places = {self.memory.of(tensor) for tensor in given if tensor.numel()}
        arrays = {self.memory.of(tensor) for tensor in given if tensor.numel() and tensor.dim()}
        name = operation._schema.name
        if CUDA in places and CPU in arrays and not self._may_mix(name, args):
            where = (f"{tuple(tensor.shape)} on {self.memory.of(tensor)}" for tensor in given)
            raise RuntimeError(f"{name} got tensors of two devices: {', '.join(where)}")
        found = operation(*args, **kwargs)
        if name == "aten::copy_":
            return found
        if CUDA in places:
            return self.memory.take(found)
        in_backward = torch._C._current_graph_task_id() != -1
        if arrays == {ANY} or not given and in_backward:
            return self.memory.take(found, ANY)
        return found

    def _may_mix(self, name, args):
        if name in ("aten::index", "aten::index_put_", "aten::index_put"):
            values = args[2] if len(args) > 2 else args[0]
            return self.memory.has(args[0]) and (self.memory.has(values) or not values.dim())
        return name == "aten::copy_"


class Calls(TorchFunctionMode):
    """Sees to the names of devices in calls, which operations on the CPU must not get to see."""

    def __init__(self, memory):
        super().__init__()
        self.memory = memory

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs, memory = dict(kwargs or {}), self.memory
        first = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if function in (DEVICE, IS_CUDA) and memory.has(first):
            return GPU if function == DEVICE else True
        if function in (torch.Tensor.cpu, torch.Tensor.cuda):
            return memory.copy(first, function == torch.Tensor.cuda)
        if function in (torch.Tensor.numpy, torch.Tensor.__array__) and memory.has(first):
            raise TypeError("a tensor on the GPU is no NumPy array: copy it to the CPU first")
        if function == torch.Tensor.to:
            return self._to(*args, **kwargs)
        there = kwargs.get("device")
        if there is not None:
            kwargs["device"] = "cpu"
            there = torch.device(there).type == "cuda"
        if kwargs.get("generator") is not None and (there or first is not None and memory.has(first)):
            raise RuntimeError("a generator of the CPU draws nothing on the GPU")
        found = function(*args, **kwargs)
        if there or there is None and function == torch.Tensor.new_tensor and memory.has(first):
            return memory.take(found)
        return found

    def _to(self, tensor, *args, device=None, **kwargs):
        for value in args:
            if isinstance(value, (str, torch.device)):
                device = value
            elif isinstance(value, torch.dtype):
                kwargs["dtype"] = value
            elif isinstance(value, torch.Tensor):
                device, kwargs["dtype"] = GPU if self.memory.has(value) else "cpu", value.dtype
        if kwargs:
            tensor = torch.Tensor.to(tensor, **kwargs)
        return tensor if device is None else self.memory.copy(tensor, torch.device(device).type == "cuda")


@contextlib.contextmanager
def pretended_gpu():
    """While it lasts there is a GPU, as far as code can tell that says `.to("cuda")` and the like."""
    memory = Memory()
    with Operations(memory), Calls(memory):
        yield memory
