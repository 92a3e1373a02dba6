"""A ledger with some rounds in it, for tests."""

from pathlib import Path

from polyak.federated.ledger import Ledger, RewardRule, Terms, commitment

AGENTS = ("ann", "bob", "cy")
MODEL = "0" * 64


def terms(rounds=3, pool=1000, stake=0, evaluators=("eve",), **rule):
    return Terms("sam", "agg", evaluators, pool, rounds, stake, "shapley", RewardRule(**rule))


def update_of(agent, round=0):
    return f"{(len(agent) + 1) * 7 + round:064x}"


def salt_of(agent):
    return f"{sum(map(ord, agent)):064x}"


def run_round(ledger, contributions, register=(), silent=()):
    """One round in which the agents of ``contributions`` take part; those of ``silent`` commit only."""
    for agent in register:
        ledger.register(agent)
    round = ledger.state.round
    ledger.close()
    for agent in (*contributions, *silent):
        ledger.commit(agent, commitment(update_of(agent, round), salt_of(agent)))
    ledger.close()
    for agent in contributions:
        ledger.reveal(agent, update_of(agent, round), salt_of(agent))
    ledger.close()
    ledger.aggregate(MODEL, {agent: update_of(agent, round) for agent in contributions})
    if contributions:
        for evaluator in ledger.terms.evaluators:
            ledger.evaluate(evaluator, contributions)
    ledger.close()
    return {name: int(amount) for name, amount in ledger.reward().data.items()}


def filled(folder: Path) -> Path:
    """A ledger of one round of three agents."""
    path = folder / "ledger.db"
    run_round(Ledger.create(path, terms()), dict(zip(AGENTS, (0.5, 0.25, -0.125), strict=True)), register=AGENTS)
    return path
