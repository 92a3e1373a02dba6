"""The contract as a deterministic state machine: which entry is allowed next, and what follows from it.

A round has six phases. Whoever replays the entries comes to the same state and the same payments.

::

    open -> commit -> reveal -> aggregate -> evaluate -> reward -> open of the next round
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from fractions import Fraction
from math import floor
from typing import Any

from polyak.federated.ledger.errors import Refused
from polyak.federated.ledger.exact import commitment, decimal_text, digest, exact, from_text
from polyak.federated.ledger.terms import PHASES, Entry, Member, State, Terms, named

CLOSED_BY_AGGREGATOR = ("open", "commit", "reveal", "evaluate")
"""Phases that end with an entry of kind ``close``; the other two end with the one entry that they wait for."""


def advance(terms: Terms, state: State, entry: Entry) -> State:
    """The state after one more entry.

    Raises:
        Refused: the rules do not allow it; says why.
    """
    step = STEPS.get(entry.kind)
    if step is None:
        raise Refused(f"there is no kind of entry {entry.kind!r}; there are {sorted(STEPS)}")
    if state.phase == "over":
        raise Refused(f"{entry.kind}: all {terms.rounds} rounds are over")
    if entry.round != state.round:
        raise Refused(f"{entry.kind}: it is round {state.round}, not {entry.round}")
    phases, move = step
    if state.phase not in phases:
        raise Refused(f"{entry.kind} by {entry.agent!r}: the phase must be {' or '.join(phases)}, it is {state.phase}")
    if entry.kind in ("close", "aggregate", "reward") and entry.agent != terms.aggregator:
        raise Refused(f"{entry.kind}: only the aggregator {terms.aggregator!r} may, not {entry.agent!r}")
    return move(terms, state, entry)


def _register(terms: Terms, state: State, entry: Entry) -> State:
    name = _asked(named, entry.agent, "register: agent")
    if name in state.members:
        raise Refused(f"register: {name!r} is registered already")
    _holds(entry, payload=False, data={"stake": decimal_text(terms.stake)})
    return replace(state, members={**state.members, name: Member(terms.stake)})


def _close(terms: Terms, state: State, entry: Entry) -> State:
    _holds(entry, payload=False, data={})
    if state.phase == "evaluate" and state.included and not state.scalars:
        raise Refused("close: no evaluator has posted yet")
    return replace(state, phase=PHASES[PHASES.index(state.phase) + 1])


def _commit(terms: Terms, state: State, entry: Entry) -> State:
    _known(state, entry)
    if entry.agent in state.commitments:
        raise Refused(f"commit: {entry.agent!r} has committed in round {state.round} already")
    _holds(entry, payload=True, data={})
    if entry.payload in state.commitments.values():
        raise Refused(f"commit: {entry.agent!r} must not repeat the commitment of another agent")
    return replace(state, commitments={**state.commitments, entry.agent: entry.payload})


def _reveal(terms: Terms, state: State, entry: Entry) -> State:
    _known(state, entry)
    if entry.agent not in state.commitments:
        raise Refused(f"reveal: {entry.agent!r} has not committed in round {state.round}")
    if entry.agent in state.revealed:
        raise Refused(f"reveal: {entry.agent!r} has revealed in round {state.round} already")
    salt = entry.data.get("salt")
    _holds(entry, payload=True, data={"salt": salt})
    if _asked(commitment, entry.payload, salt) != state.commitments[entry.agent]:
        raise Refused(f"reveal: update and salt of {entry.agent!r} are not what it committed to")
    if entry.agent not in state.shown.get(entry.payload, {entry.agent}):
        raise Refused(f"reveal: {entry.agent!r} must not repeat an update of another agent from an earlier round")
    return replace(state, revealed={**state.revealed, entry.agent: entry.payload})


def _aggregate(terms: Terms, state: State, entry: Entry) -> State:
    for agent, update in entry.data.items():
        if state.revealed.get(agent) != update:
            raise Refused(f"aggregate: {agent!r} has not revealed the update {update!r} in round {state.round}")
    _holds(entry, payload=True, data=entry.data)
    return replace(state, phase="evaluate", model=entry.payload, included=tuple(sorted(entry.data)))


def _evaluate(terms: Terms, state: State, entry: Entry) -> State:
    if entry.agent not in terms.evaluators:
        raise Refused(f"evaluate: {entry.agent!r} is no evaluator; they are {list(terms.evaluators)}")
    if entry.agent in state.scalars:
        raise Refused(f"evaluate: {entry.agent!r} has evaluated round {state.round} already")
    if set(entry.data) != set(state.included):
        raise Refused(f"evaluate: contributions must be of {list(state.included)}, got those of {sorted(entry.data)}")
    _holds(entry, payload=False, data=entry.data)
    scalars = {k: _asked(from_text, v, f"evaluate: the contribution of {k!r}") for k, v in entry.data.items()}
    return replace(state, scalars={**state.scalars, entry.agent: scalars})


def _reward(terms: Terms, state: State, entry: Entry) -> State:
    after = settled(terms, state)
    due = payments_due(terms, state, after)
    if dict(entry.data) != due:
        raise Refused(f"reward: the payments of round {state.round} must be {due}, got {dict(entry.data)}")
    _holds(entry, payload=False, data=due)
    return after


def payments_due(terms: Terms, state: State, after: State | None = None) -> dict[str, str]:
    """What each agent is to be paid now, as the texts that the entry ``reward`` holds."""
    after = settled(terms, state) if after is None else after
    return {k: decimal_text(after.members[k].balance - member.balance) for k, member in state.members.items()}


def settled(terms: Terms, state: State) -> State:
    """The state of the next round: reputations, payments and slashed stakes, by the rule alone."""
    rule, medians = terms.rule, {name: _median(state, name) for name in state.included}
    disputed = tuple((state.round, k) for k in state.included if _spread(state, k) > exact(rule.tolerance))
    budget = rule.budget(terms.pool, terms.rounds, state.round) + state.carried
    failed = {name: Fraction(0) for name in state.commitments if name not in state.revealed}
    memory = {k: rule.remember(m.reputation, (failed | medians).get(k)) for k, m in state.members.items()}
    taking_part = {k: memory[k].value for k in state.included}
    paid = rule.payments(budget, taking_part)
    members, slashed = {}, 0
    for name, member in state.members.items():
        struck = memory[name].below >= rule.strikes
        lost = floor(exact(rule.slash) * member.stake) if name in failed or struck else 0
        kept = replace(memory[name], below=0) if struck else memory[name]
        members[name] = Member(member.stake - lost, member.balance + paid.get(name, 0), kept)
        slashed += lost
    shown = dict(state.shown)
    for name, update in state.revealed.items():
        shown[update] = shown.get(update, frozenset()) | {name}
    over = state.round + 1 == terms.rounds
    return State(
        round=state.round + 1,
        phase="over" if over else "open",
        members=members,
        model=state.model,
        carried=budget - sum(paid.values()) + slashed,
        shown=shown,
        disputed=state.disputed + disputed,
    )


def _median(state: State, agent: str) -> Fraction:
    values = sorted(scalars[agent] for scalars in state.scalars.values())
    return (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2


def _spread(state: State, agent: str) -> Fraction:
    values = [scalars[agent] for scalars in state.scalars.values()]
    return max(values) - min(values)


def _known(state: State, entry: Entry) -> None:
    if entry.agent not in state.members:
        raise Refused(f"{entry.kind}: {entry.agent!r} is not registered")


def _holds(entry: Entry, payload: bool, data: Mapping[str, Any]) -> None:
    """Refuse an entry with more or less in it than its kind has."""
    if payload:
        _asked(digest, entry.payload, f"{entry.kind}: payload")
    elif entry.payload:
        raise Refused(f"{entry.kind}: there must be no payload, got {entry.payload!r}")
    if dict(entry.data) != dict(data):
        raise Refused(f"{entry.kind}: data must be {dict(data)}, got {dict(entry.data)}")


def _asked(check: Callable[..., Any], *values: Any) -> Any:
    """What a check returns; its complaint is a refusal."""
    try:
        return check(*values)
    except (TypeError, ValueError) as error:
        raise Refused(str(error)) from error


Step = tuple[tuple[str, ...], Callable[[Terms, State, Entry], State]]
STEPS: dict[str, Step] = {
    "register": (("open",), _register),
    "close": (CLOSED_BY_AGGREGATOR, _close),
    "commit": (("commit",), _commit),
    "reveal": (("reveal",), _reveal),
    "aggregate": (("aggregate",), _aggregate),
    "evaluate": (("evaluate",), _evaluate),
    "reward": (("reward",), _reward),
}
