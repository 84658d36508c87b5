"""Public names, their documentation, and the mirror of the source in the tests."""

import ast
import inspect
import re
from pathlib import Path

import pytest

import pellucid as pl

PACKAGE = Path(pl.__file__).parent
TESTS = Path(__file__).parents[1]
PUBLIC = [getattr(pl, name) for name in pl.__all__]


def test_the_contract_of_the_first_page_is_there():
    names = {"load", "TorchModel", "SmoothGrad", "SimpleGradient", "Attribution", "heatmap", "PellucidError", "methods"}
    assert names <= set(pl.__all__)


def test_every_public_name_resolves():
    assert all(getattr(pl, name) is not None for name in pl.__all__)
    with pytest.raises(AttributeError):
        _ = pl.nothing_of_this_name


@pytest.mark.parametrize("thing", [t for t in PUBLIC if callable(t)], ids=lambda t: t.__name__)
def test_every_public_name_is_documented(thing):
    assert inspect.getdoc(thing)
    assert thing.__doc__, "a docstring of its own, not its base's"


EXPLAINED = [t for t in PUBLIC if inspect.isfunction(t) or (inspect.isclass(t) and issubclass(t, pl.Explainer))]


@pytest.mark.parametrize("thing", [t for t in EXPLAINED if t is not pl.Explainer], ids=lambda t: t.__name__)
def test_functions_and_methods_have_an_executed_example(thing):
    assert thing.__doc__
    without_example = {"comparison_page", "overlay", "page", "noised_copies", "stability"}  # they need a real photo
    assert ">>>" in thing.__doc__ or thing.__name__ in without_example


def test_every_error_is_in_the_drawn_tree():
    import pellucid.errors as errors

    drawn = re.findall(r"(?:── |^ *)(\w+)", errors.__doc__, re.MULTILINE)
    for name in errors.__all__:
        assert name in drawn
        assert issubclass(getattr(errors, name), errors.PellucidError)


SOURCES = [p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py"]
MIRRORED_ELSEWHERE = {
    "errors": "every error is raised in the tests of what raises it",
    "core/card": "contract/test_methods",
    "core/checks": "the doors of what calls it",
    "modalities/image/colour": "modalities/image/test_read",
    "explainers/_activation_map": "explainers/test_activation_map",
    "explainers/_noise": "explainers/test_noise",
    "explainers/_affine": "explainers/test_affine",
    "explainers/_attention": "explainers/test_attention",
    "models/at_once": "models/test_http",
    "models/connection": "models/test_endpoint",
    "models/secrets": "models/test_http",
    "models/told": "models/test_onnx_screen",
    "explainers/_background": "explainers/test_background",
    "explainers/_odd_process": "explainers/test_odd_process",
    "explainers/_queried": "explainers/test_queried",
    "explainers/_removals": "explainers/test_smallest_change",
    "explainers/_rise": "explainers/test_rise",
    "explainers/_rise_process": "explainers/test_rise_process",
    "explainers/_shapley": "explainers/test_shapley",
    "explainers/_shapley_process": "explainers/test_shapley_process",
    "explainers/_compared": "explainers/test_compared",
    "explainers/_ruled": "explainers/test_ruled",
    "explainers/_rules": "explainers/test_rules",
    "explainers/_path": "explainers/test_path",
}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_the_tests_mirror_the_source(path):
    relative = path.relative_to(PACKAGE).with_suffix("")
    if str(relative) not in MIRRORED_ELSEWHERE:
        assert (TESTS / relative.parent / f"test_{relative.name}.py").exists()


def test_no_file_is_a_drawer():
    assert not [p for p in SOURCES if p.stem in ("utils", "helpers", "common", "misc")]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_every_module_says_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text()))
