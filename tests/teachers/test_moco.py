"""MoCo against the recorded runs of its authors' code, on one and on two ranks; its variants by identities."""

import io
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from polyak.teachers import Cosine, HardNegativeMoCo, MoCo, Queue, hard_negatives, info_nce, projection_head
from tests.devices import DEVICES
from tests.optim import ranks
from tests.teachers.nets import arrays, manifest, state, wander

VIEWS = ("x_q", "x_k")


class Encoder(nn.Module):
    """The encoder of the vector."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = nn.Linear(5, 6), projection_head(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.body(x)))


def tiny(kind: type[MoCo] = MoCo, encoder: nn.Module | None = None, **options) -> MoCo:
    torch.manual_seed(0)
    own = encoder if encoder is not None else Encoder()
    return kind(own, **{"dim": 4, "queue_size": 12, "momentum": 0.9, **options}).double()


def views(n: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.randn(2, n, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("device", DEVICES)
def test_recorded_steps(device):
    found, h = arrays("moco-v2-step"), manifest("moco-v2-step")
    found = {name: value.to(device) for name, value in found.items()}
    moco = MoCo(Encoder(), dim=h["dim"], queue_size=h["K"], momentum=h["m"], temperature=h["T"]).double().to(device)
    start = {name.removeprefix("in/q/"): x for name, x in found.items() if name.startswith("in/q/")}
    moco.encoder.load_state_dict(start)
    moco.key_encoder.load_state_dict(start)
    moco.queue.key.copy_(found["in/queue"].T)
    optimizer = torch.optim.SGD(moco.encoder.parameters(), h["lr"])
    for t in range(5):
        out = moco(found[f"in/{t}/im_q"], found[f"in/{t}/im_k"])
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        got = {"logits": out.logits, "loss": out.loss, "queue": moco.queue.read().T}
        got |= {f"q/{name}": x for name, x in moco.encoder.state_dict().items()}
        got |= {f"k/{name}": x for name, x in moco.key_encoder.state_dict().items()}
        for name, x in got.items():
            torch.testing.assert_close(x.detach(), found[f"out/{t}/{name}"], rtol=1e-10, atol=1e-12)
        assert moco.queue.pointer == found[f"out/{t}/queue_ptr"].item()


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("moco")
    poisoned = [f"poisoned:{view}" for view in VIEWS]
    ranks.launch("tests.teachers.moco_worker", folder, "vectors", "drawn", "unequal", "uneven", *poisoned)
    return folder


def test_recorded_steps_on_two_ranks(done: Path):
    found = arrays("moco-v2-two-ranks")
    for t, (logits, queue, pointer) in enumerate(ranks.result(done, "vectors")):
        for rank in (0, 1):
            torch.testing.assert_close(logits[rank], found[f"out/{t}/rank{rank}/logits"], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(queue.T, found[f"out/{t}/queue"], rtol=1e-10, atol=1e-12)
        assert pointer == found[f"out/{t}/queue_ptr"].item()


def test_ranks_shuffle_alike(done: Path):
    assert ranks.result(done, "drawn") == (True, True)


def test_unequal_batches_are_refused_on_all_ranks(done: Path):
    for case in ("unequal", "uneven"):
        for message, same in ranks.result(done, case):
            assert "[2, 3]" in message and same


@pytest.mark.parametrize("view", VIEWS)
def test_all_ranks_refuse_a_view_of_one_that_is_not_finite(done: Path, view):
    for message, same in ranks.result(done, f"poisoned:{view}"):
        assert f"{view} must be finite" in message and "rank 1" in message and same


def test_virtual_groups_are_the_recorded_ranks():
    """Two groups on one device make the logits and the queue of two ranks."""
    found, h = arrays("moco-v2-two-ranks"), manifest("moco-v2-two-ranks")
    encoder = nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4))
    moco = MoCo(encoder, dim=4, queue_size=h["K"], momentum=h["m"], temperature=h["T"], bn_groups=2).double()
    for one in (moco.encoder, moco.key_encoder):
        one[0].weight.data.copy_(found["in/fc.weight"])
    moco.queue.key.copy_(found["in/queue"].T)
    for t in range(5):
        moco.permutation = lambda rows, device, t=t: found[f"in/{t}/perm"]
        x_q, x_k = (torch.cat([found[f"in/{t}/rank{r}/{v}"] for r in (0, 1)]) for v in ("im_q", "im_k"))
        logits = torch.cat([found[f"out/{t}/rank{r}/logits"] for r in (0, 1)])
        torch.testing.assert_close(moco(x_q, x_k).logits.detach(), logits, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(moco.queue.read().T, found[f"out/{t}/queue"], rtol=1e-10, atol=1e-12)


def test_symmetric_is_the_mean_of_both_directions():
    x, y = views()
    loss, ways = tiny(symmetric=True)(x, y).loss, [tiny()(x, y).loss, tiny()(y, x).loss]
    torch.testing.assert_close(loss, (ways[0] + ways[1]) / 2)
    one, both = tiny(), tiny(symmetric=True)
    one(x, y)
    both(x, y)
    assert torch.equal(one.queue.read(), both.queue.read())


def test_a_batch_is_never_its_own_negative():
    moco, (x, y) = tiny(queue_size=4), views()
    before = moco.queue.read()
    logits = moco(x, y).logits
    expected = moco.queries(x) @ before.T / moco.temperature
    torch.testing.assert_close(logits[:, 1:], expected)


def test_evaluation_moves_nothing():
    moco = tiny().eval()
    before = {name: x.clone() for name, x in moco.state_dict().items() if isinstance(x, torch.Tensor)}
    moco(*views())
    assert all(torch.equal(moco.state_dict()[name], x) for name, x in before.items())
    assert moco.ema.step == 0


def test_accumulation_moves_keys_once():
    moco = tiny()
    optimizer = torch.optim.SGD(moco.encoder.parameters(), 0.1)
    moco.ema.attach(optimizer, "before_forward")
    for _ in range(3):
        for micro in range(2):
            moco(*views(2, micro)).loss.backward()
        optimizer.step()
    assert moco.ema.step == 3 and moco.queue.count == 12


def test_resumed_is_uninterrupted():
    def made() -> tuple[MoCo, torch.optim.Optimizer]:
        moco = tiny(momentum=Cosine(20, 0.9, 1.0), queue_size=10)
        return moco, torch.optim.SGD(moco.encoder.parameters(), 0.1, momentum=0.9)

    def run(moco: MoCo, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
        for t in range(first, last):
            optimizer.zero_grad()
            moco(*views(seed=t)).loss.backward()
            optimizer.step()

    straight, optimizer = made()
    run(straight, optimizer, 0, 3)
    file = io.BytesIO()
    torch.save([straight.state_dict(), optimizer.state_dict()], file)
    run(straight, optimizer, 3, 7)
    resumed, optimizer = made()
    file.seek(0)
    for one, stored in zip((resumed, optimizer), torch.load(file, weights_only=True), strict=True):
        one.load_state_dict(stored)
    run(resumed, optimizer, 3, 7)
    for name, x in straight.state_dict().items():
        assert not isinstance(x, torch.Tensor) or torch.equal(x, resumed.state_dict()[name]), name
    assert resumed.ema.step == straight.ema.step == 7
    with pytest.raises(ValueError, match="schedules"):
        tiny(queue_size=10).load_state_dict(straight.state_dict())


def test_a_checkpoint_is_gone_on_with_at_another_momentum():
    moco, other = tiny(momentum=0.5), tiny(momentum=0.75)
    moco(*views())
    with pytest.raises(ValueError, match=r"schedules.*schedule='mine'"):
        other.load_state_dict(moco.state_dict())
    other.load_state_dict(moco.state_dict(), schedule="mine")
    assert other.ema.step == 1
    wander(other.encoder, 1)
    before = state(other.key_encoder)
    other.ema.update()
    for name, p in other.key_encoder.named_parameters():
        target = other.encoder.get_parameter(name)
        torch.testing.assert_close(p.data, 0.75 * before[name] + 0.25 * target.data)
    with pytest.raises(ValueError, match="schedules"):
        other.load_state_dict(moco.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_encoders_of_other_dtypes_than_the_queue(dtype):
    """What is computed with both is computed in the wider one."""
    for made in (MoCo, HardNegativeMoCo):
        moco = made(nn.Linear(8, 16).to(dtype), dim=16, queue_size=32)
        found = moco(torch.randn(4, 8, dtype=dtype), torch.randn(4, 8, dtype=dtype))
        assert found.logits.dtype == torch.promote_types(dtype, torch.float32)
        assert found.loss.isfinite() and moco.queue.count >= 4
    q, k = (nn.functional.normalize(torch.randn(4, 16), dim=1) for _ in range(2))
    keys = Queue(32, 16).read()
    torch.testing.assert_close(
        info_nce(q.to(dtype), k.to(dtype), keys), info_nce(q, k, keys), check_dtype=False, rtol=5e-2, atol=5e-2
    )


def test_keys_encoders_in_bfloat16_round_by_noise_of_their_own_and_resume_bit_for_bit():
    """The global generator is neither used nor moved."""

    def run(moco: MoCo, first: int, last: int) -> None:
        for t in range(first, last):
            wander(moco.encoder, t)
            torch.manual_seed(t + 100 * last)
            before = torch.get_rng_state()
            moco(*(x.bfloat16() for x in views(seed=t)))
            assert torch.equal(torch.get_rng_state(), before)

    straight, resumed, other = (tiny(momentum=0.999, queue_size=16).bfloat16() for _ in range(3))
    run(straight, 0, 3)
    stored = straight.state_dict()
    assert stored["_extra_state"].dtype == torch.uint8
    file = io.BytesIO()
    torch.save(stored, file)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    run(straight, 3, 6)
    run(resumed, 3, 5)
    run(resumed, 5, 6)
    run(other, 0, 6)
    for name, value in state(straight).items():
        assert torch.equal(value, state(resumed)[name]) and torch.equal(value, state(other)[name]), name
    wide = tiny(momentum=0.999, queue_size=16)
    wide.load_state_dict(straight.state_dict())
    assert wide.ema.step == 6


def test_hard_negatives_degenerate_to_moco():
    plain, hard = tiny(), tiny(HardNegativeMoCo, hard_fraction=1.0, weight_q=1.0, weight_k=0.0, mode="anchor")
    for t in range(3):
        x, y = views(seed=t)
        torch.testing.assert_close(hard(x, y).loss, plain(x, y).loss)
    assert torch.equal(hard.queue.read(), plain.queue.read())


def test_swapped_sides_degenerate_to_the_symmetric_loss():
    x, y = views()
    hard, plain = tiny(HardNegativeMoCo, hard_fraction=1.0), tiny(symmetric=True)
    torch.testing.assert_close(hard(x, y).loss, plain(x, y).loss)
    assert hard.queue.count == 8


def test_a_number_of_hard_negatives_is_their_share_of_the_queue():
    x, y = views()
    kinds = [{"n_hard": 3}, {"hard_fraction": 0.25}, {}]
    made = [tiny(HardNegativeMoCo, mode="anchor", weight_k=0.0, **kind) for kind in kinds]
    outs = [moco(x, y) for moco in made]
    assert [moco.n_hard for moco in made] == [3, 3, 3] and outs[0].logits.shape == (4, 4)
    for out in outs[1:]:
        assert torch.equal(out.logits, outs[0].logits)


def test_more_hard_negatives_than_keys_are_all_and_warned_of_once():
    x, y = views()
    with pytest.warns(RuntimeWarning, match=r"n_hard is 13, more than queue_size \(12\)"):
        moco = tiny(HardNegativeMoCo, n_hard=13)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(moco(x, y).loss, tiny(symmetric=True)(x, y).loss)
        assert tiny(HardNegativeMoCo, n_hard=12).n_hard == 12


def test_the_key_chooses_its_own_negatives():
    x, y = views()
    moco = tiny(HardNegativeMoCo, weight_q=0.0, weight_k=1.0, mode="anchor")
    bank = moco.queue.read()
    loss = moco(x, y).loss
    q, k = moco.queries(x), moco.keys(y)
    similar = (k @ bank.T).sort(dim=1, descending=True).values[:, :3]
    logits = torch.cat([(q * k).sum(1, keepdim=True), similar], dim=1) / moco.temperature
    torch.testing.assert_close(loss, cross_entropy(logits, torch.zeros(4, dtype=torch.long)))
    loss.backward()
    assert moco.encoder.body.weight.grad.abs().sum() > 0


def test_selection():
    s = torch.tensor([[0.9, 0.1, 0.5, 0.3], [0.95, 0.99, 0.97, 0.96]])
    inf = -torch.inf
    assert hard_negatives(s, 2, 0.8).tolist() == [[0.5, pytest.approx(0.3)], [pytest.approx(0.95), inf]]
    assert hard_negatives(s, 9).shape == (2, 4)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"queue_size": 0}, "queue_size"),
        ({"momentum": 1.1}, "beta"),
        ({"bn_groups": 0}, "bn_groups"),
        ({"kind": HardNegativeMoCo, "hard_fraction": 0.0}, "hard_fraction"),
        ({"kind": HardNegativeMoCo, "n_hard": 0}, "n_hard"),
        ({"kind": HardNegativeMoCo, "n_hard": 2.5}, "n_hard"),
        ({"kind": HardNegativeMoCo, "n_hard": 3, "hard_fraction": 0.25}, "hard_fraction or n_hard"),
        ({"kind": HardNegativeMoCo, "upper": -1.0}, "upper"),
        ({"kind": HardNegativeMoCo, "weight_q": -1.0}, "weight_q"),
        ({"kind": HardNegativeMoCo, "weight_q": 0.0, "weight_k": 0.0}, "not both 0"),
        ({"kind": HardNegativeMoCo, "mode": "both"}, "mode"),
        ({"kind": HardNegativeMoCo, "symmetric": True}, "symmetric"),
    ],
)
def test_bad_arguments(options, name):
    with pytest.raises(ValueError, match=name):
        tiny(**options)


@pytest.mark.parametrize(
    ("moco", "x", "y", "name"),
    [
        (tiny, views()[0], views(3)[1], "x_k"),
        (lambda: tiny(dim=3), *views(), "encoder's output"),
        (tiny, *views(13), "queue_size"),
        (lambda: tiny(HardNegativeMoCo), *views(7), "queue_size"),
        (lambda: tiny(bn_groups=3), *views(), "bn_groups"),
        (tiny, torch.full((4, 5), torch.nan, dtype=torch.float64), views()[1] * torch.nan, "finite"),
    ],
)
def test_bad_batches_enqueue_nothing(moco, x, y, name):
    model = moco()
    with pytest.raises(ValueError, match=name):
        model(x, y)
    assert model.queue.count == 0


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4))


@pytest.mark.parametrize("kind", [MoCo, HardNegativeMoCo])
@pytest.mark.parametrize("where", ["x_q", "x_k", "weights", "queries"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_refused_batch_changes_nothing(kind, where, bad):
    moco, batch = tiny(kind, normed()), dict(zip(VIEWS, views(), strict=True))
    moco(*views(seed=1))
    wander(moco.encoder[3], 1)
    if where in VIEWS:
        batch[where][2, 1] = bad
    elif where == "weights":
        with torch.no_grad():
            moco.encoder[3].weight[0, 0] = bad
    else:  # finite, and too large to be added up
        batch["x_q"].fill_(1e308)
    before, counts = state(moco), (moco.ema.step, moco.ema.updates)
    with pytest.raises(ValueError, match=where if where != "weights" else "queries must be finite"):
        moco(**batch)
    torch.testing.assert_close(state(moco), before, rtol=0, atol=0, equal_nan=True)
    assert (moco.ema.step, moco.ema.updates) == counts and moco.queue.count == 4 * moco.keys_per_image


def test_of_keys_that_overflow_only_the_step_of_their_encoder_remains():
    moco, other = tiny(encoder=normed()), tiny(encoder=normed())
    other.load_state_dict(moco.state_dict())
    x, y = views()
    for one in (moco, other):
        wander(one.encoder[3], 1)
    before = state(moco)
    other.ema.update()
    with pytest.raises(ValueError, match="finite"):
        moco(x, torch.full_like(y, 1e308))
    for name, value in state(moco).items():
        trained = name in {f"key_encoder.{n}" for n, _ in moco.key_encoder.named_parameters()}
        assert torch.equal(value, (state(other) if trained else before)[name]), name
    assert moco.ema.step == 1 and moco.queue.count == 0


def test_an_output_without_direction_warns():
    encoder = nn.Linear(5, 4)
    nn.init.zeros_(encoder.weight)
    nn.init.zeros_(encoder.bias)
    with pytest.warns(RuntimeWarning, match="direction"):
        tiny(encoder=encoder)(*views())
