import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression, LogisticRegression, RidgeClassifier
from sklearn.tree import DecisionTreeClassifier

import pellucid as pl

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
    from sklearn.svm import SVC

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
