"""DP-BREM: client momentum of per-record clipped gradients, clipped around the last aggregate, with noise once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from polyak.declare import COUNT, NON_NEGATIVE, POSITIVE, SHARE, Choice, Interval, Lr, Momentum, Paper, Range, whole
from polyak.federated import privacy
from polyak.federated.aggregators import CenteredClipping, Mean
from polyak.federated.rules.base import FederatedRule, Gradient, Place, stacked
from polyak.federated.rules.messages import ClientId, Message, Reply, Sets, State
from polyak.federated.rules.tensors import CLIP_EPS, Tensors, added, mixed, scaled, unrowed
from polyak.memory._dtype import at_least_float32
from polyak.memory.flat import flat

MIXING = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
"""Modules by which a record changes the gradients of others."""
ELEMENT = 0.1
"""Where the authors' code cuts coordinates under ``element``."""
DISTRIBUTED = 0.3
"""What the authors' code takes of the noise at each client under ``ddp``."""
Accounting = Literal["worst_case", "per_round"]


class DPBREM(FederatedRule):
    """DP-BREM (Gu et al., "Differentially-Private and Byzantine-Robust FL with Client Momentum", arXiv:2306.12608).

    ::

        client: g_i <- sum over a Poisson sample of g_j min(1, R_t / ||g_j||) / B,   B = p |D_i|
                phi_i <- (1 - momentum) g_i + momentum phi_i
        server: phi <- phi + (sum_i (phi_i - phi) min(1, C_t / ||phi_i - phi||) + N) / |S|,  N ~ sigma R_t Normal(0, 1)
                x <- x - eta_t phi

    R_t and C_t fall linearly to ``final_norm_ratio``, eta_t to ``final_lr_ratio`` over ``rounds``, and stay there.
    Norms are over all tensors. All clients keep their momentum up to date, selected or not (without momentum the
    selected alone). Records are drawn with the rate p ``sample_rate``, clients with ``client_rate``. B is the expected
    size of a batch: the authors' code divides by the actual one (``batch_divisor="actual"``), for which no bound R / B
    holds. A reply that cannot be used counts as a difference of zero. Accounting is in :meth:`rdp` and :meth:`epsilon`;
    the paper's own theorem was not at hand, and the bounds are derived here.
    """

    slug = "dp_brem"
    paper = Paper(
        "DP-BREM: Differentially-Private and Byzantine-Robust Federated Learning with Client Momentum", 2025,
        "2306.12608",
    )  # fmt: skip
    vectors = ("dp-brem", "dp-accounting")
    server_sets = ("momentum",)
    client_sets = ("momentum",)
    reply_sets: ClassVar[tuple[str, ...]] = ("momentum",)
    batched: ClassVar[bool] = False

    lr: Annotated[Lr, POSITIVE, Range(1e-2, 1.0), "learning rate of the server"] = 0.1
    final_lr_ratio: Annotated[float, POSITIVE, "learning rate behind the last round over the first"] = 0.1
    rounds: Annotated[int, COUNT, "rounds T over which norms and rate fall"] = 1000
    client_rate: Annotated[float, SHARE, "probability q that a client is selected"] = 1.0
    sample_rate: Annotated[float, SHARE, "probability p that a record is drawn"] = 0.05
    noise_multiplier: Annotated[float, NON_NEGATIVE, "noise sigma over max_grad_norm, on the sum; 0: not private"] = (
        0.02
    )
    max_grad_norm: Annotated[float | None, POSITIVE, "largest norm R of a record's gradient; None: no clipping"] = 10.0
    client_clip: Annotated[float | None, POSITIVE, Range(0.5, 5.0), "largest difference C; None: no clipping"] = 5.0
    final_norm_ratio: Annotated[float, SHARE, "R and C behind the last round over the first"] = 0.3
    momentum: Annotated[Momentum, Choice((0.0, 0.9)), "weight of a client's memory"] = 0.9
    client_clipping: Annotated[
        Literal["center", "direct", "element"], "clip around the server's phi, around zero, or coordinates at 0.1"
    ] = "center"
    placement: Annotated[
        Literal["cdp", "ldp", "ddp"], "noise at the server, at each client, or 0.3 of it at each client"
    ] = "cdp"
    batch_divisor: Annotated[Literal["expected", "actual"], "B is the expected size of a batch, or its own"] = (
        "expected"
    )

    def _begin(self, values: dict[str, Any]) -> None:
        if values["noise_multiplier"] > 0 and values["max_grad_norm"] is None:
            raise ValueError(
                f"{type(self).__name__}: max_grad_norm must be a number where noise_multiplier is above 0, got None: "
                "noise needs a per-record bound"
            )
        super()._begin(values)

    @property
    def everyone(self) -> bool:
        """With momentum also clients that were not selected do their update."""
        return self.momentum > 0

    def check_model(self, model: nn.Module) -> None:
        """Refuse modules that mix records, where there is noise.

        Raises:
            ValueError: names the module.
        """
        bad = [n for n, m in model.named_modules() if isinstance(m, MIXING)]
        if self.noise_multiplier > 0 and bad:
            raise ValueError(
                f"{type(self).__name__}: model must not mix records of a batch where noise_multiplier is above 0, as "
                f"{bad[0]!r} ({type(model.get_submodule(bad[0])).__name__}) does; GroupNorm or LayerNorm do not"
            )

    def select(self, clients: Sequence[ClientId], generator: torch.Generator) -> list[ClientId]:
        """Each client with probability ``client_rate``; drawn again while there is none."""
        while True:
            drawn = torch.rand(len(clients), generator=generator, dtype=torch.float64) < self.client_rate
            if chosen := [clients[i] for i in drawn.nonzero().flatten().tolist()]:
                return chosen

    def records(
        self, examples: int, batch_size: int, generator: torch.Generator, count: int | None = None
    ) -> list[Tensor]:
        """One batch, of each record with probability ``sample_rate``; it may be empty."""
        drawn = torch.rand(examples, generator=generator, dtype=torch.float64) < self.sample_rate
        return [drawn.nonzero().flatten()]

    def draws_at(self, place: Place) -> bool:
        """Where the noise is added, if there is any."""
        return self.noise_multiplier > 0 and place == self._noisy_place

    def draws(self, place: Place, state: State, clients: int, generator: torch.Generator) -> Tensors | None:
        """Standard normal numbers, where the noise is added."""
        return standard_normal(state.sets["arrays"], generator) if self.draws_at(place) else None

    def local(
        self, gradient: Gradient, client: Sets, message: Message, batches: Sequence[Any], examples: int,
        draws: Tensors | None,
    ) -> tuple[dict[str, Tensors], dict[str, Tensors]]:  # fmt: skip
        """Clipped gradients of the records of a batch, and the momentum."""
        weights, buffers = message.sets["arrays"], message.sets["buffers"]
        by_record = gradient.per_record(weights, buffers, batches[0])
        fresh = self.record_mean(by_record, message.scalars.get("record_norm"), examples)
        fresh = self._noised(fresh, draws, message.scalars, "client")
        phi = mixed(fresh, client["momentum"], self.momentum)
        return {"momentum": phi, "buffers": dict(buffers)}, {"momentum": phi}

    def record_mean(self, by_record: Tensors, bound: float | None, examples: int) -> Tensors:
        """The clipped gradients of the records of a batch, summed, over B; zeros of an empty batch.

        Lengths are taken in float32 at least. Where there is a bound, a record whose length is not finite counts as
        zero, so that it changes no more than any other.
        """
        count = len(next(iter(by_record.values())))
        size = self.sample_rate * examples if self.batch_divisor == "expected" else max(count, 1)
        found = {n: at_least_float32(g) for n, g in by_record.items()}
        factors = next(iter(found.values())).new_ones(count)
        if bound is not None:
            lengths = torch.stack([g[:, None].flatten(1).square().sum(1) for g in found.values()]).sum(0).sqrt()
            finite = lengths.isfinite()
            factors = (bound / (lengths + CLIP_EPS)).clamp(max=1.0).where(finite, 0.0)
            found = {n: g.where(_beside(finite, g), 0.0) for n, g in found.items()}  # 0 * inf is NaN
        return {n: (torch.tensordot(factors, g, 1) / size).to(by_record[n].dtype) for n, g in found.items()}

    def differences(self, vectors: Tensor, center: Tensor, bound: float | None) -> Tensor:
        """What each client adds to the sum, as the mean over clients: clipped as ``client_clipping`` says."""
        if self.client_clipping == "element":
            return vectors.clamp(-ELEMENT, ELEMENT).mean(0) - center
        start = center if self.client_clipping == "center" else torch.zeros_like(center)
        if bound is None:
            return Mean()(vectors) - center
        return CenteredClipping(tau=bound).around(vectors, start) - center

    def _aggregated(self, state: State, good: Sequence[Reply], sent: int, draws: Tensors | None) -> dict[str, Tensors]:
        scalars, phi = self._sent(state), state.sets["momentum"]
        center = flat(list(phi.values()))
        mean = self.differences(stacked(good, "momentum"), center, scalars.get("client_norm"))
        change = self._noised(scaled(unrowed(mean, phi), float(len(good))), draws, scalars, "server")
        return self._step(state, added(phi, change, 1 / sent), scalars["lr"])

    def _step(self, state: State, phi: Tensors, lr: float) -> dict[str, Tensors]:
        return {"momentum": phi, "arrays": added(state.sets["arrays"], phi, -lr)}

    @property
    def _noisy_place(self) -> Place:
        return "server" if self.placement == "cdp" else "client"

    def _noised(self, value: Tensors, draws: Tensors | None, scalars: Any, place: Place) -> Tensors:
        """A value with the noise of a place, from standard normal numbers."""
        if self.noise_multiplier == 0 or place != self._noisy_place:
            return value
        if draws is None or set(draws) != set(value):
            raise ValueError(f"{type(self).__name__}: draws must be standard normal numbers for {sorted(value)}")
        return added(value, draws, self._noise_share() * scalars["record_norm"])

    def _noise_share(self) -> float:
        """The standard deviation of what one place adds, over R_t."""
        return self.noise_multiplier * (DISTRIBUTED if self.placement == "ddp" else 1.0)

    def _sent(self, state: State) -> dict[str, float]:
        past = self._past(state.counters["round"])
        norms = self._norms(state.counters["round"])
        bounds = {"record_norm": self.max_grad_norm, "client_norm": self.client_clip}
        lr = self.lr * ((self.final_lr_ratio - 1) * past + 1)
        return {"lr": lr, **{name: bound * norms for name, bound in bounds.items() if bound is not None}}

    def _norms(self, round: int) -> float:
        """What R and C of a round are over the first ones."""
        return 1 - (1 - self.final_norm_ratio) * self._past(round)

    def _past(self, round: int) -> float:
        """The share of ``rounds`` that is over; behind them all the last values stay."""
        return min(round / self.rounds, 1.0)

    @property
    def norm_ratio(self) -> float:
        """The largest R_t / R_{t + 1}, for :func:`polyak.federated.privacy.rdp_limited_participation`."""
        return max((self._norms(t) / self._norms(t + 1) for t in range(self.rounds - 1)), default=1.0)

    def _changes(self, rounds: int) -> list[float]:
        """What a record drawn in every round changes in each, over R_t / B.

        Noise that a client adds to its gradient is as large as what a record changes of it, and all else follows from
        the sum; noise of the server meets what is left in the momentum of rounds with larger bounds.
        """
        momentum = self.momentum if self._noisy_place == "server" else 0.0
        return privacy.echoes(momentum, [self._norms(t) for t in range(rounds)])

    def noise_to_record(self, examples: int) -> float:
        """The noise multiplier that a client's records enjoy: the noise over R / B, ``sigma p |D_i|``.

        Under ``ddp`` that of its own noise alone.

        Raises:
            ValueError: with ``batch_divisor="actual"``, for which one record has no bound.
        """
        if self.batch_divisor == "actual":
            raise ValueError(
                f"{type(self).__name__}: batch_divisor must be 'expected' for a privacy bound, got 'actual'"
            )
        return self._noise_share() * self.sample_rate * examples

    def rdp(
        self, examples: int, rounds: int | State, accounting: Accounting | None = None,
        orders: Sequence[float] = privacy.ORDERS,
    ) -> list[float]:  # fmt: skip
        """The Renyi divergences that a record of a client with so many has spent.

        A memory still holds gradients clipped at the larger R of earlier rounds, under noise as small as R_t. So the
        server's noise meets a change of ``w_t R_t / B`` (:func:`polyak.federated.privacy.echoes`); R cancels without
        momentum alone. Noise at the clients comes before the memory, and is met by R_t / B.

        Args:
            examples: records of the client.
            rounds: that were run, or are planned; or the server's state, which has counted them.
            accounting: ``"worst_case"``, which holds for any sampling, or ``"per_round"``, as if rounds were
                independent subsampled Gaussians, w_t rounded up to hundredths: exact without momentum, then the
                default, and a heuristic with it, since a draw echoes in the momentum. For a record that is drawn at
                known distances there is :func:`polyak.federated.privacy.rdp_limited_participation`. The rate is
                ``sample_rate``: that clients are drawn too hides nothing, since a drawing without any is repeated and
                the sum is divided by the number of the drawn.
            orders: of the divergences.

        Raises:
            ValueError: another accounting, a number of rounds that is none, or no bound.
        """
        usual = "worst_case" if self.momentum else "per_round"
        ran = rounds.counters["round"] if isinstance(rounds, State) else rounds
        how, count = accounting or usual, whole("rounds", ran, type(self).__name__, Interval(0))
        noise = self.noise_to_record(examples)
        if how == "worst_case":
            return privacy.rdp_worst_case(noise, self._changes(count), orders)
        if how != "per_round":
            raise ValueError(f"{type(self).__name__}: accounting must be 'worst_case' or 'per_round', got {how!r}")
        total = [0.0] * len(orders)
        for change, times in Counter(math.ceil(w * 100) / 100 for w in self._changes(count)).items():
            some = privacy.rdp_gaussian(noise / change, self.sample_rate, times, orders)
            total = [a + b for a, b in zip(total, some, strict=True)]
        return total

    def epsilon(self, examples: int, delta: float, rounds: int | State, accounting: Accounting | None = None) -> float:
        """The privacy loss at delta of a record of a client with so many; infinite without noise. As :meth:`rdp`."""
        return privacy.epsilon_of(self.rdp(examples, rounds, accounting), delta).epsilon


def _beside(of_records: Tensor, gradients: Tensor) -> Tensor:
    """One number a record in the shape that spreads over its gradient."""
    return of_records.reshape(-1, *[1] * (gradients.dim() - 1))


def standard_normal(like: Tensors, generator: torch.Generator) -> Tensors:
    """Standard normal numbers in the shapes of other tensors, drawn on the CPU."""
    return {n: torch.randn(t.shape, generator=generator, dtype=t.dtype).to(t.device) for n, t in like.items()}
