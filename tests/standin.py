"""A device that is not there: its tensors live on the CPU, refuse to mix with those of the CPU, and
count what a GPU would be asked: launches, and times that the processor waits."""

from collections import Counter
from contextlib import nullcontext

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

NAME = 'standin'
FREE = set(
    """
    view _unsafe_view _reshape_alias t transpose permute expand detach alias slice select unbind
    split split_with_sizes unsqueeze squeeze as_strided view_as diagonal unfold set_ lift_fresh
    empty new_empty empty_like empty_strided resize_
    """.split()
)  # nothing is computed
WAITS = set('_local_scalar_dense nonzero masked_select equal is_nonzero unique2 _unique2'.split())
launches, waits = Counter(), Counter()
_raw, _alive = {}, []


class _Module(_DummyBackendModule):
    "What PyTorch asks of a kind of device."

    def get_amp_supported_dtype(self):
        return [torch.bfloat16]

    def get_rng_state(self, device=None):
        return torch.get_rng_state()

    def set_rng_state(self, state, device=None):
        pass

    def device(self, index):
        return nullcontext()


def _far(raw):
    "A tensor of the device, with its numbers on the CPU."
    raw = raw.contiguous()
    t = torch._C._acc.create_empty_tensor(raw.shape, raw.dtype)
    storage = t.untyped_storage()
    _raw[storage._cdata] = raw
    _alive.append((storage._cdata, StorageWeakRef(storage)))
    if len(_alive) > 2000: _forget()
    return t


def _forget():
    "Let go of tensors that nobody holds."
    _alive[:] = [(key, ref) for key, ref in _alive if not ref.expired()]
    held = {key for key, _ in _alive}
    for key in [key for key in _raw if key not in held]: del _raw[key]


def _near(t):
    if isinstance(t, torch.device): return torch.device('cpu')
    if not isinstance(t, torch.Tensor) or t.device.type != NAME: return t
    return _raw[t.untyped_storage()._cdata]


def name_of(op):
    return op._schema.name.split('::')[1]


def _copy(source, target, non_blocking=False):
    "A copy between the devices: the processor waits, except where a copy to the device is begun."
    if target.device.type == 'cpu' or not (non_blocking or source.device.type == NAME):
        waits[f'copy of {tuple(source.shape)} to {target.device.type}'] += 1
    launches['copy'] += 1
    _near(target).copy_(_near(source))
    return target


def _run(op, *args, **kw):
    "Every operation on the device."
    name = name_of(op)
    if name == '_copy_from': return _copy(*args, **kw)
    tensors = [t for t in tree_leaves((args, kw)) if isinstance(t, torch.Tensor)]
    here = [t for t in tensors if t.device.type == NAME]
    strangers = [t for t in tensors if t.device.type != NAME and t.dim()]
    if here and strangers: raise RuntimeError(f'{name} mixes tensors of two devices')
    mask = name.startswith('index') and any(t.dtype == torch.bool for t in here[1:])
    if name in WAITS or mask: waits[name] += 1
    if name not in FREE: launches[name] += 1
    if name in ('view', '_unsafe_view', '_reshape_alias'): op = _reshape
    out = op(*tree_map(_near, args), **tree_map(_near, kw))
    same = {id(_near(t)): t for t in here}

    def wrap(t):
        return same.get(id(t)) if id(t) in same else _far(t) if isinstance(t, torch.Tensor) else t

    return tree_map(wrap, out)


def _reshape(x, shape, *strides):
    return x.reshape(shape)


def _convolution(*args):
    return _run(torch.ops.aten.convolution.default, *args)


def _convolution_backward(grad, x, weight, *args):
    return _run(torch.ops.aten.convolution_backward.default, grad, x, weight, [len(weight)], *args)


def _grid(theta, size, align_corners):
    launches['affine_grid_generator'] += 7  # it is made of eight
    return _run(torch.ops.aten.affine_grid_generator.default, theta, size, align_corners)


def install():
    "Make the device known; return it."
    if not _libraries:
        _setup_privateuseone_for_python_backend(NAME, _Module())
        every, some = torch.library.Library('_', 'IMPL'), torch.library.Library('aten', 'IMPL')
        every.fallback(_run, 'PrivateUse1')
        some.impl('convolution_overrideable', _convolution, 'PrivateUse1')
        some.impl('affine_grid_generator', _grid, 'PrivateUse1')
        some.impl('convolution_backward_overrideable', _convolution_backward, 'PrivateUse1')
        _libraries.extend([every, some])
    return torch.device(NAME, 0)


_libraries = []


class Launches(TorchDispatchMode):
    "Count the operations of a piece of work on the CPU that would be launched on a device."

    def __init__(self):
        super().__init__()
        self.counted = Counter()

    def __torch_dispatch__(self, op, types, args=(), kw=None):
        if name_of(op) not in FREE: self.counted[name_of(op)] += 1
        return op(*args, **(kw or {}))

    @property
    def total(self):
        return sum(self.counted.values())
