"""A fitted scikit-learn estimator as a model: its scores, and its weights where it is linear."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.core.card import Cost, Needs
from pellucid.core.model import UNKNOWN, Model
from pellucid.errors import ArgumentError, MissingNeed, ModelError

__all__ = ["SklearnModel"]


class SklearnModel(Model):
    """A fitted classifier or regressor of scikit-learn, given as an object: nothing is unpickled.

    A classifier's outputs are its probabilities, or else its decision function; two-class scores become two columns,
    the first with the other sign. Labels are the estimator's classes unless given.

    Raises:
        ArgumentError: not an estimator.
        ModelError: it is not fitted.

    Example:
        >>> import numpy as np, pellucid as pl
        >>> from sklearn.linear_model import LinearRegression
        >>> line = LinearRegression().fit(np.array([[0.0], [1.0]]), np.array([1.0, 3.0]))
        >>> pl.LinearExplanation()(pl.SklearnModel(line)).scores.round(decimals=6).tolist()
        [[2.0]]
    """

    def __init__(self, estimator: Any, *, labels: Sequence[str] | None = None) -> None:
        from sklearn.base import BaseEstimator, is_classifier
        from sklearn.exceptions import NotFittedError
        from sklearn.utils.validation import check_is_fitted

        if not isinstance(estimator, BaseEstimator):
            raise ArgumentError(f"SklearnModel takes a scikit-learn estimator. Got {type(estimator).__name__}.")
        try:
            check_is_fitted(estimator)
        except NotFittedError as error:
            raise ModelError(f"{type(estimator).__name__} is not fitted. Call its fit(X, y) first.") from error
        self.classifier = is_classifier(estimator)
        if labels is None and self.classifier:
            labels = [str(name) for name in estimator.classes_]
        probable = self.classifier and getattr(estimator, "predict_proba", None) is not None
        kind = "probabilities" if probable else "logits" if self.classifier else "regression"
        super().__init__(preprocess=None, labels=labels, output=kind, micro_batch=None)
        self.estimator = estimator
        self.name = type(estimator).__name__
        self.offers = Needs.SCORES | (Needs.WEIGHTS if self._weights() is not None else Needs.NOTHING)

    def outputs(self, x: Float[Tensor, "b *features"]) -> Float[Tensor, "b k"]:
        self.passes += Cost(forward=len(x))
        try:
            return self._scores(x.detach().cpu().numpy()).to(x.dtype)
        except ValueError as error:
            raise ModelError(f"{self.name} failed on rows of shape {tuple(x.shape)}: {error}") from error

    def _scores(self, rows: np.ndarray) -> Tensor:
        if self.output == "probabilities":
            scores = self.estimator.predict_proba(rows)
        elif self.classifier:
            scores = self._both_signs(self.estimator.decision_function(rows))
        else:
            scores = self.estimator.predict(rows)
        found = torch.as_tensor(np.asarray(scores))
        return found if found.ndim == 2 else found[:, None]

    def coefficients(self) -> tuple[Float[Tensor, "k *features"], Float[Tensor, " k"]]:
        weights = self._weights()
        if weights is None:
            raise MissingNeed(f"{self.name} has no coefficients: it is not linear in its inputs.")
        intercept = np.atleast_1d(np.asarray(self.estimator.intercept_, dtype=np.float64))
        weights = np.atleast_2d(weights)
        intercept = np.broadcast_to(intercept, (len(weights),))
        if self.classifier and len(weights) == 1:
            weights, intercept = np.concatenate([-weights, weights]), np.concatenate([-intercept, intercept])
        scores, linear = self.estimator.decision_function if self.classifier else self.estimator.predict, weights
        rows = np.stack([np.linspace(-1, 1, linear.shape[1]), np.linspace(2, 0, linear.shape[1])])
        found = self._both_signs(np.asarray(scores(rows))) if self.classifier else np.asarray(scores(rows))
        expected = rows @ linear.T + intercept
        if found.size != expected.size or not np.allclose(found.reshape(expected.shape), expected):
            raise MissingNeed(f"{self.name} has coefficients, but its scores are not W x + b, a row for each output.")
        return torch.from_numpy(weights.copy()), torch.from_numpy(intercept.copy())

    def fingerprint(self) -> str:
        import hashlib

        weights = self._weights()
        if weights is None:
            return UNKNOWN
        content = weights.tobytes() + np.asarray(self.estimator.intercept_).tobytes() + repr(self.estimator).encode()
        return hashlib.blake2b(content, digest_size=16).hexdigest()

    def _weights(self) -> np.ndarray | None:
        found = getattr(self.estimator, "coef_", None)
        return None if found is None or callable(found) else np.asarray(found, dtype=np.float64)

    def _both_signs(self, scores: np.ndarray) -> np.ndarray:
        return np.stack([-scores, scores], 1) if scores.ndim == 1 else scores
