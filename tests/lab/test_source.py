"""Which changes of code are changes of what it computes."""

import importlib.util
import sys
from pathlib import Path

import pytest

from polyak.lab import spec as spec_module
from polyak.lab.contenders import METHODS, resolve
from polyak.lab.source import digest, files_of, neighbours
from polyak.optim.create import KNOWN

CODE = '''
"""Words."""
import torch

def evaluate(model, split):
    """More words."""
    if split == "test":
        return model.test()  # remark
    data = 1 if split == "validation" else 2
    return model(data)

def problem():
    return Problem(name="a", steps=10, target=0.5, description="b", metric="c", evaluate=evaluate)
'''


def of(code, split="validation"):
    return digest([("", code.encode())], split=split)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""Words."""', '"""Other words."""'),
        ('    """More words."""\n', ""),
        ("  # remark", ""),
        ("import torch\n", "import torch\n\n\n"),
        ('name="a"', 'name="z"'),
        ("target=0.5, ", ""),
        ('description="b"', 'description="z"'),
        ("model.test()", "model.test(3)"),
        ("else 2", "else 3"),
    ],
)
def test_what_tuning_does_not_depend_on(old, new):
    assert old in CODE
    assert of(CODE.replace(old, new)) == of(CODE)


@pytest.mark.parametrize(
    ("old", "new"), [("steps=10", "steps=11"), ('metric="c"', 'metric="z"'), ("data = 1", "data = 0"), ("(data)", "()")]
)
@pytest.mark.parametrize("split", ["validation", "test"])
def test_what_figures_depend_on(old, new, split):
    assert old in CODE
    assert of(CODE.replace(old, new), split) != of(CODE, split)


@pytest.mark.parametrize(("old", "new"), [("model.test()", "model.test(3)"), ("else 2", "else 3")])
def test_the_test_depends_on_its_branches(old, new):
    assert of(CODE.replace(old, new), "test") != of(CODE, "test")


def test_branches_on_other_names_count():
    code = 'if mode == "test":\n    x = 1\n'
    assert of(code) != of(code.replace("1", "2"))


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "added"), str(tmp_path.parent)])
    files = {
        "train.py": "import torch, models\ndef f():\n    from package.deep import thing\n    import added_one",
        "models.py": "import layers.blocks as b",
        "layers/blocks.py": "",
        "layers/unused.py": "",
        "package/__init__.py": "from . import side",
        "package/side.py": "from .deep import x",
        "package/deep.py": "",
        "added/added_one.py": "",
        "torch.txt": "",
        ".venv/lib/site-packages/models.py": "",
    }
    write(tmp_path, files)
    return tmp_path


def found(folder, name="train.py"):
    path = folder / name
    return {name: place.relative_to(folder).as_posix() for name, place in neighbours(path, path.read_bytes()).items()}


def test_modules_under_the_folder_wherever_they_are_imported(folder):
    assert found(folder) == {
        "models": "models.py",
        "layers.blocks": "layers/blocks.py",
        "package": "package/__init__.py",
        "package.side": "package/side.py",
        "package.deep": "package/deep.py",
        "added_one": "added/added_one.py",
    }


def test_a_package_that_is_found_through_the_path_above(folder):
    (folder / "absolute.py").write_text(f"import {folder.name}.models")
    assert found(folder, "absolute.py")[f"{folder.name}.models"] == "models.py"


def test_own_modules_elsewhere_count_and_installed_ones_do_not(tmp_path, monkeypatch):
    source = tmp_path / "src"
    monkeypatch.setattr(sys, "path", [*sys.path, str(source), str(tmp_path / "site-packages")])
    files = {
        "scripts/train.py": "from mypkg import trainer\nimport json, torch, polyak.lab, other, edited.inner",
        "src/mypkg/__init__.py": "",
        "src/mypkg/trainer.py": "from mypkg.deep import x",
        "src/mypkg/deep.py": "x = 1",
        "site-packages/other.py": "",
        "elsewhere/edited/__init__.py": "",
        "elsewhere/edited/inner.py": "",
    }
    write(tmp_path, files)

    class Finder:
        """What some tools install for a package that is to be edited."""

        @staticmethod
        def find_spec(name, path=None, target=None):
            top = tmp_path / "elsewhere" / "edited"
            where = {"submodule_search_locations": [str(top)]}
            found = importlib.util.spec_from_file_location(name, top / "__init__.py", **where)
            return found if name == "edited" else None

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder])
    path = tmp_path / "scripts" / "train.py"
    found = neighbours(path, path.read_bytes())
    assert found.keys() == {"mypkg", "mypkg.trainer", "mypkg.deep", "edited", "edited.inner"}
    before = digest(files_of(path, path.read_bytes()))
    (source / "mypkg" / "deep.py").write_text("x = 2")
    assert digest(files_of(path, path.read_bytes())) != before


def test_files_that_nobody_could_import_are_no_obstacle(folder):
    (folder / "models.py").write_text("def (")
    assert found(folder)["models"] == "models.py"
    assert of("def (") != of("def [")


def test_a_method_is_its_own_files_and_not_those_of_others(monkeypatch):
    """A changed rule of Lion is no reason to run Muon again."""
    read = []

    def counted(path):
        read.append(path.name)
        return b""

    monkeypatch.setattr(Path, "read_bytes", counted)
    wanted = {"clion": {"clion.py", "lion.py"}, "lion": {"lion.py"}, "adamw": {"adamw.py", "adam.py"}}
    for name, files in wanted.items():
        read.clear()
        resolve(name)
        assert set(read) == files
    read.clear()
    spec_module.versions.__wrapped__()
    assert {"descend.py", "weight.py"} & set(read) and not {"lion.py", "adamw.py", "report.py"} & set(read)


def test_every_method_has_a_code_of_its_own():
    assert len({resolve(name).code for name in KNOWN}) == len(KNOWN)


def test_relative_imports_and_packages_are_followed(tmp_path):
    def kit(place, changed=""):
        texts = {
            "__init__": "",
            "a": "from . import b\nfrom .c import x\n",
            "b": "import kit.d\n",
            "c": "x = 1\n",
            "d": "x = 1\n",
        }
        (tmp_path / place / "kit").mkdir(parents=True)
        for name, text in texts.items():
            (tmp_path / place / "kit" / f"{name}.py").write_text(text + "y = 2\n" * (name == changed))
        path = tmp_path / place / "kit" / "a.py"
        return digest(files_of(path, path.read_bytes(), tmp_path / place, "kit"))

    before = kit("here")
    assert kit("there") == before  # wherever it lies
    assert before not in [kit(f"with_{name}", name) for name in "abcd"]


def test_a_method_imports_no_file_of_another():
    """So that the files that it derives from are all that its figures depend on beside the engine."""
    for method in KNOWN.values():
        own = {each.__module__ for each in method.__mro__}
        path = Path(sys.modules[method.__module__].__file__)
        lines = path.read_text().splitlines()
        imported = {line.split()[1] for line in lines if line.startswith("from ")}
        ours = {name for name in imported if f"{name}.".startswith(METHODS)}
        assert ours - {"polyak.optim.layerwise.groups"} <= own, method
