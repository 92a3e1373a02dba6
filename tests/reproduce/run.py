"""Recompute a vector by the adaptor of its rule, compare it with what was recorded, or write it."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tests.reproduce import (
    averages,
    contrast,
    distributed,
    drivers,
    factored,
    federated,
    federated_rules,
    local,
    optimizers,
    plora,
    second_order,
    shapes,
    solvers,
    spectra,
)  # fmt: skip
from tests.reproduce.compare import error, limit
from tests.reproduce.vector import Unknown, Vector

EXECUTIONS = ("eager", "batched", "compiled")
ADAPTORS: dict[str, Callable[..., dict[str, np.ndarray]]] = {
    **optimizers.RULES, **drivers.RULES, **averages.RULES, **contrast.RULES, **local.RULES, **factored.RULES,
    **spectra.RULES, **shapes.RULES, **solvers.RULES, **plora.RULES, **second_order.RULES, **distributed.RULES,
    **federated.RULES, **federated_rules.RULES,
}  # fmt: skip


def executions_of(vector: Vector, execution: str | None = None) -> tuple[str, ...]:
    """The modes in which there is something to recompute: only optimizers have more than one."""
    if vector.rule not in {*optimizers.RULES, *drivers.RULES, *second_order.RULES, *distributed.RULES}:
        return EXECUTIONS[:1]
    return EXECUTIONS if execution is None else (execution,)


def outcome(vector: Vector, execution: str = "eager", device: str = "cpu") -> dict[str, np.ndarray]:
    """All outputs of a vector, from its manifest and inputs.

    Raises:
        Unknown: if nothing recomputes it, or what would refuses its numbers; says why.
    """
    adaptor = ADAPTORS.get(vector.rule)
    if adaptor is None:
        raise Unknown(f"no adaptor recomputes the rule {vector.rule!r}")
    try:
        return adaptor(vector, execution, device)
    except ValueError as error:
        raise Unknown(str(error)) from error


def check(vector: Vector, executions: Sequence[str], device: str = "cpu") -> tuple[str, str]:
    """``"reproduced"`` or ``"off"``, and the figure with what is allowed.

    Raises:
        Unknown: if nothing recomputes it, or nothing is recorded.
    """
    if not vector.outputs:
        raise Unknown(f"{vector.folder / vector.name}.npz has no outputs to compare with")
    errors = {mode: error(vector, outcome(vector, mode, device)) for mode in executions}
    worst = max(errors, key=lambda mode: errors[mode])
    allowed = limit(vector)
    kind = "of the way" if allowed.of_the_way else "relative"
    where = f" ({worst})" if len(errors) > 1 else ""
    words = f"{errors[worst]:.1e} {kind}, {allowed.rtol:.0e} allowed{where}"
    return ("reproduced", words) if errors[worst] <= allowed.rtol else ("off", f"off: {words}")


def write(vector: Vector, found: dict[str, np.ndarray], path: Path) -> None:
    """Write the recorded keys, inputs as they are and outputs recomputed; all outputs if none is recorded.

    Raises:
        Unknown: if recorded outputs are not among those found; names them. Nothing is written then.
    """
    if missing := sorted(vector.outputs.keys() - found.keys()):
        raise Unknown(f"nothing recomputes its {missing}")
    kept = {key: value for key, value in vector.recorded.items() if vector.is_input(key)}
    wanted = {key: found[key].astype(value.dtype) for key, value in vector.outputs.items()} or found
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **kept, **wanted)
