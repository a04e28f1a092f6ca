"""The PyTorch twin that benchmarks measure against computes what the official modules compute."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the PyTorch side of the benchmarks needs torch")

from benchmarks import torch_mamba
from benchmarks.torch_mamba import Config, Mamba
from benchmarks.torch_training import next_token_loss, train_step

GOLDEN = Path(__file__).parents[1] / "golden" / "mamba_f64_s0.npz"
TOLERANCE = 1e-12  # of the largest entry of the reference, a float64 run
SCANS = ["by_hand", "steps"]


def load(scan: str):
    z = np.load(GOLDEN, allow_pickle=False)
    names = dict(vocab_size="vocab_size", hidden_size="d_model", num_hidden_layers="n_layer", state_size="d_state",
                 time_step_rank="dt_rank", expand="expand", conv_kernel="d_conv")  # fmt: skip
    sizes = {name: int(z[theirs]) for name, theirs in names.items()}
    model = Mamba(Config(**sizes, layer_norm_epsilon=float(z["eps"]), scan=scan)).double()
    weights = {name[2:]: torch.tensor(z[name]) for name in z.files if name.startswith("w.")}
    model.load_state_dict(weights, strict=True)
    return z, model, torch.tensor(z["ids"])


def relative_error(got, expected: np.ndarray) -> float:
    return float(np.abs(got.detach().numpy() - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("chunk", [1, 5, 16])  # T = 12 is whole chunks, some and a rest, less than one
@pytest.mark.parametrize("scan", SCANS)
def test_logits_loss_and_every_gradient(scan: str, chunk: int, monkeypatch):
    monkeypatch.setattr(torch_mamba, "CHUNK", chunk)
    z, model, ids = load(scan)
    assert relative_error(model(ids[:, :-1])[0], z["logits"]) < TOLERANCE
    loss = next_token_loss(model, ids[:, :-1], ids[:, 1:])
    assert abs(loss.item() - float(z["loss"])) < TOLERANCE * float(z["loss"])
    loss.backward()
    errors = {name: relative_error(p.grad, z[f"g.{name}"]) for name, p in model.named_parameters()}
    assert len(errors) == sum(name.startswith("g.") for name in z.files)
    assert {name: e for name, e in errors.items() if e >= TOLERANCE} == {}


def assert_states_close(states, z):
    for i, state in enumerate(states):
        assert relative_error(state.conv.transpose(1, 2), z[f"state.{i}.conv"][..., 1:]) < TOLERANCE  # theirs keeps K
        assert relative_error(state.ssm, z[f"state.{i}.ssm"]) < TOLERANCE


@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("prompt", [1, 2, 7])
def test_prompt_then_one_token_at_a_time(scan: str, prompt: int):
    z, model, ids = load(scan)
    with torch.no_grad():
        assert_states_close(model(ids[:, :-1])[1], z)
        logits, states = model(ids[:, :prompt])
        steps = [logits]
        for t in range(prompt, 12):
            logits, states = model(ids[:, t : t + 1], states)
            steps.append(logits)
    assert relative_error(torch.cat(steps, dim=1), z["rnn_logits"]) < TOLERANCE
    assert_states_close(states, z)


def test_a_train_step_lowers_the_loss():
    _, model, ids = load("by_hand")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = [train_step(model, optimizer, ids[:, :-1], ids[:, 1:]) for _ in range(5)]
    assert losses[-1] < 0.9 * losses[0]
