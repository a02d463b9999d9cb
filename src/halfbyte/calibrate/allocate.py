"""Which of several offers each of many takes, so that all sizes together stay in a budget at little cost."""

from __future__ import annotations

import torch
from torch import Tensor

# Halvings of the range in which the price of a unit of size is looked for.
HALVINGS = 100


def allocate(cost: Tensor, size: Tensor, budget: float) -> list[int]:
    """For each of n things which of its k offers, with `cost` and `size` `[n, k]`, by Lagrange's relaxation.

    The choice is the best there is for the size that it has; what the budget leaves is spent on the offers that gain
    most for their size. Raises `ValueError` where even the smallest offers pass the budget.
    """
    cost, size = cost.double(), size.double()
    if float(size.min(1).values.sum()) > budget:
        raise ValueError(
            f"the smallest choice has size {float(size.min(1).values.sum()):.0f}, the budget is {budget:.0f}"
        )

    def chosen(price: float) -> Tensor:
        # The smaller of two offers of one value.
        value = cost + price * size
        best = value.min(1, keepdim=True).values
        return torch.where(value <= best, size, torch.inf).argmin(1)

    def taken(choice: Tensor) -> float:
        return float(size.gather(1, choice[:, None]).sum())

    low, high = 0.0, 1.0
    while taken(chosen(high)) > budget:
        high *= 4
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if taken(chosen(middle)) <= budget else (middle, high)
    choice = chosen(low) if taken(chosen(low)) <= budget else chosen(high)
    while True:
        left = budget - taken(choice)
        more = size - size.gather(1, choice[:, None])
        gain = cost.gather(1, choice[:, None]) - cost
        worth = torch.where((more > 0) & (more <= left) & (gain > 0), gain / more.clamp(min=1e-300), 0.0)
        if float(worth.max()) <= 0:
            return [int(number) for number in choice]
        row, column = divmod(int(worth.argmax()), worth.shape[1])
        choice[row] = column
