"""One iteration: its gradients, its averages, its order, and how it behaves in other people's loops."""

import copy
import gc

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from polyak.local import (
    DGL,
    MAN,
    ActivationMeter,
    AugLocal,
    Greedy,
    InfoPro,
    LocalNetwork,
    cifar_resnet,
    local_backward,
)
from tests.local import kinds

IMAGES = torch.rand(6, 3, 8, 8)
LABELS = torch.tensor([0, 1, 2, 3, 0, 1])


def mlp_network(auxiliary, blocks=3, norm=False, hidden=3):
    torch.manual_seed(1)
    model = kinds.mlp(norm=norm, hidden=hidden).double()
    return LocalNetwork(model, blocks, auxiliary, example=torch.rand(2, 6).double())


def data(n=5):
    return torch.rand(n, 6).double(), torch.arange(n) % 4


def gradients(module):
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def same(actual, expected, rtol=1e-12):
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=1e-15)


@pytest.mark.filterwarnings("ignore:one block")
def test_one_block_is_backpropagation():
    network = mlp_network(None, blocks=1)
    x, y = data()
    outcome = local_backward(network, x, y)
    found = gradients(network.model)
    network.zero_grad()
    F.cross_entropy(network.model(x), y).backward()
    same(found, gradients(network.model))
    same(outcome.logits, network.model(x).detach())


@pytest.mark.parametrize("auxiliary", [Greedy(), DGL(3), AugLocal(1), MAN(Greedy()), MAN(DGL(3), variant="scale")])
def test_every_gradient_is_of_its_own_local_loss(auxiliary):
    network, twin = (mlp_network(auxiliary, hidden=5) for _ in range(2))
    x, y = data()
    outcome = local_backward(network, x, y)
    h = x
    for i, block in enumerate(twin.blocks):
        h = block(h.detach())
        last = i == len(twin.blocks) - 1
        loss = F.cross_entropy(h if last else twin.auxiliaries[i](h), y)
        own = [block] if last else [block, twin.auxiliaries[i]]
        mine = [p for m in own for p in m.parameters() if p.requires_grad]
        for p, g in zip(mine, torch.autograd.grad(loss, mine), strict=True):
            p.grad = g
        same((outcome.loss if last else outcome.losses[i]).detach(), loss.detach())
    same(gradients(network), gradients(twin))
    assert {n for n, p in network.named_parameters() if p.requires_grad} == set(gradients(network))


def test_man_by_hand():
    """Two steps of a chain of three scalars' worth of linear maps, from the equations alone."""
    torch.manual_seed(0)
    w = [torch.randn(2, 2, dtype=torch.float64) for _ in range(2)]
    model = nn.Sequential(*(nn.Linear(2, 2, bias=False).double() for _ in range(3)))
    network = LocalNetwork(model, 2, MAN(Greedy(), momentum=0.9), example=torch.rand(2, 2).double())
    aux = network.auxiliaries[0]
    head = aux.head.net[1]
    with torch.no_grad():
        for i in range(2):
            model[i].weight.copy_(w[i])
    b, e, s = aux.trained.weight.detach().clone(), aux.average.weight.clone(), w[1].clone()
    a, c = head.weight.detach().clone(), head.bias.detach().clone()
    w1, v = w[0].clone(), model[2].weight.detach().clone()
    optimizer = torch.optim.SGD(network.trainable_parameters(), lr=0.5)
    x, y = torch.rand(4, 2).double(), torch.tensor([0, 1, 1, 0])
    one_hot = F.one_hot(y, 2).double()
    for _ in range(2):
        optimizer.zero_grad()
        local_backward(network, x, y)
        optimizer.step()
        h = x @ w1.T
        u = h @ (b + e).T
        g = ((u @ a.T + c).softmax(1) - one_hot) / 4  # of the local loss by its logits
        z = h @ s.T
        d = ((z @ v.T).softmax(1) - one_hot) / 4
        e = 0.9 * e + 0.1 * s  # before the step, with the weights from before it
        grads = (g @ a).T @ h, ((g @ a) @ (b + (e - 0.1 * s) / 0.9)).T @ x, g.T @ u, g.sum(0)
        s, v = s - 0.5 * (d @ v).T @ h, v - 0.5 * d.T @ z
        b, w1, a, c = (p - 0.5 * q for p, q in zip((b, w1, a, c), grads, strict=True))
    for actual, expected in (
        (aux.average.weight, e), (aux.trained.weight, b), (model[0].weight, w1), (model[1].weight, s),
        (model[2].weight, v), (head.weight, a), (head.bias, c),
    ):  # fmt: skip
        same(actual.detach(), expected, 1e-11)


def test_controls_have_one_branch():
    x, y = data()
    trained, average = (mlp_network(MAN(Greedy(), variant=v)) for v in ("trained", "average"))
    assert trained.auxiliaries[0].average is None and average.auxiliaries[0].trained is None
    before = [p.clone() for p in average.auxiliaries[0].average.parameters()]
    optimizer = torch.optim.SGD(average.trainable_parameters(), lr=1.0)
    for _ in range(2):
        optimizer.zero_grad()
        local_backward(average, x, y)
        optimizer.step()
    net = average.auxiliaries[0]
    assert all(p.grad is None for p in net.average.parameters())
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in average.blocks[0].parameters())
    assert any(not torch.equal(p, q) for p, q in zip(net.average.parameters(), before, strict=True))


def test_average_keeps_its_own_running_statistics():
    network = mlp_network(MAN(Greedy(), momentum=0.0), norm=True)
    x, y = data()
    local_backward(network, x, y)
    source, average = network.auxiliaries[0].source, network.auxiliaries[0].average
    same([p.detach() for p in average.parameters()], [p.detach() for p in source.parameters()])
    # Both saw the same input with the same weights, and each counted it by itself.
    same(dict(average.named_buffers()), dict(source.named_buffers()))
    local_backward(network, 2 * x, y, last=False)
    network.auxiliaries[0].eval()
    kept = average[1].running_mean.clone()
    local_backward(network, 3 * x, y)
    assert torch.equal(average[1].running_mean, kept)
    assert not torch.equal(source[1].running_mean, kept)


def test_paper_variant_pulls_after_the_step():
    network = mlp_network(MAN(Greedy(), momentum=0.8, variant="paper"))
    net = network.auxiliaries[0]
    assert net.trained is None and net.bias.shape == (6,) and all(p.requires_grad for p in net.average.parameters())
    optimizer = torch.optim.SGD(network.trainable_parameters(), lr=0.1)
    x, y = data()
    local_backward(network, x, y)
    optimizer.step()
    stepped = net.average[0].weight.detach().clone()
    pulled = 0.8 * stepped + 0.2 * net.source[0].weight.detach()
    net.begin()
    same(net.average[0].weight.detach(), pulled)
    net.begin()
    same(net.average[0].weight.detach(), pulled)


def test_paper_variant_remembers_the_pull_in_a_checkpoint():
    network, other = (mlp_network(MAN(Greedy(), momentum=0.5, variant="paper")) for _ in range(2))
    x, y = data()
    for _ in range(2):
        local_backward(network, x, y)
        torch.optim.SGD(network.trainable_parameters(), lr=0.1).step()
    other.load_state_dict(network.state_dict())
    network.zero_grad()
    for net in (network, other):
        local_backward(net, x, y)
    same(gradients(other), gradients(network), 0)


def test_bias_of_the_paper_is_per_channel():
    network = LocalNetwork(cifar_resnet(8), 3, MAN(Greedy(), variant="paper"), example=IMAGES)
    assert [n.bias.shape for n in network.auxiliaries] == [(32, 1, 1), (64, 1, 1)]
    network = LocalNetwork(kinds.VisionViT(), 3, MAN(Greedy(), variant="paper"), example=IMAGES)
    assert network.auxiliaries[0].bias.shape == (8,)


def test_scale_starts_as_the_plain_sum():
    plain, scaled = mlp_network(MAN(Greedy())), mlp_network(MAN(Greedy(), variant="scale"))
    scaled.load_state_dict({**plain.state_dict(), **{k: v for k, v in scaled.state_dict().items() if "scale" in k}})
    x, y = data()
    for a, b in zip(local_backward(plain, x, y).losses, local_backward(scaled, x, y).losses, strict=True):
        same(a.detach(), b.detach())
    grad = scaled.auxiliaries[0].scale.grad
    assert grad is not None and grad.abs() > 0


def test_extra_layers_follow_the_sum():
    torch.manual_seed(0)
    network = LocalNetwork(kinds.VisionViT(), 3, MAN(Greedy(), variant="scale", extra=1), example=IMAGES)
    net = network.auxiliaries[0]
    x = torch.rand(2, 5, 8)
    mixed = net.scale * net.trained(x) + (2 - net.scale) * net.average(x)
    torch.testing.assert_close(net(x), net.head(net.extra[0](mixed)))
    local_backward(network, IMAGES, LABELS)
    assert all(p.grad is not None for p in net.extra.parameters())


def test_fresh_layers_differ_but_keep_their_scale():
    model = cifar_resnet(8)
    for init, equal in (("copy", True), ("fresh", False)):
        network = LocalNetwork(model, 3, MAN(Greedy(), init=init), example=IMAGES)
        for net in network.auxiliaries:
            source, average, trained = (m.conv1.weight for m in (net.source, net.average, net.trained))
            assert torch.equal(source, average) is equal
            assert not torch.equal(source, trained)
            assert trained.std().item() == pytest.approx(source.std().item(), rel=0.1)


def test_accumulated_batches_are_one_batch():
    """Gradients of n micro-batches with weight 1/n; averages move once."""
    whole, parts = (mlp_network(MAN(Greedy(), momentum=0.5)) for _ in range(2))
    with torch.no_grad():
        for net in (whole, parts):
            for aux in net.auxiliaries:
                aux.average[0].weight.mul_(0.5)  # so that an average has somewhere to go
    x, y = data(8)
    local_backward(whole, x, y)
    local_backward(parts, x[:4], y[:4], weight=0.5, last=False)
    assert not torch.equal(parts.auxiliaries[0].average[0].weight, whole.auxiliaries[0].average[0].weight)
    local_backward(parts, x[4:], y[4:], weight=0.5)
    same(gradients(parts), gradients(whole))
    for name, value in whole.named_parameters():
        same(dict(parts.named_parameters())[name].detach(), value.detach(), 0)


@pytest.mark.parametrize("infinite", [False, True])
def test_a_step_that_the_scaler_skips_moves_no_average(infinite):
    network = mlp_network(MAN(Greedy(), momentum=0.5))
    with torch.no_grad():
        network.auxiliaries[0].average[0].weight.mul_(0.5)
    before = {k: v.clone() for k, v in network.state_dict().items() if isinstance(v, torch.Tensor)}
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    optimizer = torch.optim.SGD(network.trainable_parameters(), lr=0.1)
    x, y = data()
    outcome = local_backward(
        network, x, y, scaler=scaler, criterion=lambda a, b: F.cross_entropy(a, b) * (torch.inf if infinite else 1)
    )
    if not infinite:
        plain = mlp_network(MAN(Greedy(), momentum=0.5))
        plain.load_state_dict({k: before.get(k, v) for k, v in plain.state_dict().items()})
        local_backward(plain, x, y)
        same(gradients(network), {k: 4 * g for k, g in gradients(plain).items()})
        same(outcome.loss.detach(), local_backward(plain, x, y).loss.detach())
    scaler.step(optimizer)
    after = {k: v for k, v in network.state_dict().items() if isinstance(v, torch.Tensor)}
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    assert ("auxiliaries.0.average.0.weight" in moved) is not infinite
    assert ("model.0.weight" in moved) is not infinite
    if infinite:
        assert not moved


def test_mixed_precision():
    network = LocalNetwork(cifar_resnet(8), 3, MAN(DGL(4)), example=IMAGES)
    seen = []
    network.auxiliaries[0].trained.conv1.register_forward_hook(lambda m, i, o: seen.append(o.dtype))

    def in_backward(module, inputs, out):
        out.register_hook(lambda _: seen.append(torch.is_autocast_enabled("cpu")))

    network.blocks[0][1].conv1.register_forward_hook(in_backward)
    with torch.autocast("cpu", torch.bfloat16):
        outcome = local_backward(network, IMAGES, LABELS)
    assert seen == [torch.bfloat16, False]
    assert all(p.grad.dtype == torch.float32 for p in network.trainable_parameters())
    exact = local_backward(network, IMAGES, LABELS)
    torch.testing.assert_close(outcome.logits.float(), exact.logits, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("how", ["outcome", "loss", "local", "sum", "scaled"])
def test_backward_twice_explains_itself(how):
    network = mlp_network(Greedy())
    outcome = local_backward(network, *data())
    before = gradients(network)
    act = {
        "outcome": outcome.backward,
        "loss": outcome.loss.backward,
        "local": outcome.losses[0].backward,
        "sum": (outcome.loss + sum(outcome.losses)).backward,
        "scaled": torch.amp.GradScaler("cpu").scale(outcome.loss).backward,
    }[how]
    with pytest.raises(RuntimeError, match="the backward pass has been done"):
        act()
    same(gradients(network), before, 0)


def test_activations_of_a_block_are_gone_before_the_next():
    model = cifar_resnet(20)
    images = torch.rand(6, 3, 16, 16)
    network = LocalNetwork(model, 5, MAN(DGL(4)), example=images)
    alive = []
    with ActivationMeter([*network.parameters(), *network.buffers()]) as meter:
        for block in network.blocks:
            block.register_forward_pre_hook(lambda *_: alive.append(meter.current))
        local_backward(network, images, LABELS)
    assert alive == [0] * 5 and meter.current == 0 and meter.peak > 0
    network.zero_grad()
    with ActivationMeter([*network.parameters(), *network.buffers()]) as whole:
        F.cross_entropy(model(images), LABELS).backward()
    assert meter.peak < 0.7 * whole.peak


def test_no_garbage_is_left_for_the_collector():
    network = LocalNetwork(cifar_resnet(8), 3, MAN(DGL(4)), example=IMAGES)
    gc.collect()
    gc.disable()
    try:
        with ActivationMeter(network.parameters()) as meter:
            for _ in range(3):
                local_backward(network, IMAGES, LABELS)
                assert meter.current == 0
    finally:
        gc.enable()


def test_batch_of_one():
    one = IMAGES[:1], LABELS[:1]
    network = LocalNetwork(cifar_resnet(8), 3, DGL(4), example=IMAGES)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with pytest.raises(ValueError, match="inputs must be a batch of at least 2 in training, got 1: 6 batch norm"):
        local_backward(network, *one)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert gradients(network) == {}
    local_backward(network.eval(), *one)
    local_backward(LocalNetwork(cifar_resnet(8), 3, Greedy(), example=IMAGES), *one)  # its norms see many pixels


def test_other_refusals():
    network = mlp_network(Greedy())
    with pytest.raises(TypeError, match="network must be a LocalNetwork"):
        local_backward(network.model, *data())
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"do not call it under torch\.no_grad"):
        local_backward(network, *data())


def test_infopro_wants_images():
    network = LocalNetwork(cifar_resnet(8), 3, InfoPro((0.5,), (0.25,)), example=IMAGES)
    local_backward(network, (IMAGES - 0.5) / 0.25, LABELS)
    network.zero_grad()
    for wrong in (IMAGES * 3, (IMAGES - 0.5) / 0.25 + 10):
        before = {k: v.clone() for k, v in network.state_dict().items()}
        with pytest.raises(ValueError, match=r"inputs must be images in \[0, 1\] after image_std and image_mean"):
            local_backward(network, wrong, LABELS)
        assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert gradients(network) == {}


@pytest.mark.parametrize("norm", [False, True])
def test_any_optimizer(norm):
    import polyak.optim

    network = mlp_network(MAN(Greedy()), norm=norm)
    x, y = data(40)
    optimizer = polyak.optim.create("adamw", list(network.trainable_parameters()), lr=1e-2, execution="eager")
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        losses.append(local_backward(network, x, y).loss.detach().item())
        optimizer.step()
    assert losses[-1] < losses[0]


@pytest.mark.gpu
def test_less_memory_on_a_gpu():
    torch.manual_seed(0)
    images, labels = torch.rand(64, 3, 32, 32, device="cuda"), torch.arange(64, device="cuda") % 10
    model = cifar_resnet(110).cuda()
    network = LocalNetwork(model, 16, MAN(), example=images)

    def peak(act):
        act()
        network.zero_grad()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        act()
        return torch.cuda.max_memory_allocated() - before

    whole = peak(lambda: F.cross_entropy(model(images), labels).backward())
    assert peak(lambda: local_backward(network, images, labels)) < 0.4 * whole


@pytest.mark.parametrize("criterion", [F.cross_entropy, nn.CrossEntropyLoss(ignore_index=-1)])
@pytest.mark.parametrize(
    ("label", "message"),
    [
        (4, "targets must be class numbers from 0 to 3, or {} to be ignored, got 4"),
        (-2, "from 0 to 3, or {} to be ignored, got -2"),
        (None, "targets must be 6 class numbers, as many as inputs, got 5"),
    ],
)
def test_labels_out_of_range_change_nothing(criterion, label, message):
    network = LocalNetwork(kinds.mlp(norm=True), 3, MAN(DGL(4)), example=torch.rand(4, 6))
    targets = torch.tensor([0, 1, 2, 3, 0] + ([] if label is None else [label]))
    before = {name: copy.deepcopy(value) for name, value in network.state_dict().items()}
    ignored = getattr(criterion, "ignore_index", -100)
    with pytest.raises(ValueError, match=message.format(ignored)):
        local_backward(network, torch.rand(6, 6), targets, criterion=criterion)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]) if isinstance(value, torch.Tensor) else value == before[name], name
    assert all(p.grad is None for p in network.parameters())
    local_backward(network, torch.rand(6, 6), torch.tensor([0, 1, 2, 3, 0, ignored]), criterion=criterion)


def test_other_targets_are_the_criterions_own_business():
    network = LocalNetwork(kinds.mlp(), 3, Greedy(), example=torch.rand(4, 6))
    x, numbers = torch.rand(5, 6), torch.tensor([9, 9, 9, 9, 9])
    local_backward(network, x, torch.rand(5, 4))
    local_backward(network, x, numbers, criterion=lambda a, b: a.mean() + b.sum())

    class Mixed(nn.CrossEntropyLoss):
        def forward(self, logits, targets):
            return sum(super(Mixed, self).forward(logits, one) for one in targets)

    local_backward(network, x, (torch.zeros(5, dtype=torch.long), torch.ones(5, dtype=torch.long)), criterion=Mixed())


@pytest.mark.filterwarnings("ignore:one block")
def test_a_label_for_each_word_of_a_sentence():
    class Words(nn.Module):
        def forward(self, x):
            return x.flatten(0, 1)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), Words(), nn.Linear(8, 4))
    network = LocalNetwork(model, 1, Greedy(), example=torch.rand(2, 3, 6))
    x, labels = torch.rand(5, 3, 6), torch.arange(15) % 4
    expected = F.cross_entropy(model(x), labels).item()
    assert local_backward(network, x, labels).loss.item() == pytest.approx(expected)


@pytest.mark.parametrize("convert", [lambda n: n.model, lambda n: n], ids=["model", "network"])
def test_a_model_converted_after_the_cut_is_refused(convert):
    network = LocalNetwork(cifar_resnet(8), 2, MAN(DGL(4)), example=IMAGES)
    local_backward(network, IMAGES, LABELS)
    before = copy.deepcopy(network.state_dict())
    nn.SyncBatchNorm.convert_sync_batchnorm(convert(network))
    message = "bn1 of the CifarResNet, a BatchNorm2d when the model was cut, has been replaced by a SyncBatchNorm"
    with pytest.raises(RuntimeError, match=message):
        local_backward(network, IMAGES, LABELS)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]) if isinstance(value, torch.Tensor) else value == before[name], name


def test_a_stage_replaced_after_the_cut_is_refused():
    network = LocalNetwork(cifar_resnet(8), 2, Greedy(), example=IMAGES)
    for twin in (copy.deepcopy(network), network):
        twin.model.layer2 = nn.Sequential(*twin.model.layer2)  # the same block in another list is the same network
        with pytest.raises(RuntimeError, match="layer2 of the CifarResNet"):
            local_backward(twin, IMAGES, LABELS)
