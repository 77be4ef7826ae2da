"""scikit-learn's callbacks see our epochs, may end training, and change no bit of the result."""

import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array, random
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import fastbp
from fastbp import BackpropClassifier, BackpropRegressor, compat

callback = pytest.importorskip("sklearn.callback", reason="scikit-learn has callbacks from version 1.9 on")
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X, Y = load_digits(return_X_y=True)
X, Y = X[:300] / 16, Y[:300]
OPTIONS = dict(hidden_layer_sizes=(8,), batch_size=40, max_iter=5, random_state=0)
KINDS = {
    "adam": {},
    "early stopping": {"early_stopping": True},
    "float32, no shuffling": {"dtype": "float32", "shuffle": False},
    "cosine": {"learning_rate": "cosine"},
    "lbfgs": {"solver": "lbfgs"},
}


class Recorder:
    """Takes note of everything, and ends training after some epochs."""

    def __init__(self, stop_after=None, fail_in=None):
        self.events, self.models, self.arguments = [], [], []
        self.stop_after, self.fail_in = stop_after, fail_in

    def setup(self, estimator, context):
        self.events.append("setup")

    def teardown(self, estimator, context):
        self.events.append("teardown")

    def on_fit_task_begin(self, estimator, context, *, X=None, y=None, metadata=None):
        self.events.append(f"begin {context.task_name} {context.task_id}")
        self.arguments.append((estimator, X, y, metadata))

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
        self.events.append(f"end {context.task_name} {context.task_id}")
        self.models.append(fitted_estimator)
        if self.events[-1] == self.fail_in:
            raise RuntimeError("as asked")
        return context.task_id + 1 == self.stop_after


def arrays(model):
    return [*model.coefs_, *model.intercepts_]


def assert_same(one, other):
    for a, b in zip(arrays(one), arrays(other), strict=True):
        np.testing.assert_array_equal(a, b)
    assert one.loss_curve_ == other.loss_curve_ and one.validation_scores_ == other.validation_scores_


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("estimator", [BackpropClassifier, BackpropRegressor])
def test_every_epoch_is_seen_and_no_bit_is_changed(estimator, kind):
    model = estimator(**OPTIONS | KINDS[kind])
    recorder = Recorder()
    seen = clone(model).set_callbacks(recorder).fit(X, Y)
    assert_same(seen, clone(model).fit(X, Y))
    task = "iteration" if kind == "lbfgs" else "epoch"
    tasks = [f"{event} {task} {i}" for i in range(5) for event in ("begin", "end")]
    assert recorder.events == ["setup", "begin fit 0", *tasks, "end fit 0", "teardown"]
    assert all(entry[0] is seen and entry[1] is X and entry[2] is Y for entry in recorder.arguments)
    for i, fitted in enumerate(recorder.models[:-1], 1):
        assert type(fitted) is estimator and fitted is not seen
        if kind in ("early stopping", "cosine"):  # where fewer epochs are not the beginning of more, or not kept
            assert fitted.n_iter_ == i and len(fitted.loss_curve_) == i
        else:
            assert_same(fitted, clone(model).set_params(max_iter=i).fit(X, Y))
    assert_same(recorder.models[-1], seen)


@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_no_bit_is_changed_where_sparse_rows_wait(solver):
    rows = csr_array(random(300, 400, density=0.02, random_state=0))
    model = BackpropClassifier(**OPTIONS, alpha=0.0, solver=solver)
    plain, recorder = clone(model).fit(rows, Y), Recorder()
    assert_same(clone(model).set_callbacks(recorder).fit(rows, Y), plain)
    assert_same(recorder.models[-2], plain)
    validated = clone(model).fit(rows, Y, X_val=rows, y_val=Y)
    for a, b in zip(arrays(validated), arrays(plain), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_a_callback_ends_training_without_a_warning(solver):
    model = BackpropClassifier(solver=solver, **OPTIONS)
    recorder = Recorder(stop_after=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        stopped = clone(model).set_callbacks(recorder).fit(X, Y)
    assert stopped.n_iter_ == 3
    assert_same(stopped, clone(model).set_params(max_iter=3).fit(X, Y))
    assert recorder.events[-3:] == [f"end {'iteration' if solver == 'lbfgs' else 'epoch'} 2", "end fit 0", "teardown"]


def test_sample_weights_are_handed_on():
    recorder = Recorder()
    weight = np.arange(1.0, 301)
    BackpropClassifier(**OPTIONS).set_callbacks(recorder).fit(X, Y, sample_weight=weight)
    assert all(entry[3]["sample_weight"] is weight for entry in recorder.arguments)


@pytest.mark.parametrize("task", ["end epoch 1", "end fit 0"])
def test_callbacks_are_taken_down_after_an_error(task):
    recorder = Recorder(fail_in=task)
    clf = BackpropClassifier(**OPTIONS).fit(X, Y)
    before = dict(clf.__dict__)
    with pytest.raises(RuntimeError, match="as asked"):
        clf.set_callbacks(recorder).fit(X, 1 - Y)
    assert recorder.events[-1] == "teardown" and recorder.events.count("teardown") == 1
    clf.set_callbacks()
    assert (clf.__dict__ == before) == (task != "end fit 0")


def test_a_failed_fit_takes_them_down_too():
    recorder = Recorder()
    clf = BackpropClassifier(**OPTIONS).set_callbacks(recorder)
    with pytest.raises(ValueError, match="NaN"):
        clf.fit(np.full((10, 3), np.nan), Y[:10])
    assert recorder.events == ["setup", "begin fit 0", "teardown"]
    assert set(vars(clf)) == {*clf.get_params(), "_skl_callbacks"}


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_ctrl_c_closes_the_open_epoch(solver, monkeypatch):
    from fastbp.kernels.session import Session

    recorder = Recorder()
    run, calls = Session.run, []

    def interrupted(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 12:
            self.losses = np.empty(0)
            raise KeyboardInterrupt
        run(self, *args, **kwargs)

    monkeypatch.setattr(Session, "run", interrupted)
    clf = BackpropClassifier(solver=solver, **OPTIONS | {"max_iter": 50}).set_callbacks(recorder)
    with pytest.warns(UserWarning, match="interrupted by user"):
        clf.fit(X, Y)
    begun = [event[6:] for event in recorder.events if event.startswith("begin")]
    ended = [event[4:] for event in recorder.events if event.startswith("end")]
    assert sorted(begun) == sorted(ended) and len(begun) == clf.n_iter_ + 2
    assert recorder.models[-2] is None and recorder.models[-1] is not None


@pytest.mark.parametrize("estimator", [BackpropClassifier, BackpropRegressor])
def test_scoring_monitor(estimator):
    name = "accuracy" if estimator is BackpropClassifier else "r2"
    monitor = callback.ScoringMonitor(scoring=name)
    model = estimator(**OPTIONS).set_callbacks(monitor).fit(X, Y)
    log = monitor.get_logs().data
    scores = [row[name] for row in log if row["task_name"] == "epoch"]
    assert scores == [clone(model).set_callbacks().set_params(max_iter=i).fit(X, Y).score(X, Y) for i in range(1, 6)]
    (whole,) = [row[name] for row in log if row["task_name"] == "fit"]
    assert whole == scores[-1] == model.score(X, Y)


def test_scoring_monitor_knows_the_names_of_the_features():
    """The copies that it scores are of the data that it is shown; warnings are errors here."""
    pd = pytest.importorskip("pandas")
    monitor = callback.ScoringMonitor(scoring="accuracy")
    frame = pd.DataFrame(X, columns=[f"pixel {i}" for i in range(64)])
    model = BackpropClassifier(**OPTIONS).set_callbacks(monitor).fit(frame, Y)
    model.fit(X, Y)
    assert len(monitor.get_logs(select="all")) == 2
    assert monitor.get_logs().data[-1]["accuracy"] == model.score(X, Y)


@pytest.mark.parametrize("n_jobs", [None, 2])
def test_in_a_pipeline_and_a_search(n_jobs):
    monitor = callback.ScoringMonitor(scoring="accuracy")
    pipeline = make_pipeline(StandardScaler(), BackpropClassifier(**OPTIONS).set_callbacks(monitor))
    grid = {"backpropclassifier__alpha": [1e-4, 1.0]}
    search = GridSearchCV(pipeline, grid, cv=2, n_jobs=n_jobs).fit(X, Y)
    epochs = [row for row in monitor.get_logs().data if row["task_name"] == "epoch"]
    assert len(epochs) == (2 * 2 + 1) * 5
    plain = make_pipeline(StandardScaler(), BackpropClassifier(**OPTIONS))
    expected = GridSearchCV(plain, grid, cv=2).fit(X, Y)
    np.testing.assert_array_equal(search.cv_results_["mean_test_score"], expected.cv_results_["mean_test_score"])
    assert_same(search.best_estimator_[-1], expected.best_estimator_[-1])
    pickle.loads(pickle.dumps(search)).predict(X)


BAR = """
import sys
import numpy as np
from sklearn.callback import ProgressBar
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from fastbp import BackpropClassifier

X, y = np.random.RandomState(0).rand(60, 4), np.arange(60) % 3
clf = BackpropClassifier((5,), max_iter=4, random_state=0)
how = sys.argv[1]
if how == "pipeline":
    model = make_pipeline(StandardScaler(), clf).set_callbacks(ProgressBar())
elif how == "search":
    model = GridSearchCV(clf, {"alpha": [1e-4, 1.0]}, cv=2).set_callbacks(ProgressBar())
else:
    model = clf.set_callbacks(ProgressBar())
if how == "error":
    X[0, 0] = np.nan
model.fit(X, y)
"""


@pytest.mark.parametrize("how", ["alone", "pipeline", "search", "error"])
def test_progress_bar(how, tmp_path):
    """Its thread ends with the fit, and so does the process."""
    pytest.importorskip("rich", reason="the bars of scikit-learn need rich")
    command = [sys.executable, "-W", "ignore", "-c", BAR, how]
    root = str(Path(fastbp.__file__).parents[1])
    env = {**os.environ, "COLUMNS": "150"}
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=200)
    if how == "error":
        assert done.returncode == 1 and "Input X contains NaN" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    assert "BackpropClassifier - fit" in done.stdout and "100%" in done.stdout


def test_without_callbacks_nothing_is_set_up(monkeypatch):
    clf = BackpropClassifier(**OPTIONS)
    assert compat.begin_callbacks(clf, 5) is None
    monkeypatch.setattr(BackpropClassifier, "_init_callback_context", None)
    clf.fit(X, Y).partial_fit(X, Y)
