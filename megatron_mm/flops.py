"""Floating-point operations of a module, as its spec tells them. Loads no torch."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Flops:
    """One forward pass, two operations to a multiply-add; norms, biases, activations and softmax are not counted.

    weights: products with weights. mixing: products of activations with each other (attention). entrance: products with
    weights whose input wants no gradient, whoever is trained: pixels.
    """

    weights: float = 0.0
    mixing: float = 0.0
    entrance: float = 0.0

    def __add__(self, other: Flops) -> Flops:
        """Of two modules together; sum(..., Flops()) of many."""
        return Flops(self.weights + other.weights, self.mixing + other.mixing, self.entrance + other.entrance)

    @property
    def forward(self) -> float:
        """All of them."""
        return self.weights + self.mixing + self.entrance

    def backward(self, trained: bool, passes: bool) -> float:
        """The backward pass of weights that are `trained`, or through which gradients pass to what comes before them.

        The gradient of the weights and that of the input cost a forward pass each. Trained weights need both: norms
        and tables below them learn too.
        """
        through = trained or passes
        return self.weights * (trained + through) + self.mixing * 2 * through + self.entrance * trained
