"""A model by its name: what is run, what is refused unread, and what the user of a broken file is told."""

import pickle
import sys
from pathlib import Path

import pytest
import torch
from tests.models.programs import BATCH, SIDES, Conv, exported, noise, saved
from torch import nn

import pellucid as pl
from pellucid.errors import ArgumentError, FixedShape, ModelError
from pellucid.models.load import load

KNOWN = pl.Description((("size", 16), ("mean", 0.5), ("std", 0.5)))
BUILD = "from torch import nn\n\ndef build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 2))\n"
TOML = "[input]\nsize = {}\nmean = 0.5\nstd = 0.5\n"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The working directory; what is imported in it is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "nets", raising=False)
    before, places = set(sys.modules), list(sys.path)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]
    assert sys.path == places


def written(name, text):
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return name


def refused(name, told, *, error=ModelError, **settings):
    with pytest.raises(error) as caught:
        load(name, **{"description": KNOWN, **settings})
    assert told in str(caught.value)
    return caught.value


# The embedded model


def test_the_embedded_model_knows_its_classes_and_its_preprocessing():
    model = load("efficientnet-lite0")
    assert model.labels.find("tabby") == 281
    assert model.preprocess.size == 224
    assert model.name == "efficientnet-lite0"


@pytest.mark.doors
def test_the_embedded_model_takes_no_other_preprocessing():
    refused("efficientnet-lite0", "brings its own size, mean, std", error=ArgumentError)


# Functions


def test_a_function_of_a_file_is_run():
    model = load(written("nets.py", BUILD) + ":build", description=KNOWN)
    assert model.name == "nets.py:build"
    assert model.predict(model.read(torch.zeros(8, 8, 3).numpy())).outputs.shape == (1, 2)


def test_a_path_is_taken_like_a_text(folder):
    written("nets.py", BUILD)
    assert load(folder / "nets.py:build", description=KNOWN).preprocess.size == 16


def test_a_function_of_a_package_in_the_working_directory_is_run():
    written("my_package/__init__.py", "")
    written("my_package/nets.py", BUILD)
    assert load("my_package.nets:build", description=KNOWN).name == "my_package.nets:build"


def test_a_class_is_built_like_a_function():
    model = load("torch.nn:Flatten", description=KNOWN)
    assert isinstance(model.net, nn.Flatten)


def test_a_network_that_the_file_has_built_is_taken_as_it_is():
    written("nets.py", BUILD + "net = build()\n")
    assert load("nets.py:net", description=KNOWN).net is sys.modules["nets"].net


def test_a_model_is_returned_as_it_is():
    code = "import torch, pellucid as pl\nmade = pl.TorchModel(torch.nn.Linear(2, 2))\ndef build():\n    return made\n"
    assert load(written("nets.py", code) + ":build") is sys.modules["nets"].made


@pytest.mark.parametrize("name", ["efficientnet-lite0", "nets.py:build"])
def test_how_a_network_is_run_reaches_it(name):
    if ":" in name:
        written("nets.py", "import torch\ndef build():\n    return torch.nn.Linear(2, 2)\n")
    description = KNOWN if ":" in name else None
    model = load(name, description=description, device="cpu", precision="bfloat16", memory_limit="1GiB")
    assert (model.device.type, model.precision, model.memory_limit) == ("cpu", "bfloat16", 2**30)


@pytest.mark.doors
@pytest.mark.parametrize(
    ("settings", "unused"),
    [
        ({"description": KNOWN}, "size, mean, std"),
        ({"description": pl.Description(labels=("a", "b"), kind="logits", select=0)}, "labels, kind, select"),
        ({"description": None, "device": "cpu"}, "device"),
        ({"description": None, "precision": "auto", "memory_limit": "1GiB"}, "precision, memory_limit"),
    ],
)
def test_settings_that_a_returned_model_would_not_use_are_refused(settings, unused):
    code = "import torch, pellucid as pl\ndef build():\n    return pl.TorchModel(torch.nn.Linear(2, 2))\n"
    refused(written("nets.py", code) + ":build", f"brings its own {unused}.", error=ArgumentError, **settings)


def test_a_file_may_import_its_neighbours_also_when_it_builds():
    written("there/widths.py", "wide = 2\n")
    written("there/heights.py", "high = 2\n")
    code = "from widths import wide\ndef build():\n    from heights import high\n    import torch\n"
    written("there/nets.py", code + "    return torch.nn.Linear(wide, high)\n")
    assert load("there/nets.py:build", description=KNOWN).net.weight.shape == (2, 2)


def test_a_file_named_like_a_library_does_not_displace_it():
    load(written("torch.py", BUILD) + ":build", description=KNOWN)
    assert sys.modules["torch"] is torch


def test_dataclasses_of_a_file_find_their_module():
    code = "from __future__ import annotations\nfrom dataclasses import dataclass, field, KW_ONLY\nimport torch\n"
    code += "@dataclass\nclass Widths:\n    a: int = 2\n    _: KW_ONLY\n    b: int = 2\n"
    written("nets.py", code + "def build():\n    return torch.nn.Linear(Widths().a, Widths(b=3).b)\n")
    assert load("nets.py:build", description=KNOWN).net.weight.shape == (3, 2)


@pytest.mark.doors
@pytest.mark.parametrize(
    ("code", "got"),
    [("return 3", "int"), ("pass", "NoneType"), ("return {'w': 1}", "dict"), ("return build", "function")],
)
def test_what_is_no_network_is_named(code, got):
    written("nets.py", f"def build():\n    {code}\n")
    refused("nets.py:build", f"nets.py:build: expected a torch.nn.Module or a pellucid Model, but got {got}.")


@pytest.mark.doors
def test_what_a_users_code_raises_is_told_with_its_line_and_kept_as_the_cause():
    written("nets.py", "def weights():\n    raise KeyError('conv1')\n\ndef build():\n    return weights()\n")
    error = refused("nets.py:build", "nets.py:build failed with KeyError: 'conv1' (nets.py, line 2)")
    assert isinstance(error.__cause__, KeyError)


@pytest.mark.doors
@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("1 / 0\n", "nets.py cannot be imported: ZeroDivisionError: division by zero (nets.py, line 1)"),
        ("def build(:\n", "nets.py cannot be imported: SyntaxError: invalid syntax (nets.py, line 1)"),
        ("import sys\nsys.exit('usage: train')\n", "SystemExit: usage: train (nets.py, line 2)"),
        ("import no_such_thing\n", "ModuleNotFoundError: No module named 'no_such_thing' (nets.py, line 1)"),
    ],
)
def test_a_file_that_cannot_be_run_is_told_and_leaves_no_module(code, told):
    refused(written("nets.py", code) + ":build", told)
    assert "nets" not in sys.modules


@pytest.mark.doors
def test_a_function_that_ends_the_program_does_not():
    refused(written("nets.py", "def build():\n    raise SystemExit(3)\n") + ":build", "failed with SystemExit: 3")


@pytest.mark.doors
def test_an_error_of_pellucid_in_a_users_code_is_passed_on():
    code = "import torch, pellucid as pl\ndef build():\n    return pl.TorchModel(torch.nn.Linear(2, 2), mode='asis')\n"
    refused(written("nets.py", code) + ":build", "`mode` is one of", error=ArgumentError)


@pytest.mark.doors
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("none.py:build", "none.py: there is no such file."),
        ("no_such_package.nets:build", "No module named 'no_such_package'"),
        ("nets.py:biuld", "nets.py has no function 'biuld'. It has build."),
        ("nets.py:nn", "nets.py has no function 'nn'."),
        ("nets.py:build()", "name the function that builds the network, or that predicts, nets.py:build."),
        ("nets.py:", "name the function that builds the network, or that predicts, nets.py:build."),
        ("resnet50", "There is no model 'resnet50'. Expected efficientnet-lite0,"),
        ("", "There is no model ''."),
        ("net.onnx", "net.onnx: no ONNX file"),
        ("net.tflite", "but this is a .tflite."),
        ("folder", "but this is a folder."),
    ],
)
def test_what_is_no_model_is_told(name, told):
    written("nets.py", BUILD)
    written("net.onnx", "")
    written("net.tflite", "")
    Path("folder").mkdir()
    refused(name, told)


@pytest.mark.doors
def test_a_file_without_a_function_names_its_functions_and_is_not_run():
    written(
        "nets.py",
        "open('marker', 'w')\ndef _hidden(): ...\ndef small(): ...\ndef big(rows): ...\ndef wide(k=2): ...\n"
        "def two(a, b): ...\n",
    )
    refused("nets.py", "or that predicts, nets.py:small. It has small, wide, big.")
    assert not Path("marker").exists()


@pytest.mark.doors
def test_a_file_that_is_no_python_is_still_told_what_to_give():
    refused(
        written("nets.py", "def build(:"), "name the function that builds the network, or that predicts, nets.py:build."
    )


# What its file does not say


@pytest.mark.doors
def test_what_is_missing_is_refused_by_name():
    written("nets.py", BUILD)
    refused("nets.py:build", "size, mean, std of its inputs are not known", description=None)
    refused("nets.py:build", "--std, or a model.toml", description=pl.Description((("size", 16), ("mean", 0.5))))


@pytest.mark.parametrize("beside", ["there/nets.toml", "there/model.toml"])
def test_a_description_beside_the_file_is_read(beside):
    written("there/nets.py", BUILD)
    written(beside, TOML.format(24) + '[output]\nlabels = ["cat", "dog"]\nkind = "logits"\n')
    model = load("there/nets.py:build")
    assert (model.preprocess.size, model.labels.names, model.output) == (24, ("cat", "dog"), "logits")


def test_the_description_of_the_files_own_name_goes_first():
    written("nets.py", BUILD)
    written("nets.toml", TOML.format(24))
    written("model.toml", TOML.format(48))
    assert load("nets.py:build").preprocess.size == 24


def test_a_package_is_described_beside_its_file():
    written("other_package/__init__.py", "")
    written("other_package/nets.py", BUILD)
    written("other_package/model.toml", TOML.format(24))
    assert load("other_package.nets:build").preprocess.size == 24


def test_what_the_caller_says_goes_before_the_file():
    written("nets.py", BUILD)
    written("nets.toml", TOML.format(24))
    model = load("nets.py:build", description=pl.Description((("size", 16),)))
    assert (model.preprocess.size, model.preprocess.mean) == (16, 0.5)


def test_a_description_selects_the_output():
    code = "from torch import nn\nclass Two(nn.Module):\n    def forward(self, x):\n"
    written("nets.py", code + "        return {'aux': x.mean((2, 3)), 'logits': x.sum((2, 3))}\n")
    written("nets.toml", TOML.format(4) + '[output]\nselect = "logits"\n')
    model = load("nets.py:Two")
    x = torch.ones(1, 3, 4, 4)
    assert model.predict(x).outputs.tolist() == [[16.0, 16.0, 16.0]]


# Pickles


class Hostile:
    def __reduce__(self):
        return (open, ("marker", "w"))


@pytest.mark.doors
@pytest.mark.parametrize("suffix", ["pt", "pth", "PT", "pkl", "bin", "ckpt", "joblib"])
@pytest.mark.parametrize("trust", [False, True])
def test_pickles_are_refused_unread(suffix, trust):
    Path(f"net.{suffix}").write_bytes(pickle.dumps(Hostile()))
    refused(f"net.{suffix}", "can run code on loading and are refused", trust=trust)
    refused(f"net.{suffix}:build", "can run code on loading and are refused", trust=trust)
    assert not Path("marker").exists()


@pytest.mark.doors
@pytest.mark.parametrize("trust", [False, True])
def test_a_pickle_by_the_name_of_a_program_is_refused_unread(trust):
    torch.save(Hostile(), "net.pt2")
    refused("net.pt2", "a pickled module or state dict", trust=trust)
    Path("net.pt2").write_bytes(pickle.dumps(Hostile()))
    refused("net.pt2", "a pickled module or state dict", trust=trust)
    assert not Path("marker").exists()


# Programs


@pytest.fixture(scope="module")
def conv(tmp_path_factory):
    """Exported for any batch of pictures of 16 x 16."""
    path = tmp_path_factory.mktemp("conv") / "conv.pt2"
    return saved(path, exported(Conv().eval(), noise(2, 3, 16, 16), {0: BATCH}))


def test_a_program_is_explained_like_the_network_it_was_exported_from(tmp_path):
    net = Conv().eval()
    saved(tmp_path / "conv.pt2", exported(net, noise(2, 3, 16, 16), {0: BATCH}))
    model, x = load("conv.pt2", description=KNOWN), noise(3, 3, 16, 16)
    got, expected = (pl.SimpleGradient()(m, x, 1).scores for m in (model, pl.TorchModel(net)))
    assert (got - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert model.name == "conv.pt2"


@pytest.mark.doors
@pytest.mark.parametrize(("size", "got"), [(32, "32x32"), ((16, 24), "16x24"), ((24, 16), "24x16")])
def test_a_program_of_another_size_is_refused_with_the_size_to_give(conv, size, got):
    description = pl.Description((("size", size), ("mean", 0.5), ("std", 0.5)))
    told = f"exported for inputs of 16x16 (height x width), but the preprocessing gives {got}. Give --size 16x16,"
    refused(conv, told, error=FixedShape, description=description)


@pytest.mark.doors
def test_the_size_to_give_is_height_by_width():
    saved(Path("wide.pt2"), exported(Conv().eval(), noise(2, 3, 16, 24), {0: BATCH}))
    refused("wide.pt2", "Give --size 16x24,", error=FixedShape)


@pytest.mark.doors
def test_a_program_of_other_channels_is_refused(conv):
    description = pl.Description((*KNOWN.input, ("channels", "gray")))
    refused(conv, "exported for 3 channels, but the preprocessing gives 1", error=FixedShape, description=description)


@pytest.mark.doors
def test_a_program_of_no_pictures_is_refused():
    saved(Path("table.pt2"), exported(nn.Linear(4, 2).eval(), noise(2, 4), {0: BATCH}))
    refused("table.pt2", "its inputs have 2 dimensions")


@pytest.mark.doors
def test_a_program_for_one_batch_size_is_refused():
    saved(Path("fixed.pt2"), exported(Conv().eval(), noise(2, 3, 16, 16), {}))
    refused("fixed.pt2", "for batches of any size, got one for batches of 2", error=FixedShape)


def test_a_program_of_free_size_takes_any():
    saved(Path("free.pt2"), exported(Conv().eval(), noise(2, 3, 16, 16), {0: BATCH, **SIDES}))
    model = load("free.pt2", description=pl.Description((("size", (24, 40)), ("mean", 0.5), ("std", 0.5))))
    assert model.predict(noise(1, 3, 24, 40)).outputs.shape == (1, 5)


def test_a_program_is_described_beside_it(conv):
    (conv.parent / "model.toml").write_text(TOML.format(16))
    assert load(conv).preprocess.size == 16
    (conv.parent / "model.toml").unlink()


@pytest.mark.doors
def test_a_device_that_is_not_there_is_told_before_the_program_is_read():
    refused("none.pt2", "`device` is one of this machine", error=ArgumentError, device="toaster")


@pytest.mark.doors
def test_a_program_that_is_not_there_is_told():
    refused("none.pt2", "none.pt2, which is no file")


@pytest.mark.parametrize("apart", [True, False])
def test_a_program_offers_modules_only_where_torch_gives_them_back(tmp_path, monkeypatch, apart):
    def fail(program):
        raise RuntimeError("cannot be taken apart")

    path = saved(tmp_path / "net.pt2", exported(Conv().eval(), noise(2, 3, 16, 16), {0: BATCH}))
    if not apart:
        monkeypatch.setattr(torch.export, "unflatten", fail)
    description = pl.Description((("size", 16), ("mean", 0.5), ("std", 0.25)))
    model = pl.load(path, description=description)
    assert (pl.Needs.MODULES in model.offers) == apart
    assert (pl.Needs.ACTIVATIONS in model.offers) == apart
    assert pl.Needs.GRADIENTS in model.offers
