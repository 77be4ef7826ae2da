"""Training that ends with its process goes on from a file of `Checkpoint`, to the same bits."""

import copy
import errno
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from callback import EpochCallback
from scipy.sparse import csr_array, random
from sklearn.base import clone
from sklearn.ensemble import BaggingClassifier
from sklearn.metrics import accuracy_score, make_scorer, r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import fastbp
from fastbp import BackpropClassifier, BackpropRegressor, callbacks
from fastbp.activations import Relu
from fastbp.callbacks import Checkpoint
from fastbp.checkpoints import Models

pytest.importorskip("safetensors", reason="the extra 'save' is not installed")
pytest.importorskip("sklearn.callback", reason="scikit-learn has callbacks from version 1.9 on")
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

RNG = np.random.RandomState(0)
X = RNG.randn(90, 7)
TARGETS = X @ RNG.randn(7, 2) + 0.1 * RNG.randn(90, 2)
LABELS = np.array(["no", "perhaps", "yes"])[(TARGETS[:, 0] > 0) + (TARGETS[:, 1] > 0).astype(int)]
ROWS = csr_array(random(90, 50, density=0.1, random_state=0))
WEIGHT = RNG.rand(90)
OPTIONS = dict(hidden_layer_sizes=(6,), batch_size=20, max_iter=6, learning_rate_init=0.02, random_state=0)
# Name -> parameters, and what else `fit` gets.
KINDS = {
    "adam": ({}, {}),
    "float32": ({"dtype": "float32", "n_jobs": 1}, {}),
    "momentum": ({"solver": "sgd", "learning_rate": "invscaling"}, {}),
    "adaptive": ({"solver": "sgd", "learning_rate": "adaptive", "n_iter_no_change": 1, "tol": 0.1, "max_iter": 20}, {}),
    "tol": ({"n_iter_no_change": 1, "tol": 0.05, "max_iter": 50}, {}),
    "cosine": ({"learning_rate": "cosine", "solver": "adamw", "weight_decay": 0.01}, {}),
    "one cycle": ({"learning_rate": "one_cycle", "max_grad_norm": 0.5}, {}),
    "single samples": ({"batch_size": 1, "hidden_layer_sizes": (3,)}, {}),
    "no shuffling": ({"shuffle": False}, {}),
    "dropout": ({"dropout": 0.2}, {"sample_weight": WEIGHT}),
    "early stopping": ({"early_stopping": True, "n_iter_no_change": 2, "max_iter": 30, "learning_rate_init": 0.2}, {}),
    "weighted early stopping": ({"early_stopping": True, "scoring": "loss"}, {"sample_weight": WEIGHT}),
    "generator": ({"random_state": np.random.RandomState(3), "early_stopping": True}, {}),
    "no seed": ({"random_state": None}, {}),
    "validation": ({"early_stopping": True, "hidden_layer_sizes": []}, {"X_val": X[:9]}),
    "sparse": ({"X": ROWS}, {}),
    "sparse, waiting rows": ({"X": ROWS, "alpha": 0}, {}),
    "sparse validation": ({"X": ROWS}, {"X_val": ROWS[:9]}),
    "activations": ({"activation": [Relu(), "tanh"], "hidden_layer_sizes": np.array([4, 3])}, {}),
}  # fmt: skip


class Copies(EpochCallback):
    """Keeps the checkpoint of each epoch, as a process that ends then would leave it."""

    def __init__(self, path):
        self.path, self.files = path, []

    def after_epoch(self):
        self.files.append(self.path.read_bytes() if self.path.exists() else None)


def train(model, X, y, path, every=1, **options):
    """Return the fitted model, and the checkpoint after each epoch."""
    copies = Copies(path)
    np.random.seed(5)  # for random_state=None
    return model.set_callbacks(Checkpoint(path, every), copies).fit(X, y, **options), copies.files


def go_on(model, file, X, y, path, **options):
    path.write_bytes(file)
    return clone(model).set_callbacks(Checkpoint(path)).fit(X, y, resume_from=fastbp.load(path), **options)


def assert_same(one, other):
    names = ("coefs_", "intercepts_", "loss_curve_", "lr_curve_", "validation_scores_", "validation_loss_curve_")
    for name in names:
        mine, theirs = getattr(one, name), getattr(other, name)
        assert (mine is None) == (theirs is None)
        for a, b in zip(mine or [], theirs or [], strict=True):
            np.testing.assert_array_equal(a, b)
    for name in ("n_iter_", "t_", "loss_", "best_loss_", "best_iter_", "best_validation_score_"):
        assert getattr(one, name) == getattr(other, name), name
    for mine, theirs in zip(one._optimizer["parts"], other._optimizer["parts"], strict=True):
        for a, b in zip([*mine[0], *mine[1]], [*theirs[0], *theirs[1]], strict=True):
            np.testing.assert_array_equal(a, b)
    assert {k: one._optimizer[k] for k in ("steps", "rate", "seed")} == {
        k: other._optimizer[k] for k in ("steps", "rate", "seed")
    }


@pytest.mark.parametrize("estimator", [BackpropClassifier, BackpropRegressor])
@pytest.mark.parametrize("kind", KINDS)
def test_it_ends_with_the_same_bits(kind, estimator, tmp_path):
    parameters, options = KINDS[kind]
    parameters, options = dict(parameters), dict(options)
    inputs = parameters.pop("X", X)
    y = LABELS if estimator is BackpropClassifier else TARGETS
    if "X_val" in options:
        options["y_val"] = y[:9]
    model = estimator(**OPTIONS | parameters)
    path = tmp_path / "model.safetensors"
    whole, files = train(clone(model), inputs, y, path, **options)
    assert len(files) == whole.n_iter_ > 2
    if kind in ("tol", "early stopping"):
        assert whole.n_iter_ < model.max_iter
    for file in {0: files[0], 1: files[1], 2: files[-2], 3: files[-1]}.values():
        again = go_on(model, file, inputs, y, path, **options)
        assert_same(again, whole)
        # What a later training begins with.
        assert vars(again).keys() - {"_skl_callbacks"} == vars(whole).keys() - {"_skl_callbacks"}
    if kind != "sparse, waiting rows":
        np.random.seed(5)
        assert_same(clone(model).fit(inputs, y, **options), whole)


def test_every_few_epochs_and_how_far_a_file_is(tmp_path):
    model = BackpropClassifier(**OPTIONS)
    path = tmp_path / "model.safetensors"
    whole, files = train(clone(model), X, LABELS, path, every=2)
    assert files[0] is None and files[1] == files[2] != files[3] == files[4] != files[5]
    path.write_bytes(files[3])
    loaded = fastbp.load(path)
    assert loaded.n_iter_ == 4
    fourth = clone(model).set_params(max_iter=4).fit(X, LABELS)
    np.testing.assert_array_equal(loaded.predict_proba(X), fourth.predict_proba(X))
    assert_same(go_on(model, files[3], X, LABELS, path), whole)


def test_a_checkpoint_is_a_model_like_any_other(tmp_path):
    """One that was loaded can be saved and pickled, and training still goes on from it."""
    model, path = BackpropClassifier(**OPTIONS, early_stopping=True), tmp_path / "model.safetensors"
    whole, files = train(clone(model), X, LABELS, path)
    path.write_bytes(files[2])
    loaded = fastbp.load(path)
    fastbp.save(loaded, path)
    for again in (loaded, fastbp.load(path), pickle.loads(pickle.dumps(loaded))):
        assert_same(clone(model).fit(X, LABELS, resume_from=again), whole)
    fastbp.save(loaded, path, optimizer=False)
    with pytest.raises(ValueError, match="no checkpoint"):
        clone(model).fit(X, LABELS, resume_from=fastbp.load(path))


def test_more_epochs_than_planned(tmp_path):
    model, path = BackpropRegressor(**OPTIONS), tmp_path / "model.safetensors"
    _, files = train(clone(model), X, TARGETS, path)
    more = go_on(clone(model).set_params(max_iter=9, n_jobs=2), files[-1], X, TARGETS, path)
    assert_same(more, clone(model).set_params(max_iter=9).fit(X, TARGETS))


def test_after_a_warm_start(tmp_path):
    path = tmp_path / "model.safetensors"
    model = BackpropClassifier(**OPTIONS, warm_start=True)
    whole = clone(model).fit(X, LABELS)
    whole, files = train(whole, X, LABELS, path)
    assert len(whole.loss_curve_) == 12 and whole.n_iter_ == 6
    assert_same(go_on(model, files[2], X, LABELS, path), whole)


def test_a_fitted_estimator_forgets_its_own_training(tmp_path):
    model, path = BackpropClassifier(**OPTIONS, warm_start=True), tmp_path / "model.safetensors"
    whole, files = train(clone(model), X, LABELS, path)
    other = clone(model).fit(X[:50], LABELS[:50])
    path.write_bytes(files[1])
    assert_same(other.fit(X, LABELS, resume_from=fastbp.load(path)), whole)


@pytest.mark.parametrize(
    ("estimator", "y", "metric"), [(BackpropClassifier, LABELS, accuracy_score), (BackpropRegressor, TARGETS, r2_score)]
)
def test_scoring_that_is_code(estimator, y, metric, tmp_path):
    """Files do not hold it: it comes from the estimator that is fitted."""
    model = estimator(**OPTIONS, early_stopping=True, scoring=make_scorer(metric))
    whole, files = train(clone(model), X, y, tmp_path / "m")
    assert_same(go_on(model, files[1], X, y, tmp_path / "m"), whole)


def test_other_scoring_is_refused(tmp_path):
    """Code cannot be compared, but that it is code, or is none, can."""
    model = BackpropClassifier(**OPTIONS, early_stopping=True)
    scorings = {"code": make_scorer(accuracy_score), "default": None, "name": "loss"}
    for name, scoring in scorings.items():
        path = tmp_path / name
        train(clone(model).set_params(scoring=scoring), X, LABELS, path)
        for other in scorings.keys() - {name}:
            with pytest.raises(ValueError, match=r"scoring=.* but the checkpoint resume_from has scoring="):
                clone(model).set_params(scoring=scorings[other]).fit(X, LABELS, resume_from=fastbp.load(path))


def test_weights_are_of_one_model_only(tmp_path):
    """Users edit them; the best of early stopping are the last ones, if no better follow."""
    model, path = BackpropClassifier(**OPTIONS, early_stopping=True), tmp_path / "model.safetensors"
    whole, files = train(clone(model), X, LABELS, path)
    path.write_bytes(files[whole.best_iter_ - 1])
    checkpoint = fastbp.load(path)
    for _ in range(2):
        again = clone(model).fit(X, LABELS, resume_from=checkpoint)
        assert_same(again, whole)
        for array in again.coefs_:
            array[...] = 0


@pytest.mark.parametrize(("schedule", "tol"), [("invscaling", 0.0), ("adaptive", 1.0)])
def test_partial_fit_goes_on_from_a_checkpoint(schedule, tol, tmp_path):
    """It is a model like any other: that of as many epochs, with the learning rate of the next."""
    path = tmp_path / "model.safetensors"
    options = OPTIONS | {"solver": "sgd", "learning_rate": schedule, "n_iter_no_change": 1, "tol": tol}
    _, files = train(BackpropClassifier(**options), X, LABELS, path)
    path.write_bytes(files[3])
    loaded = fastbp.load(path)
    fourth = BackpropClassifier(**options).set_params(max_iter=4).fit(X, LABELS)
    assert_same(loaded, fourth)
    assert_same(loaded.partial_fit(X, LABELS), fourth.partial_fit(X, LABELS))
    with pytest.raises(ValueError, match="no checkpoint"):
        BackpropClassifier(**options).fit(X, LABELS, resume_from=loaded)


def test_what_belongs_to_other_weights_is_forgotten(tmp_path):
    path = tmp_path / "model.safetensors"
    model = BackpropClassifier(**OPTIONS, warm_start=True)
    model.partial_fit(X, LABELS, classes=np.unique(LABELS))
    train(model, X, LABELS, path)
    loaded = fastbp.load(path)
    assert not hasattr(loaded, "_shuffling") and not hasattr(model, "_shuffling")
    loaded.initialize(7, np.unique(LABELS))
    with pytest.raises(ValueError, match="no checkpoint"):
        clone(model).fit(X, LABELS, resume_from=loaded)


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine"])
def test_schedules_that_are_made_for_some_epochs_take_no_others(schedule, tmp_path):
    model, path = BackpropClassifier(**OPTIONS, learning_rate=schedule), tmp_path / "model.safetensors"
    _, files = train(clone(model), X, LABELS, path)
    with pytest.raises(ValueError, match="max_iter=9, but the checkpoint resume_from has max_iter=6"):
        go_on(clone(model).set_params(max_iter=9), files[3], X, LABELS, path)


def test_other_names_of_features_are_refused(tmp_path):
    model, path = BackpropClassifier(**OPTIONS), tmp_path / "model.safetensors"
    frame = pd.DataFrame(X, columns=list("abcdefg"))
    whole, files = train(clone(model), frame, LABELS, path)
    assert_same(go_on(model, files[2], frame, LABELS, path), whole)
    for other in (frame.rename(columns={"a": "h"}), X):
        with pytest.raises(ValueError, match=r"Others are: the names of the features\."):
            go_on(model, files[2], other, LABELS, path)


def test_a_full_disk_does_not_end_training(tmp_path, monkeypatch):
    model, path = BackpropClassifier(**OPTIONS), tmp_path / "model.safetensors"
    calls = []

    def save(*args):
        calls.append(args)
        if len(calls) > 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fastbp.save(*args)

    monkeypatch.setattr(callbacks, "save", save)
    with pytest.warns(UserWarning, match=r"Checkpoint could not write .* after epoch 4: .*No space left"):
        whole, _ = train(clone(model), X, LABELS, path)
    assert_same(whole, clone(model).fit(X, LABELS))
    assert len(calls) == 6 and fastbp.load(path).n_iter_ == 3


def test_a_path_that_cannot_be_written_is_refused_before_training(tmp_path):
    model = BackpropClassifier(**OPTIONS)
    (tmp_path / "folder").mkdir()
    for path, error in ((tmp_path / "folder", "is not a file"), (tmp_path / ("x" * 300), "too long")):
        with pytest.raises(OSError, match=f"Checkpoint cannot write path='.*': .*{error}"):
            model.set_callbacks(Checkpoint(path, every=5)).fit(X, LABELS)
    assert not hasattr(model, "coefs_") and len(list(tmp_path.iterdir())) == 1


def test_what_killed_processes_have_left_is_removed(tmp_path):
    old, new, other = (tmp_path / f".{name}.part" for name in ("m.12345678", "m.23456789", "mm.12345678"))
    for file in (old, new, other):
        file.touch()
    for file in (old, other):
        os.utime(file, (1e9, 1e9))
    train(BackpropClassifier(**OPTIONS), X, LABELS, tmp_path / "m")
    assert sorted(tmp_path.iterdir()) == sorted([new, other, tmp_path / "m"])


def test_a_program_that_changes_its_folder(tmp_path, monkeypatch):
    class Leave(Copies):
        def on_fit_task_begin(self, estimator, context):
            os.chdir(tmp_path / "elsewhere")

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    model = BackpropClassifier(**OPTIONS).set_callbacks(Checkpoint("m"), Leave(tmp_path / "m"))
    model.fit(X, LABELS)
    assert fastbp.load(tmp_path / "m").n_iter_ == 6


def test_a_model_is_made_where_it_is_saved_only(tmp_path, monkeypatch):
    made = []
    checkpoint = Models.checkpoint
    monkeypatch.setattr(Models, "checkpoint", lambda *args: made.append(1) or checkpoint(*args))
    BackpropClassifier(**OPTIONS).set_callbacks(Checkpoint(tmp_path / "m", every=4)).fit(X, LABELS)
    assert len(made) == 2  # the last, too


def test_the_last_epoch_is_saved(tmp_path):
    for options in ({}, {"n_iter_no_change": 1, "tol": 0.1, "max_iter": 50}):
        model = BackpropClassifier(**OPTIONS | options).set_callbacks(Checkpoint(tmp_path / "m", every=100))
        whole = model.fit(X, LABELS)
        loaded = fastbp.load(tmp_path / "m")
        assert_same(loaded, whole)
        assert_same(clone(model).set_callbacks().fit(X, LABELS, resume_from=loaded), whole)


def test_in_a_pipeline(tmp_path):
    model, path = BackpropClassifier(**OPTIONS), tmp_path / "model.safetensors"
    whole, files = train(clone(model), StandardScaler().fit_transform(X), LABELS, path)
    path.write_bytes(files[2])
    pipeline = make_pipeline(StandardScaler(), clone(model).set_callbacks(Checkpoint(path)))
    pipeline.fit(X, LABELS, backpropclassifier__resume_from=fastbp.load(path))
    assert_same(pipeline[-1], whole)


def test_another_training_is_refused(tmp_path):
    model, path = BackpropClassifier(**OPTIONS), tmp_path / "model.safetensors"
    train(clone(model), X, LABELS, path)
    checkpoint = fastbp.load(path)
    changed = X.copy()
    changed[40, 3] += 1e-12
    numbers = np.unique(LABELS, return_inverse=True)[1]
    same = clone(model).fit(X, LABELS)
    before = dict(vars(same))
    for options, samples, message in [
        ({"hidden_layer_sizes": (7,)}, (X, LABELS), r"hidden_layer_sizes=\(7,\), but the checkpoint .* has .*=\(6,\)"),
        ({"random_state": 1}, (X, LABELS), "random_state=1, but the checkpoint resume_from has random_state=0"),
        ({}, (changed, LABELS), "samples are not those .* Others are: X[.]"),
        ({}, (X[:-1], LABELS[:-1]), "Others are: X, y[.]"),
        ({}, (X.astype(np.float32), LABELS), "samples are not those"),
        ({}, (X, LABELS[::-1]), "Others are: y[.]"),
        ({}, (X, numbers), "Others are: the classes of y[.]"),
        ({}, (csr_array(X), LABELS), "samples are not those"),
        ({}, (X, LABELS, WEIGHT), "Others are: sample_weight[.]"),
    ]:
        with pytest.raises(ValueError, match=message):
            same.set_params(**options).fit(*samples, resume_from=checkpoint)
        same.set_params(**OPTIONS)
        assert vars(same) == before
    with pytest.raises(ValueError, match=r"Others are: X_val/y_val\."):
        same.fit(X, LABELS, X_val=X, y_val=LABELS, resume_from=checkpoint)
    with pytest.raises(TypeError, match=r"resume_from must be a BackpropClassifier, .* got 'model.safetensors'"):
        same.fit(X, LABELS, resume_from="model.safetensors")
    with pytest.raises(TypeError, match="must be a BackpropRegressor"):
        BackpropRegressor().fit(X, TARGETS, resume_from=checkpoint)
    with pytest.raises(ValueError, match="is a BackpropClassifier but no checkpoint"):
        same.fit(X, LABELS, resume_from=clone(same).fit(X, LABELS))
    checkpoint.coefs_[0] = np.zeros((7, 9))
    with pytest.raises(ValueError, match=r"intercepts_\[0\] must have the shape"):
        same.fit(X, LABELS, resume_from=checkpoint)
    assert vars(same) == before


def _resize_best(state):
    coefs, intercepts = state["_training_state"]["best"]
    best = [np.zeros((7, 9)), np.zeros((9, coefs[1].shape[1]))], [np.zeros(9), intercepts[1]]
    state["_training_state"]["best"] = best


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_resize_best, "best weights of the checkpoint are not of the shape"),
        (lambda state: state["_progress"].update(validation_losses=None), "a loss for each score"),
        (lambda state: state["_progress"]["validation_scores"].pop(), "a loss for each score"),
        (lambda state: state["_training_state"]["order"].fill(1), "each number from 0 on once"),
    ],
)
def test_a_broken_checkpoint_is_refused(change, message, tmp_path):
    train(BackpropClassifier(**OPTIONS, early_stopping=True), X, LABELS, tmp_path / "m")
    loaded = fastbp.load(tmp_path / "m")
    state = copy.deepcopy(loaded.__getstate__())
    change(state)
    with pytest.raises(fastbp.FormatError, match=message):
        loaded.__setstate__(state)


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    train(BackpropClassifier(**OPTIONS, early_stopping=True), X, LABELS, tmp_path / "m")
    loaded = fastbp.load(tmp_path / "m")
    loaded._training_state.best[0][0][0, 0] = np.nan
    with pytest.raises(ValueError, match="must be finite"):
        fastbp.save(loaded, tmp_path / "m")


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (BackpropClassifier(solver="lbfgs"), ValueError, "not for solver='lbfgs'"),
        (make_pipeline(BackpropClassifier()), TypeError, "got Pipeline.*its last step"),
        (BackpropClassifier(random_state=np.random.RandomState(np.random.PCG64(0))), ValueError, "only MT19937"),
    ],
)
def test_what_cannot_be_saved_is_refused_before_training(model, error, message, tmp_path):
    with pytest.raises(error, match=message):
        model.set_callbacks(Checkpoint(tmp_path / "model.safetensors")).fit(X, LABELS)
    assert not list(tmp_path.iterdir())


def test_parameters():
    for every in (0, -1):
        with pytest.raises(ValueError, match="every"):
            Checkpoint("model.safetensors", every)
    for every in (1.5, True):
        with pytest.raises(TypeError, match="every"):
            Checkpoint("model.safetensors", every)
    assert Checkpoint("model.safetensors", np.int64(5)).every == 5
    with pytest.raises(FileNotFoundError, match="whose folder does not exist"):
        BackpropClassifier(**OPTIONS).set_callbacks(Checkpoint("no such folder/model")).fit(X, LABELS)


def test_a_clone_in_an_ensemble_trains(tmp_path):
    """Its members write the same file, one after another; each file is whole."""
    path = tmp_path / "model.safetensors"
    BaggingClassifier(BackpropClassifier(**OPTIONS).set_callbacks(Checkpoint(path)), 2).fit(X, LABELS)
    assert fastbp.load(path).n_iter_ == 6


def test_a_network_that_diverges_leaves_the_last_one_that_did_not(tmp_path):
    path = tmp_path / "model.safetensors"
    model = BackpropRegressor(**OPTIONS | {"solver": "sgd", "learning_rate_init": 5.0, "activation": "identity"})
    model.set_params(max_iter=500, early_stopping=True, n_iter_no_change=500)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.set_callbacks(Checkpoint(path)).fit(X, TARGETS)
    assert not np.isfinite(model.validation_scores_[-1])
    assert all(np.isfinite(coef).all() for coef in fastbp.load(path).coefs_)


# Each child is ended while it trains or saves; the next goes on from the file that it finds.
KILLS = """
import os, random, signal, sys, time, warnings
import numpy as np
import fastbp
from fastbp import BackpropClassifier
from fastbp.callbacks import Checkpoint

warnings.simplefilter("ignore")
path, n_kills, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rng = np.random.RandomState(0)
X, y = rng.randn(2000, 30), rng.randint(3, size=2000)
model = BackpropClassifier((40, 30), max_iter=10_000, tol=0, n_iter_no_change=10_000, dropout=0.1, random_state=0,
                           n_jobs=1)
BackpropClassifier((4,), max_iter=1, dropout=0.1, random_state=0, n_jobs=1).fit(X, y)  # so that no child compiles
pause, epochs, resumed = random.Random(seed), [], 0
for _ in range(n_kills):
    child = os.fork()
    if child == 0:
        try:
            checkpoint = fastbp.load(path) if os.path.exists(path) else None
            model.set_callbacks(Checkpoint(path)).fit(X, y, resume_from=checkpoint)
        except BaseException as error:
            print("child:", repr(error), file=sys.stderr, flush=True)
        os._exit(3)
    time.sleep(pause.uniform(0.01, 0.25))
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    if os.path.exists(path):
        loaded = fastbp.load(path)  # whole, whatever the moment
        epochs.append(loaded.n_iter_)
assert epochs == sorted(epochs), epochs
print(len(set(epochs)), epochs[-1])
last = fastbp.load(path)
whole = model.set_callbacks().set_params(max_iter=last.n_iter_).fit(X, y)
for a, b in zip([*last.coefs_, *last.intercepts_], [*whole.coefs_, *whole.intercepts_], strict=True):
    assert a.tobytes() == b.tobytes()
assert last.loss_curve_ == whole.loss_curve_
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("n_kills", [8, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_at_any_moment(n_kills, tmp_path):
    path = tmp_path / "model.safetensors"
    env = {**os.environ, "PYTHONPATH": str(Path(fastbp.__file__).parents[1])}
    command = [sys.executable, "-c", KILLS, str(path), str(n_kills), "0"]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    n_files, n_epochs = map(int, done.stdout.split())
    assert n_files > n_kills / 2 and n_epochs > n_files  # most of them came to save, and were ended in a later epoch
    # What was being written when the process ended may remain, under a name of its own.
    assert all(name.endswith(".part") for name in os.listdir(tmp_path) if name != path.name)
