"""SmoothGrad: the mean of a method's maps over noisy copies of the input.

    M(x) = 1/n sum_i g(x + e_i),   e_i ~ N(0, sigma^2 I)        (Smilkov et al. 2017, section 3)

g is the signed map of the base method, the gradient by default; sigma = noise_level x (max x - min x) of the input.
Signed, shape and unit of the base's map. The standard error is that of the mean, per element.
"""

from dataclasses import dataclass, field, replace

from jaxtyping import Float
from torch import Tensor

from pellucid.core.card import MethodCard
from pellucid.core.estimate import Estimate, Estimator, Mean
from pellucid.core.explainer import Call, Explainer
from pellucid.core.model import Model
from pellucid.core.target import Targets
from pellucid.explainers._noise import NoiseLevel, NoisyCopies
from pellucid.explainers.pointwise import Absolute, Squared
from pellucid.explainers.simple_gradient import SimpleGradient

__all__ = ["SmoothGrad"]


@dataclass(frozen=True, kw_only=True)
class SmoothGrad(NoisyCopies):
    """The mean of `base` over `n_samples` noisy copies (Smilkov et al. 2017).

    `noise_level` is a fraction of each input's range, or a NoiseLevel. `estimator` says how the mean is approximated.

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
        caveat = "50 samples of a deep network leave about as much noise as signal: read the standard error"
        return self.card_over("smooth-grad", "SmoothGrad", "Smilkov et al. 2017, arXiv:1706.03825", (caveat,))

    def attribute(self, model: Model, x: Float[Tensor, "b *features"], targets: Targets, call: Call) -> Estimate:
        if not self.noise.clean_copy:
            estimate = self.estimator.estimate(self.samples(model, x, targets, call, self.n_samples))
            return self.noted(estimate, x)
        last = self.n_samples - 1
        own = Call(tuple(key.stream(self.seed).child(last) for key in call.keys))
        clean = self.base.attribute(model, x, targets, own).values
        if last == 0:
            return self.noted(replace(Estimate.exact(clean), samples=(1,) * len(x)), x)
        noisy = self.estimator.estimate(self.samples(model, x, targets, call, last))
        return self.noted(_with_clean(noisy, clean, self.n_samples), x)


def _with_clean(noisy: Estimate, clean: Tensor, n: int) -> Estimate:
    """The mean of n - 1 noisy maps and a clean one, which has no error of its own."""
    share = (n - 1) / n
    error = noisy.standard_error
    return replace(
        noisy,
        values=noisy.values * share + clean / n,
        standard_error=None if error is None else error * share,
        batch_means=None,  # the clean map has no sign to flip
        samples=(n,) * len(clean),
        stopped=f"the {n} samples asked for were taken, the last without noise",
    )
