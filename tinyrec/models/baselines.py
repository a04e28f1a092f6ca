"""The baselines that the papers compare with, each in the same shell: LSTM, QRNN and AFT language models.

    tokens -> embedding -> x

      .--> RMSNorm -> mixer ----.                     mixer    lstm   Hochreiter & Schmidhuber 1997
      x -----------------------(+)-.                           qrnn   Bradbury et al. 2017, arXiv 1611.01576
        .--> RMSNorm -> gated MLP --.                          aft    Zhai et al. 2021, arXiv 2105.14103
        x -------------------------(+)--> x
                L times
    x -> RMSNorm -> product with the embedding

The shell is that of Hawk and Griffin, so only the mixer differs, here and there. The original LSTM and QRNN models
stacked their layers without residuals, norms or MLPs; what is compared is the recurrence.

    here   shape                                      here    shape
    D      width of x, and of every recurrence        h c     (B, D)  output and cell of the LSTM, cell of the QRNN
    s      window of aft's local biases               p q o   (B, D)  aft: sums over the past, p e^o and q e^o
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..backend import get_xp
from ..nn import GatedMLP, KVCache, Linear, RMSNorm, normal, parameter, uniform
from ..ops import concat, embedding, getitem, linear, matmul, reshape, sigmoid_gate, split, transpose
from ..recurrences.aft import EMPTY, aft_full, aft_local, aft_simple
from ..recurrences.lstm import lstm
from ..recurrences.qrnn import qrnn
from ..tape import Tensor, array_of
from .baselines_config import BaselineConfig


class Baseline:
    """The language model. Its state is a tuple, a mixer's state for each layer."""

    def __init__(self, config: BaselineConfig, rng: Any, dtype: Any = "float32"):
        self.config = config
        self.embedding = normal(rng, (config.vocab_size, config.d_model), config.d_model**-0.5, dtype)
        self.blocks = [Block(config, rng, dtype) for _ in range(config.n_layers)]
        self.final_norm = RMSNorm(config.d_model, dtype)

    def __call__(self, tokens: Any) -> Tensor:
        """Logits (B, T, V) for tokens (B, T)."""
        return self.prefill(tokens, self.initial_state(len(tokens)))[0]

    def prefill(self, tokens: Any, state: tuple) -> tuple[Tensor, tuple]:
        """Read tokens (B, T) on top of `state`: logits (B, T, V) and the state after them.

        Gradients flow through the state, but not through the keys and values that aft "full" has cached.
        """
        if tokens.ndim != 2:
            raise ValueError(f"expected tokens (B, T), got {tokens.shape}")
        x, layers = embedding(self.embedding, tokens), []  # (B, T, D)
        for block, layer in zip(self.blocks, state, strict=True):
            x, layer = block(x, layer)
            layers.append(layer)
        return linear(self.final_norm(x), transpose(self.embedding)), tuple(layers)

    def step(self, tokens: Any, state: tuple) -> tuple[Tensor, tuple]:
        """Read one token (B,) for each sequence: logits (B, V) for the next, and the new state."""
        logits, state = self.prefill(tokens[:, None], state)
        return reshape(logits, shape=(len(tokens), self.config.vocab_size)), state

    def initial_state(self, batch: int) -> tuple:
        """The state of `batch` sequences before their first token."""
        nothing = get_xp(array_of(self.embedding)).zeros((batch, self.config.d_model), self.embedding.dtype)
        return tuple(block.mixer.initial_state(nothing) for block in self.blocks)


class Block:
    """x + mixer(RMSNorm(x)), then x + mlp(RMSNorm(x))."""

    def __init__(self, config: BaselineConfig, rng: Any, dtype: Any):
        self.mixer_norm, self.mlp_norm = RMSNorm(config.d_model, dtype), RMSNorm(config.d_model, dtype)
        mixers: dict[str, type] = {"lstm": LSTM, "qrnn": QRNN, "aft": AFT}
        self.mixer = mixers[config.mixer](config, rng, dtype)
        d = config.d_model
        self.mlp = GatedMLP(d, config.mlp_expansion * d, rng, dtype, out_scale=2 / config.n_layers)

    def __call__(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """x (B, T, D) -> x (B, T, D) and the mixer's state after the last token."""
        mixed, state = self.mixer(self.mixer_norm(x), state)
        x = x + mixed
        return x + self.mlp(self.mlp_norm(x)), state


class LSTMState(NamedTuple):
    h: Any  # (B, D)
    c: Any  # (B, D)


class LSTM:
    """One LSTM layer as wide as x: docs/recurrences/lstm.md. All weights U(-D^-1/2, D^-1/2), as in PyTorch."""

    def __init__(self, config: BaselineConfig, rng: Any, dtype: Any):
        d = config.d_model
        bias = [config.forget_bias if d <= n < 2 * d else 0.0 for n in range(4 * d)]  # of the gates i, f, g, o
        self.inputs = Linear.of(uniform(rng, (d, 4 * d), d**-0.5, dtype), parameter(bias, dtype))
        self.w_h = uniform(rng, (d, 4 * d), d**-0.5, dtype)

    def __call__(self, x: Tensor, state: LSTMState) -> tuple[Tensor, LSTMState]:
        """x (B, T, D) -> h (B, T, D) and the last state."""
        h, h_last, c_last = lstm(self.inputs(x), self.w_h, state.h, state.c)
        return h, LSTMState(h_last, c_last)

    def initial_state(self, nothing: Any) -> LSTMState:
        return LSTMState(nothing, nothing)


class QRNNState(NamedTuple):
    x: Any  # (B, D), the last input, which the convolution still needs
    c: Any  # (B, D)


class QRNN:
    """A convolution over two tokens makes all gates, the pooling is elementwise: docs/recurrences/qrnn.md."""

    def __init__(self, config: BaselineConfig, rng: Any, dtype: Any):
        self.gates = {"f": "zf", "fo": "zfo", "ifo": "zfoi"}[config.pooling]
        self.conv = Linear(2 * config.d_model, len(self.gates) * config.d_model, rng, dtype)

    def __call__(self, x: Tensor, state: QRNNState) -> tuple[Tensor, QRNNState]:
        """x (B, T, D) -> h (B, T, D) and the last state."""
        batch, time, d = x.shape
        padded = concat(reshape(state.x, shape=(batch, 1, d)), x, axis=1)  # (B, 1 + T, D)
        before = getitem(padded, index=(slice(None), slice(0, time)))
        parts = split(self.conv(concat(before, x, axis=-1)), sizes=(d,) * len(self.gates))
        gates = dict(zip(self.gates, parts, strict=True))
        h, c_last = qrnn(gates["z"], gates["f"], gates.get("i"), state.c)
        if "o" in gates:
            h = sigmoid_gate(gates["o"], h)
        return h, QRNNState(getitem(padded, index=(slice(None), time)), c_last)

    def initial_state(self, nothing: Any) -> QRNNState:
        return QRNNState(nothing, nothing)


class AFTState(NamedTuple):
    """simple: the sums p, q, o (B, D). local: those of the tokens that left the window, and what is still in it."""

    p: Any
    q: Any
    o: Any
    k: Any = None  # (B, n, D), n < s
    v: Any = None
    position: int = 0  # tokens read so far


class AFT:
    """sigmoid(q) * (weighted mean of v with weights e^(k + w)), then a matrix: docs/recurrences/aft.md."""

    def __init__(self, config: BaselineConfig, rng: Any, dtype: Any):
        d, places = config.d_model, config.max_length
        self.kind, self.window, self.max_length = config.kind, config.window, places
        self.q, self.k, self.v = (Linear(d, d, rng, dtype, bias=False) for _ in range(3))
        self.out = Linear(d, d, rng, dtype, scale=2 / config.n_layers)
        if config.kind == "full":  # w (T, T) = now @ before^T
            self.now, self.before = (normal(rng, (places, config.rank), 0.01, dtype) for _ in range(2))
        if config.kind == "local":
            self.w = normal(rng, (places, config.window), 0.01, dtype)

    def __call__(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """x (B, T, D) -> (B, T, D) and the last state."""
        k, v = self.k(x), self.v(x)
        form = self._full if self.kind == "full" else self._local if self.kind == "local" else self._simple
        mean, state = form(k, v, state)
        return self.out(sigmoid_gate(self.q(x), mean)), state

    def _simple(self, k: Any, v: Any, state: AFTState) -> tuple[Any, AFTState]:
        mean, p, q, o = aft_simple(k, v, state.p, state.q, state.o)
        return mean, AFTState(p, q, o)

    def _local(self, k: Any, v: Any, state: AFTState) -> tuple[Any, AFTState]:
        w = getitem(self.w, index=self._places(state.position, k.shape[1]))  # (T, s)
        mean, p, q, o = aft_local(k, v, w, state.p, state.q, state.o, state.k, state.v)
        k, v = (_newest(old, new, self.window - 1) for old, new in ((state.k, k), (state.v, v)))
        return mean, AFTState(p, q, o, k, v, state.position + len(w))

    def _full(self, k: Any, v: Any, cache: KVCache) -> tuple[Any, KVCache]:
        before = cache.keys.shape[1]
        now = getitem(self.now, index=self._places(before, k.shape[1]))  # (T, rank)
        w = matmul(now, transpose(getitem(self.before, index=slice(0, before + k.shape[1]))))  # (T, S)
        cache = cache.append(array_of(k)[:, :, None], array_of(v)[:, :, None])
        if before:
            k, v = (concat(old[:, :before, 0], new, axis=1) for old, new in ((cache.keys, k), (cache.values, v)))
        return aft_full(k, v, w), cache

    def _places(self, before: int, time: int) -> slice:
        if before + time > self.max_length:
            raise ValueError(
                f"AFT ({self.kind}) has biases for max_length = {self.max_length} tokens, got {before + time}"
            )
        return slice(before, before + time)

    def initial_state(self, nothing: Any) -> Any:
        xp, none = get_xp(nothing), nothing[:, None][:, :0]  # (B, 0, D)
        if self.kind == "full":
            return KVCache(none[:, :, None], none[:, :, None])
        empty = AFTState(nothing, nothing, xp.full(nothing.shape, EMPTY, nothing.dtype))
        return empty if self.kind == "simple" else empty._replace(k=none, v=none)


def _newest(old: Any, new: Any, n: int) -> Any:
    """The last n tokens of old (B, m, D) and then new (B, T, D); all of them if there are fewer."""
    both = concat(old, new, axis=1)
    return getitem(both, index=(slice(None), slice(max(0, both.shape[1] - n), None)))
