"""`max_time` ends training at the next batch, and keeps what the network has learned, as Ctrl-C does."""

import time
import warnings

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning

from fastbp import BackpropClassifier, BackpropRegressor
from fastbp.kernels import threads
from fastbp.kernels.tuner import tuner_for

X, Y = load_digits(return_X_y=True)
X, Y = X[:400] / 16, Y[:400]


def said(model, X=X, y=Y):
    """The texts of the warnings of a fit."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(X, y)
    assert not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("options", [{}, {"solver": "lbfgs", "tol": 0.0}, {"early_stopping": True}], ids=str)
@pytest.mark.parametrize("estimator", [BackpropClassifier, BackpropRegressor])
def test_training_ends_in_time(estimator, options):
    options = dict(hidden_layer_sizes=(40,), n_iter_no_change=np.inf, alpha=0.1, random_state=0) | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        estimator(max_iter=1, **options).fit(X, Y)  # compiles
    model = estimator(max_iter=10**8, max_fun=10**9, max_time=0.4, **options)
    begin = time.perf_counter()
    texts = said(model)
    seconds = time.perf_counter() - begin
    if options.get("solver") == "lbfgs" and "max_time" not in texts[0]:
        pytest.fail(f"lbfgs ended by itself: {texts}")
    assert len(texts) == 1 and "max_time=0.4 seconds, in " in texts[0]
    assert 0.4 <= seconds < 2  # other processes use this machine, too
    assert model.n_iter_ == len(model.loss_curve_) > 1 and model.score(X, Y) > 0.5


class Clock:
    """A clock on which each call into compiled code takes a second."""

    def __init__(self):
        self.now, self.calls = 0.0, 0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    for module in ("estimator", "training", "lbfgs", "kernels.session"):
        monkeypatch.setattr(f"fastbp.{module}.time", clock)
    run = threads.run

    def slow_run(train, args, *others):
        run(train, args, *others)
        if len(args) == 6 and args[3].last_batch > args[3].first_batch:  # not prediction, and not only compilation
            clock.now += 1.0
            clock.calls += 1
            if clock.calls == clock.interrupted_at:
                raise KeyboardInterrupt

    clock.interrupted_at = 0
    monkeypatch.setattr(threads, "run", slow_run)
    return clock


@pytest.mark.parametrize("max_time", [0.5, 6.5])
@pytest.mark.parametrize("estimator", [BackpropClassifier, BackpropRegressor])
def test_it_is_as_ctrl_c_after_the_same_batch(estimator, max_time, clock):
    """The tuner lets each call take the batches of 40 ms: where one takes a second, a single batch."""
    options = dict(hidden_layer_sizes=(7, 3), batch_size=150, max_iter=100, random_state=0, n_jobs=1)
    options |= dict(tol=0.0, n_iter_no_change=np.inf)
    tuner_for.cache_clear()
    late = estimator(max_time=max_time, **options)
    (text,) = said(late)
    n_calls, clock.now, clock.calls = clock.calls, 0.0, 0
    assert n_calls == int(max_time) + 1
    assert f"max_time={max_time} seconds, in epoch {late.n_iter_} of 100. Increase max_time" in text
    tuner_for.cache_clear()
    clock.interrupted_at = n_calls
    interrupted = estimator(**options)
    assert said(interrupted) == ["Training interrupted by user."]
    assert late._optimizer["steps"] == interrupted._optimizer["steps"]
    for a, b in zip([*late.coefs_, *late.intercepts_], [*interrupted.coefs_, *interrupted.intercepts_], strict=True):
        np.testing.assert_array_equal(a, b)
    assert late.loss_curve_ == interrupted.loss_curve_ and late.t_ == interrupted.t_
    tuner_for.cache_clear()


def test_it_ends_within_an_epoch(clock):
    tuner_for.cache_clear()
    clf = BackpropClassifier((7, 3), batch_size=10, max_iter=10**6, tol=0.0, n_iter_no_change=np.inf, random_state=0)
    said(clf.set_params(max_time=20.5, n_jobs=1))
    assert clf._optimizer["steps"] % 40 != 0 and clf.n_iter_ == clf._optimizer["steps"] // 40
    assert clf.t_ == clf.n_iter_ * 400
    # partial_fit goes on.
    before = clf.loss_
    clock.now = 0.0
    clf.partial_fit(X, Y)
    assert clf.n_iter_ == 1 and clf.loss_ != before
    tuner_for.cache_clear()


def test_early_stopping_keeps_the_best_epoch(clock):
    tuner_for.cache_clear()
    options = dict(hidden_layer_sizes=(7, 3), batch_size=100, early_stopping=True, n_iter_no_change=np.inf)
    late = BackpropClassifier(max_iter=10**6, max_time=21.5, random_state=0, n_jobs=1, **options)
    said(late)
    assert late._optimizer["steps"] > 4 * late.n_iter_ > 0  # the last epoch is not complete, and has no score
    assert len(late.validation_scores_) == late.n_iter_
    same = BackpropClassifier(max_iter=late.n_iter_, random_state=0, **options)
    with pytest.warns(ConvergenceWarning):
        same.fit(X, Y)
    for a, b in zip(late.coefs_, same.coefs_, strict=True):
        np.testing.assert_array_equal(a, b)
    assert late.validation_scores_ == same.validation_scores_ and late.best_iter_ == same.best_iter_
    tuner_for.cache_clear()


def test_training_that_is_done_is_not_late(clock):
    clf = BackpropClassifier((7, 3), max_iter=1, max_time=1e-9, random_state=0, batch_size=400, n_jobs=1)
    with pytest.warns(ConvergenceWarning, match="Maximum iterations"):
        clf.fit(X, Y)
    assert clf.n_iter_ == 1


def test_lbfgs_keeps_the_last_iteration(clock):
    options = dict(hidden_layer_sizes=(7, 3), solver="lbfgs", tol=0.0, random_state=0)
    late = BackpropClassifier(max_iter=1000, max_time=9.5, **options)
    (text,) = said(late)
    assert f"max_time=9.5 seconds, in iteration {late.n_iter_} of" in text and 1 < late.n_iter_ < 10
    same = BackpropClassifier(max_iter=late.n_iter_, **options)
    with pytest.warns(ConvergenceWarning):
        same.fit(X, Y)
    for a, b in zip(late.coefs_, same.coefs_, strict=True):
        np.testing.assert_array_equal(a, b)
    assert late.loss_ == same.loss_ == late.loss_curve_[-1]
