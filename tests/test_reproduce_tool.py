"""``python -m tests.reproduce``: what it writes, what it calls off or unknown, and that MAN's vectors may be others."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.recording import put
from tests.reproduce.__main__ import main
from tests.reproduce.run import ADAPTORS
from tests.reproduce.vector import RECORDED, Vector, names_in

MAN = names_in(RECORDED, "man")
ONE_A_FAMILY = [names_in(RECORDED, rule)[0] for rule in ("adamp", "ema-machinery", "moco-v2", "auglocal", "smmf")]


def copied(folder: Path, name: str, **manifest: Any) -> Vector:
    """A recorded vector, its manifest changed."""
    old = json.loads((RECORDED / f"{name}.json").read_text())
    shutil.copy(RECORDED / "inputs.npz", folder)
    with np.load(RECORDED / f"{name}.npz") as file:
        return put(folder, name, {**old, **manifest}, {key: file[key] for key in file.files})


SAID = [(name, said) for name in MAN for said in (*Vector(RECORDED, name).hyperparameters, "momentum", "mean")]


@pytest.mark.parametrize(("name", "said"), SAID)
def test_man_follows_its_manifest(tmp_path, name, said):
    """What is changed in the manifest changes what comes out; recorded anew, it is reproduced."""
    old = Vector(RECORDED, name).manifest
    h, keys = dict(old["hyperparameters"]), old["keys"]
    if said in h:
        h[said] /= 2
    else:  # what stands in its words alone
        keys = keys.replace("SGD (momentum 0.", "SGD (momentum 0.1") if said == "momentum" else keys
        keys = keys.replace("mean (1", "mean (2") if said == "mean" else keys
    vector = copied(tmp_path, name, hyperparameters=h, keys=keys)
    assert main([str(tmp_path), name]) == 1
    assert main([str(tmp_path), name, "--out", str(tmp_path / "new")]) == 0
    shutil.copy(tmp_path / "new" / f"{name}.npz", tmp_path)
    assert main([str(tmp_path), name]) == 0
    assert Vector(tmp_path, name).recorded.keys() == vector.recorded.keys()


def resized(old: Vector) -> dict[str, np.ndarray]:
    """Inputs with fewer classes, narrower heads, fewer and larger images, and a step less."""
    linear = [key for key in old.inputs if "aux_classifier" in key and old.inputs[key].ndim == 2]
    narrow = next(key for key in old.inputs if "aux_classifier" in key) if "MAN++" in old.variant else linear[0]
    classes, width = old.inputs[linear[-1]].shape[0], old.inputs[narrow].shape[0]
    sizes = {classes: classes - 1, width: width - 2, 4 * width: 4 * (width - 2)}
    last = f"in/t{old.manifest['steps'] - 1}/"
    arrays = {}
    for key, value in old.inputs.items():
        if "fc" in key or "aux_classifier" in key:  # cut the sides that are as long as classes and features are
            arrays[key] = value[tuple(slice(sizes.get(n, n)) for n in value.shape)]
        elif key.endswith("label"):
            arrays[key] = value[:-1] % (classes - 1)
        elif key.endswith("image01"):
            arrays[key] = value[:-1].repeat(2, -1).repeat(2, -2)
        else:
            arrays[key] = value
    return {key: value for key, value in arrays.items() if not key.startswith(last)}


@pytest.mark.parametrize("name", MAN)
def test_man_of_other_shapes(tmp_path, name):
    old = Vector(RECORDED, name)
    put(tmp_path, name, old.manifest, resized(old))
    assert main([str(tmp_path), name]) == 1  # nothing to compare with
    assert main([str(tmp_path), name, "--out", str(tmp_path)]) == 0
    new = Vector(tmp_path, name).outputs
    batch, classes = old.outputs["out/t0/logits"].shape
    assert new["out/t0/logits"].shape == (batch - 1, classes - 1)
    assert {key.split("/")[1] for key in new} == {f"t{t}" for t in range(old.manifest["steps"] - 1)}
    assert main([str(tmp_path), name]) == 0


@pytest.mark.parametrize("name", [*ONE_A_FAMILY, *MAN])
def test_one_changed_number_is_off(tmp_path, name, capsys):
    vector = copied(tmp_path, name)
    arrays = {key: value.copy() for key, value in vector.recorded.items()}
    key = sorted(vector.outputs)[len(vector.outputs) // 2]
    changed = arrays[key].reshape(-1)
    changed[-1] += 1 if changed.dtype.kind == "i" else 1e-6 * np.abs(changed).max()
    np.savez(tmp_path / f"{name}.npz", **arrays)
    assert main([str(tmp_path), name, "--execution", "eager"]) == 1
    assert f"{name}: off: " in capsys.readouterr().out


@pytest.mark.parametrize("name", [*ONE_A_FAMILY, *MAN])
def test_written_under_the_recorded_names(tmp_path, name):
    """And not taken from what was recorded."""
    vector, out = copied(tmp_path, name), tmp_path / "out"
    blind = {key: value if key in vector.inputs else np.zeros_like(value) for key, value in vector.recorded.items()}
    np.savez(tmp_path / f"{name}.npz", **blind)
    assert main([str(tmp_path), name, "--out", str(out)]) == 0
    with np.load(out / f"{name}.npz") as file:
        assert set(file.files) == set(vector.recorded)
        for key in file.files:
            want = vector.recorded[key]
            assert file[key].dtype == want.dtype
            np.testing.assert_allclose(file[key], want, rtol=1e-8, atol=1e-8 * np.abs(want).max())


def test_what_nothing_recomputes_is_unknown(tmp_path, capsys):
    copied(tmp_path, "lion")
    put(tmp_path, "pendulum", {"rule": "pendulum", "hyperparameters": {}, "steps": 1}, {"p/angle": np.zeros(1)})
    put(tmp_path, "odd", {"rule": "adamw", "hyperparameters": {"gravity": 9.8}, "steps": 1}, {"p/matrix": np.zeros(1)})
    assert main([str(tmp_path), "--execution", "eager"]) == 1
    printed = capsys.readouterr().out
    assert "pendulum: unknown: no adaptor recomputes the rule 'pendulum'" in printed
    assert "odd: unknown: odd: nothing in adamw reads the hyperparameter gravity = 9.8" in printed
    assert printed.endswith("1 reproduced, 0 off, 2 unknown\n")
    assert main([str(tmp_path), "lion", "--execution", "eager"]) == 0
    assert main([str(tmp_path), "nobody"]) == 1
    assert main([str(tmp_path / "nowhere")]) == 2
    assert main([str(tmp_path), "pendulum", "--out", str(tmp_path)]) == 1


def test_every_recorded_vector_has_an_adaptor():
    assert {Vector(RECORDED, name).rule for name in names_in(RECORDED)} <= set(ADAPTORS)
