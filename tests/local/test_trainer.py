"""LocalTrainer: that it trains, and that its checkpoints go on bit for bit or are refused whole."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from polyak.local import DGL, MAN, Greedy, LocalTrainer
from tests.local import kinds

make_optimizer = partial(SGD, lr=0.2, momentum=0.9, nesterov=True)


def data(n=64):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 6, generator=generator)
    return x, (x @ torch.randn(6, 4, generator=generator)).argmax(1)


def loader(batch=16):
    return DataLoader(TensorDataset(*data()), batch_size=batch)


def trainer(blocks=3, auxiliary=None, **options):
    torch.manual_seed(0)
    return LocalTrainer(kinds.mlp(norm=True), make_optimizer, blocks, auxiliary or MAN(Greedy()), **options)


def test_three_lines():
    t = trainer()
    first, *_, last = t.fit(loader(), 15)
    assert first.loss > 1.0 and last.loss < 0.4 and last.accuracy > 0.85 and len(last.losses) == 2
    assert t.accuracy(loader()) > 0.85
    plain = kinds.mlp(norm=True)
    plain.load_state_dict(t.model.state_dict())
    plain.eval()
    x, y = data()
    assert (plain(x).argmax(1) == y).float().mean().item() == pytest.approx(t.accuracy(loader()))
    assert t.model.training


def test_an_epoch_reports_means_over_samples():
    t = trainer(auxiliary=Greedy())
    t.build(data()[0])
    t.optimizer.param_groups[0]["lr"] = 0.0
    t.network.eval()
    t.network.train = lambda mode=True: t.network  # statistics of the running kind, so that batches do not matter
    (epoch,) = t.fit(loader(batch=24), 1)  # the last batch is smaller
    x, y = data()
    assert epoch.loss == pytest.approx(F.cross_entropy(t.model(x), y).item(), rel=1e-5)
    assert epoch.accuracy == (t.model(x).argmax(1) == y).double().mean().item()


def test_accumulation_equals_large_batches():
    states = []
    for batch, accumulate in ((32, 1), (8, 4)):
        torch.manual_seed(0)
        t = LocalTrainer(kinds.mlp(), make_optimizer, 3, MAN(Greedy()), accumulate=accumulate)
        t.fit(loader(batch), 3)
        states.append(t.network.state_dict())
    for name, value in states[0].items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(states[1][name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", ["code", "scale", "paper", "trained", "average"])
def test_resumes_bit_for_bit(variant, tmp_path):
    def make():
        scheduler = partial(torch.optim.lr_scheduler.StepLR, step_size=1)
        made = trainer(auxiliary=MAN(DGL(4), variant=variant), scheduler=scheduler)
        made.build(data()[0])
        return made

    straight, first, second = make(), make(), make()
    straight.fit(loader(), 4)
    first.fit(loader(), 2)
    torch.save(first.state_dict(), tmp_path / "checkpoint.pt")
    second.build(data()[0])
    with torch.no_grad():
        for p in second.network.parameters():
            p.add_(1.0)
    second.load_state_dict(torch.load(tmp_path / "checkpoint.pt", weights_only=True))
    second.fit(loader(), 2)
    assert second.history == straight.history
    for name, value in straight.network.state_dict().items():
        found = second.network.state_dict()[name]
        assert torch.equal(found, value) if isinstance(value, torch.Tensor) else found == value, name


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"num_blocks": 2}, "the checkpoint has 2 blocks, this network 3"),
        ({"cuts": [2, 3, 4]}, r"the checkpoint has the cuts \[2, 3, 4\], this network \[1, 2, 4\]"),
        ({"auxiliary": MAN(Greedy(), variant="scale")}, r"other auxiliary networks: auxiliaries\.0\.scale is only in"),
        ({"auxiliary": Greedy()}, "other auxiliary networks: .* is not in the checkpoint"),
        ({"auxiliary": MAN(DGL(4))}, "other auxiliary networks"),
        (
            {"scheduler": partial(torch.optim.lr_scheduler.StepLR, step_size=1)},
            "the checkpoint has a scheduler, unlike",
        ),
    ],
)
def test_foreign_checkpoints_change_nothing(other, message):
    def make(**options):
        torch.manual_seed(0)
        model = kinds.mlp(hidden=4)
        given = {"num_blocks": 3, "auxiliary": MAN(Greedy()), "cuts": "uniform", **options}
        return LocalTrainer(model, make_optimizer, **given)

    foreign = make(**other)
    foreign.fit(loader(), 1)
    mine = make()
    mine.fit(loader(), 1)
    before = copy.deepcopy(mine.state_dict())
    with pytest.raises(ValueError, match=message):
        mine.load_state_dict(foreign.state_dict())
    after = mine.state_dict()
    assert all(torch.equal(v, after["network"][k]) for k, v in before["network"].items() if isinstance(v, torch.Tensor))
    assert after["history"] == before["history"]


def test_checkpoint_of_another_width():
    mine, other = trainer(), LocalTrainer(kinds.mlp(8, norm=True), make_optimizer, 3, MAN(Greedy()))
    mine.build(torch.rand(2, 6))
    other.build(torch.rand(2, 8))
    with pytest.raises(ValueError, match=r"has the shape \(8, 8\) in the checkpoint and \(6, 6\) here"):
        mine.load_state_dict(other.state_dict())


def test_refusals():
    with pytest.raises(ValueError, match="accumulate must be at least 1, got 0"):
        trainer(accumulate=0)
    t = trainer()
    with pytest.raises(ValueError, match="epochs must be at least 1"):
        t.fit(loader(), 0)
    for act in (t.state_dict, lambda: t.load_state_dict({})):
        with pytest.raises(RuntimeError, match=r"call build\(inputs\) with a batch first"):
            act()
    for act in (lambda: t.fit([], 1), lambda: t.accuracy([])):
        with pytest.raises(ValueError, match="loader must give at least one batch"):
            act()
    x, y = data(4)
    for batch, got in (
        ({"image": x, "label": y}, r"a dictionary of \['image', 'label'\]"),
        ((x, y, y), "a tuple of Tensor, Tensor, Tensor"),
        ([x, {"label": y}], "a list of Tensor, dict"),
        (x, "a Tensor"),
    ):
        for act in (lambda b=batch: t.fit([b], 1), lambda b=batch: t.accuracy([b])):
            with pytest.raises(TypeError, match=rf"loader must give pairs of tensors .*got {got}; for others"):
                act()
    made = SGD(kinds.mlp().parameters(), lr=0.1)
    with pytest.raises(TypeError, match=r"optimizer must be a function .*partial.*got a SGD"):
        LocalTrainer(kinds.mlp(), made, 2, Greedy())
    with pytest.raises(TypeError, match=r"scheduler must be a function .*got a StepLR"):
        trainer(scheduler=torch.optim.lr_scheduler.StepLR(made, 1))


def test_own_criterion_and_blocks_by_hand():
    blocks = [nn.Sequential(nn.Linear(6, 8), nn.Tanh()), nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))]
    t = LocalTrainer(blocks, make_optimizer, auxiliary=Greedy(), criterion=lambda a, b: F.mse_loss(a, b))
    x, y = data()
    targets = F.one_hot(y, 4).float()
    before, after = (t.fit([(x, targets)], n)[-1] for n in (1, 30))
    assert after.loss < before.loss and after.accuracy != after.accuracy  # no class numbers: NaN


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_trains(dtype):
    t = trainer(auxiliary=MAN(Greedy()), autocast=dtype)
    epochs = t.fit(loader(), 10)
    assert epochs[-1].loss < 0.7 * epochs[0].loss
    assert {p.dtype for p in t.network.parameters()} == {torch.float32}
    state = t.state_dict()
    assert (state["scaler"] is not None) == (dtype is torch.float16)
    t.load_state_dict(state)


def test_the_checkpoint_of_another_optimizer_changes_nothing():
    def make(optimizer):
        torch.manual_seed(0)
        made = LocalTrainer(kinds.mlp(hidden=4), optimizer, 3, MAN(Greedy()), cuts="uniform")
        made.fit(loader(), 1)
        return made

    mine, other = make(lambda p: torch.optim.AdamW(p)), make(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9))
    before = copy.deepcopy(mine.optimizer.state_dict())
    with pytest.raises(ValueError, match="of another optimizer"):
        mine.load_state_dict(other.state_dict())
    assert mine.optimizer.state_dict()["param_groups"] == before["param_groups"]
    mine.fit(loader(), 1)
