"""SmoothGrad by pellucid, Captum, PAIR saliency and Zennit, and the bare loop: the signed gradient, the same sigma."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from arena import Explain
from torch import Tensor, nn

import pellucid as pl
from networks import PHOTOS, cifar_pictures, cifar_resnet, let_torchvision_import, resnet50

LEVEL, N = 0.15, 50


@dataclass(frozen=True, eq=False)
class Case:
    """A network, one input, and the class that is explained."""

    name: str
    net: nn.Module
    x: Tensor
    target: int

    @property
    def sigma(self) -> float:
        """The noise of every contender."""
        return LEVEL * float(self.x.max() - self.x.min())


def case_of(name: str) -> Case:
    """The case of that name."""
    if name == "ResNet-56":
        net, x = cifar_resnet(56), cifar_pictures(1)
    elif name == "ResNet-50":
        net, x = resnet50(), photos([0])[0]
    else:
        net, x = pl.load("efficientnet-lite0").net, photos([0])[0]
    with torch.no_grad():
        return Case(name, net, x, int(net(x).argmax()))


def photos(indices: Sequence[int]) -> list[Tensor]:
    """Photos of the validation set as EfficientNet-Lite0 takes them."""
    files = sorted(PHOTOS.iterdir())
    model = pl.load("efficientnet-lite0")
    return [model.read(files[i]).tensor for i in indices]


@dataclass(frozen=True)
class Contender:
    """Who explains which case, with how many samples; `batch` and `bf16` are settings of its caller."""

    case: str
    who: str
    n: int = N
    batch: int | None = None
    bf16: bool = False

    def explain(self) -> Explain:
        """The explanation, ready to be timed."""
        case = case_of(self.case)
        if self.who in ESTIMATORS:
            return _pellucid(case, self)
        return {"captum": _captum, "pair": _pair, "zennit": _zennit, "bare loop": _bare}[self.who](case, self)


ESTIMATORS: dict[str, pl.Estimator] = {
    "pellucid": pl.Mean(),
    "Shrunk(Factored())": pl.Shrunk(pl.Factored()),
    "Combined()": pl.Combined(),
    "Shrunk()": pl.Shrunk(),
}


def _pellucid(case: Case, how: Contender) -> Explain:
    """Our own, with its defaults."""
    model = pl.TorchModel(case.net, precision="bfloat16" if how.bf16 else None, micro_batch=how.batch)
    explain = pl.SmoothGrad(n_samples=how.n, noise_level=LEVEL, estimator=ESTIMATORS[how.who])
    return lambda: explain(model, case.x, case.target).scores


def _captum(case: Case, how: Contender) -> Explain:
    """NoiseTunnel over Saliency; with `bf16` its caller also uses channels_last and autocast."""
    from captum.attr import NoiseTunnel, Saliency

    net = case.net.to(memory_format=torch.channels_last) if how.bf16 else case.net
    tunnel = NoiseTunnel(Saliency(net))
    x = case.x.contiguous(memory_format=torch.channels_last) if how.bf16 else case.x

    def run() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=how.bf16):
            return tunnel.attribute(
                x.clone(), target=case.target, abs=False, nt_type="smoothgrad", nt_samples=how.n,
                nt_samples_batch_size=how.batch, stdevs=case.sigma,
            )  # fmt: skip

    return run


def _pair(case: Case, how: Contender) -> Explain:
    """GradientSaliency.GetSmoothedMask, signed."""
    import saliency.core as saliency

    def call(images: np.ndarray, call_model_args: object, expected_keys: object) -> dict[str, np.ndarray]:
        x = torch.from_numpy(np.asarray(images, dtype=np.float32)).requires_grad_()
        [gradient] = torch.autograd.grad(case.net(x)[:, case.target].sum(), x)
        return {saliency.INPUT_OUTPUT_GRADIENTS: gradient.numpy()}

    image = case.x[0].numpy()
    method = saliency.GradientSaliency()
    return lambda: torch.from_numpy(
        method.GetSmoothedMask(image, call, stdev_spread=LEVEL, nsamples=how.n, magnitude=False)
    )


def _zennit(case: Case, how: Contender) -> Explain:
    let_torchvision_import()
    from zennit.attribution import SmoothGrad

    def run() -> Tensor:
        with SmoothGrad(noise_level=LEVEL, n_iter=how.n, model=case.net) as attributor:
            one_hot = torch.nn.functional.one_hot(torch.tensor([case.target]), case.net(case.x).shape[1]).float()
            return attributor(case.x.clone(), one_hot)[1]

    return run


def _bare(case: Case, how: Contender) -> Explain:
    """The loop that anybody writes: randn, add, gradient, sum; frozen parameters and channels_last."""
    net = copy.deepcopy(case.net).to(memory_format=torch.channels_last).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    batch = how.batch or how.n

    def run() -> Tensor:
        total = torch.zeros_like(case.x[0])
        for start in range(0, how.n, batch):
            noise = torch.randn((min(batch, how.n - start), *case.x.shape[1:]), generator=generator)
            copies = (case.x + case.sigma * noise).contiguous(memory_format=torch.channels_last).requires_grad_()
            total += torch.autograd.grad(net(copies)[:, case.target].sum(), copies)[0].sum(0)
        return total / how.n

    return run
