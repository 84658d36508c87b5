import json
import sys
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LinearRegression, LogisticRegression, RidgeClassifier
from sklearn.multioutput import MultiOutputClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier
from skops import io

import pellucid as pl
from pellucid.models import sklearn
from pellucid.models.sklearn import read_skops

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 3))
TWO = np.where(X @ [1.0, -2.0, 0.5] > 0, "yes", "no")
THREE = np.digitize(X[:, 0], [-0.5, 0.5])
ROWS = torch.from_numpy(X[:5])


def test_a_classifier_predicts_its_probabilities_with_its_labels():
    fitted = LogisticRegression().fit(X, TWO)
    prediction = pl.SklearnModel(fitted).predict(ROWS)
    np.testing.assert_allclose(prediction.outputs, fitted.predict_proba(X[:5]))
    assert prediction[0].top(1)[0][0] in ("yes", "no")
    assert prediction.kind == "probabilities"


def test_two_class_coefficients_have_a_row_for_each_class():
    fitted = LogisticRegression().fit(X, TWO)
    a = pl.LinearExplanation()(pl.SklearnModel(fitted))
    np.testing.assert_allclose(a.scores, np.concatenate([-fitted.coef_, fitted.coef_]))
    assert [d.label for d in a.decisions] == ["no", "yes"]


def test_three_class_coefficients_are_its_own():
    fitted = LogisticRegression().fit(X, THREE)
    np.testing.assert_allclose(pl.LinearExplanation()(pl.SklearnModel(fitted)).scores, fitted.coef_)


@pytest.mark.parametrize("labels", [TWO, THREE])
def test_a_classifier_without_probabilities_gives_its_decision_function(labels):
    fitted = RidgeClassifier().fit(X, labels)
    model = pl.SklearnModel(fitted)
    outputs = model.predict(ROWS).outputs
    assert fitted.classes_[outputs.argmax(1)].tolist() == fitted.predict(X[:5]).tolist()
    weights, intercept = model.coefficients()
    np.testing.assert_allclose(outputs, X[:5] @ weights.numpy().T + intercept.numpy())


def test_a_regression_predicts_its_value():
    fitted = LinearRegression().fit(X, X[:, 0] * 2)
    prediction = pl.SklearnModel(fitted).predict(ROWS)
    np.testing.assert_allclose(prediction.outputs[:, 0], X[:5, 0] * 2, atol=1e-12)
    assert prediction.kind == "regression"


def test_a_tree_offers_scores_only():
    tree = pl.SklearnModel(DecisionTreeClassifier().fit(X, TWO))
    assert tree.offers == pl.Needs.SCORES
    with pytest.raises(pl.MissingNeed, match="not linear"):
        tree.coefficients()
    assert tree.fingerprint() == "unknown"


def test_the_fingerprint_follows_the_coefficients():
    one, other = (pl.SklearnModel(LogisticRegression(C=c).fit(X, TWO)).fingerprint() for c in (1.0, 2.0))
    assert one != other


def test_coefficients_that_are_not_the_models_scores_are_refused():
    from sklearn.linear_model import PoissonRegressor

    four = np.digitize(X[:, 0], [-0.8, 0, 0.8])
    counts = PoissonRegressor().fit(X, np.exp(X[:, 0]))
    for estimator in (SVC(kernel="linear").fit(X, four), counts):
        with pytest.raises(pl.MissingNeed, match=r"its scores are not W x \+ b"):
            pl.LinearExplanation()(pl.SklearnModel(estimator))


def test_rows_of_the_wrong_width_are_refused_by_name():
    with pytest.raises(pl.ModelError, match="LinearRegression failed on rows of shape"):
        pl.SklearnModel(LinearRegression().fit(X, X[:, 0])).predict(torch.ones(1, 5))


@pytest.mark.doors
def test_what_is_unfit_is_refused_in_words():
    with pytest.raises(pl.ModelError, match=r"not fitted. Call its fit"):
        pl.SklearnModel(LogisticRegression())
    with pytest.raises(pl.ArgumentError, match="takes a scikit-learn estimator"):
        pl.SklearnModel(3)
    with pytest.raises(pl.ArgumentError, match=r"StandardScaler has no predict\(\): give the pipeline"):
        pl.SklearnModel(StandardScaler().fit(X))
    both = MultiOutputClassifier(LogisticRegression()).fit(X, np.stack([TWO, TWO], 1))
    with pytest.raises(pl.ModelError, match="predicts several labels at once, 2 of them"):
        pl.SklearnModel(both)


# Pipelines and tables


TABLE = pd.DataFrame(X, columns=["age", "height", "weight"])


@pytest.mark.parametrize(
    ("last", "labels", "outputs"),
    [
        (LogisticRegression(), TWO, lambda fitted: fitted.predict_proba(X[:5])),
        (LogisticRegression(), THREE, lambda fitted: fitted.predict_proba(X[:5])),
        (RidgeClassifier(), TWO, lambda fitted: np.outer(fitted.decision_function(X[:5]), [-1, 1])),
        (SVC(), THREE, lambda fitted: fitted.decision_function(X[:5])),
        (LinearRegression(), X[:, 0], lambda fitted: fitted.predict(X[:5])[:, None]),
        (LinearRegression(), X[:, :2], lambda fitted: fitted.predict(X[:5])),
    ],
)
def test_a_pipeline_predicts_as_its_last_step_does(last, labels, outputs):
    fitted = make_pipeline(StandardScaler(), last).fit(X, labels)
    model = pl.SklearnModel(fitted)
    np.testing.assert_allclose(model.predict(ROWS).outputs, outputs(fitted))
    if isinstance(labels[0], str):
        assert model.labels.names == ("no", "yes")
    assert model.offers == pl.Needs.SCORES
    assert model.fingerprint() == "unknown"


def test_a_pipeline_gets_the_columns_that_it_was_fitted_on_by_name():
    one = ColumnTransformer([("one", StandardScaler(), ["weight"])])
    fitted = make_pipeline(one, LogisticRegression()).fit(TABLE, TWO)
    model = pl.SklearnModel(fitted)
    assert model.columns == ("age", "height", "weight")
    np.testing.assert_allclose(model.predict(ROWS).outputs, fitted.predict_proba(TABLE[:5]))


def test_an_estimator_that_was_fitted_on_a_table_is_explained_without_warnings():
    model = pl.SklearnModel(LogisticRegression().fit(TABLE, TWO))
    assert pl.LinearExplanation()(model).scores.shape == (2, 3)
    assert pl.Occlusion()(model, ROWS, "yes").scores.shape == (5, 3)


@pytest.mark.doors
def test_rows_without_the_columns_are_refused_by_name():
    model = pl.SklearnModel(LogisticRegression().fit(TABLE, TWO))
    with pytest.raises(
        pl.ModelError, match=r"takes rows of 3 columns \(age, height, weight\). Got rows of shape \(2,\)"
    ):
        model.predict(torch.ones(1, 2))


@pytest.mark.doors
@pytest.mark.parametrize(
    ("package", "words"), [("pandas", "needs pandas, which is not installed"), ("sklearn.base", "pellucid.sklearn")]
)
def test_what_is_not_installed_is_named(monkeypatch, package, words):
    fitted = LogisticRegression().fit(TABLE, TWO)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(pl.ModelError, match=words):
        pl.SklearnModel(fitted).predict(ROWS)


# Files


class Own(LogisticRegression):
    """A type that neither scikit-learn nor skops knows."""


def test_a_file_of_known_types_is_loaded(tmp_path):
    fitted = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, TWO)
    io.dump(fitted, tmp_path / "model.skops")
    found = pl.SklearnModel(read_skops(tmp_path / "model.skops"))
    np.testing.assert_array_equal(found.predict(ROWS).outputs, fitted.predict_proba(X[:5]))


@pytest.mark.doors
def test_other_types_are_listed_and_loaded_only_on_trust(tmp_path):
    path = tmp_path / "model.skops"
    io.dump(Own().fit(X, TWO), path)
    with pytest.raises(
        pl.UntrustedModel, match=r"holds types that can run code: .*Own\. If you know who made the file"
    ):
        read_skops(path)
    assert read_skops(path, trust=True).coef_.shape == (1, 3)


@pytest.mark.doors
def test_what_is_no_skops_file_is_told(tmp_path):
    path = Path(tmp_path / "model.skops")
    with pytest.raises(pl.ModelError, match="there is no such file"):
        read_skops(path)
    path.write_bytes(b"junk")
    with pytest.raises(pl.ModelError, match=r"no file of skops.io, or a damaged one. BadZipFile"):
        read_skops(path)


@pytest.mark.doors
def test_a_file_that_unpacks_to_too_much_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "model.skops"
    io.dump(LogisticRegression().fit(X, TWO), path)
    with ZipFile(path) as archive:
        parts = {part.filename: part.file_size for part in archive.infolist()}
    for limit, most in [("_MOST_SCHEMA", parts["schema.json"]), ("_MOST_BYTES", sum(parts.values()))]:
        monkeypatch.setattr(sklearn, limit, most)
        assert read_skops(path).coef_.shape == (1, 3)
        monkeypatch.setattr(sklearn, limit, most - 1)
        monkeypatch.setattr(ZipFile, "open", None)
        with pytest.raises(pl.ModelError, match=r"model.skops: unpacks to over"):
            read_skops(path, trust=True)
        monkeypatch.undo()


@pytest.mark.doors
def test_names_of_a_file_do_not_act_on_a_terminal(tmp_path):
    good, path = tmp_path / "good.skops", tmp_path / "model.skops"
    io.dump(LogisticRegression().fit(X, TWO), good)
    with ZipFile(good) as archive, ZipFile(path, "w") as other:
        for name in archive.namelist():
            content = archive.read(name)
            if name == "schema.json":
                content = json.dumps({**json.loads(content), "__class__": "\x1b]0;pwned\x07" + "x" * 1000}).encode()
            other.writestr(name, content)
    with pytest.raises(pl.UntrustedModel, match="pwned") as told:
        read_skops(path)
    assert str(told.value).isprintable()
    assert len(str(told.value)) < 500 + len(str(path))


@pytest.mark.doors
def test_without_skops_it_is_said_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "skops", None)
    with pytest.raises(pl.ModelError, match=r"pip install 'pellucid\[sklearn\]'"):
        read_skops(tmp_path / "model.skops")
