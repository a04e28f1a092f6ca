"""Adam with decoupled weight decay.

    symbol          here           what
    theta           t.data         a parameter, any shape
    g               t.grad         its gradient
    m, v            slot.m .v      running means of g and of g^2, same shape
    t               slot.t         updates of this parameter so far
    alpha eta_t     lr             the learning rate times its schedule, one number
    beta_1 beta_2   betas          how slowly m and v forget
    lambda          weight_decay
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from ..backend import Array, get_xp, to_cpu
from ..tape import Tensor


def is_matrix(name: str, parameter: Tensor) -> bool:
    """The usual choice of what decays: all with two axes or more. Biases and the scales of norms have one.

    It looks at the shape alone, so the bias of a block-diagonal layer, (blocks, width), decays as well.
    """
    return parameter.ndim >= 2


class _Slot:
    """What the optimizer remembers of one parameter."""

    __slots__ = ("decays", "m", "scale", "t", "tensor", "v")

    def __init__(self, tensor: Tensor, decays: bool, scale: float):
        xp = get_xp(tensor.data)
        self.tensor, self.decays, self.scale = tensor, decays, scale
        self.m, self.v, self.t = xp.zeros_like(tensor.data), xp.zeros_like(tensor.data), 0


class AdamW:
    """Adam with decoupled weight decay: Loshchilov & Hutter 2019, Algorithm 2.

    params: ("name", Tensor) pairs, as nn.parameters(model) gives them. They are updated in place, in their own dtype
    and on their own device, so a graph recorded before a step must not be walked back after it.
    weight_decay: lambda, for the parameters where decays(name, tensor) is true. As in PyTorch, and unlike line 12, it
    is multiplied by lr, so that the pull towards zero fades together with the updates.
    scale: scale(name) times lr is the learning rate of that parameter.

    A parameter whose `.grad` is None is skipped as a whole: no decay, m and v stay, and its own count t stays, so that
    the bias correction (lines 9 and 10) is right for one that gets its first gradient late.
    """

    def __init__(
        self,
        params: Iterable[tuple[str, Tensor]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        decays: Callable[[str, Tensor], bool] = is_matrix,
        scale: Callable[[str], float] = lambda name: 1.0,
    ):
        self.lr, self.betas, self.eps = _at_least_0("lr", lr), (float(betas[0]), float(betas[1])), float(eps)
        self.weight_decay = _at_least_0("weight_decay", weight_decay)
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"both betas must be in [0, 1), got {betas}")
        if not 0.0 < self.eps < math.inf:
            raise ValueError(f"eps must be positive, got {eps}")
        self._slots: dict[str, _Slot] = {}
        for name, tensor in params:
            if name in self._slots:
                raise ValueError(f"two parameters have the name {name!r}")
            self._slots[name] = _Slot(tensor, decays(name, tensor), _at_least_0(f"the scale of {name}", scale(name)))
        if not self._slots:
            raise ValueError("there are no parameters to optimize")
        if len({id(slot.tensor) for slot in self._slots.values()}) < len(self._slots):
            raise ValueError("one tensor is listed under two names; it would be updated twice")
        self._scratch: dict[Any, Array] = {}  # one buffer per dtype (and device), as big as the biggest parameter

    def step(self, lr: float | None = None) -> None:
        """Update every parameter that has a gradient; lr, from a schedule, replaces the optimizer's own."""
        lr = self.lr if lr is None else _at_least_0("lr", lr)
        for name, slot in self._slots.items():
            g = slot.tensor.grad
            if g is None:
                continue
            if g.shape != slot.tensor.shape:
                raise ValueError(f"the gradient of {name} has shape {g.shape}, the parameter has {slot.tensor.shape}")
            self._update(slot, g, lr * slot.scale)

    def _update(self, slot: _Slot, g: Array, lr: float) -> None:
        """Lines 4 to 12 of Algorithm 2. The constants are Python floats: NumPy's would promote float32 to float64."""
        xp = get_xp(slot.tensor.data)
        theta, m, v, (beta1, beta2) = slot.tensor.data, slot.m, slot.v, self.betas
        s = self._scratch_like(theta)
        self._average(slot, g, s)  # lines 4, 7 and 8

        m_scale = 1.0 / (1.0 - beta1**slot.t)  # line 9: m_hat = m m_scale
        v_scale = 1.0 / (1.0 - beta2**slot.t)  # line 10: v_hat = v v_scale

        xp.sqrt(v, out=s)
        s *= math.sqrt(v_scale)
        s += self.eps
        xp.divide(m, s, out=s)
        s *= lr * m_scale  # lr m_hat / (sqrt(v_hat) + eps)
        if slot.decays:
            theta *= 1.0 - lr * self.weight_decay  # of the old theta, so it comes first
        theta -= s  # line 12: theta = theta - lr (m_hat / (sqrt(v_hat) + eps) + lambda theta)

    def _average(self, slot: _Slot, g: Array, s: Array) -> None:
        """Count the update and let its gradient into m and v; s is memory to work in, of the same shape."""
        xp, m, v, (beta1, beta2) = get_xp(s), slot.m, slot.v, self.betas
        slot.t += 1  # line 4

        m *= beta1
        xp.multiply(g, 1.0 - beta1, out=s)
        m += s  # line 7: m = beta_1 m + (1 - beta_1) g

        v *= beta2
        xp.multiply(g, g, out=s)
        s *= 1.0 - beta2
        v += s  # line 8: v = beta_2 v + (1 - beta_2) g^2

    def _scratch_like(self, x: Array) -> Array:
        """Memory to work in, of the shape of x; made once, shared by all parameters, so it stays in the cache."""
        key = get_xp(x), x.dtype
        if key not in self._scratch:
            alike = (s.tensor for s in self._slots.values() if (get_xp(s.tensor.data), s.tensor.dtype) == key)
            self._scratch[key] = key[0].empty(max(tensor.size for tensor in alike), x.dtype)
        return self._scratch[key][: x.size].reshape(x.shape)

    def zero_grad(self) -> None:
        """Forget all gradients. None, not zeros: a parameter that gets none must be skipped, not decayed."""
        for slot in self._slots.values():
            if slot.tensor.grad is not None:
                slot.tensor.grad = None

    def state(self) -> dict[str, np.ndarray]:
        """Copies of everything that is remembered: "m.<name>", "v.<name>" and "t.<name>" for each parameter."""
        state = {}
        for name, slot in self._slots.items():
            state[f"m.{name}"] = to_cpu(slot.m.copy())
            state[f"v.{name}"] = to_cpu(slot.v.copy())
            state[f"t.{name}"] = np.array(slot.t, np.int64)
        return state

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Take over what `state` gave, bit for bit; nothing is changed when it does not fit."""
        mine = self.state()
        if odd := sorted(mine.keys() ^ state.keys()):
            raise ValueError(f"this is the state of an optimizer of other parameters: {odd[0]} is not in both")
        for key, array in mine.items():
            given = np.asarray(state[key])
            if given.shape != array.shape or given.dtype != array.dtype:
                raise ValueError(
                    f"optimizer state {key} is {given.dtype} {given.shape}, expected {array.dtype} {array.shape}"
                )
        for name, slot in self._slots.items():
            xp = get_xp(slot.m)
            slot.m[...] = xp.asarray(state[f"m.{name}"])
            slot.v[...] = xp.asarray(state[f"v.{name}"])
            slot.t = int(state[f"t.{name}"])


def _at_least_0(name: str, value: float) -> float:
    """The value as a Python float: a np.float64 from somewhere would make every parameter float64."""
    if not 0.0 <= value < math.inf:
        raise ValueError(f"{name} must be 0 or more and finite, got {value}")
    return float(value)
