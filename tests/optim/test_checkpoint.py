"""Saving, loading, copying, and state changed by hand: ``optimizer.state`` is the truth."""

import copy
import io
import pickle
from collections import defaultdict
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from polyak.optim import TAM, AdamW, Adan, Lion, Muon, Optimizer, chain, rules

MODES = ("eager", "batched")
METHODS: dict[str, Callable[..., Optimizer]] = {
    "adamw": AdamW,
    "adan": lambda params, **options: Adan(params, max_grad_norm=1.0, **options),
    "tam": TAM,
    "chain": lambda params, **options: Optimizer(
        params, chain(rules.adam(), rules.cautious(), rules.descend()), lr=0.01, **options
    ),
}


def model(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(128, 150), nn.ReLU(), nn.Linear(150, 1))
    return net.to(dtype)


def train(net: nn.Module, optimizer: torch.optim.Optimizer, start: int, stop: int) -> None:
    for t in range(start, stop):
        source = torch.Generator().manual_seed(t)
        for p in net.parameters():
            p.grad = torch.randn(p.shape, generator=source).to(p.dtype)
        optimizer.step()


def everything(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    out = {n: p.detach().clone() for n, p in net.named_parameters()}
    for n, p in net.named_parameters():
        out |= {f"{n}.{k}": v.clone() for k, v in optimizer.state.get(p, {}).items()}
    return out


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return set(a) == set(b) and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def size_of(thing: object) -> int:
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    return buffer.tell()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("how", ["state_dict", "deepcopy", "pickle"])
def test_a_copy_goes_on_identically(name: str, how: str, mode: str) -> None:
    net = model()
    optimizer = METHODS[name](net.parameters(), execution=mode)
    train(net, optimizer, 0, 3)
    if how == "deepcopy":
        net2, optimizer2 = copy.deepcopy((net, optimizer))
    elif how == "pickle":
        net2, optimizer2 = pickle.loads(pickle.dumps((net, optimizer)))
    else:
        net2 = copy.deepcopy(net)
        optimizer2 = METHODS[name](net2.parameters(), execution=mode)
        optimizer2.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert same(everything(net, optimizer), everything(net2, optimizer2))
    train(net, optimizer, 3, 6)
    assert not same(everything(net, optimizer), everything(net2, optimizer2)), "the copy shares memory"
    train(net2, optimizer2, 3, 6)
    assert same(everything(net, optimizer), everything(net2, optimizer2))
    assert type(optimizer2) is type(optimizer) and optimizer2.execution == mode


def test_a_copy_of_muon_still_takes_groups() -> None:
    matrix, vector = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4))
    twin = copy.deepcopy(Muon([matrix], aux_lr=0.5))
    twin.add_param_group({"params": [vector], "use_muon": False})
    assert twin.param_groups[1]["lr"] == 0.5


@pytest.mark.parametrize("mode", MODES)
def test_moments_of_half_precision_weights_stay_float32(mode: str) -> None:
    net = model(torch.bfloat16)
    optimizer = AdamW(net.parameters(), execution=mode)
    train(net, optimizer, 0, 3)
    twin = copy.deepcopy(net)
    loaded = AdamW(twin.parameters(), execution=mode)
    loaded.load_state_dict(optimizer.state_dict())
    assert {v.dtype for s in loaded.state.values() for v in s.values()} == {torch.float32}
    assert same(everything(net, optimizer), everything(twin, loaded))


@pytest.mark.parametrize("mode", MODES)
def test_files_hold_what_they_name_and_no_more(mode: str) -> None:
    params = [nn.Parameter(torch.randn(100)) for _ in range(100)]
    optimizer = AdamW(params, execution=mode)
    for p in params:
        p.grad = torch.randn(100)
    optimizer.step()
    content = optimizer.state_bytes()
    assert content == 100 * (2 * 400 + 4)
    overhead = 600 * 300  # a record of the file for each tensor
    assert size_of(optimizer.state_dict()) < content + overhead
    assert len(pickle.dumps(optimizer)) < 2 * content + overhead  # with the weights and their gradients
    one = optimizer.state_dict()["state"][7]["exp_avg"]
    assert size_of(one) < 400 + 2000
    assert len(pickle.dumps(copy.deepcopy(optimizer))) < 2 * content + overhead


def test_state_dicts_refer_to_live_tensors() -> None:
    """As with torch: no second state in memory at a save or a load. Who wants a picture takes a deep copy."""
    net = model()
    weight = next(net.parameters())
    optimizer = AdamW(net.parameters())
    assert not optimizer.state and not optimizer.state_dict()["state"]
    train(net, optimizer, 0, 2)
    saved = optimizer.state_dict()
    assert saved["state"][0]["exp_avg"] is optimizer.state[weight]["exp_avg"]
    picture = copy.deepcopy(saved)
    train(net, optimizer, 2, 4)
    assert float(saved["state"][0]["step"]) == 4 and float(picture["state"][0]["step"]) == 2
    optimizer.load_state_dict(picture)
    for name in ("exp_avg", "exp_avg_sq"):
        assert optimizer.state[weight][name].data_ptr() == picture["state"][0][name].data_ptr()


def refused(change: Callable[[dict], None], match: str, optimizer: Optimizer, net: nn.Module) -> None:
    saved = copy.deepcopy(optimizer.state_dict())
    change(saved)
    before, groups = everything(net, optimizer), copy.deepcopy(optimizer.state_dict()["param_groups"])
    with pytest.raises(ValueError, match=match):
        optimizer.load_state_dict(saved)
    assert same(before, everything(net, optimizer))
    assert optimizer.state_dict()["param_groups"] == groups
    twin_net, twin = copy.deepcopy((net, optimizer))
    train(net, optimizer, 5, 7)  # and it goes on as if nothing had been tried
    train(twin_net, twin, 5, 7)
    assert same(everything(net, optimizer), everything(twin_net, twin))


def _set(path: list, value: object) -> Callable[[dict], None]:
    def change(saved: dict) -> None:
        for key in path[:-1]:
            saved = saved[key]
        saved[path[-1]] = value

    return change


def _foreign(path: list, value: object) -> Callable[[dict], None]:
    """Set it in a state that does not say of which method it is; of the same method it would be kept."""

    def change(saved: dict) -> None:
        _set(path, value)(saved)
        del saved["param_groups"][0]["method"]

    return change


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (_set(["param_groups", 0, "method"], "adan"), "method 'adan'.*'adamw'"),
        (_set(["state", 2, "exp_avg"], torch.zeros(3, 3)), r"exp_avg has shape \(3, 3\), expected \(150, 128\)"),
        (_foreign(["state", 2, "exp_avg_diff"], torch.zeros(150, 128)), "exp_avg_diff"),
        (lambda saved: saved["state"][2].pop("exp_avg_sq"), "exp_avg_sq"),
        (lambda saved: saved["param_groups"].append(saved["param_groups"][0]), "2 parameter groups.*has 1"),
        (lambda saved: saved["param_groups"][0]["params"].pop(), "group 0 .*has 5 parameters, here 6"),
        (_set(["param_groups", 0, "lr"], -1.0), "lr"),
        (_set(["param_groups", 0, "betas"], (0.9,)), "betas"),
        (_set(["param_groups", 0, "amsgrad"], True), "max_exp_avg_sq"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(change: Callable[[dict], None], match: str) -> None:
    net = model()
    optimizer = AdamW(net.parameters())
    train(net, optimizer, 0, 3)
    refused(change, match, optimizer, net)


def test_options_of_groups_come_with_the_checkpoint() -> None:
    net = model()
    layers = [list(layer.parameters()) for layer in (net[0], net[2], net[4])]
    groups = [{"params": layer, "lr": 10.0**-i, "weight_decay": 0.1 * i} for i, layer in enumerate(layers, 1)]
    optimizer = Lion(groups, betas=(0.8, 0.9), maximize=True)
    train(net, optimizer, 0, 2)
    other = Lion([{"params": layer} for layer in layers])
    other.load_state_dict(optimizer.state_dict())
    for got, wanted in zip(other.param_groups, optimizer.param_groups, strict=True):
        assert {k: v for k, v in got.items() if k != "params"} == {k: v for k, v in wanted.items() if k != "params"}


def by_hand(net: nn.Module, optimizer: Optimizer, change: str) -> None:
    p = net[2].weight
    q = net[4].bias
    if change == "memory":
        optimizer.state[p]["exp_avg"] = torch.full_like(p, 0.5)
        optimizer.state[q]["exp_avg"] = torch.full_like(q, 0.5)
    elif change == "in place":
        optimizer.state[q]["exp_avg"].fill_(0.5)
    elif change == "step":
        optimizer.state[q]["step"] = torch.tensor(50.0)
    elif change == "dictionary":
        optimizer.state[q] = {k: torch.ones_like(v) for k, v in optimizer.state[q].items()}
    elif change == "data":
        p.data, q.data = p.data * 2, q.data * 2
    elif change == "dtype":
        net.to(torch.float64)
    elif change == "strides":
        net.to(memory_format=torch.channels_last)
    elif change == "forget":
        optimizer.state.clear()
    elif change == "all":
        optimizer.state = defaultdict(dict, {k: {n: v + 1 for n, v in s.items()} for k, s in optimizer.state.items()})
    elif change == "option":
        optimizer.param_groups[0]["amsgrad"] = True


CHANGES = ("memory", "in place", "step", "dictionary", "data", "dtype", "strides", "forget", "all", "option")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("change", CHANGES)
def test_state_is_the_truth(change: str, mode: str) -> None:
    """Whatever is changed between two steps, the next step goes by it, as torch.optim's would."""
    net, reference = model(), model()
    ours = AdamW(net.parameters(), execution=mode)
    theirs = torch.optim.AdamW(reference.parameters(), foreach=False)
    for n, optimizer in ((net, ours), (reference, theirs)):
        train(n, optimizer, 0, 3)
        by_hand(n, optimizer, change)
        if change == "dtype":  # torch leaves its moments behind
            for state in theirs.state.values():
                state |= {k: v.double() for k, v in state.items() if k != "step"}
        if change == "option" and optimizer is theirs:
            for state in theirs.state.values():
                state["max_exp_avg_sq"] = torch.zeros_like(state["exp_avg_sq"])
        train(n, optimizer, 3, 6)
    wanted = everything(reference, theirs)
    for key, value in everything(net, ours).items():
        torch.testing.assert_close(value, wanted[key], rtol=2e-5, atol=1e-6, msg=key)


def test_parameters_exchanged_in_a_group() -> None:
    """Some libraries put sharded or cast parameters in the place of those given."""
    first, second = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = AdamW([first], lr=0.1)
    optimizer.param_groups[0]["params"][0] = second
    second.grad = torch.ones(3)
    optimizer.step()
    assert bool((second < 1).all()) and "exp_avg" in optimizer.state[second]


@pytest.mark.parametrize("name", ["adamw", "tam"])
def test_distributed_checkpoint_makes_no_step(name: str) -> None:
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    net = model()
    optimizer = METHODS[name](net.parameters())
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    before = everything(net, optimizer)
    get_optimizer_state_dict(net, optimizer)
    assert same(before, everything(net, optimizer))
    train(net, optimizer, 0, 3)
    saved = copy.deepcopy(get_optimizer_state_dict(net, optimizer))
    twin = copy.deepcopy(net)
    loaded = METHODS[name](twin.parameters())
    set_optimizer_state_dict(twin, loaded, saved)
    assert same(everything(net, optimizer), everything(twin, loaded))
    train(net, optimizer, 3, 5)
    train(twin, loaded, 3, 5)
    assert same(everything(net, optimizer), everything(twin, loaded))


def test_a_counter_that_was_moved_is_noticed() -> None:
    """Sharing memory between processes gives the same tensor another storage."""
    p = nn.Parameter(torch.ones(3))
    optimizer = AdamW([p])
    for t in range(1, 4):
        p.grad = torch.ones(3)
        optimizer.step()
        if t == 1:
            optimizer.state[p]["step"].share_memory_()
    assert optimizer.state[p]["step"].item() == 3.0


@pytest.mark.parametrize("storage", ["bfloat16", "int8", "factored"])
@pytest.mark.parametrize("wrong", ["shape", "part", "dtype", "kahan"])
def test_memories_kept_low_that_do_not_fit_are_refused(storage: str, wrong: str) -> None:
    def made(shape: tuple[int, ...]) -> tuple[nn.Parameter, Lion]:
        p = nn.Parameter(torch.ones(shape, dtype=torch.bfloat16))
        p.grad = torch.ones_like(p)
        optimizer = Lion([p], state_storage=storage, rounding="kahan", execution="batched")
        optimizer.step()
        return p, optimizer

    _, source = made((64, 64))
    saved = copy.deepcopy(source.state_dict())
    state = saved["state"][0]
    key = [k for k in state if k.startswith("exp_avg")][-1]
    if wrong == "part":
        state[key] = state[key][:-1]
    elif wrong == "dtype":
        state[key] = state[key].double()
    elif wrong == "kahan":
        state["kahan"] = state["kahan"][:-1]
    p, optimizer = made((32, 128) if wrong == "shape" else (64, 64))
    before = {k: v.clone() for k, v in optimizer.state[p].items()}
    with pytest.raises(ValueError, match=r"parameter 0 \(group 0\): (exp_avg|kahan)\w* has (shape|dtype) .*expected"):
        optimizer.load_state_dict(saved)
    assert same(before, dict(optimizer.state[p]))
    optimizer.step()


def test_only_what_was_a_dtype_is_read_as_one() -> None:
    p = nn.Parameter(torch.ones(2))
    optimizer = Lion([{"params": [p], "mine": "double", "other": torch.float64}])
    loaded = Lion([{"params": [p]}])
    loaded.load_state_dict(optimizer.state_dict())
    assert loaded.param_groups[0]["mine"] == "double" and loaded.param_groups[0]["other"] is torch.float64


def test_a_whole_state_kept_low_is_distributed_like_its_weight() -> None:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        whole = nn.Parameter(torch.linspace(-1, 1, 4096).view(64, 64).bfloat16())
        part = nn.Parameter(distribute_tensor(whole.detach(), mesh, [Shard(0)]))
        optimizers = [
            AdamW([p], state_storage="bfloat16", rounding="kahan", execution="batched") for p in (whole, part)
        ]
        whole.grad = whole.detach().clone()
        optimizers[0].step()
        optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
        ours, theirs = optimizers[1].state[part], optimizers[0].state[whole]
        for key in ("exp_avg", "exp_avg_sq", "kahan"):
            assert ours[key].placements == (Shard(0),) and torch.equal(ours[key].to_local(), theirs[key]), key
    finally:
        torch.distributed.destroy_process_group()
