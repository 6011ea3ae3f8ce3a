"""A GPU that is not there: finds tensors on the wrong device, and waits for the device, on a machine without one.

Tensors on it are those of torch's FakeTensorMode: they say that they lie on "cuda", code takes its branches for a GPU,
and torch refuses operations whose tensors lie on different devices. Beside each of them the same values are computed on
the CPU, so that code that reads one gets the true number, and whole trainings run. Every such read is noted: on a GPU
the host would wait there until all that it has asked for is computed.

Not seen are the speed, the memory, the rounding and the kernels of a GPU, and waits inside of kernels.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

# Private names of torch, which may move. All others are public.
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, UnsupportedOperatorException
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

_CPU, _CUDA = torch.device("cpu"), torch.device("cuda", 0)

# Operations whose results, or the shapes of these, depend on values that the host has to know.
_READING_TAGS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
_READING_OPERATIONS = {"torchvision::nms", "aten::bincount", "aten::masked_select", "aten::equal"}
_COPIES = {"aten::_to_copy", "aten::copy_", "aten::copy"}
_BY_INDEX = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}


class _Fakes(FakeTensorMode):
    avoid_device_init = True  # although torch is told that there is a GPU


class PretendGpu(TorchDispatchMode):
    """Computes on pretended CUDA tensors in its context.

    `waits` counts the waits of the host by their place: "MODULE.FUNCTION: OPERATION".
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self._fakes = _Fakes(allow_fallback_kernels=False)

    def __enter__(self) -> "PretendGpu":
        self._fakes.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._fakes.__exit__(*exception)

    def take_waits(self) -> dict[str, int]:
        """Returns the waits so far by place, and forgets them."""
        taken = dict(self.waits)
        self.waits.clear()
        return taken

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:
            return func(*args, **kwargs)
        name = func._schema.name

        given = tree_flatten((args, kwargs))[0]
        devices = {one for one in given if isinstance(one, torch.device)}
        if not any(isinstance(one, FakeTensor) for one in given) and not any(d.type == "cuda" for d in devices):
            with _disable_current_modes():
                return func(*args, **kwargs)

        if self._is_wait(func, name, args, kwargs):
            self.waits[f"{_place()}: {name.removeprefix('aten::')}"] += 1
        _check_devices(name, args)
        # First the fake ones: they refuse other devices.
        reads = func.tags and not _READING_TAGS.isdisjoint(func.tags) and _reads_values(name, args)
        reads = reads or name in _READING_OPERATIONS
        fake = None if reads else self._fake_result(func, args, kwargs)
        with _disable_current_modes(), torch.no_grad():
            real = func(*tree_map(_real, args), **tree_map(_real, kwargs))
        return tree_map(self._fake_of, real) if reads else _with_values(fake, real)

    def _is_wait(self, func: Any, name: str, args: Any, kwargs: Any) -> bool:
        if name in _COPIES:
            source = args[1] if name == "aten::copy_" else args[0]
            target = args[0].device if name == "aten::copy_" else kwargs.get("device") or source.device
            if source.device.type == target.type:
                return False
            is_asked = kwargs.get("non_blocking") or (name == "aten::copy_" and len(args) > 2 and args[2])
            return not (is_asked and target.type == "cuda" and getattr(source, "is_in_pinned_memory", False))
        if name in _BY_INDEX:
            indices = [index for index in args[1] if index is not None]
            return any(index.dtype in (torch.bool, torch.uint8) or index.device.type == "cpu" for index in indices)
        return name in _READING_OPERATIONS or not _READING_TAGS.isdisjoint(func.tags)

    def _fake_result(self, func: Any, args: Any, kwargs: Any) -> Any:
        args, kwargs = tree_map(self._fake_of_cpu, (args, kwargs))
        try:
            return func(*args, **kwargs)
        except UnsupportedOperatorException:  # torch's fused optimizers, which change tensors in place
            devices = {one.device for one in tree_flatten((args, kwargs))[0] if isinstance(one, Tensor)}
            if func._schema.returns or devices != {_CUDA}:
                raise RuntimeError(f"{func} of tensors on {devices}, at least two devices") from None
            return None

    def _fake_of_cpu(self, argument: Any) -> Any:
        """Returns a fake tensor on the CPU in the place of a real one."""
        if not isinstance(argument, Tensor) or isinstance(argument, FakeTensor):
            return argument
        with self._fakes:
            return torch.empty_strided(argument.shape, argument.stride(), dtype=argument.dtype)

    def _fake_of(self, real: Any) -> Any:
        """Returns a tensor on the GPU with the values of one on the CPU; anything else as it is."""
        if not isinstance(real, Tensor):
            return real
        with self._fakes:
            fake = torch.empty_strided(real.shape, real.stride(), dtype=real.dtype, device=_CUDA)
        return _with_values(fake, real)


def _reads_values(name: str, args: Any) -> bool:
    """Whether an operation with one of _READING_TAGS reads values: one by index does so for masks only."""
    return name not in _BY_INDEX or any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])


def _check_devices(name: str, args: Any) -> None:
    """Raises for tensors on two devices where torch's fake operations do not look at them."""
    devices = {one.device.type for one in tree_flatten(args)[0] if isinstance(one, Tensor)}
    is_indexed_by_gpu = name in _BY_INDEX and args[0].device.type == "cpu"
    if len(devices) > 1 and (name in _READING_OPERATIONS or is_indexed_by_gpu):
        raise RuntimeError(f"{name}: tensors on at least two devices, {devices}")


def _real(value: Any) -> Any:
    """Returns an argument of the same operation on the CPU."""
    if isinstance(value, FakeTensor):
        return value.true_values
    return _CPU if isinstance(value, torch.device) else value


def _with_values(fake: Any, real: Any) -> Any:
    """Returns results of an operation: those on the GPU know their values, those on the CPU are the values."""
    fakes, structure = tree_flatten(fake)
    results = []
    for one, values in zip(fakes, tree_flatten(real)[0], strict=True):
        on_gpu = isinstance(one, FakeTensor) and one.device.type == "cuda"
        if on_gpu:
            one.true_values = _as_strided_like(values, one)
        results.append(one if on_gpu else values)
    return tree_unflatten(results, structure)


def _as_strided_like(values: Tensor, fake: Tensor) -> Tensor:
    """Returns values in the memory format of the GPU's result. The CPU's result may be in another one."""
    if values.stride() == fake.stride():
        return values
    with _disable_current_modes():
        return torch.empty_strided(fake.shape, fake.stride(), dtype=values.dtype).copy_(values)


def _place() -> str:
    """Returns the name of the innermost function that is neither torch's nor of this file."""
    frame = sys._getframe(1)
    while frame.f_globals["__name__"].partition(".")[0] in ("torch", __name__, "contextlib"):
        frame = frame.f_back  # type: ignore[assignment]
    return f"{frame.f_globals['__name__']}.{frame.f_code.co_qualname.partition('.<locals>')[0]}"


# The backward pass. That of torch asks the driver for the streams of the GPU.


def _backward(
    outputs: Sequence[Tensor], gradients: Sequence[Tensor], inputs: Sequence[Tensor] | None
) -> list[Tensor | None]:
    """Computes gradients as torch does: returns those of `inputs`, or without them adds them to the leaves."""
    given: dict[Any, dict[int, Tensor]] = {}
    for output, gradient in zip(outputs, gradients, strict=True):
        _add(given, get_gradient_edge(output), gradient)
    edges = [get_gradient_edge(one) for one in inputs or ()]
    found: list[Tensor | None] = [None] * len(edges)

    with torch.no_grad():
        for node in _from_outputs_on([edge.node for edge in map(get_gradient_edge, outputs)]):
            values = given.pop(node, {})
            values = {place: _fitting(one, node._input_metadata[place]) for place, one in values.items()}
            for i, edge in enumerate(edges):
                if edge.node is node:
                    found[i] = values.get(edge.output_nr)
            is_leaf = not node.next_functions
            if not values or (is_leaf and inputs is not None):
                continue
            call = node.apply if isinstance(node, torch.autograd.function.BackwardCFunction) else node
            results = call(*(values.get(place) for place in range(len(node._input_metadata))))
            results = results if isinstance(results, tuple) else (results,)
            for (next_node, place), one in zip(node.next_functions, results, strict=False):
                if next_node is not None and one is not None:
                    _add(given, GradientEdge(next_node, place), one)
    return found


def _from_outputs_on(roots: list[Any]) -> list[Any]:
    """Returns the nodes of a graph, each before those that it gives gradients to."""
    order, seen, stack = [], set(), [(root, False) for root in roots]
    while stack:
        node, is_done = stack.pop()
        if is_done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(following, False) for following, _ in node.next_functions if following is not None]
    return order[::-1]


def _add(given: dict[Any, dict[int, Tensor]], edge: GradientEdge, gradient: Tensor) -> None:
    values = given.setdefault(edge.node, {})
    before = values.get(edge.output_nr)
    values[edge.output_nr] = gradient if before is None else before + gradient


def _fitting(gradient: Tensor, metadata: Any) -> Tensor:
    """Sums a gradient over the axes that were broadcast, and gives it the dtype of its tensor."""
    if gradient.shape != metadata.shape:
        gradient = gradient.sum_to_size(metadata.shape)
    return gradient.to(metadata.dtype)


def _backward_of_torch(tensors: Any, grad_tensors: Any = None, *_: Any, **__: Any) -> None:
    outputs = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    gradients = [torch.ones_like(one) for one in outputs]
    assert grad_tensors is None or grad_tensors == (None,)
    _backward(outputs, gradients, None)


def _grad_of_torch(outputs: Any, inputs: Any, *_: Any, **__: Any) -> tuple[Tensor | None, ...]:
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    return tuple(_backward(outputs, [torch.ones_like(one) for one in outputs], list(inputs)))


def _pin_memory(tensor: Tensor, *_: Any) -> Tensor:
    """Returns a tensor from which copies to the GPU do not wait, if they are asked not to."""
    pinned = tensor.clone()
    pinned.is_in_pinned_memory = True  # type: ignore[attr-defined]
    return pinned


def _tolist(tensor: Tensor) -> Any:
    """Returns the values of a tensor in one copy, and not one by one, as FakeTensor's own would."""
    return tensor.cpu().tolist()


def _apply(module: nn.Module, function: Any, recurse: bool = True) -> nn.Module:
    """Moves a module as torch does, but to new parameters: torch cannot make a fake one of a real one in place."""
    for child in module.children():
        child._apply(function)
    with torch.no_grad():
        for name, parameter in module._parameters.items():
            if parameter is not None and (moved := function(parameter)) is not parameter:
                module._parameters[name] = nn.Parameter(moved, parameter.requires_grad)
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else function(buffer)
    return module


@contextmanager
def pretended_gpu() -> Iterator[PretendGpu]:
    """Makes the machine one with a pretended GPU."""
    save = torch.save
    with pytest.MonkeyPatch.context() as patch, PretendGpu() as gpu:
        for name, answer in {
            "is_available": True,
            "is_bf16_supported": True,
            "device_count": 1,
            "current_device": 0,
            "get_device_capability": (9, 0),
            "get_device_name": "a pretended GPU",
            "set_device": None,
            "_lazy_init": None,
        }.items():
            patch.setattr(torch.cuda, name, lambda *_, _answer=answer, **__: _answer)
        patch.setattr(torch.accelerator, "is_available", lambda: True)
        patch.setattr(fake_tensor, "init_gpu_context", lambda _: None, raising=False)
        patch.setattr(torch.autograd, "backward", _backward_of_torch)
        patch.setattr(torch.autograd, "grad", _grad_of_torch)
        patch.setattr(nn.Module, "_apply", _apply)
        patch.setattr(Tensor, "pin_memory", _pin_memory)
        patch.setattr(FakeTensor, "tolist", _tolist)
        # Saving waits, too; it is not counted.
        patch.setattr(torch, "save", lambda content, *args, **kwargs: save(tree_map(_real, content), *args, **kwargs))
        yield gpu
