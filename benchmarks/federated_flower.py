"""How much of a round in Flower's simulation is the strategy's own work, beside that of Flower's FedAvg.

    python benchmarks/federated_flower.py [--rounds 4] [--nodes 4] [--sizes small,large] [--json FILE]

Needs `pip install "polyak[federated]"`, and does nothing without it. Each method of each size is a simulation by
itself: nodes with 3,200 synthetic records and a network of two hidden layers take an epoch of steps on batches of 32.
The strategy's part are configure_train and aggregate_train; "beside-gradients" is what a node does beside them. The
first round, in which Ray starts its processes, does not count. Goal: the strategy's part is under 5 % of a round, and
of the shortest that a round could be: the strategy and a node's work, with all nodes at once and no network.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}

import _measure
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

GOAL = 0.05
WIDTHS = {"small": 256, "large": 2048}
METHODS = ("flower", "fedavg", "fedavg_m", "scaffold_m")
RECORDS, BATCH, FEATURES = 3200, 32, 784
STEPS = RECORDS // BATCH


def network(size: str) -> nn.Module:
    torch.manual_seed(0)
    width = WIDTHS[size]
    return nn.Sequential(
        nn.Linear(FEATURES, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )


def loader(context: Any) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(int(context.node_config["partition-id"]))
    inputs = torch.randn(RECORDS, FEATURES, generator=generator)
    return DataLoader(TensorDataset(inputs, torch.randint(10, (RECORDS,), generator=generator)), batch_size=BATCH)


class Timed:
    """A gradient that counts the seconds that it takes."""

    def __init__(self, gradient: Any) -> None:
        self.gradient, self.model, self.seconds = gradient, gradient.model, 0.0

    def __call__(self, *arguments: Any) -> Any:
        start = time.perf_counter()
        found = self.gradient(*arguments)
        self.seconds += time.perf_counter() - start
        return found


def rule_of(method: str) -> Any:
    from polyak.federated import rules

    return rules.get("fedavg" if method == "flower" else method)(local_steps=STEPS, local_lr=0.01)


def client_app(method: str, size: str) -> Any:
    from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp

    from polyak.federated.flower import Client

    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        torch.set_num_threads(1)
        start = time.perf_counter()
        if method == "flower":  # a plain node, as the quickstart has it
            model, data = network(size), loader(context)
            model.load_state_dict(message.content["arrays"].to_torch_state_dict())
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
            for inputs, targets in data:
                optimizer.zero_grad()
                F.cross_entropy(model(inputs), targets).backward()
                optimizer.step()
            metrics = MetricRecord({"num-examples": RECORDS, "work": time.perf_counter() - start})
            return Message(
                RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message
            )
        client = Client(rule_of(method), network(size), F.cross_entropy, loader, seed=0)
        client.gradient = gradient = Timed(client.gradient)  # type: ignore[assignment]
        reply = client.train(message, context)
        work = time.perf_counter() - start
        reply.content["metrics"].update({"work": work, "beside-gradients": work - gradient.seconds})
        return reply

    return app


def timed(kind: type, spans: dict[str, list[float]]) -> type:
    """A strategy whose two parts of a round are timed, and the round from the begin of one to the end of the other."""

    class TimedStrategy(kind):  # type: ignore[misc, valid-type]
        def configure_train(self, *arguments: Any, **named: Any) -> Any:
            self.began = time.perf_counter()
            found = list(super().configure_train(*arguments, **named))
            spans["configure"].append(time.perf_counter() - self.began)
            return found

        def aggregate_train(self, *arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            found = super().aggregate_train(*arguments, **named)
            spans["aggregate"].append(time.perf_counter() - start)
            spans["round"].append(time.perf_counter() - self.began)
            spans["work"].append(float(found[1]["work"]))
            spans["beside-gradients"].append(float(found[1].get("beside-gradients", float("nan"))))
            return found

    return TimedStrategy


def measured(size: str, rounds: int, nodes: int) -> list[dict[str, Any]]:
    """The methods one after another in one simulation each."""
    from flwr.app import ArrayRecord
    from flwr.serverapp import ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    from polyak.federated.flower import Strategy

    rows = []
    for method in METHODS:
        spans: dict[str, list[float]] = {
            name: [] for name in ("configure", "aggregate", "round", "work", "beside-gradients")
        }
        server = ServerApp()

        @server.main()
        def main(grid: Any, context: Any, method: str = method, spans: dict[str, list[float]] = spans) -> None:
            torch.set_num_threads(1)
            model = network(size)
            kind = timed(FedAvg if method == "flower" else Strategy, spans)
            first = () if method == "flower" else (rule_of(method), model)
            strategy = kind(*first, fraction_evaluate=0.0, min_available_nodes=nodes)
            strategy.start(grid, ArrayRecord(model.state_dict()), num_rounds=rounds + 1)

        run_simulation(
            server, client_app(method, size), nodes, backend_config={"client_resources": {"num_cpus": 1}}
        )  # fmt: skip
        middle = {name: statistics.median(values[1:]) for name, values in spans.items()}
        strategy_s = middle["configure"] + middle["aggregate"]
        row = {"method": method, "size": size, "weights": sum(p.numel() for p in network(size).parameters())}
        row |= {f"{name}_s": round(value, 5) for name, value in middle.items() if value == value}
        least = strategy_s + middle["work"]
        row |= {"strategy_s": round(strategy_s, 5), "share": round(strategy_s / middle["round"], 5)}
        row |= {"largest_share": round(strategy_s / least, 5)}
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--sizes", default="small,large", help=f"of {','.join(WIDTHS)}")
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "federated_flower.json")
    args = parser.parse_args()
    if missing := [name for name in ("flwr", "ray") if importlib.util.find_spec(name) is None]:
        print(f'nothing measured: this needs {missing[0]}: pip install "polyak[federated]"')
        return
    import flwr

    rows = [row for size in args.sizes.split(",") for row in measured(size, args.rounds, args.nodes)]
    missed = [f"{r['method']}, {r['size']}: {r['largest_share']:.1%}" for r in rows if r["largest_share"] > GOAL]
    options = {"rounds": args.rounds, "nodes": args.nodes, "steps": STEPS, "batch": BATCH}
    machine = _measure.machine("cpu") | {"clock": "perf_counter", "flwr": flwr.__version__}
    found = {"machine": machine, "options": options, "goal": GOAL, "rows": rows, "missed": missed}
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(found, indent=1) + "\n")
    print("goals missed:", missed or "none")


if __name__ == "__main__":
    main()
