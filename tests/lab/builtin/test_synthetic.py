"""Each drawn problem has the difficulty that it is there for."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from polyak.lab.builtin import synthetic
from polyak.lab.problems import load


def spikes(count):
    generator = torch.Generator().manual_seed(0)
    return torch.tensor([synthetic.spike(generator) for _ in range(count)])


def test_spikes_are_rare_and_have_no_variance():
    drawn = spikes(20_000)
    sizes = drawn[drawn != 0].abs().sort(descending=True).values
    assert len(sizes) / 20_000 == pytest.approx(0.05, abs=0.005)
    assert sizes.min() >= 10
    assert abs((drawn > 0).sum().item() / len(sizes) - 0.5) < 0.06
    tail = 1 / (sizes[:200] / sizes[200]).log().mean().item()  # Hill's estimate, with an error of 7 %
    assert tail == pytest.approx(1.2, rel=0.2)
    assert tail < 2


def test_a_spiked_gradient_is_that_of_wrong_targets_and_the_value_that_of_right_ones():
    problem = load("heavy-tail").problem
    torch.manual_seed(0)
    model = problem.build_model(0)
    x, y = torch.randn(8, 16), torch.randn(8, 1)
    value = problem.loss(model, (x, y, 25.0))
    assert value.item() == pytest.approx(F.mse_loss(model(x), y).item())
    found = torch.autograd.grad(value, list(model.parameters()))
    wanted = torch.autograd.grad(F.mse_loss(model(x), y - 25.0), list(model.parameters()))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_the_largest_gradients_of_heavy_tail_dwarf_the_usual_one():
    problem = load("heavy-tail").problem
    torch.manual_seed(0)
    model = problem.build_model(0)
    norms = []
    for seed in range(5):
        for batch in problem.train_batches(seed):
            gradients = torch.autograd.grad(problem.loss(model, batch), list(model.parameters()))
            norms.append((math.sqrt(sum(g.square().sum().item() for g in gradients)), batch[2] != 0))
    plain = sorted(norm for norm, spiked in norms if not spiked)
    spiked = sorted(norm for norm, spiked in norms if spiked)
    assert len(norms) == 310 and 5 <= len(spiked) <= 30
    assert spiked[len(spiked) // 2] > 5 * plain[len(plain) // 2]
    assert spiked[-1] > 20 * plain[-1]


def test_the_answer_of_delay_k_is_what_was_said_k_places_ago():
    sequences, answers = next(iter(load("delay-k").problem.train_batches(1)))
    assert sequences.shape == (64, synthetic.LENGTH) and answers.shape == (64, synthetic.LENGTH - synthetic.DELAY)
    for place in range(synthetic.DELAY, synthetic.LENGTH):
        assert torch.equal(answers[:, place - synthetic.DELAY], sequences[:, place - synthetic.DELAY])


class Forgetful(nn.Module):
    """Answers at each place from what is said there."""

    def __init__(self):
        super().__init__()
        self.symbols, self.head = nn.Embedding(synthetic.SYMBOLS, 64), nn.Linear(64, synthetic.SYMBOLS)

    def forward(self, sequences):
        return self.head(torch.tanh(self.symbols(sequences[:, synthetic.DELAY :])))


class Recaller(nn.Module):
    """Knows the answer."""

    def forward(self, sequences):
        return 50 * F.one_hot(sequences[:, : -synthetic.DELAY], synthetic.SYMBOLS).float()


def test_delay_k_cannot_be_solved_without_memory():
    problem = load("delay-k").problem
    torch.manual_seed(0)
    model = Forgetful()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for seed in range(5):
        for batch in problem.train_batches(seed):
            optimizer.zero_grad()
            loss = problem.loss(model, batch)
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        assert problem.evaluate(model, "validation") == pytest.approx(math.log(synthetic.SYMBOLS), rel=0.02)
        assert loss.item() > 0.98 * math.log(synthetic.SYMBOLS)
        for split in ("validation", "test"):
            assert problem.evaluate(Recaller(), split) == pytest.approx(0, abs=1e-6)


def test_deep_linear_can_be_solved_and_has_plateaus():
    problem = load("deep-linear").problem
    torch.manual_seed(1)
    model = problem.build_model(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    errors = []
    for seed in range(60):
        with torch.no_grad():
            errors.append(problem.evaluate(model, "validation"))
        for batch in problem.train_batches(seed):
            optimizer.zero_grad()
            problem.loss(model, batch).backward()
            optimizer.step()
    assert errors[0] == pytest.approx(1, abs=0.1)
    assert errors[5] > 0.8  # fifty steps, and nothing seems to happen
    assert errors[-1] < 0.5


def test_the_matrix_of_deep_linear_has_four_singular_values():
    inputs, outputs = (torch.cat(parts) for parts in zip(*load("deep-linear").problem.train_batches(1), strict=True))
    matrix = torch.linalg.lstsq(inputs, outputs).solution
    values = torch.linalg.svdvals(matrix)
    assert (values[:4] / values[0]).tolist() == pytest.approx([1, 0.5, 0.25, 0.125], rel=0.05)
    assert values[4] < 0.2 * values[3]  # noise
