"""LAMB: Adam whose steps are in proportion to the weights of their layer."""

from __future__ import annotations

from typing import Annotated

from polyak.declare import Betas, Eps, Lr, MaxGradNorm, Paper, Range, WeightDecay
from polyak.optim.engine.chain import Chain, chain
from polyak.optim.engine.rule import Options
from polyak.optim.method import Method
from polyak.optim.vocabulary.adaptive import CorrectBias, adam
from polyak.optim.vocabulary.scale_free import clip_norm
from polyak.optim.vocabulary.trust import ClampValue, Exclude, trust
from polyak.optim.vocabulary.weight import descend


class LAMB(Method):
    """LAMB (You et al., arXiv:1904.00962): Adam's direction, brought to the length of the weight.

    ::

        r <- m^ / (sqrt(v^) + eps) + weight_decay * p   (m, v as in Adam)
        p <- p - lr * |p| / |r| * r   (over one tensor; lr * r if |p| or |r| is 0)

    Tensors with fewer than 2 dimensions, biases and norms, take Adam's step without decay; ``exclude_1d=False`` treats
    them as the others. ``max_grad_norm=1`` is NVLAMB: it first divides all gradients by their norm over all tensors,
    where that is larger. The length of a weight counts whole, as in the paper's last version;
    ``clamp_value=10`` is that of the first ones. A tuned Adam does as
    well at the batches that LAMB was made for (arXiv:2102.06356).
    """

    slug = "lamb"
    family = "step size"
    paper = Paper("Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", 2019, "1904.00962")
    vectors = ["lamb", "lamb-nvlamb"]
    evidence = "independent code"

    lr: Annotated[Lr, Range(1e-4, 1e-1)] = 1e-3
    betas: Betas = (0.9, 0.999)
    eps: Eps = 1e-6
    weight_decay: Annotated[WeightDecay, Range(1e-4, 1e-1), "added to Adam's direction, times the weight"] = 0.01
    bias_correction: CorrectBias = True
    max_grad_norm: MaxGradNorm = 0.0
    exclude_1d: Exclude = True
    clamp_value: ClampValue = 0.0

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        clip = (clip_norm(add_eps=False),) if options["max_grad_norm"] else ()
        base = adam(correct_bias=options["bias_correction"])
        return chain(
            *clip, base, trust(exclude_1d=options["exclude_1d"], clamp=bool(options["clamp_value"])), descend()
        )
