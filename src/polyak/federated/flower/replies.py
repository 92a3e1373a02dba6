"""What a server reads of the replies of nodes, after it has checked them."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from flwr.app import Message as FlowerMessage
from flwr.app import MetricRecord, RecordDict

from polyak.federated.flower.records import RULE, Layout, Unusable, integer, named, short
from polyak.federated.rules.base import FederatedRule
from polyak.federated.rules.local_sgd import LocalSGD
from polyak.federated.rules.messages import Message
from polyak.federated.rules.tensors import Tensors

MOST_EXAMPLES = 2.0**53
"""Above it a number of examples is not exact, and sums of several could overflow."""


@dataclass(frozen=True)
class Round:
    """What happened in a round.

    Args:
        server_round: Flower's number of it, from 1.
        selected: the nodes that should answer.
        accepted: those whose replies were used.
        dropped: those whose replies could not be used, with the reason.
        silent: those that did not answer in time.
        plain: those of the accepted ones that sent weights, and know nothing of the rule.
    """

    server_round: int
    selected: list[int]
    accepted: list[int]
    dropped: dict[int, str]
    silent: list[int]
    plain: list[int]


@dataclass(frozen=True)
class Reader:
    """Reads replies to one message of a rule.

    Args:
        rule: the rule.
        layout: of the model.
        sent: what the server sent.
        rest: the entries of the model that are neither trained nor buffers.
        weighted_by_key: of a node's number of examples.
    """

    rule: FederatedRule
    layout: Layout
    sent: Message
    rest: Tensors
    weighted_by_key: str

    def read(self, content: RecordDict) -> tuple[Message, bool]:
        """A reply, and whether it is plain: one ArrayRecord like the one that was sent, and one MetricRecord.

        Raises:
            Unusable: it is neither that nor one of :class:`~polyak.federated.flower.Client`.
        """
        examples = examples_of(content, self.weighted_by_key)
        if RULE not in content.config_records:
            return self._plain(content, examples), True
        about = content.config_records[RULE]
        known = self._expected()
        wanted = {s for s, like in known.items() if like}
        if set(content.array_records) != wanted:
            raise Unusable(short(f"has the arrays {sorted(content.array_records)}, not {sorted(wanted)}"))
        sets = {s: named(s, content.array_records.get(s), like) if like else {} for s, like in known.items()}
        numbers = {key: integer(about, key) for key in ("round", "steps")}
        return Message(numbers["round"], sets, {"examples": examples, "steps": float(numbers["steps"])}), False

    def _expected(self) -> Mapping[str, Tensors]:
        arrays = self.sent.sets["arrays"]
        return {**dict.fromkeys(self.rule.reply_sets, arrays), "buffers": self.sent.sets["buffers"]}

    def _plain(self, content: RecordDict, examples: float) -> Message:
        if not isinstance(self.rule, LocalSGD) or self.rule.client_sets:
            raise Unusable(f"is plain, but {type(self.rule).__name__} needs nodes with polyak.federated.flower.Client")
        if len(content.array_records) != 1:
            raise Unusable(f"has {len(content.array_records)} ArrayRecords, not one")
        (name, record), *_ = content.array_records.items()
        like = self.layout.joined(self.sent.sets["arrays"], self.sent.sets["buffers"], self.rest)
        arrays, buffers, _ = self.layout.split(named(name, record, like))
        return self.rule.plain_reply(self.sent, arrays, buffers, examples)


def examples_of(content: RecordDict, key: str) -> float:
    """A node's number of examples, of its only MetricRecord.

    Raises:
        Unusable: there is no such number, or none that makes sense.
    """
    if len(content.metric_records) != 1:
        raise Unusable(f"has {len(content.metric_records)} MetricRecords, not one")
    value = next(iter(content.metric_records.values())).get(key)
    if not isinstance(value, (int, float)) or not 0 < value <= MOST_EXAMPLES:
        raise Unusable(short(f"has {value!r} as {key!r}, not a number above 0 and up to 2^53"))
    return float(value)


def metrics_alike(contents: Mapping[int, RecordDict], key: str) -> tuple[list[RecordDict], dict[int, str]]:
    """The replies whose metrics can be averaged, and the reasons against the others.

    Metrics must be finite, and have the names and lengths that most have.
    """
    faults, forms = {}, {}
    for node, content in contents.items():
        (record,) = content.metric_records.values()
        if fault := _metric_fault(record):
            faults[node] = fault
        else:
            forms[node] = tuple(sorted((n, len(v) if isinstance(v, list) else -1) for n, v in record.items()))
    usual = Counter(forms.values()).most_common(1)
    for node, form in forms.items():
        if form != usual[0][0]:
            faults[node] = short(f"has the metrics {[n for n, _ in form]}, not those of most")
    good = [content for node, content in contents.items() if node not in faults]
    # One name, since Flower's averages look for the metrics of all under that of the first.
    return [RecordDict({"metrics": next(iter(one.metric_records.values()))}) for one in good], faults


def _metric_fault(record: MetricRecord) -> str:
    for name, value in record.items():
        values = value if isinstance(value, list) else [value]
        if not all(abs(one) <= sys.float_info.max for one in values):
            return short(f"has values in {name!r} that are not finite")
    return ""


def one_a_node(
    replies: Iterable[FlowerMessage], asked: Mapping[int, str]
) -> tuple[dict[int, RecordDict], dict[int, str]]:
    """The content of each node's reply, and the reasons against the others.

    Args:
        replies: what was received.
        asked: the group of the message that each node was sent.
    """
    contents: dict[int, RecordDict] = {}
    faults: dict[int, str] = {}
    for reply in replies:
        node = reply.metadata.src_node_id
        if node in contents or node in faults:
            contents.pop(node, None)
            faults[node] = "sent several replies"
        elif node not in asked:
            faults[node] = "was not asked"
        elif reply.has_error():
            faults[node] = short(f"failed: {reply.error.reason}")
        elif not reply.has_content():
            faults[node] = "sent nothing"
        elif reply.metadata.group_id != asked[node]:
            faults[node] = short(f"the reply is of round {reply.metadata.group_id!r}, not {asked[node]!r}")
        else:
            contents[node] = reply.content
    return contents, faults
