"""`max_time` ends training at the next batch, and keeps what the network has learned, as Ctrl-C does."""

import time
import warnings

import numpy as np
import pytest
from scipy.sparse import csr_array
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning

from fastbp import BackpropClassifier, BackpropRegressor
from fastbp.kernels import threads
from fastbp.kernels.tuner import ThreadTuner, tuner_for

ALL_X, ALL_Y = load_digits(return_X_y=True)
ALL_X = ALL_X / 16
X, Y = ALL_X[:400], ALL_Y[:400]


def said(model, X=X, y=Y):
    """The texts of the warnings of a fit."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(X, y)
    assert not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    return [str(warning.message) for warning in caught]


# So wide that lbfgs does not come to its end before.
LBFGS = {"solver": "lbfgs", "tol": 0.0, "hidden_layer_sizes": (2000,)}


@pytest.mark.parametrize("options", [{}, LBFGS, {"early_stopping": True}], ids=str)
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
    assert len(texts) == 1 and "max_time=0.4 seconds, in " in texts[0]
    assert 0.4 <= seconds < 2  # other processes use this machine, too
    assert model.n_iter_ == len(model.loss_curve_) > 1 and model.loss_curve_[-1] < model.loss_curve_[0]


class Clock:
    """A clock on which each call into compiled code takes a second."""

    def __init__(self):
        self.now, self.calls = 0.0, 0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    for module in ("calls", "training", "lbfgs", "kernels.session"):
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


PARTS = {
    "adam": {"dropout": 0.3, "max_grad_norm": 0.1},
    "sgd": {"solver": "sgd", "hidden_layer_sizes": (40, 7), "activation": "tanh"},
    "lbfgs": {"solver": "lbfgs"},
}


def take_parts(monkeypatch, share=1e-3):
    """Let a call take less than a batch: a chunk of 256 rows at most."""
    monkeypatch.setattr("fastbp.kernels.plan.MAX_WORKSPACE", 0)
    monkeypatch.setattr(ThreadTuner, "choose", lambda self: (1, share))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("kind", [np.asarray, csr_array])
@pytest.mark.parametrize("options", PARTS.values(), ids=PARTS)
def test_a_batch_in_parts_has_the_same_bits(options, kind, clock, monkeypatch):
    options = dict(batch_size=700, max_iter=3, random_state=0) | options
    weight = np.arange(len(ALL_X)) % 3 / 2
    models, calls = [], []
    for share in (1, 1e-3, 0.8):
        take_parts(monkeypatch, share)
        clock.calls = 0
        models.append(BackpropClassifier(**options).fit(kind(ALL_X), ALL_Y, sample_weight=weight))
        calls.append(clock.calls)
    # Batches of 3, 3 and 2 chunks; of 8 for lbfgs.
    assert calls[1] >= 8 * calls[0] // 3 and calls[0] < calls[2] < calls[1]
    for other in models[1:]:
        for a, b in zip(models[0].coefs_ + models[0].intercepts_, other.coefs_ + other.intercepts_, strict=True):
            np.testing.assert_array_equal(a, b)
        assert other.loss_curve_ == models[0].loss_curve_


def test_it_ends_within_a_batch_which_then_counts_for_nothing(clock, monkeypatch):
    take_parts(monkeypatch)
    models = []
    for max_time, n_calls in ((1.5, 3), (4.5, 5)):  # the first batch is always trained
        clock.now = clock.calls = 0
        models.append(BackpropClassifier((7,), batch_size=700, max_time=max_time, random_state=0))
        said(models[-1], ALL_X, ALL_Y)
        assert (clock.calls, models[-1]._optimizer["steps"]) == (n_calls, 1)
    for a, b in zip(models[0].coefs_, models[1].coefs_, strict=True):
        np.testing.assert_array_equal(a, b)
    clock.now = clock.calls = 0
    late = BackpropClassifier((7,), solver="lbfgs", tol=0.0, random_state=0, max_time=60.5)
    said(late, ALL_X, ALL_Y)
    same = BackpropClassifier((7,), solver="lbfgs", tol=0.0, random_state=0, max_iter=late.n_iter_)
    assert clock.calls == 61  # in the eighth evaluation of 8 chunks
    with pytest.warns(ConvergenceWarning):
        same.fit(ALL_X, ALL_Y)
    for a, b in zip(late.coefs_, same.coefs_, strict=True):
        np.testing.assert_array_equal(a, b)


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
