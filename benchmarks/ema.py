"""How long one update of an averaged model takes, beside the memory bandwidth and the averages of other libraries.

    python benchmarks/ema.py [--sets large,medium,small] [--device cuda] [--quick]

Prints a table and the goals missed, and writes JSON. benchmarks/README.md says what is measured and how.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler writes a line each time that it is used

import _measure
import _sets
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from polyak.teachers import EMA

RESULTS = Path(__file__).parent / "results"
DECAY = 0.999
SHARE = 0.85
CASES = {
    "one": "one float32 average of float32 weights",
    "two": "two float32 averages of float32 weights",
    "mixed": "one float32 average of bfloat16 weights",
}
Row = dict[str, Any]
Contender = tuple[str, Callable[[], None], list[list[Tensor]]]
"""A label, an update, and each average's tensors in the order of the model's parameters."""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default="large,medium,small", help=f"of {','.join(_sets.SHAPES)}")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--limit", type=float, default=15.0, help="seconds for the rounds of one case on one set")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/ema-DEVICE.json")
    parser.add_argument("--quick", action="store_true", help="miniature sets, three rounds: a test of this script")
    args = parser.parse_args()
    args.sets = args.sets.split(",")
    if args.quick:
        args.rounds, args.limit = 3, 1.0
    return args


def flat_views(flat: Tensor, shapes: list[torch.Size]) -> list[Tensor]:
    """A long array cut into tensors, each beginning at a whole cache line."""
    views, start = [], 0
    for shape in shapes:
        views.append(flat[start : start + shape.numel()].view(shape))
        start += -(-shape.numel() // 16) * 16
    return views


def model_of(name: str, args: argparse.Namespace, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    """A module that holds a set's parameters, and the one array in which they lie."""
    model = nn.Module()
    found = {key.replace(".", "_"): p.detach() for key, p in _sets.make(name, args.device, args.quick).params.items()}
    flat = torch.zeros(sum(-(-p.numel() // 16) * 16 for p in found.values()), dtype=dtype, device=args.device)
    for (key, p), view in zip(found.items(), flat_views(flat, [p.shape for p in found.values()]), strict=True):
        view.copy_(p)
        model.register_parameter(key, nn.Parameter(view))
    return model, flat


def share_memory(averages: list[list[Tensor]], places: list[Tensor]) -> None:
    """Move averages into arrays that all contenders use: which pages a tensor lies in makes 15 % of its speed."""
    for average, flat in zip(averages, places, strict=False):
        for tensor, view in zip(average, flat_views(flat, [t.shape for t in average]), strict=True):
            view.copy_(tensor.data)
            tensor.data = view


def contenders(model: nn.Module, case: str) -> Iterator[Contender]:
    """polyak first. All start from the model's weights and average them with the same decay."""
    decays = [DECAY, 0.99] if case == "two" else [DECAY]
    for label, nonfinite in (("polyak", "absorb"), ("polyak, checked", "refuse")):
        ema = EMA(model, decays, start="teacher", nonfinite=nonfinite)
        yield label, ema.update, [list(average.values()) for average in ema.averages]
    if case == "one":
        for make in (_torch, _diffusers, _diffusers_foreach, _ema_pytorch, _ema_pytorch_foreach):
            yield from make(model, DECAY)
    if case == "two":
        yield from _together(_torch, model, decays)
        yield from _together(_timm, model, decays)
    else:
        yield from _timm(model, DECAY)


def _together(make: Callable[..., Iterator[Contender]], model: nn.Module, decays: list[float]) -> Iterator[Contender]:
    """One object for each average, updated one after the other."""
    each = [one for decay in decays for one in make(model, decay)]

    def update() -> None:
        for _, one, _ in each:
            one()

    if each:
        yield f"{len(each)} x {each[0][0]}", update, [average for _, _, averages in each for average in averages]


def _torch(model: nn.Module, decay: float) -> Iterator[Contender]:
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    averaged.n_averaged.fill_(1)  # else the first update would copy
    yield "torch AveragedModel", lambda: averaged.update_parameters(model), [list(averaged.module.parameters())]


def _timm(model: nn.Module, decay: float) -> Iterator[Contender]:
    """From its own file: timm as a whole asks for torchvision."""
    found = importlib.util.find_spec("timm")
    if found is None or found.origin is None:
        print("timm: not installed, skipped")
        return
    spec = importlib.util.spec_from_file_location("_timm_ema", Path(found.origin).parent / "utils" / "model_ema.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    averaged = module.ModelEmaV3(model, decay=decay, dtype=torch.float32)
    yield "timm ModelEmaV3", lambda: averaged.update(model), [list(averaged.module.parameters())]


def _diffusers(model: nn.Module, decay: float, foreach: bool = False) -> Iterator[Contender]:
    module = _library("diffusers.training_utils")
    if module is not None:
        parameters = list(model.parameters())
        averaged = module.EMAModel(parameters, decay=decay, min_decay=decay, foreach=foreach)
        averaged.optimization_step = 10  # past the step that copies
        label = "diffusers EMAModel" + (" foreach" if foreach else "")
        yield label, lambda: averaged.step(parameters), [averaged.shadow_params]


def _diffusers_foreach(model: nn.Module, decay: float) -> Iterator[Contender]:
    yield from _diffusers(model, decay, foreach=True)


def _ema_pytorch(model: nn.Module, decay: float, foreach: bool = False) -> Iterator[Contender]:
    module = _library("ema_pytorch")
    if module is not None:
        averaged = module.EMA(
            model, beta=decay, min_value=decay, update_after_step=0, update_every=1, use_foreach=foreach,
            include_online_model=False,
        )  # fmt: skip
        averaged.initted.fill_(True)
        averaged.step.fill_(10)
        label = "ema-pytorch" + (" foreach" if foreach else "")
        yield label, averaged.update, [list(averaged.ema_model.parameters())]


def _ema_pytorch_foreach(model: nn.Module, decay: float) -> Iterator[Contender]:
    yield from _ema_pytorch(model, decay, foreach=True)


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as error:
        print(f"{name}: skipped ({type(error).__name__}: {str(error).splitlines()[0][:80]})")
        return None


class Streams:
    """Read two arrays and write one, in place: the faster of torch's own loop and a compiled one."""

    def __init__(self, average: Tensor, weights: Tensor) -> None:
        self.arrays = average, weights
        self.bytes = 3 * 4 * average.numel()
        self._kernel = torch.compile(lambda e, x: e.add_(x, alpha=1e-3), dynamic=True, fullgraph=True)

    def plain(self) -> None:
        self.arrays[0].add_(self.arrays[1], alpha=1e-3)

    def compiled(self) -> None:
        self._kernel(*self.arrays)


def measured(name: str, case: str, args: argparse.Namespace) -> list[Row]:
    """One row a contender of one case on one set."""
    model, weights = model_of(name, args, torch.bfloat16 if case == "mixed" else torch.float32)
    elements = sum(p.numel() for p in model.parameters())
    found = list(contenders(model, case))
    places = [torch.zeros_like(weights, dtype=torch.float32) for _ in range(2 if case == "two" else 1)]
    weights.add_(0.01)
    rows: dict[str, Row] = {}
    reference: list[Tensor] = []
    for label, update, averages in found:
        update()  # from the same weights to the same weights, so one update tells whether the numbers agree
        first = [t.detach().clone() for t in averages[0]]
        reference = reference or first
        apart = max(float((a - b).abs().max()) for a, b in zip(first, reference, strict=True) if a.numel())
        share_memory(averages, places)
        update()
        rows[label] = {"set": name, "case": case, "contender": label, "elements": elements, "deviation": apart}
    actions: dict[str, Callable[[], Any]] = {label: update for label, update, _ in found}
    streams = Streams(places[0], weights if case != "mixed" else torch.zeros_like(places[0]))
    actions |= {"streams": streams.plain, "streams compiled": streams.compiled}
    seconds = _measure.interleaved(actions, lambda: None, args.device, args.rounds, args.limit)
    best = min(_measure.summary(seconds[s])["ms"] for s in ("streams", "streams compiled"))
    for label, update, _ in found:
        row = rows[label]
        row |= _measure.summary(seconds[label])
        row["bytes"] = elements * (8 * len(places) + (2 if case == "mixed" else 4))
        row["bandwidth"] = 1e3 * streams.bytes / best
        row["share"] = 1e3 * row["bytes"] / row["ms"] / row["bandwidth"]
        row["ratio"] = rows["polyak"]["ms"] / row["ms"]
        row["extra_bytes"] = _measure.peak_extra(update, args.device)
    return list(rows.values())


def line(row: Row) -> str:
    """A row of the table."""
    return (
        f"  {row['contender']:<28}{row['ms']:9.2f} ms{row['min_ms']:9.2f} ms{row['bytes'] / row['ms'] / 1e6:8.1f} GB/s"
        f"{100 * row['share']:7.0f} %{row['ratio']:8.2f}{row['extra_bytes'] / 1e6:9.1f} MB{row['deviation']:10.1e}"
    )


def verdict(rows: list[Row]) -> list[str]:
    """The goals missed."""
    missed = []
    for row in rows:
        what = f"{row['set']}, {row['case']}: {row['contender']}"
        if row["contender"] == "polyak" and row["set"] == "large" and row["case"] == "one" and row["share"] < SHARE:
            missed.append(f"{what} reaches {row['share']:.0%} of the bandwidth and not {SHARE:.0%}")
        if not row["contender"].startswith("polyak") and row["ratio"] >= 1:
            missed.append(f"{what}: polyak takes {row['ratio']:.2f} of its time")
        if row["deviation"] > 1e-6:
            missed.append(f"{what} computes other numbers, by {row['deviation']:.1e}")
    return missed or ["all goals met"]


def main() -> None:
    """Measure, print, write."""
    args = arguments()
    rows: list[Row] = []
    for name in args.sets:
        for case, title in CASES.items():
            found = measured(name, case, args)
            rows += found
            about = f"{found[0]['elements'] / 1e6:.1f} M elements, {found[0]['bandwidth'] / 1e9:.1f} GB/s for 3 streams"
            print(f"{name}, {title}: {about}")
            print("  " + " " * 28 + "   median     fastest       speed    share   ratio    extra  deviation")
            print("\n".join(map(line, found)), flush=True)
            gc.collect()
    missed = ["miniature sets: no goals"] if args.quick else verdict(rows)
    print("\n".join(missed))
    path = args.json or RESULTS / f"ema-{args.device}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"rounds": args.rounds, "quick": args.quick, "device": args.device, "decay": DECAY}
    text = {"machine": _measure.machine(args.device), "options": options, "rows": rows, "verdict": missed}
    path.write_text(json.dumps(text, indent=1) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
