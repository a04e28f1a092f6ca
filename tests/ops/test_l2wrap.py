"""L2Wrap: the value stays, the gradient gets that of the penalty on the largest logit."""

import numpy as np

from tinyrec.check import assert_close
from tinyrec.ops import cross_entropy, l2wrap
from tinyrec.tape import Tensor
from tinyrec.walk import grad


def test_the_value_is_untouched_and_the_gradient_is_that_of_the_penalty():
    rng = np.random.default_rng(0)
    logits, targets, strength = rng.standard_normal((2, 7, 5)), rng.integers(0, 5, (2, 7)), 0.3
    leaf = Tensor(logits, requires_grad=True)
    loss = cross_entropy(l2wrap(leaf, strength=strength), targets)
    assert loss.item() == cross_entropy(logits, targets).item()
    (g,) = grad(loss, [leaf])
    other = Tensor(logits, requires_grad=True)
    penalised = cross_entropy(other, targets) + (other.max(axis=-1) ** 2).sum() * (0.5 * strength)
    assert_close(g, grad(penalised, [other])[0], 1e-14)


def test_it_does_not_scale_with_what_comes_after():
    leaf = Tensor(np.array([[1.0, 4.0, -2.0]]), requires_grad=True)
    (g,) = grad(l2wrap(leaf, strength=0.5).sum() * 1000.0, [leaf])
    assert g.tolist() == [[1000.0, 1002.0, 1000.0]]
