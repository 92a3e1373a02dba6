"""A strategy's part that is alike for all rules: nodes are waited for, and evaluate as under Flower's FedAvg."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from flwr.app import ArrayRecord, ConfigRecord, MessageType, MetricRecord, RecordDict
from flwr.app import Message as FlowerMessage
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy as FlowerStrategy

from polyak.federated.flower.records import Unusable
from polyak.federated.flower.replies import examples_of, metrics_alike, one_a_node
from polyak.federated.flower.run import Run

Average = Callable[[list[RecordDict], str], MetricRecord]
log = logging.getLogger("flwr")
WAIT_S = 1.0


class Evaluating(FlowerStrategy):
    """Base: the evaluation on nodes. Arguments are those of :class:`~polyak.federated.flower.Strategy`."""

    fraction_train: float | None
    fraction_evaluate: float
    min_train_nodes: int
    min_evaluate_nodes: int
    min_available_nodes: int
    weighted_by_key: str
    arrayrecord_key: str
    configrecord_key: str
    evaluate_metrics_aggr_fn: Average
    _evaluating: dict[int, str]
    """The group of the message that each node was sent."""

    def _running(self, arrays: ArrayRecord) -> Run:
        """The run, which begins with these arrays if there is none."""
        raise NotImplementedError

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[FlowerMessage]:
        """The model to a share of the nodes."""
        run, self._evaluating = self._running(arrays), {}
        if self.fraction_evaluate == 0 or server_round <= run.resumed:
            return []
        nodes = self._connected(grid)
        count = max(int(len(nodes) * self.fraction_evaluate), self.min_evaluate_nodes)
        chosen = sampled(nodes, count, run.evaluation(server_round))
        log.info("configure_evaluate: Sampled %s nodes (out of %s)", len(chosen), len(nodes))
        config["server-round"] = server_round
        self._evaluating = {node: str(server_round) for node in chosen}
        records: dict[str, ArrayRecord | ConfigRecord] = {self.arrayrecord_key: arrays, self.configrecord_key: config}
        return [message_to(records, MessageType.EVALUATE, node, server_round) for node in chosen]

    def aggregate_evaluate(self, server_round: int, replies: Iterable[FlowerMessage]) -> MetricRecord | None:
        """The average of the metrics that can be used; None if there are none."""
        contents, faults = one_a_node(replies, self._evaluating)
        good = {}
        for node in sorted(contents):
            try:
                examples_of(contents[node], self.weighted_by_key)
                good[node] = contents[node]
            except Unusable as error:
                faults[node] = str(error)
        for node, why in sorted(faults.items()):
            log.warning("aggregate_evaluate: dropped the reply of node %s: %s", node, why)
        return self._averaged(good, self.evaluate_metrics_aggr_fn)

    def _connected(self, grid: Grid) -> list[int]:
        """The nodes, once there are enough."""
        least = max(self.min_available_nodes, 1)
        if self.fraction_train:
            least = max(least, self.min_train_nodes)
        if self.fraction_evaluate:
            least = max(least, self.min_evaluate_nodes)
        while len(nodes := sorted(grid.get_node_ids())) < least:
            log.info("Waiting for nodes to connect: %d connected (minimum required: %d).", len(nodes), least)
            time.sleep(WAIT_S)
        return nodes

    def _averaged(self, contents: Mapping[int, RecordDict], average: Average) -> MetricRecord | None:
        good, faults = metrics_alike(contents, self.weighted_by_key)
        for node, why in sorted(faults.items()):
            log.warning("the metrics of node %s are left out: %s", node, why)
        return average(good, self.weighted_by_key) if good else None


def message_to(
    records: Mapping[str, ArrayRecord | ConfigRecord], kind: str, node: int, server_round: int
) -> FlowerMessage:
    """Records for a node, in the group of the round."""
    return FlowerMessage(RecordDict(dict(records)), message_type=kind, dst_node_id=node, group_id=str(server_round))


def sampled(nodes: Sequence[int], count: int, generator: torch.Generator) -> list[int]:
    """So many of the nodes, in their order."""
    return [nodes[i] for i in torch.randperm(len(nodes), generator=generator)[:count].sort().values.tolist()]
