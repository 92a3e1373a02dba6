"""What the update of each agent contributed in one round: one scalar an agent, as pure functions.

The paper measures contribution by one scalar and pays by it; neither its formula nor its rule of payment was found, so
all of this is an interpretation, named after what it computes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from polyak.declare import COUNT, UNIT, Paper, whole
from polyak.federated._methods import Frozen, Listing
from polyak.federated._rows import checked, mean_of, not_finite, squared_lengths, weighted
from polyak.federated.ledger.shapley import Game, finite, shapley_values
from polyak.memory._dtype import at_least_float32

PAPER = Paper(
    "Federated Learning using Smart Contracts on Blockchains, based on Reward Driven Approach", 2021, "2107.10243"
)
Loss = Callable[[Tensor], float]
"""The loss (or minus the accuracy) of a model moved by a displacement ``(d,)``, on data that no agent trained on."""


class Measure(Frozen):
    """Base of measures of contribution: called with the updates of n agents, they return ``(n,)`` in float64.

    ::

        c_i = what the measure makes of d_1 ... d_n

    An interpretation of the paper, whose own measure was not found. Updates are never modified. Whether the data
    behind ``loss`` overlap those of an agent cannot be checked; an agent that trained on them is overpaid.
    """

    needs_loss: ClassVar[bool] = True

    @torch.no_grad()
    def __call__(
        self,
        updates: Tensor | Sequence[Tensor],
        loss: Loss | None = None,
        *,
        sizes: Sequence[int] | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The contributions.

        Args:
            updates: ``(n, d)``, one row an agent, or n vectors of one length and dtype.
            loss: of the model moved by a displacement ``(d,)``; for measures that need it.
            sizes: how many samples each agent says that it has, for :class:`DataSize`.
            generator: for what is drawn; the global one if None.

        Raises:
            TypeError: updates that are no real floating numbers, or of several dtypes.
            ValueError: updates that are not finite, a loss that is not (names the agents), no loss where one is needed.
        """
        name = type(self).__name__
        rows = checked(updates, name)
        if lost := not_finite(rows):
            raise ValueError(f"{name}: updates must be finite, those of agents {lost} are not")
        if self.needs_loss and loss is None:
            raise ValueError(f"{name}: loss must be given; without validation data use Alignment")
        return self._measured(rows, _gain(rows, loss, name), sizes, generator)

    def _measured(
        self, rows: Tensor, gain: Game, sizes: Sequence[int] | None, generator: torch.Generator | None
    ) -> Tensor:
        raise NotImplementedError


def _gain(rows: Tensor, loss: Loss | None, owner: str) -> Game:
    """By how much the mean of the updates of some agents lowers the loss; nobody's by nothing."""
    at: dict[frozenset[int], float] = {}

    def loss_at(chosen: frozenset[int]) -> float:
        assert loss is not None
        if chosen not in at:
            moved = mean_of(rows, sorted(chosen)) if chosen else torch.zeros_like(rows[0])
            at[chosen] = finite(loss(moved), f"{owner}: the loss with the updates of agents {sorted(chosen)}")
        return at[chosen]

    return lambda chosen: loss_at(frozenset()) - loss_at(chosen)


class LossGain(Measure):
    """By how much an agent's update alone lowers the loss.

    ::

        c_i = L(theta) - L(theta + d_i)

    An interpretation.
    """

    slug = "loss_gain"
    paper = PAPER

    def _measured(
        self, rows: Tensor, gain: Game, sizes: Sequence[int] | None, generator: torch.Generator | None
    ) -> Tensor:
        return torch.tensor([gain(frozenset({i})) for i in range(len(rows))], dtype=torch.float64)


class LeaveOneOut(Measure):
    """By how much the loss of the mean would be higher without an agent.

    ::

        c_i = L(theta + mean_{j != i} d_j) - L(theta + mean_j d_j)

    An interpretation. Of agents who all bring the same, none is missed.
    """

    slug = "leave_one_out"
    paper = PAPER

    def _measured(
        self, rows: Tensor, gain: Game, sizes: Sequence[int] | None, generator: torch.Generator | None
    ) -> Tensor:
        all_of = frozenset(range(len(rows)))
        return torch.tensor([gain(all_of) - gain(all_of - {i}) for i in range(len(rows))], dtype=torch.float64)


class Alignment(Measure):
    """How far an agent's update goes along the mean of the others'; needs no data.

    ::

        d_i <- d_i min(1, median_j ||d_j|| / ||d_i||)
        D_i  = mean_{j != i} d_j
        c_i  = <d_i, D_i> / ||D_i||

    An interpretation. Lengths are cut to their median first, as a liar could inflate its own. Agents that lie together
    and are many are not seen through: see :mod:`polyak.federated.aggregators`.
    """

    slug = "alignment"
    paper = PAPER
    needs_loss = False

    def _measured(
        self, rows: Tensor, gain: Game, sizes: Sequence[int] | None, generator: torch.Generator | None
    ) -> Tensor:
        n, lengths = len(rows), squared_lengths(rows).sqrt()
        scale = (torch.quantile(lengths, 0.5) / lengths).nan_to_num(1.0).clamp(max=1.0).to(rows.device)
        found = torch.zeros(n, dtype=torch.float64)
        for i in range(n if n > 1 else 0):
            weights = scale.clone()
            weights[i] = 0.0
            others = (weights.to(at_least_float32(rows)) @ at_least_float32(rows)).double()
            along = scale[i] * (rows[i].double() @ others) / torch.linalg.vector_norm(others)
            found[i] = along.nan_to_num(0.0)  # where the others' mean is zero
        return found


class Shapley(Measure):
    """An agent's share of the fall of the loss, averaged over the orders in which agents may come.

    ::

        v(S) = L(theta) - L(theta + mean_{j in S} d_j),   v(nobody) = 0
        c_i  = mean over orders of  v(those before i and i) - v(those before i)

    An interpretation. The values sum to v(everybody), exactly so without truncation. A zero update makes a mean
    shorter, so that its share is as a rule below zero, which is paid as zero.
    """

    slug = "shapley"
    paper = PAPER

    permutations: Annotated[int | None, COUNT, "random orders; None for 3 n"] = None
    truncate: Annotated[float, UNIT, "an order ends where less than this share of the whole gain is left"] = 1e-3
    exact: Annotated[bool, "all orders, by the losses of all 2^n means; up to 16 agents"] = False

    def _measured(
        self, rows: Tensor, gain: Game, sizes: Sequence[int] | None, generator: torch.Generator | None
    ) -> Tensor:
        orders = None if self.exact else self.permutations or 3 * len(rows)
        return shapley_values(gain, len(rows), orders, self.truncate, generator)


class DataSize(Measure):
    """How many samples an agent says that it has: a baseline, which believes everybody.

    ::

        c_i = n_i

    An interpretation.
    """

    slug = "data_size"
    paper = PAPER
    needs_loss = False

    def _measured(
        self, rows: Tensor, gain: Game, sizes: Sequence[int] | None, generator: torch.Generator | None
    ) -> Tensor:
        if sizes is None or len(sizes) != len(rows):
            got = "None" if sizes is None else len(sizes)
            raise ValueError(f"DataSize: sizes must be {len(rows)} numbers of samples, got {got}")
        return torch.tensor([whole("sizes", size, "DataSize") for size in sizes], dtype=torch.float64)


MEASURES: tuple[type[Measure], ...] = (LossGain, LeaveOneOut, Alignment, Shapley, DataSize)
get = Listing(MEASURES, "measure").get


def contributions(
    updates: Tensor | Sequence[Tensor], loss: Loss | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """What each update contributed, by :class:`Shapley` with a loss and by :class:`Alignment` without."""
    measure = Alignment() if loss is None else Shapley()
    return measure(updates, loss, generator=generator)


@torch.no_grad()
def weighted_mean(updates: Tensor | Sequence[Tensor], contributed: Tensor | Sequence[float]) -> Tensor:
    """The mean of updates by contribution, ``(d,)``; the plain mean where nobody contributed.

    ::

        D = sum_i max(c_i, 0) d_i / sum_i max(c_i, 0)

    Raises:
        ValueError: contributions for other agents than the updates, or not finite.
    """
    rows = checked(updates, "weighted_mean")
    weights = torch.as_tensor(contributed, dtype=torch.float64, device="cpu").clamp(min=0)
    if weights.shape != rows.shape[:1] or not weights.isfinite().all():
        raise ValueError(f"weighted_mean: contributed must be {len(rows)} finite numbers, got {contributed}")
    if not weights.any():
        return mean_of(rows, range(len(rows)))
    return weighted(rows, weights / weights.sum())
