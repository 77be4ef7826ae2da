import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError

from fastbp import BackpropClassifier, plots
from fastbp.activations import Logistic
from fastbp.inspection import gradient_flow, loss_and_gradient, loss_slice, mean_loss

matplotlib = pytest.importorskip("matplotlib", reason="the extra 'plots' is not installed")
matplotlib.use("Agg")
plt = pytest.importorskip("matplotlib.pyplot")

X, y = load_digits(return_X_y=True)
X, y = X[:300] / 16, y[:300]
pytestmark = pytest.mark.filterwarnings("ignore:Stochastic Optimizer")


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def clf():
    with pytest.warns(UserWarning):
        return BackpropClassifier((12, 6), "logistic", max_iter=3, random_state=0, dtype="float64").fit(X, y)


def lines(axis):
    return {line.get_label(): line.get_xydata() for line in axis.get_lines()}


def drawn(display, n_axes=1):
    """What every display promises; and that it can be rendered."""
    assert len(display.axes_) == n_axes
    assert display.ax_ is display.axes_[0] and display.figure_ is display.ax_.figure
    display.figure_.canvas.draw()
    return display


def test_loss_curve_of_a_fitted_estimator(clf):
    display = drawn(plots.LossCurveDisplay.from_estimator(clf))
    np.testing.assert_array_equal(lines(display.ax_)["training"], np.c_[[1, 2, 3], clf.loss_curve_])
    assert (display.ax_.get_xlabel(), display.ax_.get_ylabel()) == ("Epoch", "Loss")
    assert display.ax_.get_legend() is None


def test_loss_curve_of_training_that_is_watched():
    model = BackpropClassifier((12,), max_iter=4, random_state=0)
    display = drawn(plots.LossCurveDisplay.from_estimator(model, X[:200], y[:200], X_val=X[200:], y_val=y[200:]), 2)
    assert not hasattr(model, "coefs_")
    same = BackpropClassifier((12,), random_state=np.random.RandomState(0))
    for epoch in range(4):
        same.partial_fit(X[:200], y[:200], classes=range(10))
        expected = {
            (0, "training"): mean_loss(same, X[:200], y[:200]),
            (0, "validation"): mean_loss(same, X[200:], y[200:]),
            (1, "training"): same.score(X[:200], y[:200]),
            (1, "validation"): same.score(X[200:], y[200:]),
        }
        for (axis, label), value in expected.items():
            np.testing.assert_array_equal(lines(display.axes_[axis])[label][epoch], [epoch + 1, value])
    assert [axis.get_ylabel() for axis in display.axes_] == ["Loss", "Accuracy"]
    assert all(axis.get_legend() is not None for axis in display.axes_)


def test_loss_curve_of_several_labels():
    labels = np.c_[y % 2, y > 4].astype(int)
    model = BackpropClassifier((5,), max_iter=2, random_state=0)
    display = plots.LossCurveDisplay.from_estimator(model, X, labels)
    assert len(display.loss) == len(display.accuracy) == 2


def test_nothing_is_computed_for_axes_that_do_not_fit(monkeypatch):
    monkeypatch.setattr(BackpropClassifier, "partial_fit", None)
    _, ax = plt.subplots()
    with pytest.raises(ValueError, match="ax must be 2 axes, got 1"):
        plots.LossCurveDisplay.from_estimator(BackpropClassifier(), X, y, ax=ax)
    with pytest.raises(ValueError, match="go together"):
        plots.LossCurveDisplay.from_estimator(BackpropClassifier(), X, y, X_val=X)


def test_validation_data_goes_with_training_data(clf):
    with pytest.raises(ValueError, match="go with X"):
        plots.LossCurveDisplay.from_estimator(clf, X_val=X, y_val=y)


def test_activation():
    display = drawn(plots.ActivationDisplay.from_activation(Logistic(2.0), z=(-3, 3)))
    points = lines(display.ax_)
    z = points["f(z)"][:, 0]
    assert (z[0], z[-1]) == (-3, 3)
    np.testing.assert_allclose(points["f(z)"][:, 1], 1 / (1 + np.exp(-2 * z)), rtol=1e-14)
    np.testing.assert_allclose(points["f '(z)"][:, 1], 0.5 / np.cosh(z) ** 2, rtol=1e-12)
    assert display.ax_.get_title() == "Logistic(slope=2.0)"


def test_activation_of_a_layer(clf):
    assert plots.ActivationDisplay.from_estimator(clf, layer=1).activation == Logistic()
    assert plots.ActivationDisplay.from_activation("gelu").ax_.get_title() == "Gelu()"
    with pytest.raises(ValueError, match="is unknown"):
        plots.ActivationDisplay.from_activation("swish")
    with pytest.raises(ValueError, match="layer=-1 is a softmax"):
        plots.ActivationDisplay.from_estimator(clf, layer=-1)


@pytest.mark.parametrize(("i", "label"), [(2, "coefs_[2][2, 1]"), (None, "intercepts_[2][1]")])
def test_loss_slice(clf, i, label):
    display = drawn(plots.LossSliceDisplay.from_estimator(clf, X, y, i=i, j=1))
    points = lines(display.ax_)
    assert len(points["loss"]) == 81
    found = loss_slice(clf, X, y, -1, i, 1, points["loss"][:, 0])
    np.testing.assert_array_equal(points["loss"][:, 1], found.losses)
    np.testing.assert_array_equal(points["the network"], [[found.weight, found.loss]])
    (left, right) = points["tangent"]
    assert (right[1] - left[1]) / (right[0] - left[0]) == pytest.approx(found.derivative, rel=1e-9)
    assert display.ax_.get_xlabel() == label


def test_loss_surface_of_two_weights(clf):
    display = drawn(
        plots.LossSurfaceDisplay.from_estimator(clf, X, y, weights=[(2, 0, 0), (-1, 1, 0)], n_points=5, n_steps=4)
    )
    assert display.losses.shape == (5, 5) and display.path.shape == (5, 2)
    middle = clf.coefs_[2][0, 0], clf.coefs_[2][1, 0]
    assert (display.first[2], display.second[2]) == pytest.approx(middle)
    assert display.losses[2, 2] == loss_and_gradient(clf, X, y)[0]
    found = loss_slice(clf, X, y, 2, 1, 0, display.second)
    np.testing.assert_allclose(display.losses[:, 2], found.losses, rtol=1e-12)
    np.testing.assert_array_equal(lines(display.ax_)["gradient descent"], display.path)
    assert (np.diff(display.path_losses) < 0).all()
    assert (display.ax_.get_xlabel(), display.ax_.get_ylabel()) == ("coefs_[2][0, 0]", "coefs_[2][1, 0]")


def test_loss_surface_of_biases(clf):
    display = plots.LossSurfaceDisplay.from_estimator(
        clf, X, y, weights=[(0, None, 3), (-1, None, 1)], n_points=3, n_steps=1
    )
    np.testing.assert_array_equal(display.first, clf.intercepts_[0][3] + np.array([-1.5, 0, 1.5]))
    np.testing.assert_array_equal(display.second, clf.intercepts_[2][1] + np.array([-1.5, 0, 1.5]))
    found = loss_slice(clf, X, y, 0, None, 3, display.first).losses
    np.testing.assert_allclose(display.losses[1], found, rtol=1e-12)
    with pytest.raises(ValueError, match="is not there"):
        plots.LossSurfaceDisplay.from_estimator(clf, X, y, weights=[(0, None, 99), (0, 0, 0)])


def test_loss_surface_of_two_directions(clf):
    display = drawn(plots.LossSurfaceDisplay.from_estimator(clf, X, y, n_points=3, n_steps=2))
    assert display.losses[1, 1] == loss_and_gradient(clf, X, y)[0]
    assert len(np.unique(display.losses)) == 9
    again = plots.LossSurfaceDisplay.from_estimator(clf, X, y, n_points=3, n_steps=2)
    np.testing.assert_array_equal(display.losses, again.losses)


def test_gradient_flow(clf):
    display = drawn(plots.GradientFlowDisplay.from_estimator(clf, X, y), 2)
    flow = gradient_flow(clf, X, y)
    heights = [[bar.get_height() for bar in axis.patches] for axis in display.axes_]
    np.testing.assert_array_equal(heights[0], flow.delta)
    np.testing.assert_array_equal(heights[1], [*flow.saturated[:2], 0])
    assert [text.get_text() for text in display.axes_[1].texts][-1] == "log loss:\nno factor"
    assert display.ax_.get_yscale() == "log"


def test_weight_images(clf):
    display = drawn(plots.WeightImageDisplay.from_estimator(clf, n_units=5), 5)
    for unit, axis in enumerate(display.axes_):
        (image,) = axis.get_images()
        np.testing.assert_array_equal(image.get_array(), clf.coefs_[0][:, unit].reshape(8, 8))
    # All in one scale, with zero in the middle.
    assert len({image.get_clim() for axis in display.axes_ for image in axis.get_images()}) == 1
    low, high = display.axes_[0].get_images()[0].get_clim()
    assert low == -high
    assert plots.WeightImageDisplay.from_estimator(clf, shape=(4, 16)).images.shape == (12, 4, 16)
    with pytest.raises(ValueError, match=r"64 inputs are no image of shape \(5, 5\)"):
        plots.WeightImageDisplay.from_estimator(clf, shape=(5, 5))


def test_axes_that_are_given(clf):
    figure, ax = plt.subplots(1, 2)
    assert plots.LossCurveDisplay.from_estimator(clf, ax=ax[0]).figure_ is figure
    plots.GradientFlowDisplay.from_estimator(clf, X, y, ax=ax)
    assert len(plt.get_fignums()) == 1
    with pytest.raises(ValueError, match="ax must be 2 axes, got 1"):
        plots.GradientFlowDisplay.from_estimator(clf, X, y, ax=ax[0])


def test_not_fitted():
    model = BackpropClassifier()
    for draw in (
        lambda: plots.LossCurveDisplay.from_estimator(model),
        lambda: plots.ActivationDisplay.from_estimator(model),
        lambda: plots.LossSliceDisplay.from_estimator(model, X, y),
        lambda: plots.LossSurfaceDisplay.from_estimator(model, X, y),
        lambda: plots.GradientFlowDisplay.from_estimator(model, X, y),
        lambda: plots.WeightImageDisplay.from_estimator(model),
    ):
        with pytest.raises(NotFittedError):
            draw()


def test_matplotlib_is_not_needed_before_something_is_drawn():
    code = """
import sys
sys.modules["matplotlib"] = sys.modules["matplotlib.pyplot"] = None
from fastbp import plots
try:
    plots.ActivationDisplay.from_activation("tanh")
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "Displays need matplotlib: pip install 'fastbp[plots]'.\n"
