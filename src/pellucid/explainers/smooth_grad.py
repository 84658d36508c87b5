"""SmoothGrad: the mean of a method's maps over noisy copies of the input.

    M(x) = 1/n sum_i g(x + e_i),   e_i ~ N(0, sigma^2 I)        (Smilkov et al. 2017, section 3)

g is the signed map of the base method, the gradient by default; sigma = noise_level x (max x - min x) of the input.
Signed, shape and unit of the base's map. The standard error is that of the mean, per element.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from jaxtyping import Float
from torch import Tensor

from pellucid.core.card import MethodCard
from pellucid.core.estimate import Estimate
from pellucid.core.estimator import Estimator, Mean
from pellucid.core.explainer import Call, Explainer
from pellucid.core.model import Model
from pellucid.core.stopping import Until, check_samples, lengthened, most
from pellucid.core.target import Targets
from pellucid.errors import ArgumentError
from pellucid.explainers._noise import NoiseLevel, NoisyCopies
from pellucid.explainers.pointwise import Absolute, Squared
from pellucid.explainers.simple_gradient import SimpleGradient

__all__ = ["SmoothGrad"]


@dataclass(frozen=True, kw_only=True)
class SmoothGrad(NoisyCopies):
    """The mean of `base` over `n_samples` noisy copies (Smilkov et al. 2017).

    `noise_level` is a fraction of each input's range, or a NoiseLevel. `n_samples` is a count, or
    Until(error=..., at_most=...). `estimator` says how the mean is approximated.

    Raises:
        ArgumentError: a noise level outside 0 .. 1, a count or seed out of range, a base that is no explainer.

    Example:
        >>> import torch, pellucid as pl
        >>> model = pl.TorchModel(torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)))
        >>> a = pl.SmoothGrad(noise_level=0.15, n_samples=50, seed=0)(model, torch.rand(1, 3))
        >>> a.scores.shape == a.standard_error.shape, a.samples_used
        (True, 50)
    """

    estimator: Estimator = field(default_factory=Mean)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.estimator, Estimator):
            raise ArgumentError(
                f"`estimator` is one such as Mean() or Shrunk(), with its parentheses. Got {self.estimator!r}."
            )
        check_samples(self.n_samples, least=1 if self.noise.clean_copy else self.estimator.least)
        size = self.estimator.how(self.n_samples).size
        if isinstance(self.n_samples, Until) and size > 1 and self.n_samples.at_most < 3 * size:
            raise ArgumentError(
                f"`at_most` is {3 * size} or more here: samples come in draws of {size}, and fewer than three draws "
                f"show no error. Got {self.n_samples.at_most}."
            )
        if self.noise.clean_copy and isinstance(self.n_samples, Until):
            raise ArgumentError("With a clean copy among them the samples are counted: give `n_samples` as a number.")

    @classmethod
    def captum(cls, base: Explainer | None = None, *, seed: int = 0) -> "SmoothGrad":
        """Captum 0.9's NoiseTunnel over Saliency: mean of |g| over 5 copies with an absolute sigma of 1."""
        noise = NoiseLevel.absolute(1.0)
        return cls(base=Absolute(base=base or SimpleGradient()), noise_level=noise, n_samples=5, seed=seed)

    @classmethod
    def pair(cls, base: Explainer | None = None, *, seed: int = 0) -> "SmoothGrad":
        """PAIR saliency 0.2.1's GetSmoothedMask: mean of g^2 over 25 copies."""
        return cls(base=Squared(base=base or SimpleGradient()), noise_level=0.15, n_samples=25, seed=seed)

    @classmethod
    def zennit(cls, base: Explainer | None = None, *, seed: int = 0) -> "SmoothGrad":
        """Zennit 0.5's SmoothGrad: mean of signed g over 20 copies, noise level 0.1, the last copy without noise."""
        noise = NoiseLevel(0.1, clean_copy=True)
        return cls(base=base or SimpleGradient(), noise_level=noise, n_samples=20, seed=seed)

    @property
    def card(self) -> MethodCard:
        caveat = "50 samples of a deep network leave about as much noise as signal: read the estimated error"
        cost = self.estimator.cost(self.base.card.cost, self._noisy) + self.base.card.cost * self._clean
        return self.card_over("smooth-grad", "SmoothGrad", "Smilkov et al. 2017, arXiv:1706.03825", cost, (caveat,))

    def check_features(self, features: tuple[int, ...]) -> None:
        super().check_features(features)
        self.estimator.check(features)

    @property
    def _clean(self) -> int:
        return int(self.noise.clean_copy)

    @property
    def _noisy(self) -> int | Until:
        return self.n_samples if isinstance(self.n_samples, Until) else self.n_samples - self._clean

    def extended(self, taken: Sequence[int], draws: int, more: int | Until) -> "SmoothGrad":
        longer = lengthened(self.n_samples, taken, more)
        return replace(self, n_samples=longer, estimator=self.estimator.settled((taken[0] - self._clean) // draws))

    def attribute(self, model: Model, x: Float[Tensor, "b *features"], targets: Targets, call: Call) -> Estimate:
        if not self._clean:
            return self.estimated(self.estimator, model, x, targets, call, self.n_samples)
        own = Call(tuple(key.stream(self.seed).child(most(self.n_samples) - 1) for key in call.keys))
        clean = self.base.attribute(model, x, targets, own).values
        if self.n_samples == 1:
            return replace(Estimate.exact(clean), samples=(1,) * len(x), notes=self.notes(x, model.packing))
        if call.earlier is not None:
            call = replace(call, earlier=replace(call.earlier, state=_renamed(call.earlier.state, _HIDDEN, _SUMS)))
        return _with_clean(self.estimated(self.estimator, model, x, targets, call, self._noisy), clean)


# The clean map has no sign to flip, so the batches are no longer those of the map; more samples still need them.
_SUMS, _HIDDEN = "batch_sums", "noisy_batch_sums"


def _renamed(state: Mapping[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    return {new if name == old else name: part for name, part in state.items()}


def _with_clean(noisy: Estimate, clean: Tensor) -> Estimate:
    """The mean of n - 1 noisy maps and a clean one, which has no error of its own."""
    n = noisy.samples[0] + 1
    share = (n - 1) / n
    error = noisy.standard_error
    return replace(
        noisy,
        values=noisy.values * share + clean / n,
        standard_error=None if error is None else error * share,
        error=None,  # that of the noisy ones alone
        state=_renamed(noisy.state, _SUMS, _HIDDEN),
        samples=(n,) * len(clean),
        stopped=(f"the {n} samples asked for were taken, the last without noise",) * len(clean),
    )
