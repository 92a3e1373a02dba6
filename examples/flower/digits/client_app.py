# not run: needs `pip install "polyak[federated]"`; `flwr run examples/flower` runs it

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch.nn import functional as F
from torch.utils.data import DataLoader

from digits.task import RULE, accuracy, loader, network
from polyak.federated.flower import Client


def data(context: Context) -> DataLoader:
    return loader(int(context.node_config["partition-id"]), int(context.node_config["num-partitions"]))


app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    folder = str(context.run_config["node-folder"]) or None
    return Client(RULE, network(), F.cross_entropy, data, seed=0, folder=folder).train(message, context)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    model, mine = network(), data(context)
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    metrics = MetricRecord({"accuracy": accuracy(model, mine), "num-examples": len(mine.dataset)})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
