"""Code of the caller's own: what a name means, and which functions predict. What load does with it: test_load.py."""

import sys

import pytest
from torch import nn

from pellucid.errors import ModelError
from pellucid.models.own_code import Predicts, built, functions_in

CODE = """
from torch import nn
def build(width=3): return nn.Linear(width, 2)
def predict(rows): return rows * 2
def by_place(rows, /, scale=3): return rows * scale
def two(rows, scale): return rows
def named(*, rows): return rows
def any_rows(*rows): return 'built'
class Net(nn.Linear):
    def __init__(self, width): super().__init__(width, 2)
"""


@pytest.fixture
def nets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "nets", raising=False)
    (tmp_path / "nets.py").write_text(CODE)
    yield "nets.py"
    sys.modules.pop("nets", None)


def test_a_function_without_arguments_that_it_needs_is_called(nets):
    found, file = built(nets, "build")
    assert isinstance(found, nn.Linear)
    assert file.name == "nets.py"
    assert built(nets, "any_rows")[0] == "built"


@pytest.mark.parametrize(("name", "answer"), [("predict", 10), ("by_place", 15)])
def test_a_function_of_one_argument_predicts_and_is_not_called(nets, name, answer):
    found, _ = built(nets, name)
    assert isinstance(found, Predicts)
    assert found.function(5) == answer


def test_a_function_that_predicts_may_import_its_neighbours_when_it_is_called(nets, tmp_path):
    (tmp_path / "scales.py").write_text("scale = 4\n")
    (tmp_path / "nets.py").write_text("def predict(rows):\n    from scales import scale\n    return rows * scale\n")
    places = list(sys.path)
    assert built(nets, "predict")[0].function(5) == 20
    assert sys.path == places
    del sys.modules["scales"]


@pytest.mark.doors
@pytest.mark.parametrize(
    ("name", "missing"),
    [("two", "2 required positional"), ("named", "required keyword-only"), ("Net", "1 required positional")],
)
def test_what_needs_other_arguments_fails_by_name(nets, name, missing):
    with pytest.raises(ModelError, match=rf"nets.py:{name} failed with TypeError: .*{missing}"):
        built(nets, name)


def test_the_functions_of_a_file_are_listed_those_that_build_first(nets, tmp_path):
    (tmp_path / "nets.py").write_text(CODE.replace("def build", "def z_build") + "open('marker', 'w')")
    assert functions_in(tmp_path / "nets.py") == ["z_build", "any_rows", "predict", "by_place"]
    assert not (tmp_path / "marker").exists()
