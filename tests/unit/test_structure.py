"""The structure check beside the sample repositories: names followed, imports told, broken files contained."""

import ast
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flops.contract import modules, structure, syntax_child
from flops.contract.classes import CONTRACT
from flops.errors import InternalError, StructureError
from flops.recipe import Flavor
from flops.repository.tree_writer import RepositoryFile

MODEL = """\
class ModelManager:
    def set_model_data(self): ...
    def get_model(self): ...
    def get_model_parameters(self): ...
    def set_model_parameters(self, parameters): ...
    def fit_model(self): ...
    def evaluate_model(self): ...
"""
DATA = """\
class DataManager:
    def _prepare_data(self): ...
    def get_data(self): ...
"""
GOOD = {"model_manager.py": MODEL, "data_manager.py": DATA}


@pytest.fixture
def check(tmp_path):
    def run(files, *, good=True):
        listed = []
        for path, text in ({**GOOD, **files} if good else files).items():
            place = tmp_path / path
            place.parent.mkdir(parents=True, exist_ok=True)
            data = text if isinstance(text, bytes) else text.encode()
            place.write_bytes(data)
            listed.append(RepositoryFile(path=path, executable=False, size=len(data), blob=""))
        return structure.check(tmp_path, listed)

    return run


def lines(findings):
    return [f"{finding.where} {finding.code}" for finding in findings]


def test_a_repository_that_keeps_the_contract(check):
    found = check({})
    assert found.findings == ()
    structure.require(found)


def test_a_place_in_the_repository_is_named_as_a_shell_takes_it(check):
    files = {f"my models/{name}": text for name, text in GOOD.items()}
    found = check(files, good=False)
    assert lines(found.findings) == ["data_manager.py DATA_MANAGER_MISSING", "model_manager.py MODEL_MANAGER_MISSING"]
    assert all(finding.hint.endswith("use --subdir 'my models'") for finding in found.findings)


def test_one_argument_is_told_as_one(check):
    found = check({"model_manager.py": MODEL.replace("def fit_model(self)", "def fit_model(self, epochs)")})
    (message,) = [finding.message for finding in found.findings]
    assert message == "ModelManager.fit_model takes 1 argument beside self, and is called with 0"


def test_all_findings_stand_in_the_error(check):
    found = check({"model_manager.py": "", "data_manager.py": "class DataManager: pass\n"})
    with pytest.raises(StructureError) as caught:
        structure.require(found)
    assert lines(caught.value.findings) == [
        "data_manager.py:1 METHOD_MISSING",
        "data_manager.py:1 METHOD_MISSING",
        "model_manager.py CLASS_MISSING",
    ]
    assert caught.value.message.startswith("data_manager.py:1: ")
    assert caught.value.message.endswith("(and 2 more)")
    assert all("write " in finding.hint for finding in caught.value.findings)


@pytest.mark.parametrize(
    "method", [method for contract in CONTRACT for method in contract.methods], ids=lambda method: method.name
)
def test_each_method_is_asked_for_by_the_line_to_write(check, method):
    files = {path: text.replace(f" {method.name}(", " other(") for path, text in GOOD.items()}
    (finding,) = check(files).findings
    assert finding.code == "METHOD_MISSING"
    assert finding.hint.startswith(f"write def {method.name}(self")
    ast.parse(method.definition + " ...")


@pytest.mark.parametrize(
    ("definition", "code"),
    [
        ("def fit_model(self): ...", None),
        ("def fit_model(this, epochs=3): ...", None),
        ("def fit_model(*arguments): ...", None),
        ("def fit_model(self, *arguments, **options): ...", None),
        ("def fit_model(self, /): ...", None),
        ("@staticmethod\n    def fit_model(): ...", None),
        ("@classmethod\n    def fit_model(cls): ...", None),
        ("@torch.no_grad()\n    def fit_model(self, x): ...", None),
        ("@wrapped\n    def fit_model(self, x): ...", None),
        ("fit_model = something", None),
        ("if True:\n        def fit_model(self): ...\n    else:\n        def other(self): ...", None),
        ("def fit_model(): ...", "METHOD_ARGUMENTS"),
        ("def fit_model(self, epochs): ...", "METHOD_ARGUMENTS"),
        ("def fit_model(self, *, epochs): ...", "METHOD_ARGUMENTS"),
        ("@staticmethod\n    def fit_model(self): ...", "METHOD_ARGUMENTS"),
        ("async def fit_model(self): ...", "METHOD_KIND"),
        ("@property\n    def fit_model(self): ...", "METHOD_KIND"),
        ("@functools.cached_property\n    def fit_model(self): ...", "METHOD_KIND"),
        ("@abc.abstractmethod\n    def fit_model(self): ...", "METHOD_MISSING"),
    ],
)
def test_how_a_method_may_be_written(check, definition, code):
    found = check({"model_manager.py": MODEL.replace("def fit_model(self): ...", definition)})
    assert [finding.code for finding in found.findings] == ([code] if code else [])


@pytest.mark.parametrize(
    ("model", "others"),
    [
        ("from a import ModelManager\n", {"a.py": MODEL}),
        ("from a.b import Model as ModelManager\n", {"a/b.py": MODEL.replace("ModelManager", "Model")}),
        ("from .a import ModelManager\n", {"a.py": MODEL}),
        ("from a import *\n", {"a/__init__.py": "from .b import *\n", "a/b.py": MODEL}),
        ("import a.b\nModelManager = a.b.Model\n", {"a/b.py": MODEL.replace("ModelManager", "Model")}),
        ("import a.b as c\nclass ModelManager(c.Base): pass\n", {"a/b.py": MODEL.replace("ModelManager", "Base")}),
        ("from a import b\nclass ModelManager(b.Base): pass\n", {"a/b.py": MODEL.replace("ModelManager", "Base")}),
        (
            "from a import Base\nclass Half(Base): pass\nclass ModelManager(Half, Generic[T]): pass\n",
            {"a.py": MODEL.replace("ModelManager", "Base")},
        ),
        ("try:\n    from a import ModelManager\nexcept ImportError:\n    raise\n", {"a.py": MODEL}),
        ("if True:\n    " + MODEL.replace("\n", "\n    "), {}),
        ("class ModelManager: pass\n" + MODEL, {}),
    ],
)
def test_classes_are_found_where_they_are(check, model, others):
    found = check({"model_manager.py": model, **others})
    assert found.findings == ()
    assert "METHOD_NOT_CHECKED" not in {note.code for note in found.notes}


def test_packages_may_stand_for_the_modules(check):
    found = check({"model_manager/__init__.py": MODEL, "data_manager/__init__.py": DATA}, good=False)
    assert found.findings == ()


@pytest.mark.parametrize(
    "model",
    [
        "from b import ModelManager\n",
        "ModelManager = Other\nOther = ModelManager\n",
        "class ModelManager(ModelManager): pass\n",
    ],
)
def test_circles_end(check, model):
    found = check({"model_manager.py": model, "b.py": "from model_manager import ModelManager\n"})
    assert found.findings


def test_a_base_class_that_can_not_be_seen_is_a_note(check):
    found = check(
        {"model_manager.py": "from acme import Base\nclass ModelManager(Base):\n    def get_model(self, x): ...\n"}
    )
    assert lines(found.findings) == ["model_manager.py:3 METHOD_ARGUMENTS"]
    assert lines(found.notes)[1:] == ["model_manager.py:2 METHOD_NOT_CHECKED"]
    assert "set_model_data" in found.notes[1].message
    assert "get_model," not in found.notes[1].message


def test_the_constructor(check):
    init = "    def __init__(self, {}): {}\n    def set_model_data(self)"
    for arguments, body, codes in (
        ("rate=0.1, *, depth=3", "...", []),
        ("rate", "...", ["METHOD_ARGUMENTS"]),
        ("*, rate", "...", ["METHOD_ARGUMENTS"]),
        ("rate=1", "self.set_model_data()", ["SET_MODEL_DATA_IN_INIT"]),
        ("rate=1", "self.get_model()", []),
        ("rate=1", "other.set_model_data()", []),
    ):
        text = MODEL.replace("    def set_model_data(self)", init.format(arguments, body))
        assert [finding.code for finding in check({"model_manager.py": text}).findings] == codes, (arguments, body)


def test_imports_with_their_lines(check):
    found = check(
        {
            "model_manager.py": "import numpy as np, os.path\nfrom sklearn.svm import SVC\nimport parts.a\n" + MODEL,
            "parts/a.py": "from . import b\nfrom .. import c\ndef f():\n    import torch.nn\n",
            "parts/b.py": "try:\n    import cupy\nexcept (ImportError, OSError):\n    import jax\n",
            "train.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pandas\nelse:\n    import polars\n",
        }
    )
    told = [(item.path, item.line, item.name, item.module, item.guarded, item.reached) for item in found.imports]
    assert told == [
        ("model_manager.py", 1, "numpy", "numpy", False, True),
        ("model_manager.py", 1, "os", "os.path", False, True),
        ("model_manager.py", 2, "sklearn", "sklearn.svm", False, True),
        ("parts/a.py", 4, "torch", "torch.nn", False, True),
        ("parts/b.py", 2, "cupy", "cupy", True, True),
        ("parts/b.py", 4, "jax", "jax", False, True),
        ("train.py", 1, "typing", "typing", False, False),
        ("train.py", 3, "pandas", "pandas", True, False),
        ("train.py", 5, "polars", "polars", False, False),
    ]


def test_modules_that_the_repositorys_own_packages_lack(check):
    text = "import own.there, own.gone, alone.part, own.inner.deep.x\nfrom own.inner.gone import y\nimport own.native\n"
    guarded = "try:\n    import own.other\nexcept ImportError:\n    pass\n"
    found = check(
        {
            "model_manager.py": text + guarded + "from .own import attribute\nfrom own import attribute\n" + MODEL,
            "own/__init__.py": "from . import there\nfrom .lost import x\n",
            "own/there.py": "",
            "own/native.cpython-311-x86_64-linux-gnu.so": b"\x7fELF",
            "own/inner/a.py": "",
            "alone.py": "",
            "script.py": "import own.unreached",
        }
    )
    told = [(note.where, note.message) for note in found.notes if note.code == "MODULE_MISSING"]
    assert told == [
        ("model_manager.py:1", "alone.part is imported, and alone.py is no package"),
        ("model_manager.py:1", "own.gone is imported, and own/__init__.py has no module gone beside it"),
        ("own/__init__.py:2", "own.lost is imported, and own/__init__.py has no module lost beside it"),
    ]
    assert [item.module for item in found.imports] == []


def test_a_directory_without_code_or_without_init_may_be_a_packages(check, tmp_path):
    text = "import data.loader, spaces.there, spaces.gone, linked, linked.x\n"
    listed = {"model_manager.py": text + MODEL, "data/a.csv": "1", "spaces/there.py": "", "sklearn.csv": ""}
    assert [item.module for item in check(listed).imports] == ["data.loader", "linked", "linked.x", "spaces.gone"]
    files = [
        RepositoryFile(path=path, executable=False, size=(tmp_path / path).stat().st_size, blob="")
        for path in (*listed, "data_manager.py")
    ]
    link = RepositoryFile(path="linked", executable=False, size=1, blob="", link="spaces")
    found = structure.check(tmp_path, [*files, link])
    assert [item.module for item in found.imports] == ["data.loader", "spaces.gone"]
    assert found.notes == structure.check(tmp_path, files).notes


@pytest.mark.parametrize(
    ("text", "flavor"),
    [
        ("import sklearn", Flavor.SKLEARN),
        ("from sklearn import svm\nimport torch.nn as nn", Flavor.PYTORCH),
        ("import tensorflow as tf\nimport sklearn", Flavor.TENSORFLOW),
        ("import tensorflow as tf\nfrom keras import layers", Flavor.KERAS),
        ("import numpy", None),
    ],
)
def test_the_flavor_is_told_by_imports(check, text, flavor):
    assert check({"model_manager.py": f"{text}\n{MODEL}"}).flavor is flavor


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("from flops_utils.ml_repo_building_blocks import load_dataset", 1),
        ("from flops_utils.ml_repo_building_blocks import load_dataset as read", 1),
        ("from flops_utils.ml_repo_building_blocks import *", 1),
        ("import flops_utils.ml_repo_building_blocks\nx = flops_utils.ml_repo_building_blocks.load_dataset", 2),
        ("import flops_utils.ml_repo_building_blocks as b\n\nb.load_dataset()", 3),
        ("from flops_utils import ml_repo_building_blocks\nml_repo_building_blocks.load_dataset()", 2),
        ("from flops_utils import ml_repo_building_blocks as b\nb.load_dataset()", 2),
        ("import flops_utils as f\nf.ml_repo_building_blocks.load_dataset()", 2),
        ("from datasets import load_dataset", None),
        ("import datasets\ndatasets.load_dataset('x')", None),
        ("from flops_utils.ml_repo_building_blocks import other", None),
        ("import flops_utils.ml_repo_building_blocks as b\nb.other()", None),
    ],
)
def test_the_use_of_load_dataset(check, text, line):
    found = check({"data_manager.py": f"{text}\n{DATA}"})
    assert found.load_dataset == (("data_manager.py", line) if line else None)


def test_a_child_that_dies_names_its_file(check, monkeypatch, tmp_path_factory):
    """However a parser dies, the file that it was at is told, and those behind it are checked all the same."""
    child = tmp_path_factory.mktemp("child") / "child.py"
    dying = "        if 'b.py' in line:\n            import os\n            os.abort()\n        answer"
    child.write_text(Path(syntax_child.__file__).read_text().replace("        answer", dying))
    monkeypatch.setattr(syntax_child, "__file__", str(child))
    found = check({"model_manager.py": "import a, b, c\n" + MODEL, "a.py": "", "b.py": "", "c.py": "def\n"})
    assert lines(found.findings) == ["b.py TOO_COMPLEX", "c.py:1 SYNTAX"]


def test_children_that_die_are_not_tried_for_ever(check, monkeypatch, tmp_path_factory):
    child = tmp_path_factory.mktemp("child") / "child.py"
    child.write_text("import os\nos.abort()\n")
    monkeypatch.setattr(syntax_child, "__file__", str(child))
    found = check({f"m{number}.py": "" for number in range(20)})
    assert [note.code for note in found.notes].count("FILES_NOT_CHECKED") == 1
    assert lines(found.findings)[:2] == ["data_manager.py TOO_COMPLEX", "model_manager.py TOO_COMPLEX"]


def test_a_parser_that_does_not_work_is_our_bug(check, monkeypatch, tmp_path_factory):
    child = tmp_path_factory.mktemp("child") / "child.py"
    child.write_text("raise OSError\n")
    monkeypatch.setattr(syntax_child, "__file__", str(child))
    with pytest.raises(InternalError):
        check({})


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=80) | st.text(max_size=80).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_have_a_summary(data):
    found = modules.Module.from_json("x.py", syntax_child.summary(data))
    assert found.error is None or found.error[0] in ("SYNTAX", "TOO_COMPLEX")


def test_batches_and_totals(check, monkeypatch, tmp_path):
    monkeypatch.setattr(modules, "BATCH", 400)
    monkeypatch.setattr(modules, "TOTAL", 3000)
    found = check({f"m{number}.py": f"import x{number}\n" + "#" * 300 + "\n" for number in range(10)})
    assert found.findings == ()
    assert [note.code for note in found.notes if note.code == "FILES_NOT_CHECKED"] == ["FILES_NOT_CHECKED"]
    assert 5 < len(found.imports) < 10
