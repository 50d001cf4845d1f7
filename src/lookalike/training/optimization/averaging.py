"""A running mean of the weights (EMA), which is measured and saved in their place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """The exponential moving average of parameters, in float32.

    After step t, counted from 1, `mean = keep * mean + (1 - keep) * weight` with
    `keep = min(decay, (1 + t) / (10 + t))`: early on, when the weights move most, the mean would
    otherwise be that of the model as it came (the rule of TensorFlow's
    `ExponentialMovingAverage`). Averages of an encoder's weights: Polyak and Juditsky 1992;
    Tarvainen and Valpola, NeurIPS 2017.

    `means` begins as a copy of the parameters.

    >>> weight = nn.Parameter(torch.zeros(1))
    >>> average = WeightAverage([("weight", weight)], decay=0.9)
    >>> weight.data.fill_(11.0).item()
    11.0
    >>> average.update()  # keeps 2/11 of itself
    >>> average.means["weight"].item()
    9.0
    """

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], decay: float) -> None:
        self._parameters = dict(parameters)
        self._decay = decay
        self.num_updates = 0
        self.means = {name: p.detach().clone().float() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the weights as they are after a step."""
        self.num_updates += 1
        keep = min(self._decay, (1 + self.num_updates) / (10 + self.num_updates))
        for name, mean in self.means.items():
            mean.lerp_(self._parameters[name], 1 - keep)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block the parameters are the means, and `means` keeps what they were before;
        afterwards all is, to the bit, as before.
        """
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges parameters and means, in place: whoever holds either sees the other."""
        for name, mean in self.means.items():
            parameter = self._parameters[name]
            weight = parameter.clone()
            parameter.copy_(mean)
            mean.copy_(weight)

    @torch.no_grad()
    def take_up(self, num_updates: int, means: dict[str, Tensor]) -> None:
        """Goes on from an earlier average; what `means` does not have stays as it is."""
        self.num_updates = num_updates
        for name, mean in means.items():
            self.means[name].copy_(mean)
