"""Any rule as a Strategy of Flower's message API."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, MessageType, MetricRecord, RecordDict
from flwr.app import Message as FlowerMessage
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords
from torch import nn

from polyak.federated.flower.evaluating import Average, Evaluating, log, message_to, sampled
from polyak.federated.flower.records import RULE, SCALARS, Layout, Unusable, short, to_record
from polyak.federated.flower.replies import Reader, Round, one_a_node
from polyak.federated.flower.run import Run
from polyak.federated.rules.base import FederatedRule
from polyak.federated.rules.dp_brem_plus import DPBREMPlus
from polyak.federated.rules.fedavg_m import LocalMomentum
from polyak.federated.rules.local_sgd import LocalSGD
from polyak.federated.rules.messages import Message, State, fault_of
from polyak.federated.rules.scaffold import WarmStarted

FILE = "server.pt"
UNREAD = Message(-1, {})


@dataclass(frozen=True)
class Asked:
    """What nodes were asked in the round that is under way.

    Args:
        sent: the rule's message.
        selected: the nodes that are to answer it.
        group: of the message, for each node that got one.
    """

    sent: Message
    selected: list[int]
    group: dict[int, str]


NOBODY = Asked(UNREAD, [], {})


class Strategy(Evaluating):
    """A rule as a Strategy of Flower; :class:`~polyak.federated.flower.Client` is the nodes' part.

    Rules whose clients keep and send nothing of their own (FedAvg, server momentum, FedSWA, ...) also take the plain
    replies of ClientApps that know nothing of polyak: their steps are then plain steps, whatever the rule mixes in.
    Replies that cannot be used are dropped, and named in :attr:`rounds` and the log; a round without any that can is
    lost, and the next one begins where it began. All that is random is drawn from one seed, and replies are taken in
    the order of their nodes' ids, so that a run that is killed and begun again from its checkpoint ends as one that
    was not.

    Args:
        rule: the rule.
        model: the module whose ``state_dict`` is learned; it says which entries are trained and which are buffers.
        fraction_train: share of the nodes that train in a round, at least ``min_train_nodes``; None: as the rule
            draws them, which is the only way for private rules.
        fraction_evaluate: share of the nodes that evaluate, at least ``min_evaluate_nodes``; 0: none.
        min_train_nodes: fewest nodes that train, where ``fraction_train`` is given.
        min_evaluate_nodes: fewest nodes that evaluate.
        min_available_nodes: nodes that must be connected before a round.
        weighted_by_key: number of examples in the nodes' MetricRecords.
        arrayrecord_key: of the model in messages; not the name of another set of the rule.
        configrecord_key: of the configuration in messages.
        train_metrics_aggr_fn: averages the metrics of training; None: by examples.
        evaluate_metrics_aggr_fn: averages the metrics of evaluation; None: by examples.
        num_clients: nodes that there are, for rules that average over all; None: those connected in the first round.
        seed: of all that the server draws, the noise of private rules too, which nobody may then know; None: drawn.
        checkpoint: folder, in which the state is kept after each round and from which :meth:`start` goes on; it must
            be empty or of the same rule, arguments and model.

    Attributes:
        rounds: what happened in each :class:`~polyak.federated.flower.replies.Round`.

    Raises:
        ValueError: an argument out of range, a rule that needs another engine, or a model that the rule refuses.
    """

    def __init__(
        self, rule: FederatedRule, model: nn.Module, fraction_train: float | None = None,
        fraction_evaluate: float = 1.0, min_train_nodes: int = 2, min_evaluate_nodes: int = 2,
        min_available_nodes: int = 2, weighted_by_key: str = "num-examples", arrayrecord_key: str = "arrays",
        configrecord_key: str = "config", train_metrics_aggr_fn: Average | None = None,
        evaluate_metrics_aggr_fn: Average | None = None, *, num_clients: int | None = None, seed: int | None = None,
        checkpoint: str | Path | None = None,
    ) -> None:  # fmt: skip
        _check_rule(rule, fraction_train)
        for argument, share in (("fraction_train", fraction_train), ("fraction_evaluate", fraction_evaluate)):
            if share is not None and not 0 <= share <= 1:
                raise ValueError(f"Strategy: {argument} must be from 0 to 1, got {share}")
        for argument, key in (("arrayrecord_key", arrayrecord_key), ("configrecord_key", configrecord_key)):
            if key in (taken := [*rule.server_sets, RULE, SCALARS]):
                raise ValueError(f"Strategy: {argument} must be none of {taken}, got {key!r}")
        rule.check_model(model)
        self.rule, self.layout = rule, Layout.of(model)
        self.fraction_train, self.fraction_evaluate = fraction_train, fraction_evaluate
        self.min_train_nodes, self.min_evaluate_nodes = min_train_nodes, min_evaluate_nodes
        self.min_available_nodes, self.num_clients, self.seed = min_available_nodes, num_clients, seed
        self.weighted_by_key = weighted_by_key
        self.arrayrecord_key, self.configrecord_key = arrayrecord_key, configrecord_key
        self.train_metrics_aggr_fn = train_metrics_aggr_fn or aggregate_metricrecords
        self.evaluate_metrics_aggr_fn = evaluate_metrics_aggr_fn or aggregate_metricrecords
        self.checkpoint = None if checkpoint is None else Path(checkpoint) / FILE
        self._run: Run | None = None
        self._asked = NOBODY
        self._evaluating: dict[int, str] = {}
        self.rounds: list[Round] = []

    def summary(self) -> None:
        """Log what the strategy is made of."""
        log.info("\t├──> Rule: %r", self.rule)
        share = "as the rule draws" if self.fraction_train is None else f"{self.fraction_train:.2f}"
        log.info("\t├──> Sampling: train (%s) | evaluate (%.2f)", share, self.fraction_evaluate)
        log.info("\t└──> Checkpoint: %s", self.checkpoint)

    def start(
        self, grid: Grid, initial_arrays: ArrayRecord, num_rounds: int = 3, timeout: float = 3600,
        train_config: ConfigRecord | None = None, evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:  # fmt: skip
        """As of every Strategy of Flower; with a checkpoint the rounds that it has are passed over.

        Raises:
            ValueError: initial arrays or a checkpoint that do not fit.
        """
        self._run, self.rounds = None, []
        run = self._running(initial_arrays)

        def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            assert evaluate_fn is not None
            passed = run.resumed and server_round <= run.resumed
            return None if passed else evaluate_fn(server_round, arrays)

        return super().start(
            grid, run.record(), num_rounds, timeout, train_config, evaluate_config, evaluate if evaluate_fn else None
        )

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[FlowerMessage]:
        """The rule's message to each node of the round: the model, the rule's other sets, and its numbers.

        The strategy goes on from its own state; ``arrays`` count where it has none yet.
        """
        run = self._running(arrays)
        self._asked = NOBODY
        if self.fraction_train == 0 or server_round <= run.resumed:
            return []
        nodes = self._connected(grid)
        state = run.begun(self.num_clients or len(nodes))
        chosen = self._chosen(nodes, run.generator)
        log.info("configure_train: Sampled %s nodes (out of %s)", len(chosen), len(nodes))
        config["server-round"] = server_round
        sent = self.rule.broadcast(state)
        shared: dict[str, ArrayRecord | ConfigRecord] = {self.arrayrecord_key: run.record()}
        shared |= {s: to_record(sent.sets[s]) for s in self.rule.server_sets}
        shared |= {self.configrecord_key: config, SCALARS: ConfigRecord(dict(sent.scalars))}
        group = {n: str(server_round) for n in (nodes if self.rule.everyone else chosen)}
        self._asked = Asked(sent, chosen, group)
        common: dict[str, int | str] = {
            "round": sent.round,
            "run": run.token,
            "arrays": self.arrayrecord_key,
            "weight": self.weighted_by_key,
        }
        messages = []
        for node in group:
            about = ConfigRecord({**common, "selected": node in chosen, **run.last_accepted(node)})
            messages.append(message_to({**shared, RULE: about}, MessageType.TRAIN, node, server_round))
        return messages

    @torch.no_grad()
    def aggregate_train(
        self, server_round: int, replies: Iterable[FlowerMessage]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The rule's aggregate of the replies that can be used; (None, None) if there are none."""
        run, asked = self._run, self._asked
        if run is None or run.state is None or not asked.group:
            return (run.record() if run and run.resumed else None), None
        contents, faults = one_a_node(replies, asked.group)
        silent = [n for n in asked.selected if n not in contents and n not in faults]
        idle = [n for n in contents if n not in asked.selected]
        messages, plain = self._read(run, {n: contents[n] for n in asked.selected if n in contents}, faults)
        draws = self.rule.draws("server", run.state, len(asked.selected), run.generator)
        accepted: list[int] = []
        try:
            found = self.rule.aggregate(run.state, list(messages.items()), draws)
            _check_finite(found.state)
        except ValueError as error:
            log.warning("aggregate_train: round %s is lost: %s", server_round, short(str(error)))
            faults = {**dict.fromkeys(messages, "the round was lost"), **faults}
        else:
            accepted = [n for n in messages if n in found.accepted]
            faults = {**{n: found.dropped[n] for n in messages if n in found.dropped}, **faults}
            run.advance(found.state, [*accepted, *idle])
        run.done = server_round
        if self.checkpoint is not None:
            run.save(self.checkpoint)
        self._asked = NOBODY
        self._report(Round(server_round, asked.selected, accepted, faults, silent, [n for n in plain if n in accepted]))
        if not accepted:
            return None, None
        return run.record(), self._averaged({n: contents[n] for n in accepted}, self.train_metrics_aggr_fn)

    def _running(self, arrays: ArrayRecord) -> Run:
        if self._run is None:
            self._run = Run.begin(self.rule, self.layout, arrays, self.seed, self.checkpoint)
        return self._run

    def _chosen(self, nodes: list[int], generator: torch.Generator) -> list[int]:
        if self.fraction_train is None:
            drawn = set(self.rule.select(nodes, generator))
            return [n for n in nodes if n in drawn]
        return sampled(nodes, max(int(len(nodes) * self.fraction_train), self.min_train_nodes), generator)

    def _read(
        self, run: Run, contents: Mapping[int, RecordDict], faults: dict[int, str]
    ) -> tuple[dict[int, Message], list[int]]:
        """The replies as the rule's messages, and the nodes whose are plain; what is wrong goes to ``faults``."""
        reader = Reader(self.rule, self.layout, self._asked.sent, run.rest, self.weighted_by_key)
        messages, plain = {}, []
        for node, content in contents.items():
            try:
                messages[node], is_plain = reader.read(content)
            except Unusable as error:
                faults[node] = str(error)
                messages[node] = UNREAD  # which the rule drops, and counts
            else:
                plain += [node] * is_plain
        return messages, plain

    def _report(self, found: Round) -> None:
        log.info("aggregate_train: Used %s replies of %s nodes", len(found.accepted), len(found.selected))
        for node, why in sorted(found.dropped.items()):
            log.warning("aggregate_train: dropped the reply of node %s: %s", node, why)
        if found.silent:
            log.warning("aggregate_train: no reply of the nodes %s", found.silent)
        if found.plain and isinstance(self.rule, LocalMomentum) and not any(one.plain for one in self.rounds):
            name = type(self.rule).__name__
            log.warning("nodes reply with weights alone: what %s mixes into local steps has no effect there", name)
        self.rounds.append(found)


def _check_finite(state: State) -> None:
    """Refuse a state that finite replies have made infinite: they were too large to be meant."""
    for name, tensors in state.sets.items():
        if fault := fault_of(tensors, tensors):
            raise ValueError(f"the new {name} {fault}")


def _check_rule(rule: FederatedRule, fraction_train: float | None) -> None:
    name = type(rule).__name__
    if isinstance(rule, DPBREMPlus):
        raise ValueError(f"Strategy: rule must not be {name}, whose masks are simulated: InProcess runs it")
    if isinstance(rule, WarmStarted) and rule.warm_start_batches:
        raise ValueError(f"Strategy: rule must have warm_start_batches=0, got {rule.warm_start_batches}")
    if fraction_train is not None and not isinstance(rule, LocalSGD):
        raise ValueError(f"Strategy: fraction_train must be None with {name}, which draws by its own rate")
