# not run: needs `pip install "polyak[federated]"`; `flwr run examples/flower` runs it
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from digits.task import RULE, accuracy, loader, network
from polyak.federated.flower import Strategy

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    model, config = network(), context.run_config

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        model.load_state_dict(arrays.to_torch_state_dict())
        return MetricRecord({"accuracy": accuracy(model, loader(0, 1))})

    share, folder = float(config["fraction-evaluate"]), str(config["server-folder"])
    strategy = Strategy(RULE, model, fraction_evaluate=share, checkpoint=folder or None)
    initial = ArrayRecord(model.state_dict())
    result = strategy.start(grid, initial, num_rounds=int(config["rounds"]), evaluate_fn=evaluate)
    if folder:
        torch.save(result.arrays.to_torch_state_dict(), Path(folder) / "model.pt")
