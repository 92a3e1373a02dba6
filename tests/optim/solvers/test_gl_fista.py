"""GL-FISTA: the energy falls, a step is a gradient step in another metric, and dense, sparse and grids agree."""

import math
from itertools import islice, pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polyak.optim.solvers import GLFISTA, Graph, Grid, knn_laplacian
from polyak.optim.solvers.gl_fista import well, well_slope
from polyak.optim.solvers.laplacians import conjugate_gradients
from tests.optim.solvers.graphs import laplacian, two_clouds

SEEDS = st.integers(0, 2**31)
LABELLED, LABELS = torch.tensor([0, 1, 5]), torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)


def start_of(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.floats(0.05, 5.0), st.floats(0.01, 1000.0), st.sampled_from([0.0, 0.5, 0.9, None]), st.booleans())
def test_the_energy_never_rises_without_momentum_or_with_restarts(
    seed: int, epsilon: float, tau: float, momentum: float | None, quartic: bool
) -> None:
    options: dict[str, Any] = {"epsilon": epsilon, "tau": tau, "momentum": momentum, "restart": momentum != 0.0}
    # the slope of the quartic well is bounded by that of its convex part only near the wells
    solver = GLFISTA(**options, potential="quartic" if quartic else "truncated", split=30.0 if quartic else 2.0)
    energy = solver.energy(laplacian(seed), LABELLED, LABELS)
    energies = [float(i.energy) for i in islice(solver.iterate(energy, start_of(seed, 20).clamp(-2, 2)), 25)]
    assert all(b <= a + 1e-9 * abs(a) for a, b in pairwise(energies))


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.floats(0.1, 3.0), st.floats(0.1, 100.0))
def test_a_step_solves_the_published_system(seed: int, epsilon: float, tau: float) -> None:
    """``((1 + tau c/eps) I + tau eps L + tau lam D) u = y - tau/eps (W'(y) - c y) + tau lam D label``."""
    solver = GLFISTA(epsilon=epsilon, tau=tau, momentum=0.7, restart=False)
    graph = laplacian(seed)
    energy = solver.energy(graph, LABELLED, LABELS)
    before, now, after = (i.u for i in islice(solver.iterate(energy, start_of(seed, 20)), 2, 5))
    y = now + 0.7 * (now - before)
    d, target = torch.zeros_like(y), torch.zeros_like(y)
    d[LABELLED], target[LABELLED] = 1.0, LABELS
    left = torch.diag(1 + 2 * tau / epsilon + 10 * tau * d) + tau * epsilon * graph
    right = y - tau / epsilon * (well_slope(y) - 2 * y) + 10 * tau * d * target
    torch.testing.assert_close(left @ after, right, rtol=1e-9, atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.sampled_from(["truncated", "quartic"]), st.sampled_from([(20,), (20, 3)]))
def test_the_gradient_is_that_of_the_energy(seed: int, potential: Any, shape: tuple[int, ...]) -> None:
    labels = LABELS if len(shape) == 1 else torch.stack([LABELS, -LABELS, LABELS], dim=1)
    energy = GLFISTA(epsilon=0.3, potential=potential).energy(laplacian(seed), LABELLED, labels)
    u = start_of(seed, *shape).requires_grad_()
    (wanted,) = torch.autograd.grad(energy(u), u)
    torch.testing.assert_close(energy.gradient(u.detach()), wanted, rtol=1e-9, atol=1e-9)


def test_the_wells() -> None:
    u = torch.tensor([-3.0, -1.0, 0.0, 0.5, 1.0, 2.0], dtype=torch.float64)
    expected = torch.tensor([4.0, 0.0, 0.25, 9 / 64, 0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(well(u), expected)
    assert float(well(u, "quartic")[0]) == 16.0


@pytest.mark.parametrize("labels", [LABELS, torch.stack([LABELS, -LABELS], dim=1)])
def test_sparse_is_dense(labels: Tensor) -> None:
    solver, graph = GLFISTA(steps=40), laplacian(3)
    dense = solver.minimize(graph, LABELLED, labels)
    for other in (graph.to_sparse(), graph.to_sparse_csr()):
        torch.testing.assert_close(solver.minimize(other, LABELLED, labels).u, dense.u, rtol=1e-9, atol=1e-9)
    cg = GLFISTA(steps=40, solver="cg").minimize(graph, LABELLED, labels)
    torch.testing.assert_close(cg.u, dense.u, rtol=1e-9, atol=1e-9)


def test_columns_do_not_know_each_other() -> None:
    solver, graph = GLFISTA(steps=20, momentum=0.5, restart=False, tol=0.0), laplacian(1)
    both = solver.minimize(graph, LABELLED, torch.stack([LABELS, -LABELS], dim=1)).u
    one = solver.minimize(graph, LABELLED, LABELS).u
    torch.testing.assert_close(both, torch.stack([one, -one], dim=1), rtol=1e-10, atol=1e-12)


def test_going_on_from_an_iterate_is_one_run() -> None:
    solver, graph = GLFISTA(steps=12, tol=0.0), laplacian(2)
    whole = solver.minimize(graph, LABELLED, LABELS)
    solver = GLFISTA(steps=5, tol=0.0)
    first = solver.minimize(graph, LABELLED, LABELS)
    second = GLFISTA(steps=7, tol=0.0).minimize(graph, LABELLED, LABELS, start=first.last)
    assert torch.equal(second.u, whole.u)
    assert second.last.step == whole.last.step == 12
    assert first.energies + second.energies[1:] == whole.energies


def test_it_stops_where_it_says() -> None:
    found = GLFISTA(tol=1e-5).minimize(laplacian(4), LABELLED, LABELS)
    assert found.converged
    assert len(found.energies) == found.last.step + 1 < 300
    short = GLFISTA(steps=3).minimize(laplacian(4), LABELLED, LABELS)
    assert (short.converged, short.last.step) == (False, 3)


def test_momentum_needs_fewer_systems() -> None:
    points, side = two_clouds()
    graph = knn_laplacian(points, 8)
    labels = 2.0 * side[:4].double() - 1
    needed = {}
    for momentum in (0.0, None):
        found = GLFISTA(momentum=momentum, restart=momentum is None, tol=0.0).minimize(graph, torch.arange(4), labels)
        energies = torch.tensor(found.energies)
        needed[momentum] = int((energies <= energies[-1] + 1e-3 * (energies[0] - energies[-1])).nonzero()[0])
        assert torch.equal(found.u > 0, side == 1)
    assert needed[None] < needed[0.0]


def test_the_laplacian_of_a_grid() -> None:
    """Waves are its eigenvectors, and the energy of a field in two dimensions is an integral."""
    grid = Grid((16, 8), spacing=0.25)
    x = torch.arange(16, dtype=torch.float64)[:, None] * 0.25 + torch.zeros(8, dtype=torch.float64)
    k = 2 * math.pi / 4.0
    wave = (k * x).cos()
    torch.testing.assert_close(grid.apply(wave), k**2 * wave, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(grid.solver(2.0, 0.5)((2 + 0.5 * k**2) * wave), wave, rtol=1e-10, atol=1e-10)
    energy = GLFISTA(epsilon=0.5, fidelity=0.0).energy(grid)
    area, mean_square = 4.0 * 2.0, 0.5
    mean_well = (1 - 2 * mean_square + 3 / 8) / 4  # of cos: E[(1 - c^2)^2] / 4
    expected = area * (0.25 * k**2 * mean_square + mean_well / 0.5)
    assert abs(float(energy(wave)) - expected) < 1e-10


def test_a_disc_shrinks_and_its_interface_stays() -> None:
    n = 32
    x = (torch.arange(n, dtype=torch.float64) + 0.5) / n - 0.5
    u0 = torch.tanh((0.3 - (x[:, None] ** 2 + x**2).sqrt()) / 0.05)
    solver = GLFISTA(epsilon=0.05, fidelity=0.0, momentum=0.0, steps=15, tol=0.0)
    found = solver.minimize(Grid((n, n), 1 / n), start=u0)
    assert 0 < float((found.u > 0).sum()) < float((u0 > 0).sum())
    assert float(found.u.amax()) < 1.1


def test_neighbours() -> None:
    points, _ = two_clouds(each=10)
    graph = knn_laplacian(points, 3)
    torch.testing.assert_close(graph, knn_laplacian(points, 3, sparse=True).to_dense())
    assert torch.equal(graph, graph.T)
    assert float(torch.linalg.eigvalsh(graph)[0]) > -1e-12
    # by the definition
    d = torch.cdist(points, points)
    order = d.argsort(dim=1)
    s = d.gather(1, order)[:, 3]
    w = torch.zeros_like(d)
    for i in range(20):
        for j in order[i, 1:4].tolist():
            w[i, j] = w[j, i] = math.exp(-(float(d[i, j]) ** 2) / float(s[i] * s[j]))
    scale = w.sum(1).rsqrt()
    torch.testing.assert_close(graph, torch.eye(20, dtype=torch.float64) - scale[:, None] * w * scale)
    copies = knn_laplacian(torch.zeros(5, 2), 2)
    assert bool(torch.isfinite(copies).all())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"epsilon": 0.0}, r"epsilon must be in \(0, inf\), got 0.0"),
        ({"tau": -1.0}, "tau must be in"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
        ({"fidelity": -1.0}, "fidelity must be in"),
        ({"potential": "sextic"}, "potential must be one of"),
        ({"solver": "lu"}, "solver must be one of"),
        ({"steps": -1}, "steps must be in"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        GLFISTA(**arguments)


def test_a_small_split_and_a_graph_without_labels_are_warned_of() -> None:
    with pytest.warns(UserWarning, match="split = 1.0 below 2"):
        GLFISTA(split=1.0)
    with pytest.warns(UserWarning, match="no node is labelled"):
        GLFISTA().minimize(laplacian(0), start=start_of(0, 20))
    with pytest.warns(UserWarning, match="no node is labelled"), pytest.raises(ValueError, match="a start must be"):
        GLFISTA().minimize(laplacian(0))


GRAPH = laplacian(0)
BAD_GRAPHS: list[tuple[Tensor, str]] = [
    (GRAPH[:5], "square matrix"),
    (GRAPH + torch.eye(20, dtype=torch.float64)[[*range(1, 20), 0]], "symmetric"),
    ((GRAPH + torch.eye(20, dtype=torch.float64)[[*range(1, 20), 0]]).to_sparse(), "symmetric"),
    (-GRAPH, "negative eigenvalue"),
    (GRAPH * float("nan"), "finite"),
]


@pytest.mark.parametrize(("graph", "words"), BAD_GRAPHS)
def test_graphs_that_are_refused(graph: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        GLFISTA().minimize(graph, LABELLED, LABELS)


def test_too_many_nodes_to_factor_and_negative_sparse_ones() -> None:
    one = torch.zeros(1, 1)
    with pytest.raises(ValueError, match=r'5,001 nodes .* solver="cg"'):
        Graph(one.expand(5001, 5001))
    with pytest.raises(ValueError, match="no negative eigenvalue"):
        conjugate_gradients(lambda x: -x, torch.ones(3))
    with pytest.raises(ValueError, match="solver must be"):
        Graph(one, "lu")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("labelled", "labels", "words"),
    [
        (LABELLED, None, "come together"),
        (torch.tensor([0, 20]), LABELS[:2], r"labelled must be in 0..19, got 0..20"),
        (torch.tensor([-1, 2]), LABELS[:2], r"labelled must be in 0..19, got -1..2"),
        (torch.tensor([2, 2]), LABELS[:2], "a node twice"),
        (torch.tensor([0.0, 1.0]), LABELS[:2], "vector of indices"),
        (LABELLED, LABELS[:2], "labels must be 3"),
        (LABELLED, LABELS * 2, "labels must be -1 or 1"),
        (LABELLED, LABELS * float("nan"), "labels must be -1 or 1"),
    ],
)
def test_labels_that_are_refused(labelled: Tensor, labels: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        GLFISTA().minimize(GRAPH, labelled, labels)


def test_starts_grids_and_points_that_are_refused() -> None:
    solver = GLFISTA()
    for start, words in (
        (torch.zeros(19, dtype=torch.float64), r"shape \(20,\), got \(19,\)"),
        (torch.zeros(20, 2, dtype=torch.float64), "one field a column"),
        (torch.full((20,), float("inf"), dtype=torch.float64), "finite"),
    ):
        with pytest.raises(ValueError, match=words):
            solver.minimize(GRAPH, LABELLED, LABELS, start=start)
    with pytest.raises(ValueError, match="need a graph"):
        solver.minimize(Grid((4, 4)), LABELLED, LABELS)
    with pytest.raises(ValueError, match="at least 2 points"):
        Grid((4, 1))
    with pytest.raises(ValueError, match="spacing must be"):
        Grid((4,), 0.0)
    with pytest.raises(ValueError, match=r"neighbors must be in 1\.\.4"):
        knn_laplacian(torch.zeros(5, 2), 5)
    with pytest.raises(ValueError, match="finite floating matrix"):
        knn_laplacian(torch.full((5, 2), float("nan")))
