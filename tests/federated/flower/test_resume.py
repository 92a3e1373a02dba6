"""A server that is killed goes on from its checkpoint, wherever it was, and comes to the same model."""

from copy import deepcopy

import pytest
import torch

pytest.importorskip("flwr")

from flwr.app import Context, RecordDict

from polyak.federated import rules
from tests.federated.flower.fakes import FakeGrid, app_of, arrays_of, client_of, largest, strategy_of
from tests.federated.problems import network

ROUNDS = 4
RULE = rules.SCAFFOLDM(local_steps=2, participation=0.6)
PRIVATE = rules.DPBREM(client_rate=0.6, sample_rate=0.5, noise_multiplier=0.5)


class Killed(Exception):
    pass


def kill_in(round):
    """Ends the server while the replies of a round are under way, when some nodes have done their work."""

    def intercept(node, at, reply):
        if at == round and node > 2:
            raise Killed
        return reply

    return intercept


def through(rule, grid, folder=None, rounds=ROUNDS, seed=3, **named):
    return strategy_of(rule, checkpoint=folder, seed=seed, **named).start(grid, arrays_of(), num_rounds=rounds)


@pytest.mark.parametrize("rule", [RULE, PRIVATE], ids=["scaffold_m", "dp_brem"])
@pytest.mark.parametrize("where", [1, 2, ROUNDS])
def test_killed_in_a_round(tmp_path, where, rule):
    whole = through(rule, FakeGrid(app_of(client_of(rule))))
    grid = FakeGrid(app_of(client_of(rule)), intercept=kill_in(where))
    with pytest.raises(Killed):
        through(rule, grid, tmp_path)
    grid.intercept = lambda node, round, reply: reply
    again = through(rule, grid, tmp_path)
    assert largest(again.arrays, whole.arrays.to_torch_state_dict()) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["server.pt"]


def test_killed_in_a_round_where_replies_are_lost_before_and_after(tmp_path):
    def lossy(node, round, reply):
        return None if (node, round) in ((1, 1), (2, 3)) else reply

    def both(node, round, reply):
        return kill_in(2)(node, round, lossy(node, round, reply))

    rule = rules.SCAFFOLDM(local_steps=2)
    whole = through(rule, FakeGrid(app_of(client_of(rule)), intercept=lossy))
    grid = FakeGrid(app_of(client_of(rule)), intercept=both)
    with pytest.raises(Killed):
        through(rule, grid, tmp_path)
    grid.intercept = lossy
    again = through(rule, grid, tmp_path)
    assert largest(again.arrays, whole.arrays.to_torch_state_dict()) == 0


def test_nodes_with_folders_go_on_in_a_new_run_under_new_ids(tmp_path):
    rule = rules.SCAFFOLDM(local_steps=2)
    whole = through(rule, FakeGrid(app_of(client_of(rule))))
    client = client_of(rule, folder=tmp_path / "nodes")
    with pytest.raises(Killed):
        through(rule, FakeGrid(app_of(client), intercept=kill_in(3)), tmp_path)
    grid = FakeGrid(app_of(client))
    grid.ids = [i + 10 for i in grid.ids]
    grid.contexts = {
        i: Context(run_id=2, node_id=i, node_config={"partition-id": i - 11}, state=RecordDict(), run_config={})
        for i in grid.ids
    }
    again = through(rule, grid, tmp_path)
    assert largest(again.arrays, whole.arrays.to_torch_state_dict()) == 0
    assert not any(context.state for context in grid.contexts.values())


def test_a_seed_that_was_drawn_is_kept(tmp_path):
    """Nobody knows the noise of such a run, and yet it goes on with the same."""
    grid = FakeGrid(app_of(client_of(PRIVATE)))
    through(PRIVATE, grid, tmp_path, rounds=1, seed=None)
    first = (tmp_path / "server.pt").read_bytes()
    results = []
    for _ in range(2):
        (tmp_path / "server.pt").write_bytes(first)
        fresh = FakeGrid(app_of(client_of(PRIVATE)))
        fresh.contexts = {n: deepcopy(context) for n, context in grid.contexts.items()}
        results.append(through(PRIVATE, fresh, tmp_path, seed=None, fraction_evaluate=0.5).arrays)
    assert largest(results[0], results[1].to_torch_state_dict()) == 0


def test_a_run_that_is_over_is_passed_over(tmp_path):
    grid = FakeGrid(app_of(client_of(RULE)))
    whole = through(RULE, grid, tmp_path)
    count = len(grid.sent)
    evaluated = []
    again = strategy_of(RULE, checkpoint=tmp_path, fraction_evaluate=1.0).start(
        grid, arrays_of(), num_rounds=ROUNDS, evaluate_fn=lambda round, arrays: evaluated.append(round)
    )
    assert largest(again.arrays, whole.arrays.to_torch_state_dict()) == 0
    assert len(grid.sent) == count
    assert not evaluated


def test_more_rounds_go_on_and_evaluate_only_those(tmp_path):
    grid, evaluated = FakeGrid(app_of(client_of(RULE))), []
    through(RULE, grid, tmp_path, rounds=2)
    again = strategy_of(RULE, checkpoint=tmp_path, seed=3).start(
        grid, arrays_of(), num_rounds=ROUNDS, evaluate_fn=lambda round, arrays: evaluated.append(round)
    )
    whole = through(RULE, FakeGrid(app_of(client_of(RULE))))
    assert evaluated == [3, 4]
    assert largest(again.arrays, whole.arrays.to_torch_state_dict()) == 0


def test_a_strategy_without_a_checkpoint_begins_anew():
    strategy = strategy_of(rules.FedAvg(local_steps=1))
    grid = FakeGrid(app_of(client_of(rules.FedAvg(local_steps=1))))
    first = strategy.start(grid, arrays_of(), num_rounds=2)
    second = strategy.start(grid, arrays_of(), num_rounds=2)
    assert largest(first.arrays, second.arrays.to_torch_state_dict()) == 0


def test_checkpoints_of_another_rule_or_model_are_refused(tmp_path):
    through(RULE, FakeGrid(app_of(client_of(RULE))), tmp_path, rounds=1)
    before = (tmp_path / "server.pt").read_bytes()
    for rule, model, words in (
        (rules.SCAFFOLDM(local_steps=3), None, "must be of SCAFFOLDM"),
        (RULE, torch.nn.Sequential(torch.nn.Linear(4, 3)).double(), "must fit the model"),
        (RULE, network(norm=True), "must fit the model"),
    ):
        with pytest.raises(ValueError, match=words):
            strategy_of(rule, model, checkpoint=tmp_path).start(FakeGrid(None), arrays_of(model), num_rounds=1)
    assert (tmp_path / "server.pt").read_bytes() == before


def test_a_file_that_is_no_checkpoint_is_refused_and_not_unpickled(tmp_path):
    for bad in (b"", b"\x80\x04N.", b"cos\nsystem\n(S'false'\ntR."):
        (tmp_path / "server.pt").write_bytes(bad)
        with pytest.raises(ValueError, match=r"server\.pt"):
            through(RULE, FakeGrid(None), tmp_path)
