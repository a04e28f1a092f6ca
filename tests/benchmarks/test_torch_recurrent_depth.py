"""The PyTorch twin that benchmarks measure against computes what the official modules compute."""

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the PyTorch side of the benchmarks needs torch")

from benchmarks.torch_recurrent_depth import (
    Config,
    GrowingCache,
    Raven,
    RoomyCache,
    StackingCache,
    next_token_loss,
    rope_table,
    train_step,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "recurrent_depth.npz"
TOLERANCE = 1e-10  # of the largest entry of the reference, a float64 run
CACHES = {"stacking": StackingCache, "growing": GrowingCache, "roomy": lambda: RoomyCache(13)}
LENGTH = 11  # of the golden sequences


def load():
    z = np.load(GOLDEN, allow_pickle=False)
    sizes = json.loads(str(z["config_json"]))
    config = Config(**{name: value for name, value in sizes.items() if name in Config.__dataclass_fields__})
    model = Raven(config).double()
    weights = {name[2:]: torch.tensor(z[name]) for name in z.files if name.startswith("w/")}
    model.load_state_dict(weights | {"freqs_cis": rope_table(config, torch.float64)}, strict=True)
    return z, model, config


def relative_error(got, expected) -> float:
    got, expected = got.detach().numpy(), np.asarray(expected)
    assert got.shape == expected.shape
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def test_rope_table():
    z, _, config = load()
    assert relative_error(rope_table(config, torch.float64), z["buf/freqs_cis"]) < 1e-14
    assert relative_error(Raven(config).freqs_cis, z["buf/freqs_cis"]) < 1e-6


@pytest.mark.parametrize("r", [1, 2, 3, 4, 8, 16])
def test_logits(r: int):
    """However many of the iterations are recorded."""
    z, model, _ = load()
    ids, s0 = torch.tensor(z["ids"]), torch.tensor(z["s0"])
    for k in {0, 1, r}:
        assert relative_error(model(ids, r - k, k, s0), z[f"logits/r{r}"]) < TOLERANCE


@pytest.mark.parametrize(("n", "k"), [(0, 1), (0, 4), (3, 2), (5, 3)])
def test_loss_and_every_gradient(n: int, k: int):
    z, model, _ = load()
    loss = next_token_loss(model(torch.tensor(z["ids"]), n, k, torch.tensor(z["s0"])), torch.tensor(z["labels"]))
    assert abs(loss.item() - float(z[f"train/{n}_{k}/loss"])) < TOLERANCE * loss.item()
    loss.backward()
    errors = {name: relative_error(p.grad, z[f"train/{n}_{k}/g/{name}"]) for name, p in model.named_parameters()}
    assert len(errors) == sum(name.startswith("w/") for name in z.files) == 39
    assert {name: e for name, e in errors.items() if e >= TOLERANCE} == {}


def test_the_silent_iterations_get_no_gradient():
    """Companion to the gradients above: with all five recorded they are others, so the split is seen."""
    z, model, _ = load()
    loss = next_token_loss(model(torch.tensor(z["ids"]), 0, 5, torch.tensor(z["s0"])), torch.tensor(z["labels"]))
    loss.backward()
    adapter = model.transformer.adapter.weight.grad
    assert relative_error(adapter, z["train_nodetach/3_2/g/transformer.adapter.weight"]) < TOLERANCE
    assert relative_error(adapter, z["train/3_2/g/transformer.adapter.weight"]) > 0.1


def read(model, ids, r: int, cache):
    """Logits of the tokens of ids (B, T) that the cache does not hold yet, one after the other."""
    return torch.cat([model(ids[:, t : t + 1], r, 0, cache=cache) for t in range(cache.length, LENGTH)], dim=1)


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("prompt", [0, 1, 5])
@torch.no_grad()
def test_prompt_then_one_token_at_a_time(prompt: int, cache: str):
    z, model, _ = load()
    ids, r = torch.tensor(z["ids"]), 4
    expected, cache = model(ids, r, 0), CACHES[cache]()
    parts = [model(ids[:, :prompt], r, 0, cache=cache)] if prompt else []
    got = torch.cat([*parts, read(model, ids, r, cache)], dim=1)
    assert relative_error(got, expected) < TOLERANCE
    assert cache.length == LENGTH
    assert len(cache.slots) == 1 + r * 2 + 1  # each layer and iteration has its own
    cache.cut(3)
    assert relative_error(read(model, ids, r, cache), expected[:, 3:]) < TOLERANCE


@pytest.mark.parametrize("cache", CACHES)
@torch.no_grad()
def test_official_decoding(cache: str):
    """Six tokens after five, greedily, r = 4, as the official code wrote them with its own cache."""
    z, model, _ = load()
    seq, cache = torch.tensor(z["gen/full/seq"]), CACHES[cache]()
    logits = [model(seq[:, :5], 4, 0, cache=cache)[:, -1:]]
    while len(logits) < 6:
        token = logits[-1].argmax(-1)
        assert token.item() == seq[0, cache.length]
        logits.append(model(token, 4, 0, cache=cache))
    assert relative_error(torch.cat(logits, dim=1), z["gen/full/logits"]) < TOLERANCE


def test_a_train_step_lowers_the_loss():
    z, model, _ = load()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids, labels, s0 = (torch.tensor(z[name]) for name in ("ids", "labels", "s0"))
    losses = [train_step(model, optimizer, ids, labels, 3, 2, s0) for _ in range(5)]
    assert losses[-1] < 0.9 * losses[0]
