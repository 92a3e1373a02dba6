"""polyak.testing: no hyperparameter of a manifest is dropped."""

import copy
import functools
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import Parameter

from polyak.testing import HOW_IT_RAN, from_manifest
from tests.reproduce import optimizers
from tests.reproduce.vector import RECORDED, Unknown, Vector, names_in

NAMES = names_in(RECORDED, *optimizers.RULES)
FELT = {"weight_decay": 0.1, "delta": 1.5}
"""Values at which what depends on them, such as ``wd_ratio`` and ``no_prox``, has an effect."""

WITHOUT_EFFECT = {
    **dict.fromkeys(("momo-star-lb", "momo-adam-star-lb"), "the estimated bound is above it from the first step on"),
    "momo-adam-truncated-use_fstar": "all steps are 0",
    **dict.fromkeys(("alr-hb-card-lr", "alr-nag-card-lr"), "all steps are below the cap"),
    **dict.fromkeys(("namo-svd-ns_steps", "namo-d-svd-ns_steps"), "the exact factor takes no steps"),
    "smmf-vector_reshape": "no vector of the inputs is long enough to be factored",
    "smmf-novec-vector_reshape": "the same",
    "smmf-novec-growth_rate": "there is no average whose rate it moves",
    "stable-spam-eta_min": "nothing falls where total_T is None",
    "spam-density-density": "the masks are recorded",
    **dict.fromkeys(("mt-dao-sgdm-m1-b2", "mt-dao-sgdm-m1-eps"), "the variant has no second moment"),
}
"""Hyperparameters that the method reads and that change nothing in that vector."""


def hyperparameters(name: str, felt: bool = True) -> dict[str, Any]:
    given = json.loads((RECORDED / f"{name}.json").read_text())["hyperparameters"]
    return {key: FELT.get(key, value) if felt else value for key, value in given.items()}


def others(value: Any) -> list[Any]:
    """Other values of the same kind, and of other kinds for what may be None."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value + 3]
    if isinstance(value, float):
        return [other for other in ((value + 0.3) / 2, (value + 0.013) / 2) if other != value]
    if isinstance(value, list):
        # of numbers for each step those of the steps that are made
        return [[*value[:i], other, *value[i + 1 :]] for i, old in enumerate(value[:12]) for other in others(old)]
    return [3, "match_rms_adamw", "nonsense"] if value is None else ["nonsense", None]


def variations() -> Iterator[Any]:
    for name in NAMES:
        for key, value in hyperparameters(name).items():
            if key not in HOW_IT_RAN and f"{name}-{key}" not in WITHOUT_EFFECT:
                yield pytest.param(name, key, others(value), id=f"{name}-{key}")


def went(name: str, given: dict[str, Any], scale: float = 1.0) -> dict[str, np.ndarray]:
    """The first half of a trajectory, with its gradients scaled."""
    vector = Vector(RECORDED, name)
    vector.manifest |= {"hyperparameters": copy.deepcopy(given), "steps": vector.manifest["steps"] // 2}
    vector.inputs.update({key: scale * value for key, value in vector.inputs.items() if key.startswith("g/")})
    return optimizers.trajectory(vector)


@functools.cache
def unchanged(name: str, scale: float = 1.0) -> dict[str, np.ndarray]:
    return went(name, hyperparameters(name, scale == 1.0), scale)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("name", "key", "values"), list(variations()))
def test_another_value_is_another_trajectory_or_refused(name, key, values):
    # some only have eps as a floor, under gradients that are small, and with no decay to hide it
    given, scale = hyperparameters(name, key != "eps"), 1e-5 if key == "eps" else 1.0
    before = unchanged(name, scale)
    for value in values:
        try:
            after = went(name, {**given, key: value}, scale)
        except (Unknown, ValueError, TypeError) as error:
            assert repr(value) in str(error) or key in str(error), f"{key} = {value!r} is not named: {error}"
        else:
            same = all(np.array_equal(before[tensor], after[tensor]) for tensor in before)
            assert not same, f"{key} = {value!r} changes nothing"


@pytest.mark.parametrize("name", NAMES)
def test_a_hyperparameter_that_nothing_reads_is_refused(name):
    with pytest.raises(ValueError) as caught:
        went(name, {**hyperparameters(name), "gravity": 9.8})
    assert "gravity = 9.8" in str(caught.value)


def test_what_a_variant_fixes_is_not_overruled():
    given = hyperparameters("sgdp-paper")
    assert went("sgdp-paper", {**given, "project_buffer": False}).keys() == unchanged("sgdp-paper").keys()
    with pytest.raises(ValueError, match="project_buffer = True is not reproduced, only False"):
        went("sgdp-paper", {**given, "project_buffer": True})


@pytest.mark.parametrize("key", HOW_IT_RAN)
def test_how_it_ran_changes_nothing(key):
    name = "reality-check-adamw"
    given = {k: v for k, v in hyperparameters(name).items() if k not in HOW_IT_RAN}
    before = went(name, given)
    for value in (None, False, True):
        for tensor, steps in went(name, {**given, key: value}).items():
            assert np.array_equal(steps, before[tensor])
    with pytest.raises(ValueError, match=f"{key} = 'loop' is not reproduced, only None or False or True"):
        went(name, {**given, key: "loop"})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rule": "pendulum"}, "no method implements the rule 'pendulum'"),
        ({"kind": "case"}, "no method implements the rule 'muon'"),
        ({"variant": "torch-int8"}, "no method implements the variant 'torch-int8' of 'muon'"),
    ],
)
def test_what_no_method_implements(changes, said):
    manifest = {**json.loads((RECORDED / "muon-torch.json").read_text()), **changes}
    with pytest.raises(KeyError, match=said):
        from_manifest(manifest, {"matrix": Parameter(torch.ones(2, 2))})


def test_stacks_of_keller_jordans_muon_are_orthogonalized_one_by_one():
    """A tensor with 3 dimensions is a stack of matrices there, one with 4 a matrix."""
    manifest = json.loads((RECORDED / "muon-f64.json").read_text())
    start = {"stack": torch.zeros(2, 3, 4), "kernel": torch.zeros(4, 2, 3, 3)}
    alone = {"0": torch.zeros(3, 4), "1": torch.zeros(3, 4), "kernel": torch.zeros(4, 18)}
    gradients = {n: torch.randn(x.shape, dtype=torch.float64) for n, x in start.items()}
    gradients |= {"0": gradients["stack"][0], "1": gradients["stack"][1]}
    ends = []
    for tensors in (start, alone):
        params = {n: Parameter(x.double()) for n, x in tensors.items()}
        for n, p in params.items():
            p.grad = gradients[n].reshape(p.shape)
        from_manifest(manifest, params).step()
        ends.append({n: p.detach() for n, p in params.items()})
    torch.testing.assert_close(ends[0]["stack"], torch.stack([ends[1]["0"], ends[1]["1"]]))
    torch.testing.assert_close(ends[0]["kernel"].flatten(1), ends[1]["kernel"])
