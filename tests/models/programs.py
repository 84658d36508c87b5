"""Networks to export, and archives to take apart and put together again."""

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch
from torch import Tensor, nn
from torch.nn import functional

Records = dict[str, bytes]


class Conv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding="same"), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.GELU()
        )
        self.drop = nn.Dropout()
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.drop(self.features(x).mean((2, 3))))


class Dictionary(Conv):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": super().forward(x), "the map": self.features(x)}


@dataclass
class Answer:
    logits: Tensor
    extra: Tensor | None = None


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, 4)
        self.position = nn.Parameter(torch.randn(1, 17, 16))
        self.layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=True)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.position[:, :1].expand(x.shape[0], -1, -1), tokens], 1) + self.position
        tokens = self.layer(tokens)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return self.head(tokens[:, 0])


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 10, 2, batch_first=True, dropout=0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0][:, -1]


class Odds(nn.Module):
    """A constant, a buffer that is not saved, a module that is used twice, odd names, and a part without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"conv-1": nn.Conv2d(3, 4, 3)})
        self.register_buffer("mask", torch.ones(4, 1, 1), persistent=False)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            offset = x.mean()
        y = self.relu(self.parts["conv-1"](x)) * self.mask * torch.tensor(2.0)
        y = functional.interpolate(self.relu(y - 1), size=x.shape[-2:], mode="bilinear")
        return torch.einsum("bchw->bc", y) + offset, y


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


BATCH = torch.export.Dim("batch")
SIDES = {2: torch.export.Dim("height", min=8, max=64), 3: torch.export.Dim("width", min=8, max=64)}


def exported(net: nn.Module, x: Tensor, free: dict[int, Any], *, decomposed: bool = False) -> Any:
    with warnings.catch_warnings():
        # the LSTM's list of its own weights, and a class of torch that torch copies
        warnings.filterwarnings("ignore", "The tensor attributes .*_flat_weights", UserWarning)
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
        program = torch.export.export(net, (x,), dynamic_shapes=(free,))
        return program.run_decompositions() if decomposed else program


def saved(path: Path, program: Any) -> Path:
    torch.export.save(program, path)
    return path


def records_of(path: Path) -> Records:
    with ZipFile(path) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def written(path: Path, records: Records, root: str = "net/") -> Path:
    with ZipFile(path, "w") as archive:
        for name, content in records.items():
            archive.writestr(root + name, content)
    return path


def edited(records: Records, name: str, change: Callable[[Any], None]) -> None:
    value = json.loads(records[name])
    change(value)
    records[name] = json.dumps(value).encode()
