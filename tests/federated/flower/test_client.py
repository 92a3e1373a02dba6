"""A node checks what it receives, and keeps what counted."""

import pytest
import torch

pytest.importorskip("flwr")

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from torch.utils.data import DataLoader, TensorDataset

from polyak.federated import rules
from polyak.federated.flower import Client, Unusable
from polyak.federated.flower.records import to_record
from tests.federated.flower.fakes import FakeGrid, app_of, arrays_of, client_of, copied, loaders, strategy_of
from tests.federated.problems import network

RULE = rules.SCAFFOLDM(local_steps=2)
PICKLE = Array("float64", (6,), "pickle", b"")


def context_of(part: int = 0) -> Context:
    return Context(run_id=1, node_id=9, node_config={"partition-id": part}, state=RecordDict(), run_config={})


def orders(rounds: int = 1, rule=RULE) -> list[Message]:
    """What a strategy sends to the first node, round by round."""
    grid = FakeGrid(app_of(client_of(rule)))
    strategy_of(rule).start(grid, arrays_of(), num_rounds=rounds)
    return [one for one in grid.sent if one.metadata.dst_node_id == 1]


def changed(message: Message, **records) -> Message:
    content = copied(message.content)
    for name, record in records.items():
        if record is None:
            del content[name]
        else:
            content[name] = record
    return Message(content, dst_node_id=1, message_type="train")


def ordered(message: Message, **values) -> Message:
    """The message with other entries of what the server says of the round."""
    return changed(message, polyak=ConfigRecord({**message.content["polyak"], **values}))


def poisoned(record: ArrayRecord, value: float) -> ArrayRecord:
    tensors = record.to_torch_state_dict()
    tensors["0.bias"] = torch.full_like(tensors["0.bias"], value)
    return to_record(tensors)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: changed(m, polyak=None), "the server must run polyak's Strategy"),
        (lambda m: changed(m, control=None), "has the arrays"),
        (lambda m: changed(m, other=ArrayRecord()), "has the arrays"),
        (lambda m: changed(m, arrays=ArrayRecord()), "arrays has the names"),
        (lambda m: changed(m, arrays=poisoned(m.content["arrays"], float("nan"))), "arrays .* not finite"),
        (lambda m: changed(m, momentum=poisoned(m.content["momentum"], float("inf"))), "momentum .* not finite"),
        (lambda m: changed(m, control=ArrayRecord(dict.fromkeys(m.content["control"], PICKLE))), "serialized as"),
        (lambda m: changed(m, **{"polyak-scalars": ConfigRecord({"lr": float("inf")})}), "has inf as 'lr', not 0.1"),
        (lambda m: changed(m, **{"polyak-scalars": ConfigRecord({"lr": "1"})}), "has '1' as 'lr', not 0.1"),
        (lambda m: changed(m, **{"polyak-scalars": ConfigRecord({"lr": 0.2})}), "has 0.2 as 'lr', not 0.1"),
        (lambda m: changed(m, **{"polyak-scalars": None}), r"has the numbers \[\], not \['lr'\]"),
        (lambda m: ordered(m, round=-1), "has -1 as 'round'"),
        (lambda m: ordered(m, weight=0), "0 as 'weight'"),
        (lambda m: ordered(m, run="../up"), "has '../up' as 'run'"),
        (lambda m: ordered(m, run=1), "has 1 as 'run'"),
    ],
)  # fmt: skip
def test_bad_messages_are_refused_and_leave_no_trace(change, words):
    (message,), context = orders(), context_of()
    client = Client(RULE, network(), torch.nn.functional.cross_entropy, loaders())
    with pytest.raises(Unusable, match=words):
        client.train(change(message), context)
    assert not context.state


def test_rounds_that_are_over_are_not_answered_again():
    first, second = orders(2)
    client, context = client_of(RULE), context_of()
    replies = [client.train(m, context) for m in (first, first, second)]
    one, again = (r.content["update"].to_torch_state_dict() for r in replies[:2])
    assert all(torch.equal(t, again[n]) for n, t in one.items())
    kept = copied(context.state)
    with pytest.raises(Unusable, match="is of round 0, but the node has answered in round 1"):
        client.train(first, context)
    assert kept == context.state


def test_another_run_begins_with_a_new_state():
    first, second = orders(2)
    other = ordered(second, run="another", accepted=-1)
    client, context = client_of(RULE), context_of()
    client.train(first, context)
    old, fresh = client.train(other, context), client.train(other, context_of())
    for name, array in fresh.content["control"].items():
        assert array.data == old.content["control"][name].data


@pytest.mark.parametrize("in_a_folder", [False, True])
def test_another_run_leaves_the_first_as_it_was(tmp_path, in_a_folder):
    first, second, third = orders(3)
    other = ordered(first, run="another", accepted=-1)
    results = []
    for messages in ([first, second, third], [first, second, other, third]):
        folder = tmp_path / str(len(messages)) if in_a_folder else None
        client, context = client_of(RULE, folder=folder), context_of()
        results.append([client.train(m, context) for m in messages][-1].content["update"])
        with pytest.raises(Unusable, match="is of round 0, but the node has answered in round 2"):
            client.train(first, context)
    assert all(array.data == results[1][name].data for name, array in results[0].items())


def test_a_message_that_is_refused_leaves_frozen_weights():
    model = network()
    model[0].weight.requires_grad_(False)
    grid = FakeGrid(app_of(client_of(RULE, model)))
    strategy_of(RULE, model).start(grid, arrays_of(model), num_rounds=2)
    first, second = (one for one in grid.sent if one.metadata.dst_node_id == 1)
    client, context = client_of(RULE, model), context_of()
    client.train(second, context)
    tensors = first.content["arrays"].to_torch_state_dict()
    tensors["0.weight"] += 1
    with pytest.raises(Unusable, match="is of round 0"):
        client.train(changed(first, arrays=to_record(tensors)), context)
    assert torch.equal(client.gradient.model[0].weight, model[0].weight)


def test_work_that_was_once_not_finite_is_forgotten():
    """It was not accepted, and the node goes on as if it had not worked."""
    first, second = orders(2)
    client, context = client_of(RULE), context_of()
    client.train(first, context)
    (name,) = [n for n in context.state if n.endswith("last.control")]
    context.state[name] = poisoned(context.state[name], float("nan"))
    after = client.train(ordered(second, accepted=-1), context).content["update"]
    fresh = client_of(RULE).train(ordered(second, accepted=-1), context_of()).content["update"]
    assert all(array.data == fresh[name].data for name, array in after.items())


NOISY = rules.DPBREM(client_rate=1.0, sample_rate=0.5, noise_multiplier=0.5, placement="ldp", rounds=9)


def moved(message: Message, name: str) -> Message:
    tensors = {n: t + 1e-3 for n, t in message.content[name].to_torch_state_dict().items()}
    return changed(message, **{name: to_record(tensors)})


def bounds(message: Message, factor: float) -> Message:
    numbers = message.content["polyak-scalars"]
    return changed(
        message, **{"polyak-scalars": ConfigRecord({**numbers, "record_norm": factor * numbers["record_norm"]})}
    )


@pytest.mark.parametrize("in_a_folder", [False, True])
def test_noise_is_sent_once(tmp_path, in_a_folder):
    """Two replies with one noise give the gradient away, and many with several noises their mean."""
    first, second = orders(2, NOISY)
    client, context = client_of(NOISY, seed=None, folder=tmp_path if in_a_folder else None), context_of()
    sent = client.train(first, context).content
    for change, words in (
        (moved(first, "momentum"), "is of round 0, in which the node has answered another message"),
        (moved(first, "arrays"), "answered another message"),
        (bounds(first, 2.0), "as 'record_norm', not 10.0"),
        (ordered(first, accepted=0), "answered another message"),
        (ordered(first, run="another"), "has added its noise in run"),
    ):
        with pytest.raises(Unusable, match=words):
            client.train(change, context)
    # Even if the node's data are now others.
    client.loader = lambda context: DataLoader(
        TensorDataset(torch.ones(7, 4).double(), torch.zeros(7).long()), batch_size=2
    )
    again = client.train(first, context).content
    assert again["metrics"] == sent["metrics"]
    assert all(array.data == again["momentum"][name].data for name, array in sent["momentum"].items())
    assert client.train(second, context).content["polyak"]["round"] == 1


def test_states_of_another_model_are_refused():
    (message,), context = orders(), context_of()
    client_of(RULE).train(message, context)
    (name,) = [n for n in context.state if n.endswith("last.control")]
    context.state[name] = ArrayRecord()
    with pytest.raises(Unusable, match="has the names"):
        client_of(RULE).train(message, context)


def test_files_of_another_model_or_kind_are_refused(tmp_path):
    (message,), context = orders(), context_of()
    client = client_of(RULE, folder=tmp_path)
    client.train(message, context)
    (file,) = tmp_path.iterdir()
    saved = torch.load(file, weights_only=True)
    counted = {"control": {"0.weight": torch.zeros(2)}}
    for change, words in (
        ({**saved, "last": None, "counted": counted}, "SCAFFOLDM: the client's control has the names"),
        ({"a": 1}, "must hold the state of a node"),
    ):
        torch.save(change, file)
        with pytest.raises(ValueError, match=words):
            client.train(message, context)
    assert not context.state


def test_nodes_without_a_seed_draw_their_own_and_keep_it():
    (message,) = orders()
    client, context, other = client_of(RULE, seed=None), context_of(), context_of()
    one, again, third = (client.train(message, c).content["update"] for c in (context, context, other))
    assert all(array.data == again[name].data for name, array in one.items())
    assert any(array.data != third[name].data for name, array in one.items())


@pytest.mark.parametrize(
    ("loader", "words"),
    [
        (DataLoader(TensorDataset(torch.zeros(0, 4)), batch_size=2), "at least one record"),
        (DataLoader(TensorDataset(torch.zeros(3, 4)), batch_size=None), "with a batch size"),
    ],
)
def test_data_that_cannot_be_drawn_from_is_refused(loader, words):
    (message,), context = orders(), context_of()
    client = Client(RULE, network(), torch.nn.functional.cross_entropy, lambda context: loader)
    with pytest.raises(ValueError, match=words):
        client.train(message, context)
    assert not context.state


def test_stragglers_say_how_many_steps_they_came_to():
    (message,) = orders()
    client = Client(RULE, network(), torch.nn.functional.cross_entropy, loaders())
    assert client.train(message, context_of(), steps=1).content["polyak"]["steps"] == 1
    for steps in (0, 3):
        with pytest.raises(ValueError, match="steps"):
            client.train(message, context_of(), steps=steps)


def test_dtypes_that_numpy_has_not_are_named():
    with pytest.raises(TypeError, match=r"'w' must be of such a dtype, got torch.bfloat16"):
        to_record({"w": torch.zeros(2, dtype=torch.bfloat16)})
