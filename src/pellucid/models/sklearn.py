"""A fitted scikit-learn estimator as a model: its scores, and its weights where it is linear; an object, or a file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.core.card import Cost, Needs
from pellucid.core.model import UNKNOWN, Model
from pellucid.errors import ArgumentError, MissingNeed, ModelError, UntrustedModel
from pellucid.models.told import one_line

__all__ = ["SklearnModel", "read_skops"]

_INSTALL = "which is not installed. Install it: pip install"
_LISTED = 10  # types in an error
_MOST_SCHEMA = 32 * 2**20  # bytes of what a skops file says of itself, which is read as JSON, in twenty times as many
_MOST_BYTES = 4 * 2**30  # of such a file, unpacked


class SklearnModel(Model):
    """A fitted classifier or regressor of scikit-learn, or a pipeline that ends in one, given as an object: nothing is
    unpickled.

    A classifier's outputs are its probabilities, or else its decision function; two-class scores become two columns,
    the first with the other sign. Labels are the estimator's classes unless given. One that was fitted on a table with
    column names gets its rows with these names, in their order; `columns` holds them.

    Raises:
        ArgumentError: not an estimator that predicts.
        ModelError: it is not fitted, or predicts several labels at once.

    Example:
        >>> import numpy as np, pellucid as pl
        >>> from sklearn.linear_model import LinearRegression
        >>> line = LinearRegression().fit(np.array([[0.0], [1.0]]), np.array([1.0, 3.0]))
        >>> pl.LinearExplanation()(pl.SklearnModel(line)).scores.round(decimals=6).tolist()
        [[2.0]]
    """

    def __init__(self, estimator: Any, *, labels: Sequence[str] | None = None) -> None:
        try:
            from sklearn.base import BaseEstimator, is_classifier
            from sklearn.exceptions import NotFittedError
            from sklearn.utils.validation import check_is_fitted
        except ImportError as error:
            raise ModelError(f"SklearnModel needs scikit-learn, {_INSTALL} 'pellucid[sklearn]'.") from error
        if not isinstance(estimator, BaseEstimator):
            raise ArgumentError(f"SklearnModel takes a scikit-learn estimator. Got {type(estimator).__name__}.")
        if not hasattr(estimator, "predict"):
            raise ArgumentError(
                f"SklearnModel takes an estimator that predicts. {type(estimator).__name__} has no predict(): give the "
                "pipeline that ends in a classifier or a regressor."
            )
        try:
            check_is_fitted(estimator)
        except NotFittedError as error:
            raise ModelError(f"{type(estimator).__name__} is not fitted. Call its fit(X, y) first.") from error
        self.classifier = is_classifier(estimator)
        if self.classifier and not isinstance(estimator.classes_, np.ndarray):
            raise ModelError(
                f"{type(estimator).__name__} predicts several labels at once, {len(estimator.classes_)} of them. Fit "
                "one estimator for each, and explain them one by one."
            )
        if labels is None and self.classifier:
            labels = [str(name) for name in estimator.classes_]
        probable = self.classifier and getattr(estimator, "predict_proba", None) is not None
        kind = "probabilities" if probable else "logits" if self.classifier else "regression"
        super().__init__(preprocess=None, labels=labels, output=kind, micro_batch=None)
        self.estimator = estimator
        self.name = type(estimator).__name__
        names = getattr(estimator, "feature_names_in_", None)
        self.columns = None if names is None else tuple(str(name) for name in names)
        self.offers = Needs.SCORES | (Needs.WEIGHTS if self._weights() is not None else Needs.NOTHING)

    def outputs(self, x: Float[Tensor, "b *features"]) -> Float[Tensor, "b k"]:
        self.passes += Cost(forward=len(x))
        try:
            return self._scores(self._table(x.detach().cpu().numpy())).to(x.dtype)
        except ValueError as error:
            raise ModelError(f"{self.name} failed on rows of shape {tuple(x.shape)}: {error}") from error

    def _table(self, rows: np.ndarray) -> Any:
        """The rows as the estimator was fitted on them."""
        if self.columns is None:
            return rows
        if rows.ndim != 2 or rows.shape[1] != len(self.columns):
            raise ModelError(
                f"{self.name} takes rows of {len(self.columns)} columns ({', '.join(self.columns[:_LISTED])}"
                f"{', …' if len(self.columns) > _LISTED else ''}). Got rows of shape {rows.shape[1:]}."
            )
        try:
            import pandas as pd
        except ImportError as error:
            raise ModelError(
                f"{self.name} was fitted on a table with column names and needs pandas, {_INSTALL} pandas."
            ) from error
        return pd.DataFrame(rows, columns=list(self.estimator.feature_names_in_))

    def _scores(self, rows: Any) -> Tensor:
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
        found = np.asarray(scores(self._table(rows)))
        found = self._both_signs(found) if self.classifier else found
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


def read_skops(path: Path, *, trust: bool = False) -> Any:
    """The object in a file of skops.io, which lists what it is made of: types that scikit-learn and skops vouch for, or
    others, which can run code and are loaded only if `trust` says so.

    Raises:
        UntrustedModel: other types; they are named.
        ModelError: no such file, a damaged one, or skops is not installed.
    """
    try:
        from skops import io
    except ImportError as error:
        raise ModelError(f"{path}: a .skops file needs skops, {_INSTALL} 'pellucid[sklearn]'.") from error
    if not path.is_file():
        raise ModelError(f"{path}: there is no such file.")
    _check_sizes(path)
    try:
        others = io.get_untrusted_types(file=path)
    except Exception as error:  # a damaged file fails anywhere
        raise ModelError(f"{path}: no file of skops.io, or a damaged one. {_told(error)}") from error
    if others and not trust:
        raise UntrustedModel(
            f"{path}: holds types that can run code: {_in_short(others)}. If you know who made the "
            "file, trust=True (--trust-model) loads it anyhow."
        )
    try:
        return io.load(path, trusted=others)
    except Exception as error:  # another release of scikit-learn fails anywhere
        raise ModelError(f"{path}: cannot be loaded here. {_told(error)}") from error


def _check_sizes(path: Path) -> None:
    """Raises ModelError for a file that unpacks to more than can be wanted, by what it says of itself: Python reads no
    more of a part than that.
    """
    try:
        with ZipFile(path) as archive:
            parts = archive.infolist()
    except Exception as error:  # a damaged file fails anywhere
        raise ModelError(f"{path}: no file of skops.io, or a damaged one. {_told(error)}") from error
    schema = sum(part.file_size for part in parts if part.filename == "schema.json")
    if schema > _MOST_SCHEMA or sum(part.file_size for part in parts) > _MOST_BYTES:
        raise ModelError(
            f"{path}: unpacks to over {_MOST_BYTES // 2**30} GiB, or its schema.json to over {_MOST_SCHEMA // 2**20} "
            "MiB, which is too large to be loaded. Fit a smaller estimator, or give a function that predicts with it: "
            "file.py:function."
        )


def _told(error: Exception) -> str:
    return one_line(f"{type(error).__name__}: {error}", 500)


def _in_short(types: Sequence[str]) -> str:
    more = f" and {len(types) - _LISTED} more" if len(types) > _LISTED else ""
    return ", ".join(one_line(name, 100) for name in types[:_LISTED]) + more
