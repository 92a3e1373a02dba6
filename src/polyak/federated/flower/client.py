"""A node's part of any rule, in a ClientApp."""

from __future__ import annotations

import hashlib
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
from polyak.federated.flower.kept import Kept, from_context, from_file, to_context, to_file
from polyak.federated.flower.records import RULE, SCALARS, Layout, Unusable, integer, named, short, to_record
from polyak.federated.gradients import Batch, Loss, ModelGradient
from polyak.federated.rules.base import FederatedRule
from polyak.federated.rules.messages import Message, State
from polyak.federated.rules.tensors import Tensors

Loader = Callable[[Context], "DataLoader[Any]"]


class Client:
    """What a node does with a message of :class:`~polyak.federated.flower.Strategy`.

    ::

        client = Client(rule, Net(), F.cross_entropy, loader)

        @app.train()
        def train(message, context):
            return client.train(message, context)

    What the rule keeps of the node is in ``context.state``, which Flower keeps as long as the run. Work that did not
    count at the server (a lost or dropped reply, a round that is begun again) leaves no trace in it.

    Args:
        rule: the rule, with the arguments that the server has.
        model: the module; copied.
        loss: mean loss of a batch of outputs and targets.
        loader: gives the node's data, ``f(context)``: a DataLoader, of which the dataset (a map-style one), the batch
            size and ``collate_fn`` are used, which must make pairs of inputs and targets. Which records come is drawn
            by the rule, as ``shuffle=True`` would or by a Poisson sample for private ones.
        seed: of what the node draws, together with its ``partition-id`` (or id) and the round; None: drawn once for
            the node, and kept. Whoever knows it knows the node's noise.
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
        sent = self._received(message.content, order)
        kept = self._kept(context).before(order)
        work, examples = self._work(message.content, order, sent, kept, context, steps)
        reply, state = self.rule.client_update(
            self.gradient, kept.state(self.rule.client_state(sent.sets["arrays"])), sent, work[0], examples, work[1]
        )
        last = {s: {n: t.cpu() for n, t in tensors.items()} for s, tensors in state.sets.items()}
        self._keep(replace(kept, round=sent.round, last=last), context)
        return FlowerMessage(self._content(order, reply, examples), reply_to=message)

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

    def _received(self, content: RecordDict, order: ConfigRecord) -> Message:
        """The server's message, checked, with what is not trained put into the model."""
        arrays, records = order.get("arrays"), content.array_records
        wanted = {arrays, *self.rule.server_sets}
        if set(records) != wanted:
            raise Unusable(short(f"the message has the arrays {sorted(records)}, not {sorted(map(str, wanted))}"))
        whole_model = named("arrays", records[str(arrays)], self.layout.like, finite=True)
        weights, buffers, rest = self.layout.split(whole_model)
        sets = {s: named(s, records[s], weights, finite=True) for s in self.rule.server_sets}
        self.gradient.model.load_state_dict(rest, strict=False)
        sets = {"arrays": weights, "buffers": buffers, **sets}
        scalars = {}
        for key, value in content.config_records.get(SCALARS, ConfigRecord()).items():
            if not isinstance(value, (int, float)) or not math.isfinite(value):
                raise Unusable(short(f"the message has {value!r} as {key!r}, not a finite number"))
            scalars[key] = float(value)
        there = {s: {n: t.to(self.device) for n, t in tensors.items()} for s, tensors in sets.items()}
        return Message(integer(order, "round"), there, scalars)

    def _work(
        self, content: RecordDict, order: ConfigRecord, sent: Message, kept: Kept, context: Context, steps: int | None
    ) -> tuple[tuple[list[Batch], Tensors | None], int]:
        """Batches and noise, which are those of the node and the round, and the number of records."""
        loader = self.loader(context)
        place = (kept.seed if self.seed is None else self.seed, _name(context), sent.round)
        batches = self.batches(loader, _generator(*place), steps)
        draws = None
        if type(self.rule).draws is not FederatedRule.draws:
            # Of the model too: noise that a server could get twice, with different models, would cancel out.
            model = [array.data for record in content.array_records.values() for array in record.values()]
            digest = hashlib.sha256(b"".join(hashlib.sha256(one).digest() for one in model)).hexdigest()
            state = State(sent.sets, {"round": sent.round})
            draws = self.rule.draws("client", state, 1, _generator(*place, digest))
        return (batches, draws), len(loader.dataset)  # type: ignore[arg-type]

    def _content(self, order: ConfigRecord, reply: Message, examples: int) -> RecordDict:
        about = ConfigRecord({"round": reply.round, "steps": int(reply.scalars["steps"])})
        records: dict[str, ArrayRecord | ConfigRecord | MetricRecord] = {RULE: about}
        records["metrics"] = MetricRecord({str(order["weight"]): examples})
        if order.get("selected"):
            records |= {s: to_record(tensors) for s, tensors in reply.sets.items() if tensors}
        return RecordDict(records)

    def _kept(self, context: Context) -> Kept:
        if self.folder is not None:
            return from_file(self._file(context))
        return from_context(context, self.rule.client_sets, self.layout.split(self.layout.like)[0])

    def _keep(self, kept: Kept, context: Context) -> None:
        if self.folder is None:
            to_context(kept, context)
        else:
            to_file(kept, self._file(context))

    def _file(self, context: Context) -> Path:
        assert self.folder is not None
        return self.folder / f"node-{_name(context)}.pt"


def _name(context: Context) -> int | str:
    """A node's name, which is the same when it comes back."""
    partition = context.node_config.get("partition-id", context.node_id)
    return int(partition) if isinstance(partition, (int, float)) else str(partition)


def _generator(*parts: object) -> torch.Generator:
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
