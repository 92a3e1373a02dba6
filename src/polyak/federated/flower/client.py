"""A node's part of any rule, in a ClientApp."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord, RecordDict
from flwr.app import Message as FlowerMessage
from torch import nn
from torch.utils.data import DataLoader

from polyak.declare import whole
from polyak.federated.flower.draws import generator_of
from polyak.federated.flower.kept import Kept, from_context, from_file, runs_in_context, to_context, to_file
from polyak.federated.flower.records import RULE, SCALARS, Layout, Unusable, integer, named, run_of, short, to_record
from polyak.federated.gradients import Batch, Loss, ModelGradient
from polyak.federated.ledger.exact import canonical, hash_tensors, sha256
from polyak.federated.rules.base import FederatedRule
from polyak.federated.rules.messages import Message, Sets, State
from polyak.federated.rules.tensors import Tensors

Loader = Callable[[Context], "DataLoader[Any]"]
SAME = 1e-9
"""Relative difference of a server's number from the node's own that arithmetic of another machine may make."""


class Client:
    """What a node does with a message of :class:`~polyak.federated.flower.Strategy`.

    ::

        client = Client(rule, Net(), F.cross_entropy, loader)

        @app.train()
        def train(message, context):
            return client.train(message, context)

    What the rule keeps of the node is in ``context.state``, which Flower keeps as long as the run. Work that did not
    count at the server (a lost or dropped reply, a round that is begun again) leaves no trace in it. Each run has a
    state of its own. Rates and bounds are those of the node's rule, and a message with others is refused. Where the
    node adds noise (``placement="ldp"`` or ``"ddp"``), it answers one message a round, with the same reply if that
    comes again, and one run a context or folder.

    Args:
        rule: the rule, with the arguments that the server has.
        model: the module; copied.
        loss: mean loss of a batch of outputs and targets.
        loader: gives the node's data, ``f(context)``: a DataLoader, of which the dataset (a map-style one), the batch
            size and ``collate_fn`` are used, which must make pairs of inputs and targets. Which records come is drawn
            by the rule, as ``shuffle=True`` would or by a Poisson sample for private ones.
        seed: of what the node draws, together with its ``partition-id`` (or id) and the round; None: drawn once for
            the node and the run, and kept. Whoever knows it knows the node's noise.
        folder: where to keep the state instead, so that a later ``flwr run`` can go on with a server's checkpoint.
        device: to compute on.

    Raises:
        ValueError: a model that the rule refuses, or with nothing to train.
    """

    def __init__(
        self, rule: FederatedRule, model: nn.Module, loss: Loss, loader: Loader, *, seed: int | None = None,
        folder: str | Path | None = None, device: str | torch.device = "cpu",
    ) -> None:  # fmt: skip
        rule.check_model(model)
        self.rule, self.loader, self.seed, self.device = rule, loader, seed, torch.device(device)
        self.folder = None if folder is None else Path(folder)
        self.gradient = ModelGradient(deepcopy(model).to(self.device), loss)
        self.layout = Layout.of(self.gradient.model)

    @torch.no_grad()
    def train(self, message: FlowerMessage, context: Context, *, steps: int | None = None) -> FlowerMessage:
        """A round's work, and the reply.

        Args:
            message: of the server; checked before anything is done with it.
            context: of the node; what is kept goes to ``context.state``.
            steps: for a straggler, the local steps that it comes to.

        Raises:
            Unusable: the message is not one of the strategy, or does not fit; Flower makes an error reply of that.
            ValueError: a number of steps out of range, or a node without data.
        """
        if RULE not in message.content.config_records:
            raise Unusable("the message has no ConfigRecord 'polyak': the server must run polyak's Strategy")
        order = message.content.config_records[RULE]
        sent, rest = self._received(message.content, order)
        run = run_of(order)
        kept = self._kept(context, run).before(order)
        self.gradient.model.load_state_dict(rest, strict=False)
        place = (kept.seed if self.seed is None else self.seed, _name(context), sent.round)
        digest, draws = "", None
        if self.rule.draws_at("client"):
            digest = _digest(sent, rest, kept)
            draws = self.rule.draws("client", State(sent.sets, {"round": sent.round}), 1, generator_of(*place, digest))
        if draws is None or not self._answered(kept, digest, run, context):
            loader = self.loader(context)
            batches = self.batches(loader, generator_of(*place), steps)
            kept = replace(self._worked(kept, sent, batches, len(loader.dataset), draws), digest=digest)  # type: ignore[arg-type]
            self._keep(kept if draws is not None else replace(kept, reply=None), run, context)
        return FlowerMessage(self._content(order, kept), reply_to=message)

    def batches(self, loader: DataLoader[Any], generator: torch.Generator, steps: int | None = None) -> list[Batch]:
        """The batches of a round, drawn as :class:`~polyak.federated.InProcess` draws them."""
        data: Any = loader.dataset
        if not hasattr(data, "__len__") or loader.batch_size is None:
            raise ValueError("Client: loader must give a DataLoader with a batch size of a dataset with a length")
        if not len(data):
            raise ValueError("Client: loader must give at least one record, got none")
        chosen = self.rule.records(len(data), loader.batch_size, generator)
        seed = int(torch.randint(2**62, (), generator=generator))
        if steps is not None and whole("steps", steps, "Client") > len(chosen):
            raise ValueError(f"Client: steps must be at most {len(chosen)}, got {steps}")
        made = []
        for k, rows in enumerate(chosen[:steps]):
            # An empty Poisson sample has the shape of a batch, too.
            inputs, targets = loader.collate_fn([data[i] for i in rows.tolist()] or [data[0]])
            inputs, targets = inputs[: len(rows)].to(self.device), targets[: len(rows)].to(self.device)
            made.append(Batch(inputs, targets, seed + k))
        return made

    def _received(self, content: RecordDict, order: ConfigRecord) -> tuple[Message, Tensors]:
        """The server's message, checked, and the entries of the model that are neither trained nor buffers."""
        arrays, records, round = order.get("arrays"), content.array_records, integer(order, "round")
        wanted = {arrays, *self.rule.server_sets}
        if set(records) != wanted:
            raise Unusable(short(f"the message has the arrays {sorted(records)}, not {sorted(map(str, wanted))}"))
        if round < 0 or not isinstance(order.get("weight"), str):
            raise Unusable(short(f"the message has {round!r} as 'round' and {order.get('weight')!r} as 'weight'"))
        whole_model = named("arrays", records[str(arrays)], self.layout.like, finite=True)
        weights, buffers, rest = self.layout.split(whole_model)
        sets = {s: named(s, records[s], weights, finite=True) for s in self.rule.server_sets}
        there = _moved({"arrays": weights, "buffers": buffers, **sets}, self.device)
        # What the node's own rule says, which a server that lies cannot change: noise goes by it.
        own = self.rule.broadcast(State(there, {"round": round, "clients": 1, "warm": 0})).scalars
        got = content.config_records.get(SCALARS, ConfigRecord())
        if set(got) != set(own):
            raise Unusable(short(f"the message has the numbers {sorted(got)}, not {sorted(own)}"))
        for key, want in own.items():
            value = got[key]
            if not isinstance(value, (int, float)) or not math.isclose(value, want, rel_tol=SAME):
                raise Unusable(short(f"the message has {value!r} as {key!r}, not {want!r} as the node's rule has it"))
        return Message(round, there, own), rest

    def _answered(self, kept: Kept, digest: str, run: str, context: Context) -> bool:
        """Whether a reply with noise is there already; another of its round, or of another run, is refused.

        The difference of two replies with the same noise has none, and the mean of many with other noise hardly any.
        """
        if kept.reply is not None:
            if kept.digest != digest:
                raise Unusable(f"is of round {kept.round}, in which the node has answered another message")
            return True
        if others := [one for one in self._runs(context) if one != run]:
            raise Unusable(short(f"is of run {run!r}, but the node has added its noise in run {others[0]!r}"))
        return False

    def _worked(self, kept: Kept, sent: Message, batches: list[Batch], examples: int, draws: Tensors | None) -> Kept:
        """What is to be kept, and sent, after a round's work."""
        fresh = self.rule.client_state(sent.sets["arrays"])
        before = fresh if kept.counted is None else State(_moved(kept.counted, self.device))
        reply, after = self.rule.client_update(self.gradient, before, sent, batches, examples, draws)
        sets, last, steps = _moved(reply.sets, "cpu"), _moved(after.sets, "cpu"), int(reply.scalars["steps"])
        return replace(kept, round=sent.round, last=last, reply=sets, steps=steps, examples=examples)

    def _content(self, order: ConfigRecord, kept: Kept) -> RecordDict:
        about = ConfigRecord({"round": kept.round, "steps": kept.steps})
        records: dict[str, ArrayRecord | ConfigRecord | MetricRecord] = {RULE: about}
        records["metrics"] = MetricRecord({str(order["weight"]): kept.examples})
        if order.get("selected"):
            records |= {s: to_record(tensors) for s, tensors in (kept.reply or {}).items() if tensors}
        return RecordDict(records)

    def _kept(self, context: Context, run: str) -> Kept:
        if self.folder is not None:
            return from_file(self._file(context, run))
        weights, buffers, _ = self.layout.split(self.layout.like)
        reply = {**dict.fromkeys(self.rule.reply_sets, weights), "buffers": buffers}
        return from_context(context, run, self.rule.client_sets, weights, reply)

    def _keep(self, kept: Kept, run: str, context: Context) -> None:
        if self.folder is None:
            to_context(kept, run, context)
        else:
            to_file(kept, self._file(context, run))

    def _runs(self, context: Context) -> list[str]:
        """The runs of which something is kept."""
        if self.folder is None:
            return runs_in_context(context)
        return [path.stem.rpartition("-")[2] for path in self.folder.glob(self._file(context, "*").name)]

    def _file(self, context: Context, run: str) -> Path:
        assert self.folder is not None
        return self.folder / f"node-{_name(context)}-{run}.pt"


def _moved(sets: Sets, device: str | torch.device) -> dict[str, Tensors]:
    return {s: {n: t.to(device) for n, t in tensors.items()} for s, tensors in sets.items()}


def _digest(sent: Message, rest: Tensors, kept: Kept) -> str:
    """Of all that a reply is made from beside the data: numbers and tensors, not the bytes that they came as."""
    places = {"sent": sent.sets, "rest": {"": rest}, "kept": kept.counted or {}}
    tensors = [[place, s, hash_tensors(one)] for place, sets in places.items() for s, one in sorted(sets.items())]
    return sha256(canonical([sent.round, sorted((n, v.hex()) for n, v in sent.scalars.items()), tensors]))


def _name(context: Context) -> int | str:
    """A node's name, which is the same when it comes back."""
    partition = context.node_config.get("partition-id", context.node_id)
    return int(partition) if isinstance(partition, (int, float)) else str(partition)
