"""The PyTorch twin that benchmarks measure against computes what the official modules compute."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the PyTorch side of the benchmarks needs torch")

from benchmarks.torch_griffin import Config, Griffin, next_token_loss

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = ["hawk", "griffin", "attn_global", "griffin_packed"]
TOLERANCE = 2e-5  # of the largest entry of the reference; the reference itself is float32


def load(case: str, scan: str = "official"):
    z = np.load(GOLDEN / f"griffin_{case}.npz", allow_pickle=False)
    kinds = tuple(str(kind).lower() for kind in z["cfg/block_types"])
    fields = ["vocab_size", "width", "mlp_expanded_width", "num_heads", "lru_width", "attention_window_size"]
    config = Config(
        **{name: int(z[f"cfg/{name}"]) for name in fields},
        block_types=kinds,
        embeddings_scale_by_sqrt_dim=bool(z["cfg/embeddings_scale_by_sqrt_dim"]),
        logits_soft_cap=float(z["cfg/logits_soft_cap"]),
        scan=scan,
    )
    model = Griffin(config)
    weights = {name[2:]: torch.tensor(z[name]) for name in z.files if name.startswith("w/")}
    model.load_state_dict(weights, strict=True)
    return z, model, torch.tensor(z["tokens"]), torch.tensor(z["segment_pos"])


def relative_error(got, expected: np.ndarray) -> float:
    return float(np.abs(got.detach().numpy() - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("scan", ["official", "unbind"])
@pytest.mark.parametrize("case", CASES)
def test_logits_loss_and_every_gradient(case: str, scan: str):
    z, model, tokens, positions = load(case, scan)
    assert relative_error(model(tokens, positions)[0], z["logits"]) < TOLERANCE
    loss = next_token_loss(model, tokens, positions)
    assert abs(loss.item() - float(z["loss"])) < TOLERANCE * float(z["loss"])
    loss.backward()
    errors = {name: relative_error(p.grad, z[f"g/{name}"]) for name, p in model.named_parameters()}
    assert len(errors) == sum(name.startswith("g/") for name in z.files)
    assert {name: e for name, e in errors.items() if e >= TOLERANCE} == {}


@pytest.mark.parametrize("case", CASES[:3])
def test_prefill_then_one_token_at_a_time(case: str):
    z, model, tokens, positions = load(case)
    n = int(z["dec/prefill_len"])
    with torch.no_grad():
        logits, states = model(tokens[:, :n], positions[:, :n])
        assert relative_error(logits, z["dec/prefill_logits"]) < TOLERANCE
        for i, state in enumerate(states):
            for field, value in state._asdict().items():
                assert relative_error(value, z[f"dec/state/blocks.{i}/{field}"]) < TOLERANCE
        steps = []
        for t in range(n, tokens.shape[1]):
            logits, states = model(tokens[:, t : t + 1], positions[:, t : t + 1], states)
            steps.append(logits)
    assert relative_error(torch.cat(steps, dim=1), z["dec/step_logits"]) < TOLERANCE
