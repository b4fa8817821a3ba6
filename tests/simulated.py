"""A GPU without hardware: the device `simulated`, whose tensors are computed on the CPU, by a GPU's rules.

    simulated.install()  # once, in a process that does nothing else: PyTorch can't forget a device
    with simulated.device() as log:
        model.to("simulated")(x.to("simulated"))

Tensors of two devices don't mix; autocast casts what CUDA's does, read off PyTorch's header. The log has what waits for a
GPU (a value is fetched, or a shape depends on one), and which of CUDA's kernels each attention is given, by a model of
PyTorch's `sdp_utils.cpp` for an Ampere GPU. What a kernel would refuse, or answer with NaN, is an error.
"""

import collections
import contextlib
import functools
import math
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "simulated"
aten = torch.ops.aten

# Operations that take tensors of several devices, and those that look at nothing but a shape.
MIXED = {aten.copy_.default, aten._to_copy.default, aten.index.Tensor, aten.index_put.default, aten.index_put_.default,
         aten._index_put_impl_.default}  # fmt: skip
CTC = {aten.ctc_loss.Tensor, aten._ctc_loss.Tensor, aten._ctc_loss_backward.Tensor}  # lengths are on the CPU
SHAPES = {aten.expand_as.default, aten.view_as.default, aten.reshape_as.default}
WAITING = {aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default,
           aten._unique2.default, aten.unique_dim.default, aten.repeat_interleave.Tensor}  # fmt: skip


@dataclass
class Log:
    """What a GPU would have done.

    Args:
        waits: (operation, where) -> how often the CPU waited for the GPU.
        kernels: (kernel, where, whether a gradient is needed) -> how many attentions were given it.
    """

    waits: collections.Counter = field(default_factory=collections.Counter)
    kernels: collections.Counter = field(default_factory=collections.Counter)

    def ours(self, of: collections.Counter) -> dict:
        """Those that the package asked for itself."""
        return {key: count for key, count in of.items() if key[1].startswith("espnet_mla/")}


_logs = [Log()]  # the last one is in use


def where() -> str:
    """The innermost line of ESPnet's or of the package."""
    frame = sys._getframe(1)
    while frame is not None:
        if found := re.search(r"/((espnet2|espnet|espnet_mla)/[^/].*\.py)$", frame.f_code.co_filename):
            return f"{found[1]}:{frame.f_lineno}"
        frame = frame.f_back
    return "a test"


class Simulated(torch.Tensor):
    """A tensor of the device; `computed` holds its values."""

    computed: torch.Tensor

    @staticmethod
    def __new__(cls, real: torch.Tensor) -> "Simulated":
        if isinstance(real, Simulated):
            return real
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            real.size(),
            strides=real.stride(),
            storage_offset=real.storage_offset(),
            dtype=real.dtype,
            device=f"{NAME}:0",
        )
        tensor.computed = real
        return tensor

    def data_ptr(self) -> int:
        return self.computed.data_ptr()

    def tolist(self) -> Any:
        _logs[-1].waits["tolist", where()] += 1
        return self.computed.tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError(f"a tensor of {NAME} can't be a NumPy array: use Tensor.cpu() first")

    __array__ = numpy

    def __format__(self, how: str) -> str:
        return format(self.item(), how) if self.dim() == 0 else repr(self)

    def __repr__(self, **_: Any) -> str:
        return f"Simulated({self.computed})"

    @classmethod
    def __torch_dispatch__(cls, op: Any, _: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _dispatch(op, args, kwargs or {})


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, op: Any, _: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _dispatch(op, args, kwargs or {})


def _is_here(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def _dispatch(op: Any, args: tuple, kwargs: dict) -> Any:
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    here = [x for x in tensors if isinstance(x, Simulated)]
    device = kwargs.get("device")
    to_here = isinstance(args[0], Simulated) if op in SHAPES else bool(here) if device is None else _is_here(device)
    if here and op not in MIXED | CTC | SHAPES:
        for other in tensors:
            number = other.dim() == 0 and torch.Tag.pointwise in op.tags
            if not isinstance(other, Simulated) and not number:
                raise RuntimeError(f"{op}: tensors of {NAME} and of {other.device}, {tuple(other.shape)}, don't mix")
    if here and (waiting := _waits(op, args, to_here, device)):
        _logs[-1].waits[waiting, where()] += 1
    wrapped: dict[int, Simulated] = {}

    def unwrap(x: Any) -> Any:
        if isinstance(x, Simulated):
            wrapped[id(x.computed)] = x
            return x.computed
        return torch.device("cpu") if isinstance(x, torch.device) and _is_here(x) else x

    args, kwargs = tree_map(unwrap, args), tree_map(unwrap, kwargs)
    if kwargs.get("pin_memory"):
        kwargs["pin_memory"] = False
    out = op(*args, **kwargs)
    if op in (aten._local_scalar_dense.default, aten.equal.default):
        return out

    def wrap(x: Any) -> Any:
        if isinstance(x, torch.Tensor) and (to_here or id(x) in wrapped):
            return wrapped[id(x)] if id(x) in wrapped else Simulated(x)
        return x

    return tree_map(wrap, out)


def _waits(op: Any, args: tuple, to_here: bool, device: Any) -> str:
    """What the CPU waits for; empty for nothing."""
    if op in WAITING:
        return op.__name__
    fetched = op is aten._to_copy.default and device is not None and not to_here
    if fetched or (op is aten.copy_.default and not isinstance(args[0], Simulated)):
        return "a copy to the CPU"
    if op in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default) and any(
        x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1]
    ):
        return "an index of truth values"
    return ""


def kernel(q: Any, k: Any, v: Any, mask: Any, grouped: bool) -> str:
    """The kernel that CUDA has for an attention: flash, efficient or math.

    Raises:
        RuntimeError: the kernel that PyTorch chooses would refuse the mask.
    """
    half = q.dtype in (torch.float16, torch.bfloat16)
    if q.dim() != 4 or not (q.shape[2] and k.shape[2]) or any(x.stride(-1) != 1 for x in (q, k, v)):
        return "math"
    same_heads, widths = q.shape[1] == k.shape[1] == v.shape[1], {x.shape[-1] for x in (q, k, v)}
    if half and mask is None and (same_heads or grouped) and len(widths) == 1 and max(widths) <= 256:
        return "flash"
    alignment = 8 if half else 4
    if not same_heads or q.shape[-1] != k.shape[-1] or q.shape[-1] % alignment or v.shape[-1] % alignment:
        return "math"
    if mask is None or mask.dtype == torch.bool:
        return "efficient"
    if mask.stride(-1) != 1 or any(stride % 8 for stride in mask.stride()[:-1]):
        return "efficient, after a copy of the mask"
    if mask.storage_offset() % alignment:
        raise RuntimeError("attn_bias_ptr is not correctly aligned")
    return "efficient"


class _Attention(TorchFunctionMode):
    """Attention as CUDA has it: the kernel is noted, and what it would not compute rightly is an error."""

    def __torch_function__(self, function: Callable, _: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.nn.functional.scaled_dot_product_attention and _is_here(args[0].device):
            return _attention(*args, **kwargs)
        return function(*args, **kwargs)


def _attention(
    q: Any, k: Any, v: Any, attn_mask: Any = None, dropout_p: float = 0.0, scale: Any = None, enable_gqa: bool = False
) -> Any:
    mask = attn_mask
    if torch.is_autocast_enabled(NAME):
        dtype = torch.get_autocast_dtype(NAME)
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
        mask = mask.to(dtype) if mask is not None and mask.is_floating_point() else mask
    if not q.dtype == k.dtype == v.dtype or (mask is not None and mask.dtype not in (torch.bool, q.dtype)):
        raise RuntimeError(f"query {q.dtype}, key {k.dtype}, value {v.dtype} and mask {mask and mask.dtype} differ")
    _logs[-1].kernels[kernel(q, k, v, mask, enable_gqa), where(), torch.is_grad_enabled() and q.requires_grad] += 1
    if mask is not None:
        if mask.dtype == torch.bool:
            mask = torch.zeros(mask.shape, dtype=q.dtype, device=mask.device).masked_fill(~mask, -math.inf)
        if bool((mask.computed if isinstance(mask, Simulated) else mask).detach().eq(-math.inf).all(-1).any()):
            raise RuntimeError("a row is fully masked: some kernels answer with NaN")
    with torch.autocast(NAME, enabled=False):
        return aten._scaled_dot_product_attention_math(
            q, k, v, mask, dropout_p, False, None, scale=scale, enable_gqa=enable_gqa
        )[0]


@contextlib.contextmanager
def device() -> Iterator[Log]:
    """Within, `simulated` is a device; gives the log of what it is asked."""
    _logs.append(Log())
    with _Dispatch(), _Attention():
        yield _logs[-1]
    _logs.pop()


class _Module(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]

    def set_device(self, device: Any) -> None: ...

    def synchronize(self, device: Any = None) -> None: ...

    def get_rng_state(self, device: Any = None) -> torch.Tensor:  # random numbers are the CPU's
        return torch.zeros(0)

    def set_rng_state(self, state: Any, device: Any = None) -> None: ...


_libraries: list[torch.library.Library] = []  # what they register lasts as long as they do


def install() -> None:
    """Make the device known to PyTorch."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    torch._C._set_only_lift_cpu_tensors(True)
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # a wrapper can't become another tensor's data
    torch.inference_mode = _without_gradients  # type: ignore[misc,assignment]  # which takes no wrappers
    _libraries.append(torch.library.Library("_", "IMPL"))
    _libraries[-1].fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    _libraries.append(torch.library.Library("aten", "IMPL"))
    for names, cast in _autocast_lists():
        for name in names - {"scaled_dot_product_attention"}:
            packet = getattr(aten, name, None)
            for overload in packet.overloads() if packet else ():
                op = getattr(packet, overload)
                if not any(argument.is_out for argument in op._schema.arguments):
                    full = name if overload == "default" else f"{name}.{overload}"
                    with contextlib.suppress(RuntimeError):  # a name without an operator, as of Python's own overloads
                        _libraries[-1].impl(full, functools.partial(_cast_and_call, op, cast), "AutocastPrivateUse1")


def _without_gradients(mode: Any = True) -> Any:
    if callable(mode):
        return torch.no_grad()(mode)
    return torch.no_grad() if mode else contextlib.nullcontext()


def _autocast_lists() -> Iterator[tuple[set[str], Callable]]:
    """The names of CUDA's three lists, off PyTorch's header, and the type that each casts to."""
    header = (Path(torch.__file__).parent / "include" / "ATen" / "autocast_mode.h").read_text()

    def listed(macro: str) -> set[str]:
        body = re.search(rf"#define {macro}\(_\)((?:.*\\\n)*.*)", header)
        return set(re.findall(r"_\((?:ADD_NS\()?(\w+)", body[1])) if body else set()

    yield listed("AT_FORALL_LOWER_PRECISION_FP"), lambda _: torch.get_autocast_dtype(NAME)
    yield listed("AT_FORALL_FP32") | listed("AT_FORALL_FP32_SET_OPT_DTYPE"), lambda _: torch.float32
    yield listed("AT_FORALL_PROMOTE"), lambda kinds: max(kinds, key=lambda dtype: torch.finfo(dtype).bits)


def _cast_and_call(op: Any, cast: Callable, *args: Any, **kwargs: Any) -> Any:
    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)):
        floats = {x.dtype for x in tree_leaves((args, kwargs)) if _is_cast(x)}
        dtype = cast(floats) if floats else None

        def converted(x: Any) -> Any:
            return x.to(dtype) if _is_cast(x) else x

        return op(*tree_map(converted, args), **tree_map(converted, kwargs))


def _is_cast(x: Any) -> bool:
    """Whether autocast changes it: float64 stays as it is."""
    return isinstance(x, torch.Tensor) and x.is_floating_point() and x.dtype != torch.float64 and _is_here(x.device)
