"""Estimators for tables, and what they are made of."""

import os
import pickle
import signal
import threading
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.special import log_softmax, softmax
from sklearn import config_context
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.metrics import d2_pinball_score, log_loss
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from fastbp import make_tabular_classifier, make_tabular_regressor
from fastbp.tabular import (
    PiecewiseLinearEncoder,
    TabularClassifier,
    TabularRegressor,
    make_table_transformer,
)
from fastbp.tabular.columns import _label_of
from fastbp.tabular.ensembles import _deal_folds, _log_proba

SMALL = dict(hidden_layer_sizes=(8,), max_iter=4, random_state=0)


def small_classifier(**options):
    return make_tabular_classifier(**SMALL | options)


def small_regressor(**options):
    return make_tabular_regressor(**SMALL | options)


# Two members, and as much training as some of the checks ask for.
CHECKED = [
    make(hidden_layer_sizes=(16,), max_iter=30, n_members=2, random_state=0)
    for make in (make_tabular_classifier, make_tabular_regressor)
]
CHECKS = parametrize_with_checks(
    [PiecewiseLinearEncoder(), PiecewiseLinearEncoder(3, clip=False), *CHECKED],
    expected_failed_checks=lambda estimator: {
        "check_sample_weight_equivalence_on_dense_data": "which samples are held out depends on their number",
    } if isinstance(estimator, TabularClassifier | TabularRegressor) else {},
).mark  # fmt: skip


@pytest.mark.parametrize(CHECKS.args[0], list(CHECKS.args[1]), **CHECKS.kwargs)
def test_follows_the_conventions_of_scikit_learn(estimator, check):
    check(estimator)


# --- PiecewiseLinearEncoder ---


def encode(x, edges, clip):
    """Gorishniy et al. 2022, Eq. 1, one number and one bin at a time."""
    n_bins = len(edges) - 1
    row = []
    for t in range(1, n_bins + 1):
        if x < edges[t - 1] and (t > 1 or clip):
            row.append(0.0)
        elif x >= edges[t] and (t < n_bins or clip):
            row.append(1.0)
        else:
            row.append((x - edges[t - 1]) / (edges[t] - edges[t - 1]))
    return row


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_pieces_are_those_of_the_paper(clip, dtype):
    rng = np.random.default_rng(0)
    X = np.stack([rng.normal(size=60), rng.integers(0, 4, 60), np.full(60, 7)], axis=1).astype(dtype)
    encoder = PiecewiseLinearEncoder(5, clip=clip).fit(X)
    assert encoder.n_bins_.tolist() == [5, 3, 0]  # quantiles that coincide are merged, a constant has none
    assert encoder.bin_edges_[1].tolist() == [0, 1, 2, 3]
    counts, _ = np.histogram(X[:, 0], encoder.bin_edges_[0])
    assert counts.max() - counts.min() <= 2
    new = np.concatenate([X, 3 * X[:20]])
    expected = [encode(a, encoder.bin_edges_[0], clip) + encode(b, encoder.bin_edges_[1], clip) for a, b, _ in new]
    encoded = encoder.transform(new)
    assert encoded.dtype == dtype
    np.testing.assert_allclose(encoded, expected, rtol=1e-5 if dtype == np.float32 else 1e-12, atol=1e-6)


def test_pieces_have_names_and_a_type():
    frame = pd.DataFrame({"age": [1.0, 2, 3, 4], "one": 1.0, "height": [0.0, 1, 0, 1]})
    encoder = PiecewiseLinearEncoder(2, dtype=np.float32).fit(frame)
    assert encoder.get_feature_names_out().tolist() == ["age_bin0", "age_bin1", "height_bin0"]
    assert encoder.transform(frame).dtype == np.float32
    assert encoder.set_output(transform="pandas").transform(frame).columns.tolist()[0] == "age_bin0"


def test_pieces_of_numbers_that_float32_cannot_tell_apart_are_finite():
    X = np.array([[1e8], [1e8 + 1], [1e8 + 2], [1e8 + 64]])
    encoder = PiecewiseLinearEncoder(3).fit(X)
    encoded = encoder.transform(X.astype(np.float32))
    assert np.isfinite(encoded).all() and encoded.min() >= 0 and encoded.max() <= 1


def test_pieces_refuse_gaps():
    with pytest.raises(ValueError, match="NaN"):
        PiecewiseLinearEncoder().fit([[1.0], [np.nan]])


# --- columns of a table ---


def table(n=60, seed=0):
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "size": rng.normal(size=n),
            "count": pd.array(rng.integers(0, 9, n), dtype="Int64"),
            "open": rng.random(n) < 0.5,
            "colour": rng.choice(["red", "green", "blue"], n),
            "grade": pd.Categorical(rng.choice([1, 2, 3], n)),
        }
    )
    frame.loc[::7, "size"] = np.nan
    frame.loc[::5, "count"] = pd.NA
    frame.loc[::6, "colour"] = None
    y = np.where(frame["colour"].eq("red") | (frame["size"] > 0.5), "yes", "no")
    return frame, y


def test_columns_of_a_frame():
    frame, _ = table()
    transformer = make_table_transformer(n_bins=2)
    out = transformer.fit_transform(frame)
    names = transformer.get_feature_names_out().tolist()
    assert out.dtype == np.float32 and out.shape == (60, len(names)) and np.isfinite(out).all()
    columns = dict(zip(names, out.T, strict=True))
    assert [name for name in names if name.startswith("missing")] == [
        "missing__missingindicator_size", "missing__missingindicator_count",
    ]  # fmt: skip
    np.testing.assert_array_equal(columns["missing__missingindicator_size"], frame["size"].isna())
    np.testing.assert_array_equal(columns["categories__colour_missing"], frame["colour"].isna())
    np.testing.assert_array_equal(columns["categories__colour_red"], frame["colour"] == "red")
    np.testing.assert_array_equal(columns["categories__grade_2"], frame["grade"] == 2)
    # Scaled by the quartiles, filled with the median, clipped as the formula says.
    filled = frame["size"].fillna(frame["size"].median())
    z = (filled - filled.median()) / (filled.quantile(0.75) - filled.quantile(0.25))
    np.testing.assert_allclose(columns["scaled__size"], z / np.sqrt(1 + (z / 3) ** 2), rtol=1e-5, atol=1e-6)


def test_columns_without_information_are_left_out():
    frame = pd.DataFrame({"same": 3, "none": np.nan, "some": [1.0, None] * 10, "word": list("abcdefghijklmnopqrst")})
    transformer = make_table_transformer(min_frequency=1).fit(frame)
    names = transformer.get_feature_names_out().tolist()
    assert names[0] == "missing__missingindicator_some" and len(names) == 21
    assert transformer.transform(frame).shape == (20, 21)  # sparse


def test_rare_and_unknown_categories_share_an_input():
    X = np.array([["a"] * 8 + ["b"] * 8 + ["c", "d"]], dtype=object).T
    transformer = make_table_transformer().fit(X)
    assert transformer.get_feature_names_out().tolist() == [
        "categories__x0_a", "categories__x0_b", "categories__x0_infrequent_sklearn",
    ]  # fmt: skip
    for value in ("c", "d", "new", None):
        assert np.asarray(transformer.transform(np.array([[value]], dtype=object))).tolist() == [[0, 0, 1]]


def test_frames_of_polars_and_pandas_and_arrays_are_the_same_table():
    frame, y = table()
    simple = frame.assign(count=frame["count"].astype(float), grade=frame["grade"].astype(str))
    tables = [simple, simple.to_numpy(dtype=object), simple.astype(object).to_numpy().tolist()]
    try:
        import polars
    except ImportError:
        pass
    else:
        missing = simple["colour"].isna()
        tables.append(
            polars.DataFrame(
                {
                    "size": polars.Series(simple["size"].to_numpy(), nan_to_null=True),
                    "count": polars.Series(frame["count"].astype(object).where(frame["count"].notna(), None).tolist()),
                    "open": simple["open"].tolist(),
                    "colour": [None if no else value for no, value in zip(missing, simple["colour"], strict=True)],
                    "grade": polars.Series(simple["grade"].tolist(), dtype=polars.Categorical),
                }
            )
        )
    expected = make_table_transformer().fit_transform(simple)
    for other in tables:
        np.testing.assert_array_equal(make_table_transformer().fit_transform(other), expected)
        assert small_classifier(n_members=1).fit(other, y).predict(other).shape == (60,)


REFUSED = {
    "dates": (pd.Series(pd.date_range("2020-01-01", periods=40)), "dates or times.*day of the week"),
    "objects": (pd.Series(list(pd.date_range("2020-01-01", periods=40).date)), "dates or times"),
    "strings": (pd.Series([f"2020-01-{1 + i % 28:02d} 10:00" for i in range(40)]), "dates or times"),
    "durations": (pd.Series(pd.to_timedelta(np.arange(40), unit="h")), "dates or times"),
    "text": (pd.Series([f"the film number {i} is good" for i in range(40)]), "text.*TfidfVectorizer"),
    "numbers": (pd.Series([f"{i}.5" for i in range(40)]), "Convert the column to numbers"),
    "lists": (pd.Series([[i] for i in range(40)]), "type list"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name):
    column, message = REFUSED[name]
    with pytest.raises((ValueError, TypeError), match=rf"(?s)Column 'what'.*{message}"):
        make_tabular_classifier().fit(pd.DataFrame({"what": column}), np.arange(40) % 2)


def test_text_that_is_said_to_be_categories_is_taken():
    frame = pd.DataFrame({"what": REFUSED["text"][0].astype("category"), "x": np.arange(40.0)})
    assert small_classifier().fit(frame, np.arange(40) % 2).n_features_in_ == 2


def test_columns_that_hold_something_else_in_prediction_are_refused():
    frame = pd.DataFrame({"v": np.arange(100.0), "w": np.arange(100.0) % 7})
    model = small_classifier().fit(frame, frame.v > 50)
    for column, message in [
        (pd.date_range("2020-01-01", periods=100), "Column 'w' holds dates"),
        (np.full(100, 1 + 2j), "Column 'w' holds values of type complex"),
        (["abc"] * 100, "Column 'w' held numbers in fit"),
        (np.where(frame.v < 3, np.inf, 1.0), "Column 'w' contains infinity"),
    ]:
        with pytest.raises((TypeError, ValueError), match=message):
            model.predict(frame.assign(w=column))


@pytest.mark.parametrize("share", [3, 100])
def test_infinity_is_refused(share):
    frame = pd.DataFrame({"v": np.arange(100.0), "w": np.where(np.arange(100) < share, np.inf, 1.0)})
    with pytest.raises(ValueError, match="Column 'w' contains infinity"):
        small_classifier().fit(frame, frame.v > 50)


def test_columns_of_rare_categories_are_named():
    frame = pd.DataFrame({"v": np.arange(100.0), "id": [f"id{i}" for i in range(100)]})
    with pytest.warns(UserWarning, match="Column 'id' has 100 different categories in 100 rows"):
        small_classifier().fit(frame, frame.v > 50)


@pytest.mark.parametrize("output", ["pandas", "polars"])
def test_the_output_that_users_want_to_see_elsewhere_makes_no_difference(output):
    pytest.importorskip(output)
    frame = pd.DataFrame({"v": np.arange(100.0), "c": ["a", "b"] * 50})
    expected = small_classifier().fit(frame, frame.v > 50).predict_proba(frame)
    with config_context(transform_output=output):
        found = small_classifier().fit(frame, frame.v > 50).predict_proba(frame)
    np.testing.assert_array_equal(found, expected)


def test_a_frame_without_rows_yet():
    class LazyFrame:
        columns = ["v"]

        def collect(self):
            raise AssertionError

    with pytest.raises(TypeError, match=r"LazyFrame holds no rows yet. Pass X.collect\(\)"):
        small_classifier().fit(LazyFrame(), [0, 1])


def test_labels_of_categories():
    values = ["a", 3, 3.0, 2.5, True, None, np.nan, np.float32("nan"), pd.NA, pd.NaT]
    assert [_label_of(value) for value in values] == ["a", "3", "3", "2.5", "True", *["missing"] * 5]


# --- ensembles ---


def test_hold_outs_have_their_share_of_each_class():
    strata = np.repeat([0, 1, 2], [50, 23, 2])
    folds = _deal_folds(strata, 5, np.random.RandomState(0))
    counts = np.array([np.bincount(folds[strata == c], minlength=5) for c in range(3)])
    assert np.all(counts.max(axis=1) - counts.min(axis=1) <= 1)
    assert not np.array_equal(folds, _deal_folds(strata, 5, np.random.RandomState(1)))


def test_the_temperature_is_the_best_for_the_hold_outs():
    X, y = load_breast_cancer(return_X_y=True)
    clf = small_classifier(max_iter=10).fit(X, y)
    folds = _deal_folds(y, 5, np.random.RandomState(0))
    inputs = clf.transformer_.transform(X)
    logits = np.concatenate([_log_proba(member, inputs[folds == k]) for k, member in enumerate(clf.members_)])
    labels = np.concatenate([y[folds == k] for k in range(4)])
    doubt = 1 / (len(labels) + 2)

    def loss(temperature):
        log_proba = log_softmax(logits / temperature, axis=1)
        return -np.mean((1 - doubt) * log_proba[np.arange(len(labels)), labels] + doubt * log_proba.mean(axis=1))

    assert loss(clf.temperature_) < min(loss(0.98 * clf.temperature_), loss(1.02 * clf.temperature_))
    # And the ensemble is the mean of the probabilities that follow.
    logits = [_log_proba(member, inputs) / clf.temperature_ for member in clf.members_]
    np.testing.assert_allclose(clf.predict_proba(X), np.mean(softmax(logits, axis=2), axis=0), rtol=1e-9)
    np.testing.assert_allclose(clf.predict_proba(X), np.exp(clf.predict_log_proba(X)), rtol=1e-9)


@pytest.mark.parametrize("make", [small_classifier, small_regressor])
def test_results_do_not_depend_on_threads(make):
    frame, y = table()
    y = y if make is small_classifier else (y == "yes").astype(float)
    one, three = (make(n_jobs=n).fit(frame, y) for n in (1, 3))
    for a, b in zip(one.members_, three.members_, strict=True):
        for left, right in zip(a.coefs_ + a.intercepts_, b.coefs_ + b.intercepts_, strict=True):
            np.testing.assert_array_equal(left, right)
    np.testing.assert_array_equal(one.predict(frame), three.predict(frame))
    assert len({member.coefs_[0].tobytes() for member in one.members_}) == 4


def test_labels_of_any_kind():
    X, y = load_iris(return_X_y=True)
    for names in (["setosa", "other", "virginica"], [7, -1, 3], ["no", "yes", "yes"], [False, True, True]):
        labels = np.array(names)[y]
        clf = small_classifier(hidden_layer_sizes=(32,), max_iter=30).fit(X, labels)
        assert clf.classes_.tolist() == sorted(set(names)) and clf.score(X, labels) > 0.9
        assert clf.predict_proba(X).shape == (150, len(clf.classes_))


def test_a_class_with_a_single_sample_is_known_to_all_members():
    X, y = load_iris(return_X_y=True)
    y[0] = 9
    clf = small_classifier().fit(X, y)
    assert clf.classes_.tolist() == [0, 1, 2, 9] and clf.predict_proba(X).shape == (150, 4)


def test_weights_matter():
    X, y = load_breast_cancer(return_X_y=True)
    weight = np.where(y == 0, 20.0, 1.0)
    plain, weighted = (small_classifier().fit(X, y, sample_weight=w) for w in (None, weight))
    assert (weighted.predict(X) == 0).sum() > (plain.predict(X) == 0).sum()
    assert np.array_equal(small_classifier().fit(X, y, np.ones(len(y))).predict_proba(X), plain.predict_proba(X))
    X, y = load_diabetes(return_X_y=True)
    weight = np.where(y > np.median(y), 50.0, 1.0)
    plain, weighted = (small_regressor().fit(X, y, sample_weight=w) for w in (None, weight))
    assert weighted.predict(X).mean() > plain.predict(X).mean()


def test_targets_are_standardised_and_predictions_stay_in_their_range():
    X, y = load_diabetes(return_X_y=True)
    reg = make_tabular_regressor(max_iter=10, random_state=0).fit(X, y)
    mean = np.mean([member.predict(reg.transformer_.transform(X)) for member in reg.members_], axis=0)
    expected = StandardScaler().fit(y[:, None]).inverse_transform(mean[:, None]).ravel()
    np.testing.assert_allclose(reg.predict(X), np.clip(expected, y.min(), y.max()), rtol=1e-6)
    assert reg.predict(1e6 * X).max() <= y.max()
    both = small_regressor().fit(X, np.stack([y, 1000 - 2 * y], axis=1))
    assert both.predict(X).shape == (442, 2)
    assert np.all(small_regressor(loss="poisson").fit(X, y).predict(X) >= y.min())


def test_tools_of_scikit_learn():
    frame, y = table()
    clf = small_classifier(n_members=2)
    search = GridSearchCV(clf, {"estimator__hidden_layer_sizes": [(4,), (6,)], "n_members": [1, 2]}, cv=2)
    search.fit(frame, y)
    assert search.best_estimator_.members_[0].hidden_layer_sizes == search.best_params_["estimator__hidden_layer_sizes"]
    fitted = search.best_estimator_
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.predict_proba(frame), fitted.predict_proba(frame))
    np.testing.assert_array_equal(clone(fitted).fit(frame, y).predict_proba(frame), fitted.predict_proba(frame))
    assert fitted.feature_names_in_.tolist() == frame.columns.tolist()
    assert "ColumnTransformer" in fitted.set_params(transformer=make_table_transformer())._repr_html_()
    without = make_table_transformer().set_params(pieces="drop", missing="drop")
    assert cross_val_score(small_classifier(transformer=without), frame, y, cv=2).shape == (2,)


def test_overrides_go_where_they_belong():
    clf = make_tabular_classifier(n_members=3, learning_rate_init=0.1, random_state=4, n_jobs=1)
    assert (clf.n_members, clf.random_state, clf.n_jobs) == (3, 4, 1)
    assert clf.estimator.learning_rate_init == 0.1 and clf.estimator.random_state is None
    with pytest.raises(TypeError, match="learning_rates: no parameter of TabularClassifier or BackpropClassifier"):
        make_tabular_classifier(learning_rates=0.1)


def test_defaults_give_way_to_what_excludes_them():
    assert small_classifier(solver="adam").estimator.weight_decay == 0
    lbfgs = small_classifier(solver="lbfgs").estimator
    assert (lbfgs.weight_decay, lbfgs.dropout) == (0, 0)
    assert small_classifier(loss="squared_error").estimator.label_smoothing == 0
    X, y = load_iris(return_X_y=True)
    with pytest.raises(ValueError, match=r"weight_decay=0\.2 is for solver='adamw'"):
        small_classifier(solver="adam", weight_decay=0.2).fit(X, y)


def test_time_limit_is_said_once():
    X, y = load_iris(return_X_y=True)
    with pytest.warns(UserWarning) as found:
        small_classifier(max_time=0.3, max_iter=10**6, max_updates=None).fit(X, y)
    assert len(found) == 1
    assert str(found[0].message).startswith("Training stopped after max_time=0.3 seconds: the networks have trained")
    assert found[0].filename == __file__


@pytest.mark.parametrize("levels", [[0.1, 0.9], [0.1, 0.5, 0.9]])
def test_several_levels_have_a_score(levels):
    X, y = load_diabetes(return_X_y=True)
    model = small_regressor(loss="quantile", quantile=levels, max_iter=20).fit(X, y)
    columns = model.predict(X).T
    expected = np.mean([d2_pinball_score(y, column, alpha=a) for column, a in zip(columns, levels, strict=True)])
    assert model.score(X, y) == pytest.approx(expected) and expected > 0.1


def test_counts_far_from_zero():
    X, _ = load_diabetes(return_X_y=True)
    means = 100 + 30 * np.tanh(30 * X[:, 2])
    model = make_tabular_regressor(loss="poisson", random_state=0).fit(X, means)
    assert model.score(X, means) > 0.9
    with pytest.raises(ValueError, match=r"loss='poisson' needs targets that are not negative"):
        model.fit(X, means - 200)


def test_large_tables_have_fewer_epochs():
    X, y = load_diabetes(return_X_y=True)
    for limit, epochs in ((None, 4), (50, 3), (1, 1)):  # 353 samples in 23 batches of 16
        reg = small_regressor(n_members=1, max_updates=limit).fit(X, y)
        assert reg.members_[0].n_iter_ == epochs


def test_one_class_is_refused():
    with pytest.raises(ValueError, match=r"1 class, \['a'\]"):
        make_tabular_classifier().fit([[1.0], [2.0]], ["a", "a"])


def test_a_table_of_constants_is_refused():
    with pytest.raises(ValueError, match="All columns are constant"):
        make_tabular_classifier().fit([[1.0], [1.0]], ["a", "b"])


def test_a_fit_that_fails_changes_no_result():
    frame, y = table()
    clf = small_classifier(n_members=1).fit(frame, y)
    before = clf.predict_proba(frame)
    with pytest.raises(ValueError, match="Column 'colour'"):
        clf.fit(frame.assign(colour=pd.date_range("2020-01-01", periods=60)), y)
    np.testing.assert_array_equal(clf.predict_proba(frame), before)


def test_better_than_a_constant_and_calibrated():
    X, y = load_breast_cancer(return_X_y=True)
    X, X_test, y, y_test = train_test_split(X, y, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clf = make_tabular_classifier(random_state=0).fit(X, y)
    assert clf.score(X_test, y_test) > 0.94 and log_loss(y_test, clf.predict_proba(X_test)) < 0.15
    X, y = load_diabetes(return_X_y=True)
    X, X_test, y, y_test = train_test_split(X, y, random_state=0)
    assert make_tabular_regressor(random_state=0).fit(X, y).score(X_test, y_test) > 0.25


@pytest.mark.parametrize("solver", ["adamw", "lbfgs"])
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_ctrl_c_ends_the_training_of_all_members(n_jobs, solver, ctrl_c_interrupts):
    """No member trains on, neither the next one on the same thread nor those on other threads."""
    X, y = load_diabetes(return_X_y=True)
    options = {"solver": "lbfgs", "dropout": 0.0, "weight_decay": 0.0, "tol": 0.0} if solver == "lbfgs" else {}
    epochs = []

    def score(estimator, X, y):
        epochs.append(threading.current_thread())
        if len(epochs) == 5:
            os.kill(os.getpid(), signal.SIGINT)  # as a terminal does; Python answers in the main thread
        return 0.0

    reg = small_regressor(n_jobs=n_jobs, max_iter=100_000, max_updates=None, scoring=score, **options)
    before = dict(vars(reg))
    with pytest.raises(KeyboardInterrupt):
        reg.fit(X, y)
    assert vars(reg) == before
    for thread in set(epochs):
        thread.join(20)
        assert not thread.is_alive()


def test_weights_count_in_the_hold_outs_too():
    """Samples of weight 0 have no say in which epoch is the best."""
    X, y = load_diabetes(return_X_y=True)
    weight = np.ones(len(y))
    weight[::3] = 0
    wrong = np.where(weight == 0, y.max() - y, y)
    reg = small_regressor(n_members=1, max_iter=30, learning_rate_init=0.05)
    member = reg.fit(X, wrong, sample_weight=weight).members_[0]
    folds = _deal_folds(wrong, 5, np.random.RandomState(0))
    targets = reg.target_scaler_.transform(wrong[:, None])[folds == 0].ravel()
    rows = folds == 0
    errors = (member.predict(reg.transformer_.transform(X)[rows]) - targets) ** 2 / 2
    best = np.average(errors, weights=weight[rows])
    assert best == pytest.approx(-member.best_validation_score_, rel=1e-4)
    assert np.mean(errors) != pytest.approx(-member.best_validation_score_, rel=1e-2)
