"""The PyTorch twin that benchmarks measure against computes what the official modules compute."""

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the PyTorch side of the benchmarks needs torch")

from benchmarks.torch_training import next_token_loss, train_step
from benchmarks.torch_ttt import TTTModel
from benchmarks.torch_ttt_inner import LOOPS, step_sizes
from benchmarks.torch_ttt_layer import Config

GOLDEN = Path(__file__).parents[1] / "golden"
TOLERANCE = 1e-10  # of the largest entry of the reference, a float64 run
KINDS = ["linear_T", "linear_M", "mlp_T", "mlp_M"]
INNER = [(kind, "official") for kind in KINDS] + [("linear_T", "hoisted"), ("mlp_M", "hoisted")]


def tolerance(kind: str, inner: str) -> float:
    """The hoisted gelu has the exact derivative, the official one has rounded constants."""
    return 1e-8 if (kind[:3], inner) == ("mlp", "hoisted") else TOLERANCE


def load(kind: str, inner: str = "official"):
    z = np.load(GOLDEN / f"ttt_{kind}_f64.npz", allow_pickle=False)
    official = json.loads(str(z["config"]))
    sizes = {name: value for name, value in official.items() if name in Config.__dataclass_fields__}
    sizes["backbone"] = {"T": "transformer", "M": "mamba"}[kind[-1]]
    model = TTTModel(Config(**sizes, inner=inner)).double()
    weights = {name[2:]: torch.tensor(z[name]) for name in z.files if name.startswith("w/")}
    model.load_state_dict(weights, strict=True)
    return z, model, torch.tensor(z["ids"])


def relative_error(got, expected: np.ndarray) -> float:
    got = got.detach().numpy()
    assert got.shape == expected.shape
    return float(np.abs(got - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize(("kind", "inner"), INNER)
def test_logits_loss_and_every_gradient(kind: str, inner: str):
    z, model, ids = load(kind, inner)
    most = tolerance(kind, inner)
    assert relative_error(model(ids)[0], z["logits"]) < most
    loss = next_token_loss(model, ids[:, :-1], ids[:, 1:])
    assert abs(loss.item() - float(z["loss"])) < most * float(z["loss"])
    loss.backward()
    errors = {name: relative_error(p.grad, z[f"g/{name}"]) for name, p in model.named_parameters()}
    assert len(errors) == sum(name.startswith("g/") for name in z.files)
    assert {name: e for name, e in errors.items() if e >= most} == {}


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [([7] + 7 * [1], "decode_logits"), (14 * [1], "decode_from_scratch_logits"), ([3, 6, 5], "logits")],
)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_decoding(kind: str, pieces: list[int], expected: str):
    """After a prompt, from the first token on, and, unlike the official code, in pieces of any length."""
    z, model, ids = load(kind)
    assert int(z["n_prefill"]) == 7
    parts, cache = [], model.empty_cache(len(ids))
    for piece in ids.split(pieces, dim=1):
        logits, cache = model(piece, cache)
        parts.append(logits)
    assert relative_error(torch.cat(parts, dim=1), z[expected]) < TOLERANCE


@pytest.mark.parametrize("prompt", [1, 7])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_cached_states(kind: str, prompt: int):
    z, model, ids = load(kind)
    _, cache = model(ids[:, :prompt], model.empty_cache(len(ids)))
    for t in range(prompt, 9):
        _, cache = model(ids[:, t : t + 1], cache)
    assert cache.position == 1  # the third mini-batch has had token 8
    names = model.model.layers[0].seq_modeling_block.names
    assert sum(name.startswith("cache_t8/") for name in z.files) == 2 * len(names)
    for name, weight, total in zip(names, cache.states[0].weights, cache.states[0].sums, strict=True):
        assert relative_error(weight, z[f"cache_t8/{name}_states"]) < TOLERANCE
        assert relative_error(total, z[f"cache_t8/{name}_grad"]) < TOLERANCE


@pytest.mark.parametrize("form", ["official", "hoisted"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sequence_worked_out(form: str, dtype):
    """TTT-Linear of one head, D = 3, two mini-batches of two tokens, with the gradients of dout = (1, -1, 2)."""

    def leaf(*values, shape):
        return torch.tensor(values, dtype=dtype).reshape(shape).requires_grad_()

    tokens = (1, 1, 2, 2, 3)
    q = leaf(1, 0, 0.2, 0.5, -1, 0.4, 0, 2, -0.6, 1, 1, 0.8, shape=tokens)
    k = leaf(0.5, 1, -0.3, -1, 0.5, 0.6, 1, 0, 0.9, 0.3, 0.7, -1.2, shape=tokens)
    v = leaf(1, 2, 0.5, 0, 1, -0.5, -1, 0.5, 1, 2, -0.5, 0, shape=tokens)
    lam, tau = leaf(0.5, 0.25, 0.4, 0.3, shape=(1, 1, 2, 2)), leaf(1, 0.5, shape=2)
    gain, bias = leaf(1, 0.9, 1.1, shape=(1, 1, 3)), leaf(0, 0.1, -0.1, shape=(1, 1, 3))
    w = leaf(*((i - 4) / 10 for i in range(9)), shape=(1, 1, 3, 3))
    b = leaf(0.1, -0.2, 0.3, shape=(1, 1, 1, 3))
    z, w_last, b_last = LOOPS["linear", form](q, k, v, step_sizes(lam, tau), gain, bias, w, b)
    (z * torch.tensor([1, -1, 2])).sum().backward()
    expected = [
        (z[0, 0, 1, 1], [-0.26851041, 1.1835311, 1.99326788]),
        (w_last[0, 0, 2], [-0.76462564, 0.38573387, 1.27889177]),
        (b_last, [0.14962959, -0.26350205, 0.31387246]),
        (w.grad[0, 0, 1], [6.98829158, -1.35843350, -5.62985808]),
        (b.grad, [16.44201112, -4.45629551, -11.98571561]),
        (lam.grad, [-8.34750633, 39.35473611, -8.01302718, 0.17214751]),
        (tau.grad, [-3.94859064, 12.91990977]),
        (gain.grad, [32.49747374, -62.6439577, 40.7831159]),
        (bias.grad, [-32.87637164, 17.41172534, 22.39412228]),
        (k.grad[0, 0, 0, 1], [4.51616537, 5.74783611, 15.70207662]),
    ]
    for got, numbers in expected:
        assert relative_error(got.flatten(), np.array(numbers)) < (1e-8 if dtype == torch.float64 else 1e-4)


def test_a_train_step_lowers_the_loss():
    _, model, ids = load("mlp_M")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = [train_step(model, optimizer, ids[:, :-1], ids[:, 1:]) for _ in range(5)]
    assert losses[-1] < 0.9 * losses[0]
