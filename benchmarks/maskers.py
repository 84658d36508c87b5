"""pellucid, Captum and shap on the same patches of one photo, to be timed: KernelSHAP with so many calls, and ablation.

Peers get what a careful caller gives them: a network in eval mode whose parameters are frozen, no gradients, and rows
in batches.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from arena import Explain
from games import Photo, photos_of
from torch import Tensor

import pellucid as pl

CELLS = 7


@dataclass(frozen=True)
class Contender:
    """Who explains the first photo of which case, by which method, with how many model calls; `batch` is a setting of
    its caller.
    """

    case: str
    method: str
    who: str
    calls: int = 512
    batch: int | None = None

    def explain(self) -> Explain:
        """The explanation, ready to be timed."""
        return {"pellucid": _pellucid, "Captum": _captum, "shap": _shap}[self.who](_photo(self.case), self)


@cache
def _photo(case: str) -> Photo:
    photo = photos_of(case)[0]
    photo.model.net.requires_grad_(False)
    return photo


def _pellucid(photo: Photo, how: Contender) -> Explain:
    segments, target = pl.Patches(CELLS), photo.target
    explain: pl.Explainer
    if how.method == "occlusion":
        explain = pl.Occlusion(segments=segments)
    else:
        estimator = {"regression": pl.Regression(), "paired-gp": pl.PairedGP()}[how.method]
        explain = pl.KernelSHAP(segments=segments, estimator=estimator, budget=how.calls)
    return lambda: explain(photo.model, photo.x, target).scores


def _captum(photo: Photo, how: Contender) -> Explain:
    from captum import attr

    net, labels = photo.model.net, pl.Patches(CELLS).labels(photo.x)[:, None]
    given = {"baselines": photo.absent, "target": photo.target, "feature_mask": labels}
    if how.batch is not None:
        given["perturbations_per_eval"] = how.batch
    if how.method == "occlusion":
        ablation = attr.FeatureAblation(net)
        return lambda: ablation.attribute(photo.x, **given)[:, :1]
    kernel = attr.KernelShap(net)
    return lambda: kernel.attribute(photo.x, n_samples=how.calls, **given)[:, :1]


def _shap(photo: Photo, how: Contender) -> Explain:
    import shap

    labels = pl.Patches(CELLS).labels(photo.x)[0]
    net, target, batch, players = photo.model.net, photo.target, how.batch or how.calls, CELLS**2

    def score(masks: np.ndarray) -> np.ndarray:
        parts = torch.from_numpy(masks > 0.5).split(batch)
        with torch.no_grad():
            rows = (torch.where(part[:, None, labels], photo.x, photo.absent) for part in parts)
            return torch.cat([net(some)[:, target] for some in rows]).numpy()

    def run() -> Tensor:
        explain = shap.KernelExplainer(score, np.zeros((1, players)))
        values = explain.shap_values(np.ones((1, players)), nsamples=how.calls, l1_reg=0, silent=True)[0]
        return torch.from_numpy(values)[labels][None, None]

    return run
