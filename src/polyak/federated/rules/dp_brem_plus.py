"""DP-BREM+: DP-BREM without a server to be trusted, simulated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

import torch

from polyak.declare import COUNT
from polyak.federated.masking import encoded, limit_of, masked, opened
from polyak.federated.rules.base import Gradient, Place, stacked
from polyak.federated.rules.dp_brem import DPBREM
from polyak.federated.rules.messages import Message, Reply, Sets, State
from polyak.federated.rules.tensors import Tensors, added, norm, scaled, unrowed

ROUNDING = 1e-6
"""Relative excess of a norm that rounding may make, where the numbers are not coarser."""


class DPBREMPlus(DPBREM):
    """DP-BREM+ (Gu et al., arXiv:2306.12608): the server sees nothing but the noisy sum. A simulation.

    ::

        client: d_i <- (phi_i - phi) min(1, C_t / ||phi_i - phi||);   refused if ||d_i|| > C_t
                sends d_i + N_i under pairwise masks,   N_i ~ Normal(0, (sigma R_t)^2 / h)
        server: phi <- phi + opened sum / |S|;   x <- x - eta_t phi

    What is simulated: the fixed point (2^-16, modulo 2^32), masks that cancel in pairs, masks of clients that vanish,
    the check of the norm, and each client's own share of the noise. What is not: the zero-knowledge proofs and joint
    noise of the paper, which keep a malicious client from cheating. There is no cryptographic guarantee. A client that
    says nothing takes its noise along: h is how many honest replies there are at least, and a round with fewer that
    can be used is lost. Their shares reach the noise of DP-BREM; all shares together are more, n / h times its
    variance. The default h = 1 holds whoever is silent. The protocol is an interpretation. Noise is drawn by each
    client for itself: protocols that scale noise which others have seen were reported to leak membership.
    """

    slug = "dp_brem_plus"
    paper = DPBREM.paper
    reply_sets = ("difference", "noise")

    num_honest: Annotated[int, COUNT, "clients h whose noise counts; a noisy round with fewer good replies is lost"] = 1

    def _begin(self, values: dict[str, Any]) -> None:
        name = type(self).__name__
        if values["client_clip"] is None:
            raise ValueError(
                f"{name}: client_clip must be a number, got None: without a bound there is nothing to check"
            )
        for argument, only in (("client_clipping", "center"), ("placement", "cdp")):
            if values[argument] != only:
                raise ValueError(f"{name}: {argument} must be {only!r}, got {values[argument]!r}")
        super()._begin(values)

    def draws_at(self, place: Place) -> bool:
        """The server for the seeds, clients for their noise."""
        return place == "server" or self.noise_multiplier > 0

    def draws(self, place: Place, state: State, clients: int, generator: torch.Generator) -> Tensors | None:
        """Standard normal numbers for a client's noise; for the server the seeds that pairs of clients agree on."""
        if place == "server":
            return {"seeds": torch.randint(2**62, (clients, clients), generator=generator)}
        return super().draws(place, state, clients, generator)

    def local(
        self, gradient: Gradient, client: Sets, message: Message, batches: Sequence[Any], examples: int,
        draws: Tensors | None,
    ) -> tuple[dict[str, Tensors], dict[str, Tensors]]:  # fmt: skip
        """As of DP-BREM, and the clipped difference with the client's own noise."""
        sent, kept = super().local(gradient, client, message, batches, examples, None)
        difference = added(kept["momentum"], message.sets["momentum"], -1.0)
        length = float(norm(difference))
        difference = scaled(difference, min(1.0, message.scalars["client_norm"] / max(length, 1e-300)))
        share = message.scalars.get("noise_share", 0.0)
        noise = scaled(draws, share) if draws is not None and share else scaled(difference, 0.0)
        return {"difference": difference, "noise": noise, "buffers": sent["buffers"]}, kept

    def _sent(self, state: State) -> dict[str, float]:
        scalars = super()._sent(state)
        if not self.noise_multiplier:
            return scalars
        return {**scalars, "noise_share": self.noise_multiplier * scalars["record_norm"] / math.sqrt(self.num_honest)}

    def _fault(self, state: State, message: Message) -> str:
        """The check of the norm, and that the sum cannot leave the fixed point."""
        if fault := super()._fault(state, message):
            return fault
        difference = message.sets["difference"]
        bound, length = self._sent(state)["client_norm"], float(norm(difference))
        coarsest = max(torch.finfo(t.dtype).eps for t in difference.values())
        if length > bound * (1 + max(ROUNDING, 4 * coarsest)):
            return f"the difference has norm {length:g}, above {bound:g}"
        both = added(message.sets["difference"], message.sets["noise"])
        largest, limit = max(float(t.abs().max()) for t in both.values()), limit_of(state.counters["clients"])
        return "" if largest < limit else f"a value of {largest:g} is outside the fixed point, below {limit:g}"

    def _aggregated(self, state: State, good: Sequence[Reply], sent: int, draws: Tensors | None) -> dict[str, Tensors]:
        if draws is None or "seeds" not in draws or len(draws["seeds"]) < len(good):
            raise ValueError(f"{type(self).__name__}: draws must hold seeds for each pair of {len(good)} clients")
        if self.noise_multiplier and len(good) < self.num_honest:
            raise ValueError(
                f"{type(self).__name__}: num_honest must be at most the number of replies that can be used, "
                f"{len(good)}, got {self.num_honest}: their noise is too little, and the round is lost"
            )
        seeds, phi = draws["seeds"], state.sets["momentum"]
        vectors = stacked(good, "difference") + stacked(good, "noise")
        hidden = {i: masked(encoded(v, len(seeds)), i, seeds) for i, v in enumerate(vectors)}
        total = unrowed(opened(hidden, seeds), phi)
        return self._step(state, added(phi, total, 1 / sent), self._sent(state)["lr"])
