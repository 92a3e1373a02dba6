"""SCALE: gradients of one size in every row, and momentum for the last layer alone."""

from __future__ import annotations

from typing import Annotated

from polyak.declare import Betas, Eps, Lr, Momentum, Paper, Range, WeightDecay, fills
from polyak.optim.engine.chain import Chain, chain
from polyak.optim.engine.rule import Options
from polyak.optim.method import MatrixMethod
from polyak.optim.vocabulary.adaptive import adam
from polyak.optim.vocabulary.balls import momentum_ema
from polyak.optim.vocabulary.lines import NormEps, level
from polyak.optim.vocabulary.weight import decay, descend


class SCALE(MatrixMethod):
    """SCALE (Glentis et al., arXiv:2506.16659): almost no memory, for language models.

    ::

        matrices:    U <- G, every row over its root mean square
        embeddings:  U <- G, every column over its root mean square
        heads:       M <- momentum * M + (1 - momentum) * G; U <- M, every row over its root mean square
        W <- W * (1 - lr * weight_decay) - lr * U
        (vectors: AdamW)

    A row is what one output sums up: the paper's column. A root mean square is at least ``norm_eps``. Only heads and
    vectors have a state. A module is split by roles, see :func:`polyak.optim.roles_of`; a weight shared by embedding
    and head counts as embedding, ``roles={...: "head"}`` of :func:`polyak.optim.create` says otherwise. The lr of
    other groups, ``aux_lr``, follows a schedule in proportion, as the authors' ``adam_lr`` does.

    Differs from the authors' code: tensors with more than 2 dimensions are seen as (shape[0], rest), and refused there;
    what is neither attention, MLP nor embedding by its name is a head there.
    """

    slug = "scale"
    family = "robust and lean"
    paper = Paper("A Minimalist Optimizer Design for LLM Pretraining", 2025, "2506.16659")
    vectors = ["scale"]
    roles = ("matrix", "embedding", "head")

    lr: Annotated[Lr, Range(1e-4, 3e-2), "learning rate of matrices, embeddings and heads"] = 1e-3
    momentum: Annotated[Momentum, "retention of the momentum of heads"] = 0.9
    weight_decay: Annotated[WeightDecay, Range(1e-4, 1e-1)] = 0.0
    norm_eps: NormEps = 1e-8
    aux_lr: Annotated[Lr, fills("lr"), Range(1e-4, 3e-2), "learning rate of the other groups"] = 1e-3
    aux_betas: Annotated[Betas, fills("betas"), "retention rates of AdamW, other groups"] = (0.9, 0.999)
    aux_eps: Annotated[Eps, fills("eps"), "eps of AdamW, other groups, added before the bias correction"] = 1e-8

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        if not cls.is_main(options):
            return chain(decay("decoupled"), adam(eps_form="before"), descend())
        role = options.get("role")
        memory = (momentum_ema(nesterov=False),) if role == "head" else ()
        return chain(decay("decoupled"), *memory, level("columns" if role == "embedding" else "rows"), descend())
