"""A float32 model computes in float32 throughout: float64 would be right too, but several times slower."""

import numpy as np

from tinyrec.models import MODELS
from tinyrec.nn import parameters
from tinyrec.ops import cross_entropy
from tinyrec.optim import AdamW
from tinyrec.tape import OPS, Node, no_grad
from tinyrec.walk import is_float

POSITIONS = np.array([[0, 1, 2, 0, 1, 2, 3], [3, 4, 0, 1, 0, 1, 2]])


def nodes_below(tensor):
    """Every node of the tape that made this tensor."""
    found, waiting = {}, [tensor.node]
    while waiting:
        node = waiting.pop()
        if isinstance(node, Node) and node.id not in found:
            found[node.id] = node
            waiting += [parent[0] for parent in node.parents if parent]
    return found.values()


def options_of(name):
    """Options that call every op of a model into play, and what its call takes besides tokens."""
    if MODELS[name].family == "griffin":
        return {"logit_cap": 5.0, "embed_scale": True}, [POSITIONS]
    return {}, []


def test_a_float32_train_step_has_no_float64_anywhere(tiny, any_name, monkeypatch):
    """Saved arrays, every cotangent on the way, gradients, optimizer."""
    options, extra = options_of(any_name)
    model = tiny(any_name, "float32", **options)
    tokens, targets = np.random.default_rng(1).integers(0, 11, (2, 2, 7))
    targets[0, 3] = -1
    seen = []

    def watch(op):
        backward = op.backward

        def watched(g, *saved, **needs):
            out = backward(g, *saved, **needs)
            for x in out if type(out) is tuple else (out,):
                seen.append((op.name, None if x is None else x.dtype))
            return out

        monkeypatch.setattr(op, "backward", watched)

    for op in OPS.values():
        if op.backward is not None:
            watch(op)
    loss = cross_entropy(model(tokens, *extra), targets)
    nodes = nodes_below(loss)
    saved = [(node.op.name, x.dtype) for node in nodes for x in node.saved or () if is_float(x)]
    loss.backward()
    optimizer = AdamW(parameters(model), lr=1e-3)
    optimizer.step()

    assert loss.dtype == np.float32 and len(nodes) > 20 and len(seen) > 20
    assert [entry for entry in saved if entry[1] != np.float32] == []
    assert [entry for entry in seen if entry[1] not in (None, np.float32)] == []
    for key, tensor in parameters(model):
        assert (tensor.dtype, tensor.grad.dtype) == (np.float32, np.float32), key
    assert {x.dtype for key, x in optimizer.state().items() if key[0] in "mv"} == {np.dtype("float32")}


def test_a_float32_step_gives_float32_logits_and_states(tiny, arrays_in, any_name):
    model = tiny(any_name, "float32", **options_of(any_name)[0])
    with no_grad():
        logits, state = model.step(np.array([3, 1]), model.initial_state(2))
    assert {x.dtype for x in (logits, *arrays_in(state))} == {np.dtype("float32")}
