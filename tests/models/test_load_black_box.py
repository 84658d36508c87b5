"""Models of which only the outputs are known, by name: from files, addresses and functions, on the command line too."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from sklearn.linear_model import LogisticRegression
from skops import io
from tests.models.graphs import channel_means, linear, saved, two_inputs
from tests.models.served import Reply, serving, sums
from tests.oracles import uniform

import pellucid as pl
from pellucid.cli import cli
from pellucid.errors import ArgumentError, FixedShape, ModelError, UntrustedModel

KNOWN = pl.Description((("size", 16), ("mean", 0.5), ("std", 0.5)))
TOML = "[input]\nsize = 16\nmean = 0.5\nstd = 0.5\n"
PREDICT = "def predict(rows):\n    return rows.mean((2, 3))\n"
WEIGHT = np.array([[1, -2], [3, 0.5]], dtype=np.float32)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "nets", raising=False)
    yield tmp_path
    sys.modules.pop("nets", None)


@pytest.fixture
def means():
    return saved(Path("means.onnx"), channel_means(["b", 3, 16, 16], (2, 3)))


@pytest.fixture
def table():
    data = np.random.default_rng(0).normal(size=(40, 2))
    io.dump(LogisticRegression().fit(data, np.where(data[:, 0] > 0, "yes", "no")), "model.skops")
    return "model.skops"


def refused(name, words, *, error=ArgumentError, **settings):
    with pytest.raises(error, match=re.escape(words)):
        pl.load(name, **{"description": KNOWN, **settings})


RUN = [("device", "cpu"), ("precision", "bfloat16"), ("memory_limit", "1GiB"), ("trust", True)]


# ONNX


def test_a_file_is_described_beside_it_or_by_options(means):
    x = uniform(2, 3, 16, 16)
    assert torch.allclose(pl.load(means, description=KNOWN).predict(x).outputs, x.mean((2, 3)))
    Path("means.toml").write_text(TOML + '[output]\nlabels = ["r", "g", "b"]\nkind = "regression"\n')
    found = pl.load("means.onnx")
    assert (found.preprocess.size, found.labels.names, found.output) == (16, ("r", "g", "b"), "regression")
    assert found.name == "means.onnx"


def test_the_layout_is_a_fact_of_the_file_that_the_description_may_say():
    saved(Path("free.onnx"), channel_means(["b", "h", "w", "c"], (1, 2)))
    refused("free.onnx", "does not show where the channels lie")
    Path("free.toml").write_text(TOML + 'layout = "nhwc"\n')
    x = uniform(2, 3, 16, 16)
    assert torch.allclose(pl.load("free.onnx").predict(x).outputs, x.mean((2, 3)))
    assert "layout" not in repr(pl.load("free.onnx").preprocess)


@pytest.mark.doors
def test_pictures_need_a_preprocessing_that_fits(means):
    refused(means, "size, mean, std of its inputs are not known", error=ModelError, description=None)
    large = pl.Description((("size", 32), ("mean", 0.5), ("std", 0.5)))
    refused(means, "exported for inputs of 16x16", error=FixedShape, description=large)
    refused(means, "but the preprocessing gives 1", error=FixedShape,
            description=pl.Description((*KNOWN.input, ("channels", "gray"))))  # fmt: skip


@pytest.mark.doors
def test_tables_need_none_and_take_none():
    saved(Path("line.onnx"), linear(WEIGHT))
    assert torch.equal(pl.load("line.onnx").predict(torch.eye(2)).outputs, torch.from_numpy(WEIGHT))
    refused("line.onnx", "expected a program for pictures", error=ModelError)
    saved(Path("two.onnx"), two_inputs())
    assert pl.load("two.onnx").preprocess is None
    refused("two.onnx", "pictures cannot be read for 3 inputs", error=ModelError)


@pytest.mark.doors
@pytest.mark.parametrize(("name", "value"), RUN)
def test_a_file_takes_no_settings_of_a_network(means, name, value):
    refused(means, f"means.onnx takes no {name}. Leave out what was given", **{name: value})


@pytest.mark.doors
def test_a_layout_is_not_of_networks_of_torch():
    Path("nets.py").write_text("from torch import nn\ndef build():\n    return nn.Flatten()\n")
    description = pl.Description(KNOWN.input, layout="nhwc")
    refused("nets.py:build", "`layout` is of .onnx files", description=description)
    refused("efficientnet-lite0", "brings its own layout", description=pl.Description(layout="nhwc"))
    Path("nets.toml").write_text(TOML + 'layout = "hwc"\n')
    refused("nets.py:build", "layout under [input] is one of nchw, nhwc. Got 'hwc'", error=ModelError, description=None)


# Functions that predict


def test_a_function_of_a_batch_is_the_model():
    Path("nets.py").write_text(PREDICT)
    Path("nets.toml").write_text(TOML + '[output]\nlabels = ["r", "g", "b"]\nkind = "logits"\n')
    found = pl.load("nets.py:predict")
    x = uniform(2, 3, 16, 16)
    assert isinstance(found, pl.FunctionModel)
    assert torch.allclose(found.predict(x).outputs, x.mean((2, 3)))
    assert (found.name, found.preprocess.size, found.labels.names) == ("nets.py:predict", 16, ("r", "g", "b"))


@pytest.mark.doors
@pytest.mark.parametrize(("name", "value"), RUN)
def test_a_function_of_a_batch_takes_no_settings_of_a_network(name, value):
    Path("nets.py").write_text(PREDICT)
    refused("nets.py:predict", f"nets.py:predict takes no {name}", **{name: value})


@pytest.mark.doors
def test_of_a_function_too_what_is_missing_is_named():
    Path("nets.py").write_text(PREDICT)
    refused("nets.py:predict", "size, mean, std of its inputs are not known", error=ModelError, description=None)
    description = pl.Description(KNOWN.input, select=0, layout="nchw")
    refused("nets.py:predict", "takes no select, layout", description=description)


# Endpoints


def test_an_address_is_an_endpoint_of_the_format_that_its_path_shows():
    for path, kind in [("/predict", "Plain"), ("/v2/models/net", "V2"), ("/v2/models/net/infer", "V2")]:
        found = pl.load(f"http://127.0.0.1:8000{path}", description=KNOWN)
        assert type(found.protocol).__name__ == kind
        assert found.preprocess.size == 16


def test_an_address_is_asked():
    with serving(sums) as served:
        description = pl.Description(KNOWN.input, labels=("no", "yes"), kind="logits")
        found = pl.load(f"{served.address}/predict", description=description)
        assert found.predict(torch.tensor([[1.0, 2.0]]))[0].top(1)[0][0] == "no"


@pytest.mark.doors
def test_an_address_takes_no_settings_of_a_network():
    for name, value in RUN:
        refused("http://127.0.0.1:1/predict", f"http://127.0.0.1:1/predict takes no {name}", **{name: value})
    refused("http://127.0.0.1:1/x", "size, mean, std", error=ModelError, description=None)
    refused("http://127.0.0.1:1/x", "for protocol='v2'", description=pl.Description(KNOWN.input, select="y"))


@pytest.mark.doors
@pytest.mark.parametrize("scheme", ["ftp", "file", "s3", "HTTPX"])
def test_other_addresses_are_refused_by_their_name(scheme):
    with pytest.raises(ModelError, match=f"'{scheme}' addresses are not known: only those of http://") as told:
        pl.load(f"{scheme}://me:s3cret@host/net.onnx")
    assert "s3cret" not in str(told.value)


@pytest.mark.doors
def test_beside_an_address_there_is_no_file(means):
    for name, beside in [("http://127.0.0.1:1/x", False), (means, True)]:
        with pytest.raises(ModelError, match="Give --size --mean --std") as told:
            pl.load(name)
        assert ("beside it" in str(told.value)) == beside


# skops


def test_a_skops_file_takes_rows_of_a_table(table):
    found = pl.load(table)
    assert found.labels.names == ("no", "yes")
    assert found.predict(torch.tensor([[3.0, 0.0]]))[0].top(1)[0][0] == "yes"
    assert pl.load(table, description=pl.Description(labels=("a", "b"))).labels.names == ("a", "b")


@pytest.mark.doors
def test_a_skops_file_takes_no_other_settings(table):
    refused(table, "model.skops takes no size, mean, std")
    for name, value in RUN[:3]:
        refused(table, f"model.skops takes no {name}", description=None, **{name: value})
    description = pl.Description(kind="logits", select=0)
    refused(table, "model.skops takes no kind, select", description=description)


class Own(LogisticRegression):
    """A type that neither scikit-learn nor skops knows."""


@pytest.mark.doors
def test_unknown_types_need_trust():
    data = np.random.default_rng(0).normal(size=(40, 2))
    io.dump(Own().fit(data, data[:, 0] > 0), "own.skops")
    refused("own.skops", "holds types that can run code", error=UntrustedModel, description=None)
    assert pl.load("own.skops", trust=True).name == "Own"


@pytest.mark.doors
@pytest.mark.parametrize("suffix", ["pkl", "joblib"])
def test_pickled_estimators_stay_refused_and_skops_is_named(suffix):
    refused(f"model.{suffix}", "skops.io.dump to a .skops file", error=ModelError, trust=True)


# The command line


def run(*arguments):
    blue = np.random.default_rng(0).integers(0, 100, (24, 24, 3), dtype=np.uint8) + np.array([0, 50, 150], np.uint8)
    Image.fromarray(blue).save("a.png")
    return CliRunner().invoke(cli, ["explain", "a.png", "--method", "occlusion", "--no-picture", "--json", *arguments])


def test_the_command_line_takes_them(means):
    options = ("--size", "16", "--mean", "0.5", "--std", "0.5")
    Path("nets.py").write_text(PREDICT)

    def three(asked):
        return Reply({"outputs": np.array(asked.rows).mean((2, 3)).tolist()})

    with serving(three) as served:
        for model in (str(means), "nets.py:predict", f"{served.address}/predict"):
            result = run("--model", model, *options)
            assert result.exit_code == 0, result.output
            assert json.loads(result.stdout)["decisions"][0]["label"] == "class 2"


@pytest.mark.doors
def test_the_command_line_says_that_it_reads_pictures(table):
    result = run("--model", table)
    assert isinstance(result.exception, ModelError)
    assert "the command line reads pictures" in str(result.exception)
