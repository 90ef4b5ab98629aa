"""Stage I as U-Hop publishes it: gradient descent from W = I, without the warm start that hopmem gives it."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from hopmem.model.kernel import FeatureMap
from hopmem.model.rows import unit
from hopmem.model.separation import average_loss

STEPS = 100
HALVINGS = 20


def algorithm_1(Xi: Tensor, t: float = 2.0, steps: int = STEPS) -> FeatureMap:
    """Lower the average loss by steps of gradient descent, each followed by normalising the rows of W.

    The rate is the largest power of two at which the step lowers the loss, which is what a rate below one over the
    Lipschitz constant is for.

    Args:
        Xi: memories [M, d].
        t: inverse width of the loss.
        steps: N of Algorithm 1.

    Returns:
        W [d, d], no offset.
    """

    def loss_of(W: Tensor) -> Tensor:
        return average_loss(unit(Xi @ W.T), t)

    W, rate = torch.eye(Xi.shape[1]), 1.0
    for _ in range(steps):
        loss = loss_of(W.requires_grad_(True))
        (slope,) = torch.autograd.grad(loss, W)
        W, rate = W.detach(), 2 * rate
        for _ in range(HALVINGS):
            following = normalize(W - rate * slope, dim=1)
            if float(loss_of(following)) < float(loss.detach()):
                W = following
                break
            rate /= 2
        else:
            break  # no rate helps: a minimum
    return FeatureMap(W)
