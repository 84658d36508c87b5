"""The networks of the benchmarks. Weights and photos are read from the folder of shared data beside the checkout."""

from importlib.util import find_spec
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, pad, relu

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
PHOTOS = DATA / "ilsvrc2012-val-650" / "images"
CIFAR = DATA / "cifar10"

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_schemas: list[torch.library.Library] = []  # they last no longer than this object


class BasicBlock(nn.Module):
    """Two convolutions and a shortcut without parameters (He et al. 2015, option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.added = (outputs - inputs) // 2 if stride > 1 else 0

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        y = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
        if self.added:
            x = pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.added, self.added))
        return relu(x + y)


class CifarResNet(nn.Module):
    """The ResNet of 6 n + 2 layers for 32 x 32 pictures."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        widths = (16, 16, 32, 64)
        for stage in (1, 2, 3):
            first = BasicBlock(widths[stage - 1], widths[stage], 1 if stage == 1 else 2)
            rest = (BasicBlock(widths[stage], widths[stage], 1) for _ in range(n - 1))
            setattr(self, f"layer{stage}", nn.Sequential(first, *rest))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """The logits."""
        y = relu(self.bn1(self.conv1(x)))
        y = self.layer3(self.layer2(self.layer1(y)))
        return self.linear(adaptive_avg_pool2d(y, 1).flatten(1))


def cifar_resnet(depth: int) -> nn.Module:
    """ResNet-20 or ResNet-56 with its weights."""
    [path] = CIFAR.glob(f"resnet{depth}-*.th")
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    net = CifarResNet((depth - 2) // 6)
    net.load_state_dict({name.removeprefix("module."): tensor for name, tensor in state.items()})
    return net.eval()


def cifar_pictures(count: int) -> Tensor:
    """The first picture of each class, then the second …, as the network takes them."""
    classes = sorted(path for path in (CIFAR / "test").iterdir() if path.is_dir())
    files = [sorted(folder.iterdir())[i] for i in range(count) for folder in classes][:count]
    pixels = [torch.frombuffer(bytearray(Image.open(f).convert("RGB").tobytes()), dtype=torch.uint8) for f in files]
    x = torch.stack(pixels).view(-1, 32, 32, 3).permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(_MEAN).view(3, 1, 1)) / torch.tensor(_STD).view(3, 1, 1)


def resnet50() -> nn.Module:
    """The ResNet-50 of torchvision with random weights: for speed only."""
    let_torchvision_import()
    from torchvision.models import resnet50 as build

    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return build(weights=None).eval()


def let_torchvision_import() -> None:
    """Define the two operators that torchvision's own library would, where that library cannot load.

    The wheels of PyPI are built for CUDA: beside a torch for CPUs their library is there but does not load.
    """
    spec = find_spec("torchvision")
    if _schemas or spec is None or spec.origin is None:
        return
    try:
        torch.ops.load_library(str(Path(spec.origin).with_name("_C.so")))
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _schemas.append(library)
