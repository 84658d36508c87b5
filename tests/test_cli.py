"""The command line as its users meet it: what is written where, what is said, and what is never lost."""

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image

import pellucid as pl
from pellucid import cli
from pellucid.modalities.image.draw import Drawing
from pellucid.modalities.image.heatmap import CHANNELS

NETS = """
import time, torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))

class Changed(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.net, self.change = build(), change

    def forward(self, x):
        return self.change(self.net(x))

def fail(y):
    raise RuntimeError("it broke\\nin the second line")

def tell(y):
    print("a word of the network")
    return y

def sleep(y):
    time.sleep(0.002 * len(y))
    return y

def raises(): return Changed(fail)
def dictionary(): return Changed(lambda y: {"logits": y, "aux": y})
def softmax(): return Changed(lambda y: y.softmax(1))
def nan(): return Changed(lambda y: y * float("nan"))
def constant(): return Changed(lambda y: 0 * y.detach())
def regression(): return Changed(lambda y: y[:, :1])
def slow(): return Changed(sleep)
def spectrum(): return Changed(lambda y: torch.fft.fft(y).real)
def fixed(): return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4))
def talks():
    print("a word of the builder")
    return Changed(tell)
"""
SIZE = ("--size", "32", "--mean", "0.5", "--std", "0.5")
LARGE = ("--size", "224", "--mean", "0.5", "--std", "0.5")
MODEL = ("--model", "nets.py:build", *SIZE)
QUICK = ("--samples", "4", *MODEL)
PELLUCID = (sys.executable, "-c", "from pellucid.cli import main; main()")


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def objects(self):
        """Every line of standard output by a parser that takes JSON at its word."""

        def refuse(constant):
            raise AssertionError(f"{constant} is not JSON")

        return [json.loads(line, parse_constant=refuse) for line in self.out.splitlines()]


@pytest.fixture(scope="session")
def photo(tmp_path_factory, chelsea):
    path = tmp_path_factory.mktemp("photo") / "cat.jpg"
    Image.fromarray(chelsea).resize((60, 40)).save(path)
    return path


@pytest.fixture
def folder(tmp_path, photo, monkeypatch):
    """The working directory, with a photo and a file of networks."""
    shutil.copy(photo, tmp_path / "cat.jpg")
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "nets", raising=False)
    yield tmp_path
    sys.modules.pop("nets", None)


@pytest.fixture
def pellucid(folder, monkeypatch, capsys):
    def run(*words):
        monkeypatch.setattr(sys, "argv", ["pellucid", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return Result(ended.value.code or 0, out, err)

    return run


def files(folder):
    return (
        {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
        - {"cat.jpg", "nets.py"}
        - {str(p.relative_to(folder)) for p in folder.rglob("__pycache__/*")}
    )


def picture(path):
    with Image.open(path) as image:
        image.load()
    return image


def recipes(path):
    return json.loads(picture(path).text["pellucid"])


def recipe(path):
    [only] = recipes(path)
    return only


# What is written


def test_the_default_is_smooth_grad_of_the_embedded_model(pellucid, folder, chelsea):
    Image.fromarray(chelsea).save("cat.jpg", quality=95)
    done = pellucid("explain", "cat.jpg", "--target", "tabby", "--samples", "2")
    assert (done.code, done.err) == (0, "")
    assert re.fullmatch(
        r"cat\.jpg: tabby \d\d\.\d%; error no signal yet \(wavelet-shrunk\) -> cat\.smooth-grad\.png\n", done.out
    )
    assert files(folder) == {"cat.smooth-grad.png"}
    made = recipe("cat.smooth-grad.png")
    assert made["model"] == "efficientnet-lite0"
    assert made["explainer"]["type"] == "SmoothGrad"
    assert made["targets"] == [{"type": "ClassScore", "settings": {"index": 281}}]


def test_method_and_name_are_those_asked_for(pellucid, folder):
    assert pellucid("explain", "cat.jpg", "--method", "simple-gradient", "--out", "it.png", *MODEL).code == 0
    assert files(folder) == {"it.png"}
    assert recipe("it.png")["explainer"]["type"] == "SimpleGradient"


def test_the_embedded_model_is_fit_to_be_explained(pellucid, chelsea):
    Image.fromarray(chelsea).save("cat.jpg", quality=95)
    done = pellucid("check", "cat.jpg")
    assert (done.code, done.err) == (0, "")
    assert "says Egyptian cat" in done.out
    assert done.out.endswith("fit to be explained\n")


def test_the_settings_reach_the_method(pellucid):
    pellucid("explain", "cat.jpg", *MODEL, "--samples", "3", "--noise-level", "0.5", "--seed", "7")
    settings = recipe("cat.smooth-grad.png")["explainer"]["settings"]
    assert (settings["n_samples"], settings["noise_level"], settings["seed"]) == (3, 0.5, 7)


def test_targets_are_the_likeliest_classes_on_one_page_and_in_one_map(pellucid, folder):
    [said] = pellucid("explain", "cat.jpg", *QUICK, "--targets", "3", "--save", "the/maps", "--json").objects
    model = pl.load("nets.py:build", description=pl.Description((("size", 32), ("mean", 0.5), ("std", 0.5))))
    likeliest = [index for _, _, index in model.predict(model.read("cat.jpg")).top(3)]
    kept = pl.Attribution.load(said["map"])
    assert [decision.target.index for decision in kept.decisions] == likeliest
    assert kept.scores.shape == (3, 3, 32, 32)
    assert files(folder) == {"cat.smooth-grad.png", "the/maps/cat.smooth-grad.safetensors"}
    one = pellucid("explain", "cat.jpg", *QUICK, "--out", "one.png")
    assert one.code == 0
    assert len(recipes("cat.smooth-grad.png")) == 3
    assert picture("cat.smooth-grad.png").height > picture("one.png").height


def test_more_targets_than_classes_are_all_classes_and_told(pellucid):
    done = pellucid("explain", "cat.jpg", *QUICK, "--targets", "9")
    assert done.code == 0
    assert done.out.count("class ") == 4
    assert done.err == "  note: the model has no more than 4 classes.\n"


def test_one_sample_has_no_standard_error_and_still_a_page(pellucid):
    assert pellucid("explain", "cat.jpg", *MODEL, "--samples", "1", "--save", ".").code == 0
    assert pl.Attribution.load("cat.smooth-grad.safetensors").standard_error is None
    assert picture("cat.smooth-grad.png").width > 300


def test_an_overlay_has_the_size_of_its_photo(pellucid):
    pellucid("explain", "cat.jpg", *QUICK, "--view", "overlay")
    assert picture("cat.smooth-grad.png").size == (60, 40)


def test_channels_are_those_of_the_heatmap():
    assert tuple(CHANNELS) == cli._CHANNELS


def test_a_signed_heatmap_is_another_picture(pellucid):
    pellucid("explain", "cat.jpg", *QUICK, "--view", "heatmap", "--out", "plain.png")
    pellucid("explain", "cat.jpg", *QUICK, "--view", "heatmap", "--channels", "sum", "--out", "signed.png")
    assert picture("plain.png").tobytes() != picture("signed.png").tobytes()


def test_without_a_picture_the_map_alone_is_kept(pellucid, folder):
    assert pellucid("explain", "cat.jpg", *QUICK, "--no-picture", "--save", "maps").code == 0
    assert files(folder) == {"maps/cat.smooth-grad.safetensors"}


# Names


def test_equal_stems_get_distinct_names(pellucid, folder):
    for name in ("a/cat.jpg", "b/cat.png", "c/CAT.jpg"):
        Path(name).parent.mkdir()
        picture("cat.jpg").save(name)
    done = pellucid("explain", "a/cat.jpg", "b/cat.png", "c/CAT.jpg", "a/cat.jpg", *QUICK)
    assert done.code == 0
    written = {f"{name}.smooth-grad.png" for name in ("cat", "cat-2", "CAT-3", "cat-4")}
    assert {Path(name).name for name in files(folder)} == written | {"cat.png", "cat.jpg", "CAT.jpg"}


def test_a_number_never_meets_a_stem_that_has_it_already():
    names = cli._pictures(["a/cat.jpg", "b/cat.jpg", "cat-2.jpg", "cat-2.png"], "m", None)
    assert [str(name) for name in names] == ["cat.m.png", "cat-2.m.png", "cat-2-2.m.png", "cat-2-3.m.png"]


@pytest.mark.parametrize("name", ["two words.jpg", "[1].jpg", "katzé猫.jpg", "a.b.jpg", "$HOME 'x\".jpg", ".jpg"])
def test_names_are_taken_as_they_are(pellucid, name):
    Path("cat.jpg").rename(name)
    done = pellucid("explain", name, *QUICK)
    assert done.code == 0
    assert Path(f"{Path(name).stem}.smooth-grad.png").exists()
    assert done.out.startswith(f"{name}: class ")


def test_a_name_of_two_lines_is_told_on_one(pellucid):
    Path("cat.jpg").rename("two\nlines.jpg")
    done = pellucid("explain", "two\nlines.jpg", "missing\nfile.jpg", *QUICK)
    assert done.out.startswith(r"'two\nlines.jpg': class ")
    assert len(done.out.splitlines()) == len(done.err.splitlines()) == 1


def test_a_leading_dash_is_explained_and_taken_behind_two_dashes(pellucid):
    Path("cat.jpg").rename("-cat.jpg")
    wrong = pellucid("explain", "-cat.jpg", *QUICK)
    assert wrong.code == 2
    assert "write ./-cat.jpg" in wrong.err
    assert pellucid("explain", *QUICK, "--", "-cat.jpg").code == 0
    assert Path("-cat.smooth-grad.png").exists()


# Nothing is lost


def test_what_exists_is_kept_named_and_the_others_are_done(pellucid):
    Path("cat.smooth-grad.png").write_text("mine")
    shutil.copy("cat.jpg", "dog.jpg")
    done = pellucid("explain", "cat.jpg", "dog.jpg", *QUICK)
    assert done.code == 1
    assert Path("cat.smooth-grad.png").read_text() == "mine"
    assert done.err.startswith("Error: cat.jpg: cat.smooth-grad.png exists and is kept. Give --force")
    assert Path("dog.smooth-grad.png").exists()


def test_a_map_that_exists_is_kept_and_nothing_is_drawn(pellucid):
    Path("cat.smooth-grad.safetensors").write_text("mine")
    assert pellucid("explain", "cat.jpg", *QUICK, "--save", ".").code == 1
    assert Path("cat.smooth-grad.safetensors").read_text() == "mine"
    assert not Path("cat.smooth-grad.png").exists()


@pytest.mark.parametrize("command", ["explain", "compare"])
def test_force_replaces(pellucid, command):
    Path("it.png").write_text("old")
    assert pellucid(command, "cat.jpg", *QUICK, "--out", "it.png").code == 1
    assert pellucid(command, "cat.jpg", *QUICK, "--out", "it.png", "--force").code == 0
    assert picture("it.png").format == "PNG"


def test_an_input_is_never_replaced_even_by_force(pellucid):
    picture("cat.jpg").save("cat.png")
    before = Path("cat.png").read_bytes()
    done = pellucid("explain", "cat.png", *QUICK, "--out", "./cat.png", "--force")
    assert done.code == 1
    assert "one of the inputs" in done.err
    assert Path("cat.png").read_bytes() == before


def half_written(how):
    def save(drawing, path):
        Path(path).write_bytes(drawing.png()[:100])
        raise how

    return save


def test_a_picture_that_fails_while_it_is_written_leaves_nothing(pellucid, folder, monkeypatch):
    monkeypatch.setattr(Drawing, "save", half_written(OSError(28, "No space left on device")))
    done = pellucid("explain", "cat.jpg", *QUICK)
    assert (done.code, done.err) == (
        1,
        "Error: cat.jpg: cat.smooth-grad.png: cannot be written (No space left on device).\n",
    )
    assert files(folder) == set()


def test_ctrl_c_while_a_picture_is_written_leaves_the_old_one_whole(pellucid, folder, monkeypatch):
    Path("cat.smooth-grad.png").write_text("old")
    monkeypatch.setattr(Drawing, "save", half_written(KeyboardInterrupt()))
    done = pellucid("explain", "missing.jpg", "cat.jpg", *QUICK, "--force")
    assert done.code == 130
    assert done.err.endswith("\nStopped. 0 of 2 inputs are done; what was written stays.\n")
    assert Path("cat.smooth-grad.png").read_text() == "old"
    assert files(folder) == {"cat.smooth-grad.png"}


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is where nobody writes")
def test_a_folder_that_takes_no_files_is_one_line(pellucid):
    done = pellucid("explain", "cat.jpg", *QUICK, "--out", "/proc/cat.png")
    assert done.code == 1
    assert re.fullmatch(r"Error: cat\.jpg: /proc/cat\.png: cannot be written \(.*\)\.\n", done.err)


def test_a_read_only_folder_is_told_before_any_work(pellucid, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(pl.SmoothGrad, "attribute", half_written(AssertionError("it worked")))
    done = pellucid("explain", "cat.jpg", *QUICK)
    assert done.code == 1
    assert "cat.smooth-grad.png: the folder does not allow writing" in done.err


def test_a_name_that_is_too_long_is_one_line(pellucid):
    name = "x" * 250 + ".jpg"
    Path("cat.jpg").rename(name)
    done = pellucid("explain", name, *QUICK)
    assert done.code == 1
    assert done.err.endswith("not a possible name here (File name too long).\n")
    assert len(done.err.splitlines()) == 1


# Inputs and networks that fail


def make(kind):
    match kind:
        case "missing":
            Path("bad.jpg").unlink(missing_ok=True)
        case "empty":
            Path("bad.jpg").touch()
        case "text":
            Path("bad.jpg").write_text("these are words")
        case "truncated":
            Path("bad.jpg").write_bytes(Path("cat.jpg").read_bytes()[:-400])
        case "folder":
            Path("bad.jpg").mkdir()


@pytest.mark.doors
@pytest.mark.parametrize("command", ["explain", "compare", "check"])
@pytest.mark.parametrize("kind", ["missing", "empty", "text", "truncated", "folder"])
def test_a_bad_input_is_one_line_that_names_it_and_the_others_are_done(pellucid, command, kind):
    make(kind)
    options = MODEL if command == "check" else QUICK
    done = pellucid(command, "bad.jpg", "cat.jpg", *options)
    assert done.code == 1
    assert re.fullmatch(r"Error: [^\n]*bad\.jpg[^\n]*\n", done.err)
    assert done.out.startswith("cat.jpg: ")


@pytest.mark.doors
@pytest.mark.parametrize("short", ["a", "c", "."])
def test_a_short_name_is_named_too(pellucid, short):
    assert pellucid("explain", short, *QUICK).err.startswith(f"Error: {short!r} ")
    assert pellucid("explain", short, *QUICK, "--json").objects[0]["input"] == short


@pytest.mark.doors
def test_a_short_name_is_named_before_an_error_that_is_not_about_the_file(pellucid):
    Path("cat.jpg").rename("n")
    assert pellucid("check", "n", "--model", "nets.py:raises", *SIZE).err.startswith("Error: n: nets.py:raises failed")


@pytest.mark.doors
@pytest.mark.parametrize(
    ("network", "told"),
    [
        ("raises", "nets.py:raises failed on a batch of shape (1, 3, 32, 32): it broke in the second line"),
        ("dictionary", "nets.py:dictionary returned a dict with tensors at ['logits', 'aux']"),
    ],
)
def test_a_network_that_fails_is_one_line(pellucid, network, told):
    done = pellucid("explain", "cat.jpg", "--model", f"nets.py:{network}", *SIZE)
    assert done.code == 1
    assert told in done.err
    assert len(done.err.splitlines()) == 1


@pytest.mark.doors
def test_a_network_of_another_size_is_one_line(pellucid):
    done = pellucid("check", "cat.jpg", "--model", "nets.py:fixed", "--size", "16", "--mean", "0", "--std", "1")
    assert done.code == 1
    assert re.fullmatch(r"Error: cat\.jpg: nets\.py:fixed failed on a batch of shape \(1, 3, 16, 16\): .*\n", done.err)


@pytest.mark.parametrize(
    ("network", "fit", "told"),
    [
        ("build", True, "fit to be explained"),
        ("softmax", True, "ends in a softmax"),
        ("nan", False, "NaN or infinite"),
        ("constant", False, "No gradient reaches the input"),
    ],
)
def test_check_says_what_is_wrong_and_what_to_do(pellucid, network, fit, told):
    done = pellucid("check", "cat.jpg", "--model", f"nets.py:{network}", *SIZE)
    assert done.code == (0 if fit else 1)
    assert told in done.out
    assert done.out.endswith("  fit to be explained\n" if fit else "not fit to be explained as it is\n")


def test_check_tells_a_regressions_value_and_no_percentage(pellucid):
    done = pellucid("check", "cat.jpg", "--model", "nets.py:regression", *SIZE)
    assert re.search(r"says class 0 -?0\.\d+\n", done.out)


def test_explain_tells_warnings_and_errors_beside_the_result(pellucid):
    done = pellucid("explain", "cat.jpg", "--model", "nets.py:softmax", *SIZE, "--samples", "2")
    assert done.code == 0
    assert re.fullmatch(r"  warning: The outputs are probabilities.*\n", done.err)


def test_a_note_on_the_file_is_told_beside_the_result(pellucid):
    photo = picture("cat.jpg")
    photo.save("two.gif", save_all=True, append_images=[photo.rotate(90)])
    assert "  note: frame 1 of 2\n" in pellucid("explain", "two.gif", *QUICK).err


def test_a_defect_of_pellucid_is_told_in_full_and_the_others_are_done(pellucid, monkeypatch):
    read = pl.ImagePreprocess.read

    def broken(self, source):
        if source == "bad.jpg":
            raise ZeroDivisionError("a bug")
        return read(self, source)

    monkeypatch.setattr(pl.ImagePreprocess, "read", broken)
    done = pellucid("explain", "bad.jpg", "cat.jpg", *QUICK, "--json")
    assert done.code == 1
    assert done.err.startswith("Error: bad.jpg: a defect of pellucid (ZeroDivisionError: a bug).")
    assert 'raise ZeroDivisionError("a bug")' in done.err
    assert ["error" in said for said in done.objects] == [True, False]


def test_too_little_memory_is_one_line_and_no_defect(pellucid, monkeypatch):
    def broken(self, source):
        raise MemoryError

    monkeypatch.setattr(pl.ImagePreprocess, "read", broken)
    done = pellucid("explain", "cat.jpg", *QUICK)
    assert (done.code, done.err) == (1, "Error: cat.jpg: not enough memory for this input.\n")


# How SmoothGrad is estimated


def settings_of(done):
    return done.objects[0]["recipe"]["explainer"]["settings"]


@pytest.mark.parametrize(
    ("name", "encoded"),
    [
        ("mean", {"type": "Mean"}),
        ("antithetic", {"type": "Antithetic"}),
        ("shrunk", {"type": "Shrunk", "settings": {"base": {"type": "Mean"}}}),
        ("factored", {"type": "Factored", "settings": {"cuts": 3, "group": None}}),
        ("shrunk-factored", {"type": "Shrunk", "settings": {"base": {"type": "Factored",
                                                                     "settings": {"cuts": 3, "group": None}}}}),
        ("combined", {"type": "Combined", "settings": {"cuts": 3, "group": None}}),
    ],
)  # fmt: skip
def test_the_estimator_can_be_chosen(pellucid, name, encoded):
    done = pellucid("explain", "cat.jpg", "--samples", "16", "--estimator", name, "--no-picture", "--json")
    assert settings_of(done)["estimator"] == encoded
    assert done.objects[0]["estimated_error"][0] > 0


def test_by_default_a_network_that_can_be_cut_is_factored_and_shrunk(pellucid):
    done = pellucid("explain", "cat.jpg", "--samples", "16")
    assert re.search(r"; error \d\.\d\d \(factored, wavelet-shrunk\) -> cat", done.out)


def test_by_default_one_that_cannot_be_cut_is_shrunk_and_the_output_says_so(pellucid):
    done = pellucid("explain", "cat.jpg", *MODEL, "--samples", "16")
    assert re.search(r"; error \d\.\d\d \(wavelet-shrunk\) -> cat", done.out)
    told = pellucid("explain", "cat.jpg", *MODEL, "--samples", "16", "--no-picture", "--json")
    assert "no place to be cut" in told.objects[0]["notes"][0]
    assert settings_of(told)["estimator"]["settings"]["base"] == {"type": "Mean"}


def test_an_estimator_that_was_asked_for_is_never_replaced(pellucid):
    done = pellucid("explain", "cat.jpg", *MODEL, "--samples", "16", "--estimator", "shrunk-factored")
    assert done.code == 1
    assert "no place to be cut" in done.err
    assert "Take estimator=Shrunk()" in done.err


def test_a_comparison_is_of_the_methods_as_the_papers_have_them(pellucid):
    pellucid("compare", "cat.jpg", *QUICK)
    assert {
        r["explainer"]["settings"]["estimator"]["type"]
        for r in recipes("cat.compare.png")
        if "settings" in r["explainer"]
    } == {"Mean"}


def test_sampling_goes_on_until_the_error_is_reached(pellucid):
    done = pellucid("explain", "cat.jpg", *MODEL, "--error", "0.3", "--estimator", "mean", "--json", "--no-picture")
    said = done.objects[0]
    assert said["estimated_error"][0] <= 0.3
    assert said["samples_used"][0] in (16, 24, 36, 54, 81, 121)
    assert said["recipe"]["explainer"]["settings"]["n_samples"]["settings"]["at_most"] == 2000


def test_the_most_samples_for_an_error_can_be_said_and_the_stop_is_explained(pellucid):
    done = pellucid("explain", "cat.jpg", *MODEL, "--error", "0.001", "--samples", "20", "--estimator", "mean")
    assert done.code == 0
    assert re.search(
        r"note: error 0\.\d+ after 20 samples, the most that were allowed; for 0.001 about \d+ more", done.err
    )


# Wrong usage


@pytest.mark.doors
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--method", "smoth-grad"], "There is no method 'smoth-grad'. Did you mean smooth-grad"),
        (["--method", "linear-explanation"], "linear-explanation is global"),
        (["--method", "simple-gradient", "--samples", "5"], "simple-gradient has no --samples: nothing is sampled."),
        (["--samples", "0"], "'--samples'"),
        (["--targets", "0"], "'--targets'"),
        (["--seed", "-1"], "'--seed'"),
        (["--seed", str(2**64)], "`seed` is a whole number from 0 to 2**64 - 1"),
        (["--error", "0"], "'--error'"),
        (["--error", "0.5", "--samples", "1"], "--error needs at least two samples"),
        (["--estimator", "median"], "'median' is not one of 'auto', 'mean'"),
        (["--method", "var-grad", "--estimator", "mean"], "var-grad has no --estimator"),
        (["--noise-level", "25"], "`noise_level` is a fraction of the input's range, between 0 and 1. Got 25"),
        (["--noise-level", "much"], "'--noise-level'"),
        (["--view", "foto"], "'foto' is not one of 'page', 'heatmap', 'overlay'"),
        (["--targets", "2", "--target", "1"], "exclude each other"),
        (["--targets", "2", "--view", "overlay"], "--view overlay shows a single class"),
        (["--out", "cat.jpg"], "pictures are saved as .png"),
        (["--out", "none/cat.png"], "there is no folder none"),
        (["--save", "nets.py"], "no folder can be made there (File exists)"),
        (["--no-picture"], "--no-picture leaves nothing to keep"),
        (["--no-picture", "--json", "--out", "x.png"], "--no-picture leaves nothing to keep"),
        (["--metod", "x"], "No such option '--metod'. (Did you mean one of: '--method'"),
        (["second.jpg", "--out", "x.png"], "--out names one picture, but there are 2 inputs"),
        (["--size", "3x"], "expected a side such as 224, or HEIGHTxWIDTH, but got '3x'"),
        (["--size", "1x2x3"], "expected a side"),
        (["--size", "0"], "expected a side"),
        (["--mean", "a,b"], "expected one number, or several between commas, but got 'a,b'"),
        (["--mean", "1,2"], "`mean` is one finite number, or one for each of 3 channels"),
        (["--std", "0"], "`std` is over zero"),
        (["--labels", "none.txt"], "none.txt: cannot be read (No such file or directory)"),
        (["--device", "toaster"], "`device` is one of this machine"),
        (["--memory-limit", "2 gigs"], "`memory_limit` is a text such as '2GiB' or '500MB'"),
        (["--precision", "int8"], "'int8' is not one of 'bfloat16', 'auto'"),
        (["--model", "nets.py"], "name the function that builds the network, or that predicts, nets.py:build."),
        (["--model", "nets.py:biuld"], "nets.py has no function 'biuld'. It has build,"),
        (["--model", "efficientnet-lite0"], "efficientnet-lite0 brings its own size, mean, std"),
    ],
)  # fmt: skip
def test_wrong_usage_is_told_before_any_work(pellucid, folder, words, told):
    done = pellucid("explain", "cat.jpg", *MODEL, *words)
    assert done.code == 2
    assert done.out == ""
    assert told in done.err
    assert "Traceback" not in done.err
    assert files(folder) == set()


@pytest.mark.doors
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["explian", "cat.jpg"], "Did you mean 'explain'?"),
        (["explain"], "Missing argument 'INPUTS...'"),
        (["explain", "cat.jpg", "--target", "tabbi"], "281 tabby"),
        (["explain", "cat.jpg", "--target", "crane"], "fits 2 classes: 134 crane; 517 crane"),
        (["check", "cat.jpg", "--target", "-1"], "0 to 999 for this model. Got -1."),
        (["compare", "cat.jpg", "--methods", "simple-gradient,smoth"], "There is no method 'smoth'"),
        (["compare", "cat.jpg", "--methods", ""], "There is no method ''"),
        (["explain", "cat.jpg", "--method", "grad-cam", "--steps", "3"], "grad-cam has no --steps."),
        (["explain", "cat.jpg", "--layer", "head"], "smooth-grad has no --layer."),
        (["explain", "cat.jpg", "--method", "grad-cam", "--layer", "1,"], "--layer is the name of a module"),
        (["explain", "cat.jpg", "--method", "integrated-gradients", "--baseline", "gold"], "'--baseline'"),
        (["compare", "cat.jpg", "--methods", "simple-gradient", "--samples", "3"], "nothing is sampled"),
        (["compare", "cat.jpg", "--copy-noise", "0"], "'--copy-noise'"),
        (["compare", "cat.jpg", "--out", "it.jpg"], "pictures are saved as .png"),
        (["compare", "cat.jpg", "b.jpg", "--out", "it.png"], "--out names one picture"),
        (["methods", "--scope", "lcal"], "'lcal' is not one of 'local', 'global'"),
        (["check", "cat.jpg", "--model", "nets.py:build"], "size, mean, std of its inputs are not known"),
        (["check", "cat.jpg", "--model", "nets.py:build", "--size", "32"], "mean, std of its inputs are not known"),
        (["check", "cat.jpg", "--model", "weights.pth"], "refused"),
        (["check", "cat.jpg", "--model", "resnet50"], "There is no model 'resnet50'"),
    ],
)  # fmt: skip
def test_wrong_usage_of_the_other_commands_is_told(pellucid, folder, words, told):
    done = pellucid(*words)
    assert (done.code, done.out) == (2, "")
    assert told in done.err
    assert files(folder) == set()


def test_a_memory_limit_tells_what_is_predicted_before_and_what_was_taken_after(pellucid):
    done = pellucid("explain", "cat.jpg", *QUICK, "--memory-limit", "1GiB")
    assert done.code == 0
    assert re.search(r"  memory: about \d+ MiB at most\n  note: memory: \d+ MiB were taken\.\n", done.err)
    [told] = pellucid("explain", "cat.jpg", *QUICK, "--force", "--memory-limit", "1GiB", "--json").objects
    assert told["memory"]["limit"] == 2**30
    assert 0 < told["memory"]["measured"] <= told["memory"]["predicted"]
    [told] = pellucid("explain", "cat.jpg", *QUICK, "--force", "--json").objects
    assert told["memory"] is None


@pytest.mark.parametrize("words", [["--samples", "1"], ["--samples", "3"], ["--samples", "17", "--error", "0.01"]])
def test_by_default_few_samples_are_estimated_as_well_as_they_can_be(pellucid, words):
    [told] = pellucid("explain", "cat.jpg", *MODEL, *words, "--json").objects
    estimator = told["recipe"]["explainer"]["settings"]["estimator"]["type"]
    assert estimator == ("Mean" if words[1] == "1" else "Shrunk")


def test_by_default_a_map_whose_groups_do_not_fit_is_shrunk_but_not_factored(pellucid):
    words = ("explain", "cat.jpg", "--samples", "24", "--model", "nets.py:build", *LARGE)
    limit = ("--memory-limit", "1MiB")
    while (done := pellucid(*words, "--force", "--estimator", "shrunk", *limit)).code:
        limit = ("--memory-limit", re.search(r"Write memory_limit='(\d+MiB)' or more", done.err)[1])
    assert "6 rows that must go together" in pellucid(*words, "--force", "--estimator", "factored", *limit).err
    [told] = pellucid(*words, "--force", *limit, "--json").objects
    assert "So the map is shrunk, but not factored." in told["notes"][-1]


@pytest.mark.doors
def test_a_memory_limit_that_cannot_be_kept_names_one_that_can(pellucid):
    done = pellucid("explain", "cat.jpg", *QUICK, "--memory-limit", "1MiB")
    assert (done.code, done.out) == (1, "")
    for _ in range(2):  # the prediction first, then the groups of samples
        least = re.search(r"Write memory_limit='(\d+MiB)' or more", done.err)[1]
        done = pellucid("explain", "cat.jpg", *QUICK, "--memory-limit", least)
    assert done.code == 0


def test_the_precision_is_that_which_was_asked_for(pellucid):
    [told] = pellucid("explain", "cat.jpg", *QUICK, "--precision", "bfloat16", "--json").objects
    assert told["recipe"]["run"]["precision"] == "bfloat16"


@pytest.mark.doors
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_is_one_line(pellucid):
    done = pellucid("explain", "cat.jpg", *QUICK, "--device", "cuda")
    assert done.code == 2
    assert re.fullmatch(
        r"Error: `device` is one of this machine, such as cpu or cuda[^\n]*. Got 'cuda': .*\n", done.err
    )


@pytest.mark.doors
def test_labels_of_another_number_than_the_outputs_are_told(pellucid):
    Path("labels.txt").write_text("cat\ndog\n")
    done = pellucid("check", "cat.jpg", *MODEL, "--labels", "labels.txt")
    assert (done.code, done.err) == (
        1,
        "Error: cat.jpg: Expected one label for each of the model's 4 outputs, but got 2.\n",
    )


def test_labels_name_the_classes_and_find_the_target(pellucid):
    Path("labels.txt").write_text("cat\ndog\n$5 bill\n_x^2\n")
    done = pellucid("explain", "cat.jpg", *QUICK, "--labels", "labels.txt", "--target", "DOG")
    assert done.out.startswith("cat.jpg: dog ")


# For programs


def test_json_is_one_valid_object_an_input_whatever_fails(pellucid):
    for kind in ("truncated", "folder"):
        make(kind)
        Path("bad.jpg").rename(f"{kind}.jpg")
    names = ["truncated.jpg", "cat.jpg", "folder.jpg", "missing.jpg"]
    done = pellucid("explain", *names, *QUICK, "--json")
    assert done.code == 1
    assert [said["input"] for said in done.objects] == names
    assert ["error" in said for said in done.objects] == [True, False, True, True]
    assert len(done.err.splitlines()) == 3


def test_json_holds_what_was_decided_computed_and_written(pellucid):
    [said] = pellucid("explain", "cat.jpg", *QUICK, "--save", "maps", "--json").objects
    assert said["method"] == "SmoothGrad"
    assert said["picture"] == "cat.smooth-grad.png"
    assert said["map"] == "maps/cat.smooth-grad.safetensors"
    assert said["samples_used"] == [4]
    assert said["passes"] == vars(pl.Attribution.load(said["map"]).cost)
    assert said["recipe"] == recipe("cat.smooth-grad.png")
    [decision] = said["decisions"]
    assert decision["label"] == f"class {decision['target']['settings']['index']}"


@pytest.mark.parametrize("command", ["explain", "compare", "check"])
@pytest.mark.parametrize("network", ["nan", "constant", "regression"])
def test_json_is_valid_where_values_are_not_finite(pellucid, command, network):
    done = pellucid(command, "cat.jpg", "--model", f"nets.py:{network}", *SIZE, "--json")
    [said] = done.objects
    assert said["input"] == "cat.jpg"
    if (command, network) == ("explain", "nan"):
        assert said["decisions"][0]["score"] is None


def test_what_a_network_prints_is_not_among_the_results(pellucid):
    done = pellucid("explain", "cat.jpg", "--model", "nets.py:talks", *SIZE, "--samples", "2", "--json")
    assert len(done.objects) == 1
    assert "a word of the builder" in done.err
    assert "a word of the network" in done.err


def test_check_tells_programs_the_same(pellucid):
    [said] = pellucid("check", "cat.jpg", "--model", "nets.py:nan", *SIZE, "--json").objects
    assert said["fit"] is False
    assert {"nan-gradient", "not-finite-map"} <= {finding["code"] for finding in said["findings"]}
    assert [best["index"] for best in said["top"]] == [0, 1, 2, 3]


# The other commands


def test_methods_are_queried_with_the_reason_for_each_exclusion(pellucid):
    done = pellucid("methods", "--scope", "local", "--budget", "2")
    fitting, excluded = done.out.split("\nExcluded:\n")
    assert "simple-gradient  " in fitting
    assert re.search(r"^linear-explanation +scope is global$", excluded, re.MULTILINE)
    assert re.search(r"^smooth-grad +takes 100 passes, more than 2$", excluded, re.MULTILINE)


def test_a_query_that_nothing_fits_says_so(pellucid):
    assert pellucid("methods", "--access", "black-box", "--scope", "global").out.startswith("No method fits.\n")


def test_methods_tell_programs_the_whole_card(pellucid):
    [said] = pellucid("methods", "--scope", "local", "--json").objects
    card = next(card for card in said["fitting"] if card["name"] == "smooth-grad")
    assert card["access"] == "white-box"
    assert card["cost"] == {"forward": 50, "backward": 50, "channels": 0, "segments": 0}
    assert card["modalities"] == ["audio", "image", "table", "text"]
    assert said["excluded"][0]["reasons"] == ["scope is global"]


def test_compare_draws_one_page_and_tells_each_correlation(pellucid, folder):
    done = pellucid("compare", "cat.jpg", *QUICK, "--methods", "simple-gradient, smooth-grad", "--copies", "3")
    assert (done.code, done.err) == (0, "")
    assert files(folder) == {"cat.compare.png"}
    assert len(re.findall(r"\d\.\d\d", done.out)) == 6


def test_compare_with_shared_noise_leaves_only_the_effect_of_the_change(pellucid):
    def correlation(*words):
        [said] = pellucid("compare", "cat.jpg", *QUICK, "--methods", "smooth-grad", "--json", "--force", *words).objects
        return min(said["rank_correlation"]["smooth-grad"])

    assert correlation("--shared-noise") > correlation()


def test_no_copies_draw_a_gallery_of_each_methods_map(pellucid, folder):
    methods = ("--methods", "grad-cam,integrated-gradients,simple-gradient")
    done = pellucid("compare", "cat.jpg", *MODEL, *methods, "--copies", "0", "--steps", "7", "--baseline", "white")
    assert done.out.endswith("-> cat.compare.png\n")
    grad_cam, integrated, simple = [r["explainer"] for r in recipes("cat.compare.png")]
    assert (grad_cam["type"], simple["type"]) == ("GradCAM", "SimpleGradient")
    assert integrated["settings"]["n_steps"] == 7
    assert integrated["settings"]["baseline"] == {"type": "Pixel", "settings": {"value": 1.0}}


@pytest.mark.parametrize(
    ("name", "baseline"),
    [
        ("black", pl.Pixel(0.0)),
        ("white", pl.Pixel(1.0)),
        ("grey", pl.Pixel(0.5)),
        ("mean", pl.FeatureMean()),
        ("blur", pl.Blur()),
        ("zero", pl.Zeros()),
    ],
)
def test_a_baseline_is_named(name, baseline):
    [explainer] = cli._explainers(["integrated-gradients"], **cli._chosen(None, name, 3))
    assert explainer == pl.IntegratedGradients(baseline=baseline, n_steps=3)


def test_a_map_of_a_layer_names_it(pellucid):
    [said] = pellucid("explain", "cat.jpg", *MODEL, "--method", "gradcam", "--layer", "0", "--json").objects
    assert said["recipe"]["notes"]["layer"] == ["0"]
    [said] = pellucid("explain", "cat.jpg", *MODEL, "--method", "gradcam", "--json", "--force").objects
    assert said["recipe"]["notes"]["layer"] == ["1"]


def test_a_limit_that_is_too_small_is_told_for_methods_without_an_estimator(pellucid):
    done = pellucid("explain", "cat.jpg", *MODEL, "--method", "grad-cam", "--memory-limit", "1MiB")
    assert done.code == 1
    assert "memory_limit='" in done.err
    assert "defect" not in done.err


def test_several_layers_are_fused(pellucid):
    [said] = pellucid("explain", "cat.jpg", *MODEL, "--method", "gradcam", "--layer", "0, 1", "--json").objects
    assert said["recipe"]["explainer"]["settings"]["layer"] == ["0", "1"]


def test_an_integral_says_what_it_sums_to(pellucid):
    done = pellucid("explain", "cat.jpg", *MODEL, "--method", "integrated-gradients")
    assert re.search(r"; sums to \S+ of \S+ ->", done.out)


def test_a_method_named_twice_is_compared_once(pellucid):
    [said] = pellucid("compare", "cat.jpg", *QUICK, "--methods", "smooth-grad,Smooth Grad", "--json").objects
    assert list(said["rank_correlation"]) == ["smooth-grad"]


# Terminals and pipes


def test_help_loads_no_torch():
    code = "import sys\nfrom pellucid import cli\ntry:\n cli.main()\nfinally:\n assert 'torch' not in sys.modules"
    for words in ([], ["explain"], ["compare"], ["check"], ["methods"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *words, "--help"], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "Usage: " in done.stdout


def test_help_fits_a_narrow_terminal(pellucid, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    done = pellucid("--help")
    assert done.code == 0
    assert max(map(len, done.out.splitlines())) <= 60  # click goes no further


def test_a_pipe_closed_early_ends_without_a_word(folder):
    words = ["explain", "cat.jpg", "cat.jpg", "cat.jpg", *QUICK]
    with subprocess.Popen([*PELLUCID, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline().startswith(b"cat.jpg: ")
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is full")
def test_results_that_cannot_be_written_are_one_line(folder):
    with Path("/dev/full").open("w") as full:
        buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        done = subprocess.run(
            [*PELLUCID, "methods"], stdout=full, stderr=subprocess.PIPE, text=True, env=buffered, check=False
        )
    assert (done.returncode, done.stderr) == (1, "Error: [Errno 28] No space left on device\n")


def test_a_name_that_the_terminal_cannot_show_is_still_told(folder):
    Path("cat.jpg").rename("katze猫.jpg")
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(
        [*PELLUCID, "explain", "katze猫.jpg", *QUICK], capture_output=True, env=environment, check=False
    )
    assert done.returncode == 0
    assert done.stdout.startswith(rb"katze\u732b.jpg: ")


class Terminal:
    """pellucid with its standard error on a terminal and its standard output in a pipe."""

    def __init__(self, *words):
        mine, theirs = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "NO_COLOR": "1", "COLUMNS": "60"}
        self.process = subprocess.Popen(
            [*PELLUCID, *words],
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=theirs,
            env=environment,
            # A suite in the background ignores Ctrl-C, and what it starts would too.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  # no threads here
        )
        os.close(theirs)
        self.terminal, self.shown = mine, ""

    def read_until(self, text=None, seconds=60):
        """What the terminal shows until then, or to the end."""
        until = time.monotonic() + seconds
        while text is None or text not in self.shown:
            assert time.monotonic() < until, self.shown
            if select.select([self.terminal], [], [], 0.1)[0]:
                try:
                    read = os.read(self.terminal, 65536)
                except OSError:  # Linux's way to say that the other end is closed
                    read = b""
                if not read:
                    break
                self.shown += read.decode(errors="replace")
        return self.shown

    def end(self):
        shown, out = self.read_until(), self.process.stdout.read().decode()
        os.close(self.terminal)
        self.process.stdout.close()
        return Result(self.process.wait(), out, shown)


def test_progress_is_shown_on_a_terminal_and_results_go_where_they_are_led(folder):
    done = Terminal("explain", "cat.jpg", "--model", "nets.py:slow", *SIZE, "--samples", "600", "--json").end()
    assert done.code == 0
    assert [said["input"] for said in done.objects] == ["cat.jpg"]
    assert "loading nets.py:slow" in done.err
    assert re.search(r"cat\.jpg .*━.* \d+/600", done.err)
    assert re.search(r"\d+/600, error \d\.\d\d", done.err)
    assert '"recipe"' not in done.err
    assert "\x1b[3" not in done.err  # NO_COLOR


def test_in_a_pipe_it_is_silent(pellucid):
    done = pellucid("explain", "cat.jpg", *QUICK)
    assert done.err == ""
    assert "\x1b" not in done.out


def test_ctrl_c_keeps_the_inputs_that_are_done_and_leaves_no_trace_of_the_other(folder):
    shutil.copy("cat.jpg", "dog.jpg")
    slow = ("--model", "nets.py:slow", *SIZE, "--samples", "600")
    running = Terminal("explain", "cat.jpg", "dog.jpg", *slow)
    running.read_until("2/2 dog.jpg")
    running.process.send_signal(signal.SIGINT)
    done = running.end()
    assert done.code == 130
    assert "Stopped. 1 of 2 inputs are done; what was written stays." in done.err
    assert "Traceback" not in done.err
    assert "\x1b[?25h" in done.err.rpartition("\x1b[?25l")[2]  # the cursor is shown again
    assert files(folder) == {"cat.smooth-grad.png", "dog.jpg"}
    assert picture("cat.smooth-grad.png").text


# What a network executes, and the rule of each operation


def test_check_lists_what_is_executed_and_the_rule_of_each_operation(pellucid):
    done = pellucid("check", "cat.jpg", *MODEL, "--method", "lrp")
    assert (done.code, done.err) == (0, "")
    title, *rows = done.out.partition("Layer-wise Relevance Propagation: ")[2].splitlines()
    assert title == f"{len(rows)} operations, each has a rule"
    cells = [re.split(r"  +", row.strip()) for row in rows]
    assert ["0", "convolution", "8x15x15", "Flat()"] in cells
    assert ["1", "relu", "8x15x15", "derivative"] in cells
    assert ["4", "addmm", "4", "Epsilon(epsilon=1e-06)"] in cells
    assert list(dict.fromkeys(cell[0] for cell in cells if cell[0] != "-")) == ["0", "1", "2", "3", "4"], "in order"
    assert len({row.index(cell[3]) for row, cell in zip(rows, cells, strict=True)}) == 1, "in columns"


def test_an_operation_without_a_rule_is_told_and_the_model_not_fit(pellucid):
    done = pellucid("check", "cat.jpg", "--model", "nets.py:spectrum", *SIZE, "--method", "lrp")
    assert (done.code, done.err) == (1, "")
    assert re.search(r"^  Layer-wise Relevance Propagation: \d+ operations, \d+ have no rule$", done.out, re.MULTILINE)
    assert re.search(r"^    -  +_fft_\w+  +\S+  +no rule$", done.out, re.MULTILINE)
    assert pellucid("check", "cat.jpg", "--model", "nets.py:spectrum", *SIZE).code == 0, "of other methods it is fit"


def test_a_baseline_is_that_with_which_operations_are_compared(pellucid):
    done = pellucid("check", "cat.jpg", *MODEL, "--method", "deep lift", "--baseline", "white")
    assert done.code == 0
    assert re.search(r"^    1 +relu +8x15x15 +rescale$", done.out, re.MULTILINE)


def test_programs_are_told_the_operations(pellucid):
    [said] = pellucid("check", "cat.jpg", *MODEL, "--method", "guided-backprop", "--json").objects
    found = [one for one in said["operations"] if one["kind"] != "layout"]
    assert found[:2] == [
        {"module": "0", "what": "convolution", "kind": "affine", "shape": [1, 8, 15, 15], "rule": "derivative",
         "refused": False},
        {"module": "1", "what": "relu", "kind": "rectifier", "shape": [1, 8, 15, 15], "rule": "guided",
         "refused": False},
    ]  # fmt: skip
    [said] = pellucid("check", "cat.jpg", *MODEL, "--json").objects
    assert "operations" not in said


@pytest.mark.doors
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--baseline", "black"], r"--baseline is a method's: give --method too\."),
        (["--method", "lrp", "--baseline", "black"], r"lrp has no --baseline\."),
        (["--method", "simple-gradient"], r"simple-gradient has no list of rules.*These have: .*lrp"),
        (["--method", "linear-explanation"], r"linear-explanation is global"),
        (["--method", "deep-lfit"], r"There is no method 'deep-lfit'\. Did you mean deep-lift"),
    ],
)
def test_methods_without_rules_and_names_of_none_are_wrong_usage(pellucid, words, told):
    done = pellucid("check", "cat.jpg", *MODEL, *words)
    assert (done.code, done.out) == (2, "")
    assert re.search(told, " ".join(done.err.split()))


@pytest.mark.doors
def test_a_method_that_says_nothing_of_such_networks_is_told_for_the_input(pellucid):
    done = pellucid("check", "cat.jpg", *MODEL, "--method", "attention-rollout")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("Error: cat.jpg: The network executed no attention on the way to the target")


# Black boxes

SHAP = ("--method", "kernel-shap", *MODEL)


def test_a_black_box_method_has_a_budget_and_segments(pellucid):
    done = pellucid("explain", "cat.jpg", *SHAP, "--budget", "100", "--segments", "4x5", "--seed", "3")
    assert done.code == 0
    assert re.search(r"error \S+.* \(Gaussian process on pairs\) -> cat\.kernel-shap\.png", done.out)
    settings = recipe("cat.kernel-shap.png")["explainer"]["settings"]
    assert (settings["budget"], settings["seed"]) == (100, 3)
    assert settings["segments"] == {"type": "Patches", "settings": {"cells": [4, 5]}}
    assert settings["estimator"] == {"type": "PairedGP"}


@pytest.mark.parametrize(
    ("words", "rule"),
    [("7", pl.Patches(7)), ("slic:9", pl.Superpixels(count=9)),
     ("felzenszwalb", pl.Superpixels(count=50, method="felzenszwalb"))],
)  # fmt: skip
def test_segments_are_patches_or_superpixels(pellucid, words, rule):
    from pellucid.core.recipe import decode

    assert pellucid("explain", "cat.jpg", "--method", "occlusion", *MODEL, "--segments", words).code == 0
    assert decode(recipe("cat.occlusion.png")["explainer"]).segments == rule


def test_an_error_is_reached_by_model_calls(pellucid):
    words = ("--error", "0.9", "--budget", "400", "--estimator", "regression", "--segments", "3", "--json")
    [said] = pellucid("explain", "cat.jpg", *SHAP, *words).objects
    assert said["estimated_error"][0] <= 0.9
    assert said["passes"]["forward"] <= said["samples_used"][0] <= 400
    assert said["stopped"][0].startswith(("error", "exact"))


@pytest.mark.doors
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--samples", "9"], "kernel-shap has no --samples: its samples are model calls, --budget"),
        (["--segments", "0"], "expected 7, 7x9, slic:50, felzenszwalb:50 or columns, but got '0'"),
        (["--segments", "slic:x"], "expected 7, 7x9, slic:50"),
        (["--estimator", "shrunk"], "kernel-shap has no --estimator shrunk. It has auto, paired-gp, regression"),
        (["--noise-level", "0.1"], "kernel-shap has no --noise-level"),
    ],
)
def test_settings_that_a_black_box_method_has_not_are_wrong_usage(pellucid, words, told):
    done = pellucid("explain", "cat.jpg", *SHAP, *words)
    assert (done.code, done.out) == (2, "")
    assert told in " ".join(done.err.split())


@pytest.mark.doors
def test_a_method_of_copies_has_no_budget(pellucid):
    done = pellucid("explain", "cat.jpg", *MODEL, "--budget", "9")
    assert done.code == 2
    assert "smooth-grad has no --budget" in done.err


@pytest.mark.doors
def test_too_small_a_budget_is_told_for_the_input(pellucid):
    done = pellucid("explain", "cat.jpg", *SHAP, "--budget", "9", "--estimator", "regression")
    assert (done.code, done.out) == (1, "")
    assert "`budget` is 103 model calls or more" in done.err


def test_ctrl_c_writes_what_was_asked_of_the_model_by_then(folder):
    slow = ("--model", "nets.py:slow", *SIZE, "--method", "kernel-shap", "--budget", "4000")
    running = Terminal("explain", "cat.jpg", *slow, "--save", "maps", "--estimator", "regression")
    running.read_until("/3998")
    running.process.send_signal(signal.SIGINT)
    done = running.end()
    assert done.code == 130
    assert "What was asked by then for cat.jpg is written." in done.err
    assert files(folder) == {"cat.kernel-shap.png", "maps/cat.kernel-shap.safetensors"}
    kept = pl.Attribution.load("maps/cat.kernel-shap.safetensors")
    assert kept.stopped.startswith("interrupted after")
    assert kept.recipe.explainer["settings"]["budget"] == kept.samples_used < 4000


def black_boxes():
    from pellucid.catalogue import methods

    return methods(scope="local", access="black-box").names


@pytest.mark.parametrize("name", black_boxes())
def test_every_black_box_method_runs_with_its_defaults_and_has_a_picture(pellucid, name):
    done = pellucid("explain", "cat.jpg", *MODEL, "--method", name, "--segments", "3", "--budget", "100")
    if done.code == 2:  # not every one has segments, or a budget
        done = pellucid("explain", "cat.jpg", *MODEL, "--method", name, "--budget", "100")
    if done.code == 2:
        done = pellucid("explain", "cat.jpg", *MODEL, "--method", name)
    assert done.code == 0, done.err
    assert picture(f"cat.{name}.png").text


def test_a_gallery_shows_each_black_box(pellucid):
    names = ",".join(black_boxes())
    done = pellucid("compare", "cat.jpg", *MODEL, "--copies", "0", "--methods", names, "--segments", "3", "--budget",
                    "200")  # fmt: skip
    assert done.code == 0, done.err
    assert len(recipes("cat.compare.png")) == len(black_boxes())


def test_a_model_that_fails_in_the_middle_leaves_what_was_asked_by_then(pellucid, folder):
    (folder / "fails.py").write_text(
        """
import numpy as np
import pellucid as pl

def build():
    left = [300]

    def predict(rows):
        left[0] -= len(rows)
        if left[0] < 0:
            raise pl.ModelError("the endpoint is gone")
        return rows.mean((2, 3))

    model = pl.FunctionModel(predict, preprocess=pl.ImagePreprocess(size=16), output="logits", micro_batch=20)
    model.fails_by_row = False
    return model
"""
    )
    done = pellucid("explain", "cat.jpg", "--model", "fails.py:build", "--method", "kernel-shap", "--budget", "900")
    assert done.code == 1
    assert "the endpoint is gone" in done.err
    assert "What was asked by then for cat.jpg is written." in done.err
    assert "cat.kernel-shap.png" in files(folder)
    assert recipe("cat.kernel-shap.png")["explainer"]["settings"]["budget"] < 300


def test_what_an_error_says_cannot_act_on_a_terminal(pellucid, folder):
    (folder / "nasty.py").write_text(
        'import pellucid as pl\ndef build():\n    raise pl.ModelError("a\\x1b]0;b\\x07c")\n'
    )
    done = pellucid("explain", "cat.jpg", "--model", "nasty.py:build")
    assert "\x1b" not in done.err
    assert "a ]0;b c" in done.err
