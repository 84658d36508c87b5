"""Programs of torch.export: the same answers and gradients as the network that was exported, and plain refusals."""

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import torch
from tests.models.programs import (
    BATCH,
    SIDES,
    Answer,
    Conv,
    Dictionary,
    Odds,
    Recurrent,
    Transformer,
    exported,
    noise,
    saved,
)
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pellucid.errors import FixedShape, ModelError
from pellucid.models.exported import EXPORT_LINE, check_dynamic_batch, read_program


def answer_and_gradient(net: nn.Module, x: Tensor) -> tuple[list[Tensor], Tensor]:
    x = x.clone().requires_grad_()
    leaves = pytree.tree_leaves(net(x * 1))  # in-place operators may not write on a leaf
    (gradient,) = torch.autograd.grad(sum((leaf * noise(*leaf.shape)).sum() for leaf in leaves), x)
    return leaves, gradient


def assert_close(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= 1e-6 * expected.abs().max()


@pytest.mark.parametrize(
    ("build", "shape", "dims", "decomposed"),
    [
        (Conv, (3, 16, 16), {}, False),
        (Conv, (3, 16, 16), SIDES, True),
        (Dictionary, (3, 16, 16), {}, False),
        (Transformer, (3, 16, 16), {}, False),
        (Transformer, (3, 16, 16), {}, True),
        (Recurrent, (7, 6), {}, False),
        (Recurrent, (7, 6), {}, True),
        (Odds, (3, 12, 12), {}, False),  # decomposing forgets what is without gradients
        (Odds, (3, 12, 12), SIDES, False),
    ],
)
def test_answers_and_gradients_are_those_of_the_network(
    build: Callable[[], nn.Module], shape: tuple[int, ...], dims: dict[int, Any], decomposed: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net = build().eval()
    program = exported(net, noise(2, *shape), {0: BATCH, **dims}, decomposed=decomposed)
    result = read_program(saved(tmp_path / "net.pt2", program))
    assert result.input_shape == (None, *(None if i + 1 in dims else size for i, size in enumerate(shape)))
    check_dynamic_batch(result)
    for batch in (1, 3):
        x = noise(batch, *(size + 4 * (i + 1 in dims) for i, size in enumerate(shape)))
        (got, got_gradient), (expected, gradient) = answer_and_gradient(result.network, x), answer_and_gradient(net, x)
        for one, other in zip(got, expected, strict=True):
            assert_close(one, other)
        assert gradient.abs().max() > 0
        assert_close(got_gradient, gradient)


@pytest.fixture(scope="module")
def conv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("conv") / "conv.pt2", exported(Conv().eval(), noise(2, 3, 16, 16), {0: BATCH}))


@pytest.mark.parametrize("flat", [False, True])
def test_the_network_is_used_like_any_other(conv: Path, flat: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(program: object) -> nn.Module:
        raise RuntimeError

    expected = read_program(conv).network(noise(2, 3, 16, 16))
    if flat:
        monkeypatch.setattr(torch.export, "unflatten", fail)
    net = read_program(conv).network
    assert not net.eval().train(False).training
    net.train()
    net.requires_grad_(False)
    assert not any(parameter.requires_grad for parameter in net.parameters())
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert_close(net(noise(2, 3, 16, 16)), expected)
    assert twin(noise(2, 3, 16, 16)).abs().max() == 0


def test_modules_keep_their_names_and_can_be_hooked(conv: Path) -> None:
    net = read_program(conv).network
    seen: list[Tensor] = []
    dict(net.named_modules())["features.0"].register_forward_hook(lambda _module, _given, output: seen.append(output))
    net(noise(2, 3, 16, 16))
    assert [output.shape for output in seen] == [(2, 8, 16, 16)]


def test_devices_named_in_the_graph_move_with_it(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.pt2", exported(Recurrent().eval(), noise(2, 7, 6), {0: BATCH}))
    net = read_program(path, device="meta").network
    assert net(torch.empty(2, 7, 6, device="meta")).device.type == "meta"  # its initial state is made in the graph


def test_dataclasses_become_dictionaries(tmp_path: Path) -> None:
    class Described(Conv):
        def forward(self, x: Tensor) -> Answer:
            return Answer(super().forward(x))

    torch.export.register_dataclass(Answer, serialized_type_name="tests.Answer")
    net = Described().eval()
    result = read_program(saved(tmp_path / "net.pt2", exported(net, noise(2, 3, 16, 16), {0: BATCH})))
    assert list(result.network(noise(1, 3, 16, 16))) == ["logits"]


def test_the_quoted_line_exports_for_any_batch(tmp_path: Path) -> None:
    program = eval(EXPORT_LINE, {"torch": torch, "net": Conv(), "x": noise(2, 3, 16, 16)})  # noqa: S307  # our own
    result = read_program(saved(tmp_path / "net.pt2", program))
    check_dynamic_batch(result)
    assert result.batches == (1, None)


@pytest.mark.parametrize(
    ("free", "shape", "batches", "told"),
    [
        (None, (4, 3, 16, 16), (4, 4), "batches of 4"),
        (torch.export.Dim("batch", min=4, max=9), (None, 3, 16, 16), (4, 9), "batches of 4 or more"),
    ],
)
def test_a_batch_that_is_not_free_is_told(
    free: Any, shape: tuple[int, ...], batches: tuple[int, int], told: str, tmp_path: Path
) -> None:
    result = read_program(saved(tmp_path / "net.pt2", exported(Conv().eval(), noise(4, 3, 16, 16), {0: free})))
    assert (result.input_shape, result.batches) == (shape, batches)
    with pytest.raises(FixedShape, match=told) as caught:
        check_dynamic_batch(result)
    assert EXPORT_LINE in str(caught.value)


@pytest.mark.parametrize(
    "net",
    [
        Conv(),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.5)),
        nn.Sequential(nn.BatchNorm2d(3)),
        nn.Sequential(nn.Flatten(2), nn.LSTM(256, 4, 2, batch_first=True, dropout=0.5)),
    ],
)
def test_training_mode_is_refused(net: nn.Module, tmp_path: Path) -> None:
    path = saved(tmp_path / "net.pt2", exported(net.train(), noise(2, 3, 16, 16), {0: BATCH}))
    with pytest.raises(ModelError, match=r"training mode .* Export net\.eval\(\)"):
        read_program(path)


def test_norms_that_always_use_the_batch_are_no_training_mode(tmp_path: Path) -> None:
    net = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.InstanceNorm2d(3)).eval()
    read_program(saved(tmp_path / "net.pt2", exported(net, noise(2, 3, 16, 16), {0: BATCH})))


def test_one_tensor_by_position_is_expected(tmp_path: Path) -> None:
    x = noise(2, 3, 16, 16)
    by_name = torch.export.export(Conv().eval(), (), {"x": x})
    two = torch.export.export(nn.Bilinear(4, 4, 2).eval(), (noise(2, 4), noise(2, 4)))
    for program, count in ((by_name, 1), (two, 2)):
        with pytest.raises(ModelError, match=f"one tensor, given by position, got {count} inputs"):
            read_program(saved(tmp_path / "net.pt2", program))


def zipped(*names: str) -> bytes:
    file = io.BytesIO()
    with ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, b"")
    return file.getvalue()


def pickled(thing: object, *, zipped: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save(thing, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "no archive"),
        (b"PK\x03\x04 and no more", "no archive, or a truncated one"),
        (pickled(Conv()), "a pickled module or state dict"),
        (pickled(Conv().state_dict()), "a pickled module or state dict"),
        (pickled(Conv().state_dict(), zipped=False), "a pickled module or state dict"),
        (zipped("net/data.pkl", "net/constants.pkl", "net/code/net.py"), "a TorchScript module"),
        (zipped("document.xml"), "a zip archive of something else"),
    ],
)
@pytest.mark.parametrize("trust", [False, True])
def test_other_files_are_named(content: bytes, told: str, trust: bool, tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=told) as caught:
        read_program(path, trust=trust)
    assert "--model file.py:function" in str(caught.value)


def test_a_missing_and_a_truncated_file_are_named(conv: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="which is no file"):
        read_program(tmp_path / "none.pt2")
    short = tmp_path / "short.pt2"
    short.write_bytes(conv.read_bytes()[:-100])
    with pytest.raises(ModelError, match="truncated"):
        read_program(short)
