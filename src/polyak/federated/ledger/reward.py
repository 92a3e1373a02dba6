"""From contributions to payments: exact arithmetic, in whole units of money, the same on every machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import floor, inf
from typing import Annotated, Any, Literal

from polyak.declare import COUNT, HALF_OPEN_UNIT, NON_NEGATIVE, OPEN_UNIT, SHARE, UNIT, Interval, whole
from polyak.federated._methods import Frozen
from polyak.federated.ledger.contribution import PAPER
from polyak.federated.ledger.exact import decimal_text, exact, fixed, from_text

AMOUNT = Interval(0, inf, high_open=True)


@dataclass(frozen=True)
class Reputation:
    """What is remembered of one agent's contributions; all numbers are exact.

    Attributes:
        average: the moving average, not yet corrected for its start at zero.
        forgotten: ema to the power of the rounds taken part in.
        below: rounds running with a contribution below minus ``tolerance``.
    """

    average: Fraction = Fraction(0)
    forgotten: Fraction = Fraction(1)
    below: int = 0

    @property
    def value(self) -> Fraction:
        """The average of the rounds taken part in; 0 before the first."""
        return self.average / (1 - self.forgotten) if self.forgotten != 1 else Fraction(0)


class RewardRule(Frozen):
    """The rule that pays agents by what they contributed.

    ::

        s_i   <- ema s_i + (1 - ema) max(c_i, 0)
        w_i    = s_i / (1 - ema^t_i) / sum over agents of the same      t_i: rounds in which i took part
        pay_i  = b_r w_i, in whole units, so that they sum to b_r

    An interpretation of the paper, whose own rule was not found. The budgets of the rounds are equal parts of the pool,
    or fall by ``early``: ``P (1 - rho) rho^r``. Where nobody can be paid the budget rolls over to the next round. Units
    that are left after rounding down go to the largest remainders, among equal ones to the first name. The memory is
    rounded to 18 decimal places in each round.
    """

    slug = "contribution_ledger"
    paper = PAPER

    ema: Annotated[float, HALF_OPEN_UNIT, "retention of the average of an agent's contributions"] = 0.5
    cap: Annotated[float | None, SHARE, "largest share of a budget for one agent; the rest is split again"] = None
    min_pay: Annotated[int, AMOUNT, "least payment; whoever would get less gets none, split again"] = 0
    absent: Annotated[Literal["keep", "decay"], "what happens to the average of an agent in a round without it"] = (
        "keep"
    )
    early: Annotated[float | None, OPEN_UNIT, "rho, if early rounds are to have larger budgets"] = None
    slash: Annotated[float, UNIT, "share of the stake lost by a failed reveal or ``strikes``"] = 0.0
    strikes: Annotated[int, COUNT, "rounds running below minus ``tolerance`` that cost stake"] = 3
    tolerance: Annotated[float, NON_NEGATIVE, "evaluators that differ by more are recorded as disagreeing"] = 1e-9

    def remember(self, memory: Reputation, contribution: Fraction | None) -> Reputation:
        """An agent's memory after one more round; None for a round in which it took no part."""
        ema = exact(self.ema)
        if contribution is None:
            kept = fixed(ema * memory.average) if self.absent == "decay" else memory.average
            return Reputation(kept, memory.forgotten, memory.below)
        average = fixed(ema * memory.average + (1 - ema) * max(contribution, Fraction(0)))
        below = memory.below + 1 if contribution < -exact(self.tolerance) else 0
        return Reputation(average, fixed(ema * memory.forgotten), below)

    def budget(self, pool: int, rounds: int, round: int) -> int:
        """What a round has to give, in whole units; all rounds together never more than the pool.

        Raises:
            ValueError: a negative pool, no rounds, or a round outside ``[0, rounds)``.
        """
        whole("pool", pool, "RewardRule", AMOUNT)
        whole("rounds", rounds, "RewardRule")
        whole("round", round, "RewardRule", Interval(0, rounds, high_open=True))

        def spent(until: int) -> int:
            if self.early is None:
                return pool * until // rounds
            return floor(pool * (1 - exact(self.early) ** until))

        return spent(round + 1) - spent(round)

    def payments(self, budget: int, shares: Mapping[str, Fraction]) -> dict[str, int]:
        """What each agent gets of a budget, in whole units.

        They sum to the budget; to less if ``cap`` leaves a rest, to 0 if nobody can be paid.

        Args:
            budget: whole units, at least 0.
            shares: an agent's weight, at least 0; by their sum they become shares.

        Raises:
            ValueError: a negative budget or weight.
        """
        whole("budget", budget, "RewardRule", AMOUNT)
        if wrong := [name for name, share in shares.items() if share < 0]:
            raise ValueError(f"RewardRule: shares must not be negative, those of {wrong} are")
        most = Fraction(budget) if self.cap is None else exact(self.cap) * budget
        left = {name: Fraction(share) for name, share in shares.items() if share > 0}
        while True:
            amounts = _capped(budget, left, most)
            low = [name for name, amount in amounts.items() if amount < self.min_pay]
            if not low:
                break
            left = {name: share for name, share in left.items() if name not in low}
        paid = {name: 0 for name in shares} | _rounded(amounts)
        assert sum(paid.values()) == floor(sum(amounts.values())) <= budget
        return paid

    def to_data(self) -> dict[str, Any]:
        """The arguments as texts, for the configuration of a ledger."""
        return {k: decimal_text(v, k) if isinstance(v, (int, float)) else v for k, v in vars(self).items()}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> RewardRule:
        """The rule whose :meth:`to_data` this is.

        Raises:
            TypeError, ValueError: data of no rule.
        """
        kinds = {h.name: int if isinstance(h.default, int) else float for h in cls.arguments}
        found: dict[str, Any] = {}
        for name, value in data.items():
            is_text = value is None or name == "absent" or name not in kinds
            found[name] = value if is_text else kinds[name](from_text(value, name))
        return cls(**found)


def _capped(budget: int, shares: Mapping[str, Fraction], most: Fraction) -> dict[str, Fraction]:
    """A budget by shares, nobody above ``most``: what is cut off goes to those who are below, as long as there are."""
    amounts: dict[str, Fraction] = {}
    left = dict(shares)
    while left:
        rest, total = budget - sum(amounts.values()), sum(left.values())
        above = [name for name, share in left.items() if rest * share / total > most]
        if not above:
            return amounts | {name: rest * share / total for name, share in left.items()}
        for name in above:
            amounts[name] = most
            del left[name]
    return amounts


def _rounded(amounts: Mapping[str, Fraction]) -> dict[str, int]:
    """Whole units that sum to the sum of the amounts rounded down, by the largest remainders."""
    paid = {name: floor(amount) for name, amount in amounts.items()}
    units = floor(sum(amounts.values())) - sum(paid.values())
    for name in sorted(amounts, key=lambda name: (paid[name] - amounts[name], name))[:units]:
        paid[name] += 1
    return paid
