"""The PyTorch twin that benchmarks measure against computes what the official RWKV-4 computes."""

import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the PyTorch side of the benchmarks needs torch")

from benchmarks.torch_rwkv import RNN, RWKV, Config, SquaredReLU, huggingface, next_token_loss
from benchmarks.torch_wkv import WKV, wkv_loop

GOLDEN = Path(__file__).parents[1] / "golden"


def load(name: str, wkv: str = "fused"):
    z = np.load(GOLDEN / name, allow_pickle=False)
    config = Config(*(int(z[field]) for field in ("vocab_size", "n_embd", "n_layer")), wkv)
    weights = {key[2:]: torch.tensor(z[key]) for key in z.files if key.startswith("w.")}
    return z, config, weights


def official(wkv: str):
    z, config, weights = load("rwkv4_official_f64_s0.npz", wkv)
    model = RWKV(config).double()
    model.load_state_dict(weights, strict=True)
    return z, model


def relative_error(got, expected: np.ndarray) -> float:
    return float(np.abs(got.detach().numpy() - expected).max() / np.abs(expected).max())


def gradients(wkv, inputs, dy) -> list:
    """y and the gradients of all inputs."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    y = wkv(*leaves)
    return [y, *torch.autograd.grad(y, leaves, dy, materialize_grads=True)]


@pytest.mark.parametrize("wkv", ["loop", "fused"])
def test_logits_loss_and_every_gradient(wkv: str):
    z, model = official(wkv)
    tokens = torch.tensor(z["ids"])
    assert relative_error(model(tokens[:, :-1]), z["logits"]) < 1e-12
    loss = next_token_loss(model, tokens)
    assert abs(loss.item() - float(z["loss"])) < 1e-12 * float(z["loss"])
    loss.backward()
    errors = {name: relative_error(p.grad, z[f"g.{name}"]) for name, p in model.named_parameters()}
    assert len(errors) == sum(name.startswith("g.") for name in z.files) == 60
    assert {name: e for name, e in errors.items() if e >= 1e-10} == {}


@pytest.mark.parametrize(("scale", "slope"), [(1.0, 0.0), (60.0, 0.0), (1.0, -30.0), (1.0, 30.0)])
@pytest.mark.parametrize("shape", [(2, 1, 5), (5, 2, 7), (3, 40, 2)])
def test_the_fused_wkv_is_the_published_one(shape: tuple[int, int, int], scale: float, slope: float):
    """Large keys, and keys that fall or rise by e^30 a step: a gauge that does not follow would give 0 / 0."""
    torch.manual_seed(0)
    decay, first = torch.linspace(-5, 3, shape[2]).double(), torch.randn(shape[2]).double()
    k, v, dy = (torch.randn(shape).double() for _ in range(3))
    inputs = decay, first, k * scale + slope * torch.arange(shape[1])[:, None], v
    for got, expected in zip(gradients(WKV.apply, inputs, dy), gradients(wkv_loop, inputs, dy), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-11)


def test_the_fused_wkv_in_float32():
    """At the length of the benchmark and over the decays that training starts with; the largest c is e^21."""
    torch.manual_seed(0)
    inputs = [torch.linspace(-5, 3, 16), torch.full((16,), -1.2), torch.randn(3, 256, 16), torch.randn(3, 256, 16)]
    dy = torch.randn(3, 256, 16)
    exact = gradients(wkv_loop, [x.double() for x in inputs], dy.double())
    for got, expected in zip(gradients(WKV.apply, inputs, dy), exact, strict=True):
        assert got.dtype == torch.float32
        assert relative_error(got, expected.detach().numpy()) < 1e-5


def test_squared_relu():
    torch.manual_seed(0)
    assert torch.autograd.gradcheck(SquaredReLU.apply, torch.randn(7, 5, dtype=torch.float64, requires_grad=True))


def test_one_token_at_a_time():
    z, model = official("fused")
    rnn, tokens = RNN(model.float()), z["ids"][:, :-1]
    for b, row in enumerate(tokens):
        logits, state = [], rnn.initial_state()
        for token in row:
            out, state = rnn.step(int(token), state)
            logits.append(out)
        assert relative_error(torch.stack(logits), z["rnn_logits_fp32"][b]) < 1e-5
        for i, layer in enumerate(state):
            assert relative_error(layer.ffn_x, z[f"state.{b}.xx.ffn.{i}"]) < 1e-5
            assert relative_error(layer.att_x, z[f"state.{b}.xx.att.{i}"]) < 1e-5
            for got, name in [(layer.p, "aa"), (layer.q, "bb"), (layer.o, "pp")]:
                assert relative_error(got, z[f"state.{b}.{name}.att.{i}"]) < 1e-5


def test_huggingface_computes_the_same():
    """In training, and one token at a time at batch 1; its WKV is float32 even in a double model."""
    pytest.importorskip("transformers", reason="the model of the transformers package")
    z, model = official("fused")
    hf, theirs = huggingface(load("rwkv4_official_f64_s0.npz")[1]).double(), np.load(GOLDEN / "rwkv4_hf_f64_s0.npz")
    weights = {key[2:]: torch.tensor(theirs[key]) for key in theirs.files if key.startswith("w.")}
    hf.load_state_dict(weights, strict=True)
    tokens = torch.tensor(z["ids"])
    loss = next_token_loss(hf, tokens)
    assert abs(loss.item() - float(z["loss"])) < 1e-6 * float(z["loss"])
    loss.backward()
    errors = {name: relative_error(p.grad, theirs[f"g.{name}"]) for name, p in hf.named_parameters()}
    assert len(errors) == 60
    assert {name: e for name, e in errors.items() if e >= 1e-6} == {}
    hf.eval()
    with torch.no_grad():
        out = hf(tokens[:1, :1], use_cache=True)
        for t in range(1, tokens.shape[1] - 1):
            out = hf(tokens[:1, t : t + 1], state=out.state, use_cache=True)
    assert relative_error(out.logits[0, -1], z["logits"][0, -1]) < 1e-6


def test_without_transformers_that_side_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(NotImplementedError, match="transformers"):
        huggingface(Config(7, 8, 2))
