"""Ctrl-C, at whatever moment: what is kept is the model after some whole batch, with all that belongs to it."""

import gc
import os
import pickle
import random
import signal
import sys
import threading
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from callback import EpochCallback
from sklearn.base import clone
from sklearn.datasets import load_digits

import fastbp
from fastbp import BackpropClassifier, BackpropRegressor
from fastbp.interrupts import Interrupts
from fastbp.kernels.session import Session
from fastbp.validation import Validation

pytestmark = [
    pytest.mark.usefixtures("ctrl_c_interrupts"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]

PACKAGE = str(Path(fastbp.__file__).parent)
X, Y = load_digits(return_X_y=True)
X, Y = X / 16, (Y > 4).astype(int)


def ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)  # as a terminal does


# --- what holds it back ---


def test_it_is_held_back_until_it_is_asked_for():
    done = []
    with pytest.raises(KeyboardInterrupt), Interrupts() as interrupts:
        interrupts.hold()
        ctrl_c()
        done.append("held")
        interrupts.check()
        done.append("never")
    assert done == ["held"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_it_comes_at_the_end():
    done = []
    with pytest.raises(KeyboardInterrupt), Interrupts() as interrupts:
        interrupts.hold()
        ctrl_c()
        done.append("all")
    assert done == ["all"]
    with pytest.raises(KeyboardInterrupt), Interrupts() as interrupts:
        interrupts.raise_at_end()
        done.append("more")
    assert done == ["all", "more"]
    with pytest.raises(KeyError), Interrupts() as interrupts:
        interrupts.raise_at_end()
        raise KeyError


def test_code_of_the_user_is_interrupted():
    done = []
    with pytest.raises(KeyboardInterrupt), Interrupts() as interrupts:
        interrupts.hold()
        try:
            with interrupts.let_through():
                ctrl_c()
                done.append("never")
        except KeyboardInterrupt:
            ctrl_c()  # held again
            done.append("held")
    assert done == ["held"]


def test_the_handler_of_the_program_decides():
    seen = []
    signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    with Interrupts() as interrupts:
        interrupts.hold()
        ctrl_c()
        assert not seen
        interrupts.check()
        assert seen == [signal.SIGINT]
        interrupts.check()
        with interrupts.let_through():
            signal.signal(signal.SIGINT, signal.default_int_handler)  # code of the user sets another
    assert seen == [signal.SIGINT] and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Interrupts() as interrupts:
        interrupts.hold()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_the_handler_of_the_program_sees_where_the_program_was():
    lines = []
    signal.signal(signal.SIGINT, lambda number, frame: lines.append(frame.f_code.co_name))
    with Interrupts() as interrupts:
        interrupts.hold()
        ctrl_c()
        interrupts.check()
    assert len(lines) == 1


def test_what_is_left_in_place_holds_nothing_back():
    """The handler of another signal may raise an error while ours is taken back."""
    interrupts = Interrupts()
    with interrupts:
        interrupts.hold()
        left = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, left)
    with pytest.raises(KeyboardInterrupt):
        ctrl_c()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_that_another_thread_forks_can_be_interrupted():
    codes = []

    def fork():
        child = os.fork()
        if child == 0:
            try:
                ctrl_c()
            except KeyboardInterrupt:
                os._exit(3)
            finally:
                os._exit(4)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    with warnings.catch_warnings(), Interrupts() as interrupts:
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12: a fork beside threads
        interrupts.hold()
        thread = threading.Thread(target=fork)
        thread.start()
        thread.join()
    assert codes == [3]


def test_other_threads_leave_it_alone():
    handlers = []

    def look():
        with Interrupts() as interrupts:
            interrupts.hold()
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert handlers == [signal.default_int_handler]


# --- what is kept ---


def plain(value):
    """Return something that can be compared."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, dict):
        return {name: plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, np.random.RandomState):
        return plain(value.get_state())
    return plain(vars(value)) if hasattr(value, "__dict__") else repr(value)


def state_of(model):
    """All that training has set; None if the model was not trained."""
    if not hasattr(model, "coefs_"):
        assert set(vars(model)) == set(model.get_params())
        return None
    pickle.loads(pickle.dumps(model)).predict(X)  # which checks that all of it fits together
    return plain({name: value for name, value in model.__getstate__().items() if name not in model.get_params()})


class Fit:
    """Calls of `fit`, which Ctrl-C ends with a warning."""

    is_loop = False

    def __init__(self, X, n_epochs=6):
        self.X, self.y, self.n_epochs = X, np.arange(len(X)) % 7 % 2, n_epochs

    def __call__(self, model, n_epochs=None):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.set_params(max_iter=n_epochs or self.n_epochs).fit(self.X, self.y)


class PartialFits(Fit):
    """A loop of calls of `partial_fit`, which Ctrl-C ends."""

    is_loop = True

    def __init__(self, X, n_epochs=3):
        super().__init__(X, n_epochs)

    def __call__(self, model, n_epochs=None):
        classes = {"classes": [0, 1]} if isinstance(model, BackpropClassifier) else {}
        for _ in range(n_epochs or self.n_epochs):
            model.partial_fit(self.X, self.y, **classes)


def after(model, train, n_steps):
    """A model after so many batches. Where they are whole epochs, its training has ended by itself."""
    model, left, call = clone(model), n_steps, Session._call
    n_batches = -(-len(train.X) // model.batch_size)
    if n_steps % n_batches == 0:
        train(model, n_steps // n_batches)
        return model

    def stopping(self, data, rates, first, last, *others):
        nonlocal left
        last = min(last, first + left)
        call(self, data, rates, first, last, *others)
        left -= last - first
        if left == 0:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(Session, "_call", stopping)
        train(model)
    return model


def check_interrupted(model, train, interrupt):
    """Train, with Ctrl-C at some moment; all must be as after a whole number of batches. Return that number."""
    tried, is_raised = clone(model), False
    try:
        interrupt(lambda: train(tried))
    except KeyboardInterrupt:
        is_raised = True
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    state = state_of(tried)
    if state is None:
        assert is_raised
        return 0
    steps = tried._optimizer["steps"]
    twin = after(model, train, steps)
    assert state == state_of(twin)
    if train.is_loop:
        assert is_raised
    elif is_raised:  # all of the training was done
        same = clone(model)
        train(same)
        assert same._optimizer["steps"] == steps
    assert state_of(tried.partial_fit(train.X, train.y)) == state_of(twin.partial_fit(train.X, train.y))
    return steps


def interrupt_at_line(line):
    """Return a function that calls another, with Ctrl-C before the nth line of the package that it runs."""
    count = 0

    def at_line(frame, event, arg):
        nonlocal count
        if event == "line":
            count += 1
            if count == line:
                ctrl_c()
        return at_line

    def trace(frame, event, arg):
        return at_line if frame.f_code.co_filename.startswith(PACKAGE) else None

    def call(action):
        before = sys.gettrace()
        gc.disable()  # which would run some lines whenever it likes
        sys.settrace(trace)
        try:
            action()
        finally:
            sys.settrace(before)
            gc.enable()
        return count

    return call


def some_lines(train, model, n):
    """At most n of the lines of the package that run, from everywhere, others each time."""
    train(clone(model))  # compiles
    tried = clone(model)
    n_lines = interrupt_at_line(None)(lambda: train(tried))
    n = min(n, n_lines)
    return [1 + random.randrange(i * n_lines // n, (i + 1) * n_lines // n) for i in range(n)]


# Some of all moments.
FEW_LINES = pytest.mark.parametrize("n", [15, pytest.param(200, marks=pytest.mark.slow)])
MODELS = {
    "adam": BackpropClassifier((4,), batch_size=20, random_state=0),
    "adaptive": BackpropClassifier(
        (4,), batch_size=25, random_state=0, solver="sgd", learning_rate="adaptive", tol=0.01, n_iter_no_change=1
    ),
    "invscaling": BackpropRegressor(
        hidden_layer_sizes=(4,), batch_size=1, random_state=0, solver="sgd", learning_rate="invscaling",
        learning_rate_init=0.01,
    ),
}  # fmt: skip


@FEW_LINES
@pytest.mark.parametrize("train", [Fit(X[:60]), PartialFits(X[:60])], ids=["fit", "partial_fit"])
@pytest.mark.parametrize("kind", MODELS)
def test_at_any_line_of_ours(kind, train, n):
    lines = some_lines(train, MODELS[kind], n)
    print("lines", lines)
    kept = {check_interrupted(MODELS[kind], train, interrupt_at_line(i)) for i in lines}
    assert len(kept) > 1


@FEW_LINES
def test_at_any_line_with_early_stopping(n, monkeypatch):
    model, train = BackpropClassifier((4,), batch_size=20, random_state=0, early_stopping=True), Fit(X[:80])
    seen, validate = [], Validation.__call__
    with monkeypatch.context() as patch:
        patch.setattr(Validation, "__call__", lambda self, *args: seen.append(plain(args)) or validate(self, *args))
        train(clone(model))
    for line in some_lines(train, model, n):
        tried = clone(model)
        with suppress(KeyboardInterrupt):
            interrupt_at_line(line)(lambda model=tried: train(model))
        if state_of(tried) is not None:
            curves = tried.loss_curve_, tried.lr_curve_, tried.validation_scores_, tried.validation_loss_curve_
            assert {*map(len, curves)} == {tried.n_iter_}
            if tried.best_iter_:
                assert plain((tried.coefs_, tried.intercepts_)) == seen[tried.best_iter_ - 1]


@FEW_LINES
def test_at_any_line_with_lbfgs(n):
    model, train = BackpropClassifier((4,), solver="lbfgs", random_state=0), Fit(X[:60])
    for line in some_lines(train, model, n):
        tried = clone(model)
        with suppress(KeyboardInterrupt):
            interrupt_at_line(line)(lambda model=tried: train(model))
        if state_of(tried) is not None:
            same = clone(model)
            train(same, tried.n_iter_)
            for name in ("coefs_", "intercepts_", "loss_curve_", "loss_", "n_iter_"):
                assert plain(getattr(tried, name)) == plain(getattr(same, name)), (line, name)


ENDLESS = dict(tol=0.0, n_iter_no_change=np.inf, random_state=0)
LARGE = np.tile(X, (34, 1))
MOMENTS = {
    "short epochs": (BackpropClassifier((3,), batch_size=10, **ENDLESS), Fit(X[:40], 10**7), 0.1),
    "long epochs": (BackpropClassifier((30,), batch_size=50, **ENDLESS), Fit(LARGE, 10**7), 0.2),
    # Of several chunks, between which compiled code returns.
    "a batch of all samples": (BackpropClassifier((200,), batch_size=len(LARGE), **ENDLESS), Fit(LARGE, 10**7), 0.5),
    "a loop": (BackpropRegressor(hidden_layer_sizes=(5,), batch_size=30, **ENDLESS), PartialFits(X[:300], 10**7), 0.1),
}


@pytest.mark.parametrize("n", [3, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", MOMENTS)
def test_at_a_random_moment(kind, n):
    model, train, seconds = MOMENTS[kind]
    train(clone(model), 1)  # compiles

    def interrupt(action):
        timer = threading.Timer(random.uniform(0.0, seconds), ctrl_c)
        timer.start()
        try:
            action()
        finally:
            timer.join()

    kept = [check_interrupted(model, train, interrupt) for _ in range(n)]
    while not any(kept):  # on a busy machine nothing may have been learned
        seconds *= 2
        kept.append(check_interrupted(model, train, interrupt))


# --- in code of the user ---


class InterruptedScorer:
    """Ctrl-C comes in one of its calls."""

    def __init__(self, call):
        self.left = call

    def __call__(self, model, X, y):
        self.left -= 1
        if self.left == 0:
            ctrl_c()
        return 0.0


class InterruptedCallback(EpochCallback):
    """Ctrl-C comes at the end of an epoch."""

    def __init__(self, epoch):
        self.left = epoch

    def after_epoch(self):
        self.left -= 1
        if self.left == 0:
            ctrl_c()


@pytest.mark.parametrize("schedule", ["invscaling", "adaptive"])
@pytest.mark.parametrize("place", ["scorer", "callback"])
def test_what_follows_an_epoch_is_done_before(place, schedule):
    """The next epoch has the learning rate that it would have had."""
    model = BackpropClassifier(
        (4,), batch_size=20, random_state=0, solver="sgd", learning_rate=schedule, n_iter_no_change=1, tol=10.0,
        max_iter=3,
    )  # fmt: skip
    validation = {"X_val": X[60:80], "y_val": Y[60:80]}
    whole = clone(model).fit(X[:60], Y[:60], **validation)
    tried = clone(model).set_params(max_iter=6)
    if place == "scorer":
        tried.set_params(scoring=InterruptedScorer(3))
    elif hasattr(tried, "set_callbacks"):
        tried.set_callbacks(InterruptedCallback(3))
    else:
        pytest.skip("scikit-learn has callbacks from version 1.9 on")
    with pytest.warns(UserWarning, match="interrupted by user"):
        tried.fit(X[:60], Y[:60], **validation)
    assert tried.n_iter_ == 3 and tried._optimizer["rate"] == whole._optimizer["rate"]
    for one, other in zip(tried.partial_fit(X, Y).coefs_, whole.partial_fit(X, Y).coefs_, strict=True):
        np.testing.assert_array_equal(one, other)


# --- what fails ---


class FailingScorer:
    """Fails in one of its calls."""

    def __init__(self, error, call):
        self.error, self.left = error, call

    def __call__(self, model, X, y):
        self.left -= 1
        if self.left == 0:
            raise self.error
        return -self.left


@pytest.mark.parametrize("error", [RuntimeError("as asked"), SystemExit(3)], ids=repr)
@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
@pytest.mark.parametrize("warm_start", [False, True])
@pytest.mark.parametrize("first", [True, False])
def test_a_scorer_that_fails_changes_nothing(first, warm_start, solver, error):
    model = BackpropClassifier((4,), max_iter=4, random_state=0, solver=solver, warm_start=warm_start)
    if not first:
        model.fit(X[:60], Y[:60])
    fitted = state_of(model)
    model.set_params(early_stopping=solver == "adam", scoring=FailingScorer(error, 2))
    before = dict(vars(model))
    validation = {} if solver == "adam" else {"X_val": X[:9], "y_val": Y[:9]}
    with pytest.raises(type(error)):
        model.fit(X[:60], 1 - Y[:60], **validation)
    assert vars(model) == before and state_of(model.set_params(scoring=None)) == fitted
