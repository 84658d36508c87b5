"""Gradient methods, class activation maps and relevance by pellucid, Captum, PAIR saliency, grad-cam and Zennit.

Peers get what a careful caller gives them: frozen parameters and the micro-batch that is asked for. Where noise is
drawn, the first run of a peer takes pellucid's, so that its map can be compared; later runs draw their own.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar

import numpy as np
import torch
from arena import Explain
from contenders import LEVEL, Case, case_of, photos
from torch import Tensor, nn

import pellucid as pl
from networks import let_torchvision_import
from pellucid.core.random import Key, normal


@dataclass(frozen=True)
class Contender:
    """Who explains which case by which method: with `n` steps or samples, at `layer`, in this micro-batch.

    `thawed` leaves the parameters as they are built, requiring gradients. `like` is the peer whose convention pellucid
    takes on, `double` the precision of both, to compare maps. Under a `memory_limit` pellucid gives, in place of its
    map, the limit and the predicted and measured peak, in bytes.
    """

    case: str
    method: str
    who: str
    n: int = 1
    layer: str = ""
    batch: int | None = None
    bf16: bool = False
    thawed: bool = False
    like: str = ""
    double: bool = False
    memory_limit: str = ""
    inputs: int = 1

    def explain(self) -> Explain:
        """The explanation, ready to be timed."""
        kinds = {"pellucid": _pellucid, "Captum": _captum, "PAIR": _pair, "grad-cam": _grad_cam, "Zennit": _zennit}
        return kinds[self.who](self)


BOX = (-2.2, 2.7)
"""The least and the greatest number that a normalised photo holds."""


def _case(how: Contender) -> Case:
    return _prepared(how.case, how.double, how.inputs)


@cache
def _prepared(name: str, double: bool, inputs: int) -> Case:
    """The case, its parameters frozen, after one pass there and back: what any library loads is loaded."""
    case = case_of(name)
    if inputs > 1:
        case = replace(case, x=torch.cat(photos(range(inputs))))
    case.net.requires_grad_(False)
    if double:
        case = replace(case, net=case.net.double(), x=case.x.double())
    x = case.x.clone().requires_grad_()
    torch.autograd.grad(case.net(x)[:, case.target].sum(), x)
    return case


# --- pellucid ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AtBlack(pl.Baseline):
    """The activation that a layer gives for an input of zeros: where Captum begins. It belongs to this process."""

    activation: ClassVar[Tensor] = torch.empty(0)

    def values(self, x: Tensor, preprocess: object = None) -> Tensor:
        """The same for each row."""
        return self.activation.expand_as(x).clone()


def explainer(how: Contender) -> pl.Explainer:
    """Our method, with the settings of the papers, or like a peer."""
    zero = pl.Zeros()
    maps = {
        "grad-cam": pl.GradCAM,
        "grad-cam++": pl.GradCAMPlusPlus,
        "hires-cam": pl.HiResCAM,
        "xgrad-cam": pl.XGradCAM,
        "layer-cam": pl.LayerCAM,
        "eigen-cam": pl.EigenCAM,
        "score-cam": pl.ScoreCAM,
        "ablation-cam": pl.AblationCAM,
    }
    if how.method in maps:
        signed = how.method == "grad-cam" and how.like == "Captum"
        return pl.SignedGradCAM(layer=how.layer) if signed else maps[how.method](layer=how.layer)
    if how.method == "integrated-gradients":
        rule = "ends" if how.like == "PAIR" else "gauss-legendre"
        return pl.IntegratedGradients(baseline=zero, n_steps=how.n, rule=rule)
    if how.method == "smooth-grad-cam":
        cam: pl.Explainer = pl.GradCAM(layer=how.layer)
        if how.like == "Captum":
            cam = pl.SignedGradCAM(layer=how.layer)
        if how.like == "PAIR":
            cam = pl.Upsampled(base=pl.MinMax(base=cam))
        return pl.SmoothGrad(base=cam, n_samples=how.n, noise_level=LEVEL)
    if how.method == "layer-integrated-gradients":
        start = AtBlack() if how.like else zero
        return pl.AtLayer(base=pl.IntegratedGradients(baseline=start, n_steps=how.n), layer=how.layer)
    return {
        "simple-gradient": pl.SimpleGradient,
        "input-x-gradient": pl.InputXGradient,
        "full-grad": pl.FullGrad,
        "guided-backprop": pl.GuidedBackprop,
        "deconvnet": pl.Deconvnet,
        "deep-lift": pl.DeepLIFT.captum,
        "lrp-epsilon-plus": pl.LRP.epsilon_plus,
        "lrp-epsilon-plus-flat": pl.LRP,
        "lrp-epsilon-alpha2-beta1-flat": pl.LRP.epsilon_alpha2_beta1_flat,
        "lrp-epsilon-gamma-box": lambda: pl.LRP.epsilon_gamma_box(*BOX),
        "smooth-input-x-gradient": lambda: pl.SmoothGrad(base=pl.InputXGradient(), n_samples=how.n, noise_level=LEVEL),
        "guided-integrated-gradients": lambda: pl.GuidedIntegratedGradients(baseline=zero, n_steps=how.n),
        "conductance": lambda: pl.Conductance(layer=how.layer, baseline=zero, n_steps=how.n),
    }[how.method]()


def model_of(how: Contender) -> pl.TorchModel:
    """Our model, run with its defaults but for what is asked."""
    return pl.TorchModel(
        _case(how).net,
        precision="bfloat16" if how.bf16 else None,
        micro_batch=how.batch,
        memory_limit=how.memory_limit or None,
    )


def _pellucid(how: Contender) -> Explain:
    case, explain, model = _case(how), explainer(how), model_of(how)
    if how.method == "layer-integrated-gradients" and how.like:
        with _activation(case.net, how.layer) as seen, torch.no_grad():
            case.net(torch.zeros_like(case.x))
        AtBlack.activation = seen[0]

    def run() -> Tensor:
        found = explain(model, case.x, case.target)
        if found.memory is None:
            return found.scores
        return torch.tensor([found.memory.limit, found.memory.predicted, found.memory.measured])

    return run


@contextmanager
def _activation(net: nn.Module, layer: str) -> Iterator[list[Tensor]]:
    """What the layer gives while the network runs."""
    seen: list[Tensor] = []
    handle = net.get_submodule(layer).register_forward_hook(lambda module, args, output: seen.append(output))
    try:
        yield seen
    finally:
        handle.remove()


# --- Captum ------------------------------------------------------------------------------------------------------


def _captum(how: Contender) -> Explain:
    from captum import attr

    case = _case(how)
    layer = case.net.get_submodule(how.layer) if how.layer else None
    of_input = {
        "simple-gradient": (attr.Saliency, {"abs": False}),
        "input-x-gradient": (attr.InputXGradient, {}),
        "smooth-input-x-gradient": (attr.InputXGradient, {}),
        "integrated-gradients": (attr.IntegratedGradients, {"n_steps": how.n, "internal_batch_size": how.batch}),
        "guided-backprop": (attr.GuidedBackprop, {}),
        "deconvnet": (attr.Deconvolution, {}),
        "deep-lift": (attr.DeepLift, {}),
    }
    of_layer = {
        "grad-cam": (attr.LayerGradCam, {}),
        "smooth-grad-cam": (attr.LayerGradCam, {}),
        "layer-integrated-gradients": (
            attr.LayerIntegratedGradients,
            {"n_steps": how.n, "internal_batch_size": how.batch},
        ),
        "conductance": (attr.LayerConductance, {"n_steps": how.n, "internal_batch_size": how.batch}),
    }
    kind, settings = of_input[how.method] if layer is None else of_layer[how.method]
    method = kind(case.net) if layer is None else kind(case.net, layer)
    if not how.method.startswith("smooth"):
        return lambda: method.attribute(case.x.clone(), target=case.target, **settings).detach()
    tunnel = attr.NoiseTunnel(method)

    def run() -> Tensor:
        return tunnel.attribute(
            case.x.clone(), target=case.target, nt_type="smoothgrad", nt_samples=how.n,
            nt_samples_batch_size=how.batch, stdevs=case.sigma,
        ).detach()  # fmt: skip

    return _first_with_our_noise(run, lambda: _torch_draws(case))


def _first_with_our_noise(run: Explain, ours: Callable[[], Any]) -> Explain:
    """The same, with pellucid's noise in its first run."""
    runs = iter([ours])

    def explain() -> Tensor:
        with next(runs, nullcontext)():
            return run()

    return explain


def _noise(case: Case, index: int) -> np.ndarray:
    """The standard normal noise of pellucid's copy `index`."""
    return normal(Key.of(case.x[0]).stream(0), index, tuple(case.x.shape[1:]))


@contextmanager
def _torch_draws(case: Case) -> Iterator[None]:
    """Captum's calls of torch.normal get ours."""
    before, drawn = torch.normal, [0]

    def draw(mean: float, std: Tensor) -> Tensor:
        first, drawn[0] = drawn[0], drawn[0] + len(std)
        return mean + std * torch.from_numpy(np.stack([_noise(case, i) for i in range(first, drawn[0])]))

    torch.normal = draw
    try:
        yield
    finally:
        torch.normal = before


# --- Zennit ------------------------------------------------------------------------------------------------------


def _zennit(how: Contender) -> Explain:
    """Its hooks stay, and its norms stay merged, as a caller with many photos has it."""
    let_torchvision_import()
    from zennit import attribution, canonizers, composites
    from zennit.torchvision import ResNetCanonizer

    case = _case(how)
    merged = [ResNetCanonizer() if how.case == "ResNet-50" else canonizers.SequentialMergeBatchNorm()]
    kinds = {
        "guided-backprop": composites.GuidedBackprop,
        "deconvnet": composites.DeconvNet,
        "lrp-epsilon-plus": composites.EpsilonPlus,
        "lrp-epsilon-plus-flat": composites.EpsilonPlusFlat,
        "lrp-epsilon-alpha2-beta1-flat": composites.EpsilonAlpha2Beta1Flat,
        "lrp-epsilon-gamma-box": lambda **settings: composites.EpsilonGammaBox(*BOX, **settings),
    }
    net = copy.deepcopy(case.net)
    attributor = attribution.Gradient(net, kinds[how.method](canonizers=merged))
    attributor.__enter__()
    top = torch.nn.functional.one_hot(torch.tensor([case.target] * how.inputs), 1000).to(case.x)

    def run() -> Tensor:
        _, relevance = attributor(case.x.clone().requires_grad_(), top)
        return relevance.detach()

    return run


# --- PAIR saliency -----------------------------------------------------------------------------------------------


def _pair(how: Contender) -> Explain:
    import saliency.core as saliency

    case = _case(how)

    def gradients(images: np.ndarray, call_model_args: object, expected_keys: object) -> dict[str, np.ndarray]:
        x = torch.from_numpy(np.asarray(images)).to(case.x).requires_grad_()
        [gradient] = torch.autograd.grad(case.net(x)[:, case.target].sum(), x)
        return {saliency.INPUT_OUTPUT_GRADIENTS: gradient.numpy()}

    def layers(images: np.ndarray, call_model_args: object, expected_keys: object) -> dict[str, np.ndarray]:
        """Of pictures and maps with their channels last."""
        x = torch.from_numpy(np.asarray(images)).to(case.x).movedim(-1, 1)
        with _activation(case.net, how.layer) as seen:
            handle = case.net.get_submodule(how.layer).register_forward_hook(lambda m, a, out: out.requires_grad_())
            score = case.net(x)[:, case.target].sum()
            handle.remove()
        [gradient] = torch.autograd.grad(score, seen)
        values = {
            saliency.CONVOLUTION_LAYER_VALUES: seen[0].detach(),
            saliency.CONVOLUTION_OUTPUT_GRADIENTS: gradient,
        }
        return {name: value.movedim(1, -1).numpy() for name, value in values.items()}

    image = case.x[0].numpy()
    if "grad-cam" in how.method:
        image = np.ascontiguousarray(np.moveaxis(image, 0, -1))
        cam = saliency.GradCam()
        if how.method == "grad-cam":
            return lambda: _one_channel(cam.GetMask(image, layers))
        return _first_with_our_noise(
            lambda: _one_channel(
                cam.GetSmoothedMask(image, layers, stdev_spread=LEVEL, nsamples=how.n, magnitude=False)
            ),
            lambda: _numpy_draws(case),
        )
    if how.method == "guided-integrated-gradients":
        _mend_quantile()
        guided = saliency.GuidedIG()
        return lambda: torch.from_numpy(guided.GetMask(image, gradients, x_steps=how.n))[None]
    if how.method == "integrated-gradients":
        integrated = saliency.IntegratedGradients()
        settings = {"x_steps": how.n, "batch_size": how.batch or 1}
        return lambda: torch.from_numpy(integrated.GetMask(image, gradients, **settings))[None]
    plain = saliency.GradientSaliency()
    return lambda: torch.from_numpy(plain.GetMask(image, gradients))[None]


def _one_channel(mask: np.ndarray) -> Tensor:
    """The map, which PAIR repeats for each colour."""
    return torch.from_numpy(mask[..., 0])[None, None]


@contextmanager
def _numpy_draws(case: Case) -> Iterator[None]:
    """PAIR's calls of np.random.normal get ours, channels last."""
    before, drawn = np.random.normal, [0]

    def draw(mean: float, std: float, shape: tuple[int, ...]) -> np.ndarray:
        drawn[0] += 1
        return mean + std * np.moveaxis(_noise(case, drawn[0] - 1), 0, -1)

    np.random.normal = draw
    try:
        yield
    finally:
        np.random.normal = before


@cache
def _mend_quantile() -> None:
    """PAIR saliency 0.2.1 names an argument of np.quantile as NumPy did before 2.4."""
    now = np.quantile

    def quantile(*args: Any, **kwargs: Any) -> Any:
        if "interpolation" in kwargs:
            kwargs["method"] = kwargs.pop("interpolation")
        return now(*args, **kwargs)

    np.quantile = quantile


# --- grad-cam ----------------------------------------------------------------------------------------------------


def _grad_cam(how: Contender) -> Explain:
    let_torchvision_import()
    import pytorch_grad_cam as peer
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    case = _case(how)
    kinds = {
        "grad-cam": peer.GradCAM,
        "grad-cam++": peer.GradCAMPlusPlus,
        "hires-cam": peer.HiResCAM,
        "xgrad-cam": peer.XGradCAM,
        "layer-cam": peer.LayerCAM,
        "eigen-cam": peer.EigenCAM,
        "score-cam": peer.ScoreCAM,
        "ablation-cam": peer.AblationCAM,
        "full-grad": peer.FullGrad,
    }
    net = copy.deepcopy(case.net)  # its hooks stay
    if how.thawed:
        net.requires_grad_(True)
    elif how.layer and how.method not in ("eigen-cam", "score-cam", "ablation-cam"):
        net.get_submodule(how.layer).requires_grad_(True)  # it wants a graph from there on
    layers = [net.get_submodule(how.layer)] if how.layer else []
    settings = {"batch_size": how.batch or 32} if how.method == "ablation-cam" else {}
    cam = kinds[how.method](net, layers, **settings)
    if how.method == "score-cam" and how.batch is not None:
        cam.batch_size = how.batch
    targets = [ClassifierOutputTarget(case.target)] * how.inputs
    return lambda: torch.from_numpy(cam(input_tensor=case.x, targets=targets))[:, None]
