"""Shapley values of a game: each player's share of what all are worth together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import comb, isfinite

import torch
from torch import Tensor

from polyak.declare import whole

MOST_EXACT = 16
"""Players of whom all subsets are tried; one more doubles the time."""

Game = Callable[[frozenset[int]], float]
"""What a set of players is worth."""


def shapley_values(
    game: Game,
    players: int,
    permutations: int | None = None,
    truncate: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Shapley values of a game, ``(players,)`` in float64.

    ::

        phi_i = mean over orders of the players of  v(those before i and i) - v(those before i)

    Args:
        game: the worth of a set of players; asked once for each set.
        players: their number, at least 1; at most 16 without ``permutations``.
        permutations: random orders that are averaged, at least 1; None for all orders.
        truncate: an order ends where less than this share of the worth of all is left to gain; in [0, 1].
        generator: for the orders; the global one if None.

    Raises:
        ValueError: too many players for all orders; a worth that is not finite, with the set named.
    """
    owner, known = "shapley_values", {}

    def worth(members: Iterable[int]) -> float:
        chosen = frozenset(members)
        if chosen not in known:
            known[chosen] = finite(game(chosen), f"{owner}: the worth of players {sorted(chosen)}")
        return known[chosen]

    n = whole("players", players, owner)
    if permutations is None:
        return _of_all_orders(worth, n)
    found, everyone = torch.zeros(n, dtype=torch.float64), range(n)
    for _ in range(whole("permutations", permutations, owner)):
        members: list[int] = []
        for i in torch.randperm(n, generator=generator).tolist():
            if abs(worth(everyone) - worth(members)) < truncate * abs(worth(everyone)):
                break
            before = worth(members)
            members.append(i)
            found[i] += worth(members) - before
    return found / permutations


def _of_all_orders(worth: Callable[[Iterable[int]], float], n: int) -> Tensor:
    """By subsets: one of k players precedes i in a share 1 / (n binom(n - 1, k)) of all orders."""
    if n > MOST_EXACT:
        raise ValueError(f"shapley_values: permutations must be given for more than {MOST_EXACT} players, got {n}")
    found = torch.zeros(n, dtype=torch.float64)
    for mask in range(1 << n):
        members = [i for i in range(n) if mask >> i & 1]
        for i in range(n):
            if not mask >> i & 1:
                found[i] += (worth([*members, i]) - worth(members)) / (n * comb(n - 1, len(members)))
    return found


def finite(value: float, name: str) -> float:
    """A number as it was given; refuses one that is not finite."""
    value = float(value)
    if not isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    return value
