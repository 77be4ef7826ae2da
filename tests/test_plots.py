import subprocess
import sys

import numpy as np
import pytest
from scipy.sparse import csr_array
from sklearn.datasets import load_diabetes, load_digits
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fastbp import BackpropClassifier, BackpropRegressor, plots
from fastbp.activations import Logistic
from fastbp.inspection import gradient_flow, gradient_terms, loss_and_gradient, loss_slice, mean_loss

matplotlib = pytest.importorskip("matplotlib", reason="the extra 'plots' is not installed")
matplotlib.use("Agg")
plt = pytest.importorskip("matplotlib.pyplot")

X, y = load_digits(return_X_y=True)
X, y = X[:300] / 16, y[:300]
pytestmark = pytest.mark.filterwarnings("ignore:Stochastic Optimizer", "ignore:lbfgs failed to converge")


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
    """Check what holds for every display, and render it."""
    assert len(display.axes_) == n_axes
    assert display.ax_ is display.axes_[0] and display.figure_ is display.ax_.figure
    display.figure_.canvas.draw()
    images = isinstance(display, plots.WeightImageDisplay)
    for axis in display.axes_:
        assert axis.get_title()
        assert images or (axis.get_xlabel() and axis.get_ylabel())
    for axis in display.figure_.axes:  # those of colour bars too
        for ticks in (axis.xaxis, axis.yaxis):
            assert_plain(ticks)
    return display


def assert_plain(ticks):
    """Check that each tick label is the number at the tick, and not to be multiplied by or added to another one."""
    assert ticks.get_offset_text().get_text() == ""
    for place, label in zip(ticks.get_majorticklocs(), ticks.get_majorticklabels(), strict=True):
        text = label.get_text().replace("\N{MINUS SIGN}", "-")
        if text:
            assert float(text) == pytest.approx(place, rel=1e-3, abs=1e-12)
    assert not any(label.get_text() for label in ticks.get_minorticklabels())


def test_loss_curve_of_a_fitted_estimator(clf):
    display = drawn(plots.LossCurveDisplay.from_estimator(clf))
    np.testing.assert_array_equal(lines(display.ax_)["training"], np.c_[[1, 2, 3], clf.loss_curve_])
    assert (display.ax_.get_xlabel(), display.ax_.get_ylabel()) == ("Epoch", "Loss")
    assert display.ax_.get_legend() is None
    assert display.estimator_ is clf


def test_loss_curve_of_a_trained_clone():
    model = BackpropClassifier((12,), max_iter=4, random_state=0)
    display = drawn(plots.LossCurveDisplay.from_estimator(model, X[:200], y[:200], X_val=X[200:], y_val=y[200:]), 2)
    assert not hasattr(model, "coefs_")
    same = BackpropClassifier((12,), random_state=0)
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
    # The trained clone is kept, with the parameters of the original.
    assert display.estimator_ is not model and display.estimator_.get_params() == model.get_params()
    for found, expected in zip(display.estimator_.coefs_, same.coefs_, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_loss_curve_with_the_accuracy_of_the_validation_data_only():
    display = drawn(plots.LossCurveDisplay(loss=[2, 1], validation_score=[0.5, 0.6]).plot(), 2)
    assert set(lines(display.axes_[1])) == {"validation"} and not hasattr(display, "estimator_")


def test_loss_curve_of_one_epoch_is_visible():
    (line,) = drawn(plots.LossCurveDisplay(loss=[2.0]).plot()).ax_.get_lines()
    assert line.get_marker() == "o"


def test_loss_curve_of_several_labels():
    labels = np.c_[y % 2, y > 4].astype(int)
    model = BackpropClassifier((5,), max_iter=2, random_state=0)
    display = plots.LossCurveDisplay.from_estimator(model, X, labels)
    assert len(display.loss) == len(display.score) == 2


REGRESSION = [
    ("squared_error", 1, {}), ("squared_error", 2, {}), ("poisson", 2, {}), ("absolute_error", 1, {}), ("huber", 2, {}),
    ("quantile", 1, {}), ("quantile", 1, {"quantile": [0.1, 0.9]}),
]  # fmt: skip


def regression(loss, n_outputs, options):
    """Return a regressor that is not fitted, inputs, and targets."""
    inputs, targets = load_diabetes(return_X_y=True)
    targets = targets / 100
    reg = BackpropRegressor(loss, (6,), max_iter=3, random_state=0, dtype="float64", **options)
    return reg, inputs * 20, targets if n_outputs == 1 else np.c_[targets, targets[::-1]]


@pytest.mark.parametrize(("loss", "n_outputs", "options"), REGRESSION)
def test_loss_curve_of_a_regressor(loss, n_outputs, options):
    reg, inputs, targets = regression(loss, n_outputs, options)
    train, rest = slice(0, 300), slice(300, None)
    display = drawn(
        plots.LossCurveDisplay.from_estimator(
            reg, inputs[train], targets[train], X_val=inputs[rest], y_val=targets[rest]
        ), 2,
    )  # fmt: skip
    trained = display.estimator_
    assert [axis.get_ylabel() for axis in display.axes_] == ["Loss", "D²" if options else "R²"]
    assert (display.loss[-1], display.score[-1]) == (
        mean_loss(trained, inputs[train], targets[train]), trained.score(inputs[train], targets[train])
    )  # fmt: skip
    assert display.validation_loss[-1] == mean_loss(trained, inputs[rest], targets[rest])
    np.testing.assert_array_equal(lines(display.axes_[1])["validation"][:, 1], display.validation_score)
    assert display.validation_score[-1] == trained.score(inputs[rest], targets[rest])
    fitted = drawn(plots.LossCurveDisplay.from_estimator(trained))
    np.testing.assert_array_equal(fitted.loss, trained.loss_curve_)


@pytest.mark.parametrize(("loss", "n_outputs", "options"), REGRESSION)
def test_other_displays_of_a_regressor(loss, n_outputs, options):
    reg, inputs, targets = regression(loss, n_outputs, options)
    reg.fit(inputs, targets)
    flow = drawn(plots.GradientFlowDisplay.from_estimator(reg, inputs, targets), 2)
    assert [text.get_text() for text in flow.axes_[1].texts][-1] == ("n/a" if loss == "poisson" else "0%")
    found = drawn(plots.LossSliceDisplay.from_estimator(reg, inputs, targets))
    assert found.loss == loss_and_gradient(reg, inputs, targets)[0]
    surface = drawn(plots.LossSurfaceDisplay.from_estimator(reg, inputs, targets, n_points=3, n_steps=2))
    assert surface.losses[1, 1] == found.loss
    activation = drawn(plots.ActivationDisplay.from_estimator(reg, layer=-1))
    assert activation.ax_.get_title() == ("Exp()" if loss == "poisson" else "Identity()")
    assert drawn(plots.WeightImageDisplay.from_estimator(reg, shape=(2, 5), n_units=3), 3).images.shape == (3, 2, 5)


def test_displays_of_sparse_data(clf):
    sparse = csr_array(X)
    for display in (plots.GradientFlowDisplay, plots.LossSliceDisplay):
        dense = display.from_estimator(clf, X, y)
        values = "delta" if display is plots.GradientFlowDisplay else "losses"
        found = getattr(drawn(display.from_estimator(clf, sparse, y), len(dense.axes_)), values)
        np.testing.assert_allclose(found, getattr(dense, values), rtol=1e-10)
    model = BackpropClassifier((5,), max_iter=2, random_state=0, dtype="float64")
    curves = [plots.LossCurveDisplay.from_estimator(model, data, y, X_val=data, y_val=y) for data in (X, sparse)]
    np.testing.assert_allclose(curves[1].validation_loss, curves[0].validation_loss, rtol=1e-10)


def test_loss_curve_of_lbfgs_and_of_early_stopping():
    for options in ({"solver": "lbfgs"}, {"early_stopping": True}):
        model = BackpropClassifier((5,), max_iter=3, random_state=0, **options)
        with pytest.raises(ValueError, match=f"{next(iter(options))}=.*pass the fitted estimator without X"):
            plots.LossCurveDisplay.from_estimator(model, X, y)
        display = drawn(plots.LossCurveDisplay.from_estimator(model.fit(X, y)))
        np.testing.assert_array_equal(display.loss, model.loss_curve_)


def test_nothing_is_computed_for_axes_that_do_not_fit(monkeypatch):
    monkeypatch.setattr(BackpropClassifier, "partial_fit", None)
    _, ax = plt.subplots()
    with pytest.raises(ValueError, match="ax must be 2 axes, got 1"):
        plots.LossCurveDisplay.from_estimator(BackpropClassifier(), X, y, ax=ax)
    with pytest.raises(ValueError, match="X_val and y_val must be passed together"):
        plots.LossCurveDisplay.from_estimator(BackpropClassifier(), X, y, X_val=X)


def test_loss_curve_refuses_validation_data_without_training_data(clf):
    for kwargs in ({"y": y}, {"X_val": X}, {"y_val": y}):
        with pytest.raises(ValueError, match="require X"):
            plots.LossCurveDisplay.from_estimator(clf, **kwargs)


def test_loss_curve_refuses_to_train_a_pipeline(clf):
    with pytest.raises(TypeError, match=r"got Pipeline.*pipe\[-1\]"):
        plots.LossCurveDisplay.from_estimator(make_pipeline(StandardScaler(), clf), X, y)


def test_activation():
    display = drawn(plots.ActivationDisplay.from_activation(Logistic(2.0), z=(-3, 3)))
    points = lines(display.ax_)
    z = points["f(z)"][:, 0]
    assert (z[0], z[-1]) == (-3, 3)
    np.testing.assert_allclose(points["f(z)"][:, 1], 1 / (1 + np.exp(-2 * z)), rtol=1e-14)
    np.testing.assert_allclose(points["f '(z)"][:, 1], 0.5 / np.cosh(z) ** 2, rtol=1e-12)
    assert display.ax_.get_title() == "Logistic(slope=2.0)"
    assert display.ax_.get_xlabel() == "Pre-activation z"


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
    np.testing.assert_array_equal(points["current value"], [[found.weight, found.loss]])
    (left, right) = points["tangent"]
    assert (right[1] - left[1]) / (right[0] - left[0]) == pytest.approx(found.derivative, rel=1e-9)
    assert display.ax_.get_xlabel() == label


@pytest.fixture(params=["float32", "float64"])
def half_dead(request):
    """A network of which the first three hidden units are inactive for all samples, with a large L2 term."""
    model = BackpropClassifier((6,), alpha=10.0, random_state=0, dtype=request.param).initialize(64, range(10))
    model.intercepts_[0][:3] = -100
    return model


def test_loss_slice_chooses_a_weight_that_matters(half_dead):
    gradients = gradient_terms(half_dead.set_params(alpha=0.0), X, y)
    largest = [np.unravel_index(np.abs(term.gradient).argmax(), term.gradient.shape) for term in gradients]
    half_dead.set_params(alpha=10.0)
    # The L2 term alone would choose a weight of an inactive unit.
    with_penalty = np.abs(gradient_terms(half_dead, X, y)[1].gradient)
    assert np.unravel_index(with_penalty.argmax(), with_penalty.shape) != largest[1]
    for layer in (0, -1, 1):
        display = drawn(plots.LossSliceDisplay.from_estimator(half_dead, X, y, layer=layer))
        i, j = largest[layer]
        assert display.label == f"coefs_[{layer % 2}][{i}, {j}]"
        assert (j if layer == 0 else i) >= 3
    assert half_dead.alpha == 10.0
    assert plots.LossSliceDisplay.from_estimator(half_dead, X, y).label == display.label


def test_loss_slice_chooses_among_the_weights_that_are_allowed(half_dead):
    first, last = gradient_terms(half_dead.set_params(alpha=0.0), X, y)
    for indices, label in (
        ({"i": 4}, f"coefs_[1][4, {np.abs(last.gradient[4]).argmax()}]"),
        ({"j": 7}, f"coefs_[1][{np.abs(last.gradient[:, 7]).argmax()}, 7]"),
        ({"j": -3}, f"coefs_[1][{np.abs(last.gradient[:, -3]).argmax()}, -3]"),
        ({"i": None}, f"intercepts_[1][{np.abs(last.intercept_gradient).argmax()}]"),
        ({"layer": 0, "j": 5}, f"coefs_[0][{np.abs(first.gradient[:, 5]).argmax()}, 5]"),
        ({"layer": 0, "i": 0, "j": 0}, "coefs_[0][0, 0]"),
    ):
        assert plots.LossSliceDisplay.from_estimator(half_dead, X, y, **indices).label == label
    for indices in ({"layer": 2}, {"i": 6}, {"j": 10}, {"i": None, "j": 10}):
        with pytest.raises(ValueError, match="is out of range"):
            plots.LossSliceDisplay.from_estimator(half_dead, X, y, **indices)
    with pytest.raises(TypeError, match="i must be an instance of int"):
        plots.LossSliceDisplay.from_estimator(half_dead, X, y, i="largest")


def test_loss_slice_of_an_inactive_unit_has_plain_labels(half_dead):
    half_dead.set_params(alpha=1e-6)
    display = drawn(plots.LossSliceDisplay.from_estimator(half_dead, X, y, layer=0, i=0, j=0))
    assert 0 < np.ptp(display.losses) < 1e-5 * display.losses.mean()  # matplotlib's default here is an offset


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
    with pytest.raises(ValueError, match="is out of range"):
        plots.LossSurfaceDisplay.from_estimator(clf, X, y, weights=[(0, None, 99), (0, 0, 0)])


def test_loss_surface_of_two_directions(clf):
    display = drawn(plots.LossSurfaceDisplay.from_estimator(clf, X, y, n_points=3, n_steps=2))
    assert display.losses[1, 1] == loss_and_gradient(clf, X, y)[0]
    assert len(np.unique(display.losses)) == 9
    again = plots.LossSurfaceDisplay.from_estimator(clf, X, y, n_points=3, n_steps=2)
    np.testing.assert_array_equal(display.losses, again.losses)


def luminance(color):
    """Relative luminance of WCAG 2."""
    rgb = np.array(matplotlib.colors.to_rgb(color))
    return np.where(rgb <= 0.03928, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_marks_on_the_loss_surface_stand_out_on_every_background(clf):
    display = drawn(plots.LossSurfaceDisplay.from_estimator(clf, X, y, n_points=5, n_steps=2))
    filled = max(display.ax_.collections, key=lambda collection: len(collection.get_facecolor()))
    backgrounds = filled.cmap(np.linspace(0, 1, 32))[:, :3]
    shown = {line.get_label(): line for line in display.ax_.get_lines()}
    assert set(shown) == {"gradient descent", "start of the descent", "current parameters"}
    for label, line in shown.items():
        if label == "gradient descent":
            outline = line.get_path_effects()[0]._gc["foreground"]
            colors = [line.get_color(), outline]
        else:
            assert line.get_marker() in "oX"  # markers with a face and an edge
            colors = [line.get_markerfacecolor(), line.get_markeredgecolor()]
        # At least 3, which WCAG 2.1 asks of graphical objects.
        assert min(max(contrast(color, background) for color in colors) for background in backgrounds) >= 3
    legend = display.ax_.get_legend().get_window_extent()
    assert not legend.overlaps(display.ax_.get_window_extent())


def network(hidden, activation, **kwargs):
    return BackpropClassifier(hidden, activation, random_state=0, **kwargs).initialize(64, range(10))


def test_gradient_flow():
    deep = network((8,) * 4, "logistic", dtype="float64")
    display = drawn(plots.GradientFlowDisplay.from_estimator(deep, X, y), 2)
    flow = gradient_flow(deep, X, y)
    deltas, shares = display.axes_
    (line,) = deltas.get_lines()
    np.testing.assert_array_equal(line.get_xydata(), np.c_[[1, 2, 3, 4, 5], flow.delta])
    assert (line.get_linestyle(), line.get_marker()) == ("-", "o") and not deltas.patches
    assert deltas.get_yscale() == "log" and deltas.get_title() == "Mean |delta| per layer"
    assert len([label for label in deltas.get_yticklabels() if label.get_text()]) >= 3
    np.testing.assert_array_equal([bar.get_height() for bar in shares.patches], [*flow.saturated[:4], 0])
    assert [text.get_text() for text in shares.texts] == ["0%"] * 4 + ["n/a"]
    assert "output layer" in shares.get_xlabel()


@pytest.mark.parametrize(("delta", "scale"), [
    ([1e-14, 1e-7, 1.0], "log"), ([0.02, 0.1, 0.5], "log"), ([0.05, 0.051, 0.2], "linear"), ([0.3], "linear"),
    ([0.0, 0.0], "linear"), ([np.nan, np.nan], "linear"), ([0.0, 1e-3, 0.2], "log"),
])  # fmt: skip
def test_axis_of_the_deltas(delta, scale):
    display = drawn(plots.GradientFlowDisplay(delta=delta, saturated=np.zeros(len(delta))).plot(), 2)
    axis = display.ax_
    assert axis.get_yscale() == scale
    low, high = axis.get_ylim()
    assert len([place for place in axis.get_yticks() if low <= place <= high]) >= 2
    if scale == "linear":
        assert low == 0
    # What a logarithmic axis cannot show is marked at its lower end.
    marks = lines(axis).get("exactly 0")
    assert (marks is not None) == (scale == "log" and 0.0 in delta)
    if marks is not None:
        np.testing.assert_array_equal(marks, [[1, 0]])


@pytest.mark.parametrize(("kwargs", "title", "condition", "legend"), [
    ({"activation": "logistic"}, "Saturated units", "5%", None),
    ({"activation": "selu"}, "Saturated units", "5%", None),
    ({"activation": "relu"}, "Inactive units", "f '(z) = 0", None),
    ({"activation": ["relu", "identity"]}, "Inactive units", "f '(z) = 0", None),
    ({"activation": ["gelu", "relu"]}, "Inactive units", "5%", None),
    ({"activation": "leaky_relu"}, "Inactive units", "5%", None),
    ({"activation": ["relu", "tanh"]}, "Saturated or inactive units", "5%", ["inactive", "saturated"]),
    ({"activation": "relu", "loss": "squared_error"}, "Saturated or inactive units", "5%", ["inactive", "saturated"]),
    (
        {"activation": "relu", "loss": "squared_error", "output_activation": "identity"}, "Inactive units",
        "f '(z) = 0", None,
    ),
])  # fmt: skip
def test_units_without_a_derivative_are_named_after_their_activation(kwargs, title, condition, legend):
    display = drawn(plots.GradientFlowDisplay.from_estimator(network((8, 8), **kwargs), X, y), 2)
    axis = display.axes_[1]
    assert axis.get_title() == title and condition in axis.get_ylabel()
    found = axis.get_legend()
    assert (found and [text.get_text() for text in found.get_texts()]) == legend
    heights = {bar.get_x() + bar.get_width() / 2: bar.get_height() for bar in axis.patches}
    assert [heights[layer] for layer in (1, 2, 3)] == pytest.approx(np.nan_to_num(display.saturated))


def test_gradient_flow_without_the_names_of_activations():
    display = drawn(plots.GradientFlowDisplay(delta=[0.1, 0.2], saturated=[0.5, np.nan]).plot(), 2)
    assert display.axes_[1].get_title() == "Saturated or inactive units"


def test_gradient_flow_of_many_layers_has_no_number_over_each_bar():
    display = drawn(plots.GradientFlowDisplay(delta=[0.1] * 40, saturated=[0.5] * 39 + [np.nan]).plot(), 2)
    assert [text.get_text() for text in display.axes_[1].texts] == [""] * 39 + ["n/a"]


def test_weight_images(clf):
    display = drawn(plots.WeightImageDisplay.from_estimator(clf, n_units=5), 5)
    for unit, axis in enumerate(display.axes_):
        (image,) = axis.get_images()
        np.testing.assert_array_equal(image.get_array(), clf.coefs_[0][:, unit].reshape(8, 8))
    assert [axis.get_title() for axis in display.axes_] == [f"unit {unit}" for unit in range(5)]
    assert display.figure_.get_suptitle() == "Weights from the inputs to first-layer units"
    # All on one scale, with zero in the middle.
    assert len({image.get_clim() for axis in display.axes_ for image in axis.get_images()}) == 1
    low, high = display.axes_[0].get_images()[0].get_clim()
    assert low == -high
    assert plots.WeightImageDisplay.from_estimator(clf, shape=(4, 16)).images.shape == (12, 4, 16)
    with pytest.raises(ValueError, match=r"64 inputs are not an image of shape \(5, 5\)"):
        plots.WeightImageDisplay.from_estimator(clf, shape=(5, 5))


def test_axes_that_are_given(clf):
    figure, ax = plt.subplots(1, 2)
    assert plots.LossCurveDisplay.from_estimator(clf, ax=ax[0]).figure_ is figure
    plots.GradientFlowDisplay.from_estimator(clf, X, y, ax=ax)
    assert len(plt.get_fignums()) == 1 and not figure.get_suptitle()
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
