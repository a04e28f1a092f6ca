"""An LSTM in plain eager PyTorch, a loop over time: what torch.nn.LSTM would be without its compiled kernel.

B batch, T time, D input width, H state width.
"""

import torch
from torch import Tensor, nn


class LSTM(nn.Module):
    """nn.LSTM(D, H, batch_first=True) of one layer, with its parameters under its names; weights (4H, in)."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        for name, shape in (("weight_ih_l0", (4 * width, inputs)), ("weight_hh_l0", (4 * width, width))):
            self.register_parameter(name, nn.Parameter(torch.empty(shape).uniform_(-1, 1) * width**-0.5))
        for name in ("bias_ih_l0", "bias_hh_l0"):
            self.register_parameter(name, nn.Parameter(torch.empty(4 * width).uniform_(-1, 1) * width**-0.5))

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x (B, T, D), state two of (1, B, H) -> h (B, T, H), the last state."""
        h, c = state[0][0], state[1][0]
        z = x @ self.weight_ih_l0.T + (self.bias_ih_l0 + self.bias_hh_l0)  # all steps at once: the loop's fair form
        w_h, hs = self.weight_hh_l0.T, []
        for z_t in z.unbind(1):
            i, f, g, o = torch.addmm(z_t, h, w_h).chunk(4, dim=1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            hs.append(h)
        return torch.stack(hs, dim=1), (h[None], c[None])
