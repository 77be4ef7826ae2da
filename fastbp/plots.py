"""Displays of what a network computes, with the interface of scikit-learn's displays.

Every display has a class method, `from_estimator` or `from_activation`, which computes the data and plots it, and a
method `plot`, which plots the same data again, for example on other axes. matplotlib, the extra `plots`, is imported
when a display is drawn.

References
----------
A. J. Maren, "Backpropagation", ch. 6 of *Statistical Mechanics, Neural Networks, and Artificial Intelligence*
(draft, 2020): Figs. 6.1, 6.2, 6.3.
"""

import copy
import warnings

import numpy as np
from sklearn.base import BaseEstimator, clone, is_classifier
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import unique_labels

from fastbp.activations import ACTIVATIONS, get_activation
from fastbp.inspection import (
    SATURATED,
    check_network,
    find_weight,
    gradient_flow,
    loss_and_gradient,
    loss_plane,
    loss_slice,
    mean_loss,
)

__all__ = [
    "ActivationDisplay", "GradientFlowDisplay", "LossCurveDisplay", "LossSliceDisplay", "LossSurfaceDisplay",
    "WeightImageDisplay",
]  # fmt: skip

# Blue and orange differ in lightness too: they can be told apart in grey and by colour-blind readers.
_COLORS = ("#1f4e9c", "#d9730d")
# On a filled background each mark has a light fill and a dark outline, one of which stands out on any colour.
_FILL, _OUTLINE = ("#ffa940", "white"), "black"

# Their units are called inactive, those of other activations saturated, where the derivative is close to 0.
_RECTIFIERS = {name for name, activation in ACTIVATIONS.items() if activation.is_rectifier}


def _check_axes(ax, n=1):
    """Check that matplotlib is installed and that `ax`, unless None, holds n axes; call it before computing."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("Displays need matplotlib: pip install 'fastbp[plots]'.") from error
    if ax is not None and np.size(ax) != n:
        raise ValueError(f"ax must be {n} axes, got {np.size(ax)}.")
    return plt


def _new_axes(ax, n=1, **kwargs):
    """Return an array of the n given axes, or of n new ones if `ax` is None."""
    plt = _check_axes(ax, n)
    if ax is None:
        _, ax = plt.subplots(1, n, layout="constrained", **kwargs)
    return np.ravel(ax)


def _use_plain_labels(*axes):
    """Label the ticks of linear axes with the values themselves: no offset, no common power of ten."""
    from matplotlib.ticker import ScalarFormatter

    for axis in axes:
        formatter = ScalarFormatter(useOffset=False)
        formatter.set_scientific(False)
        axis.set_major_formatter(formatter)


def _use_integer_ticks(axis):
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))


def _plain_number(value, position=None):
    """Write 0.01, and 1e-5 for what would need more zeros."""
    number, _, exponent = f"{value:g}".partition("e")
    return f"{number}e{int(exponent)}" if exponent else number


def _use_log_scale(axes, decades):
    """Use a logarithmic y-axis with plain labels, at 1, 2 and 5 times the powers of ten if there are few decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log", nonpositive="mask")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 2.5 else (1.0,)))
    axes.yaxis.set_major_formatter(FuncFormatter(_plain_number))
    axes.yaxis.set_minor_formatter(NullFormatter())


class _Display:
    """Base class of the displays: sets the attributes that all of them have after plotting."""

    def _set_axes(self, axes):
        self.axes_ = axes
        self.ax_ = axes[0]
        self.figure_ = axes[0].figure
        return self


class LossCurveDisplay(_Display):
    """Loss, and a score if it is known, after each epoch of training.

    Parameters
    ----------
    loss : array-like of shape (n_epochs,)
        Mean loss on the training data. `from_estimator` passes the `loss_curve_` of a fitted estimator, which includes
        the L2 term; if it trains an estimator itself, it passes the mean loss after each epoch, without the L2 term.
    validation_loss : array-like of shape (n_epochs,), default=None
        Mean loss on the validation data, without the L2 term.
    score, validation_score : array-like of shape (n_epochs,), default=None
        Score of the training data and of the validation data.
    score_name : str, default="Score"
        The name of the score. `from_estimator` passes "Accuracy" for a classifier, and "R²" for a regressor, or "D²"
        if the regressor predicts several quantiles.

    Attributes
    ----------
    axes_ : ndarray of Axes
        The axes of the loss and, if a score is given, the axes of the score.
    ax_, figure_ : Axes, Figure
        The first of `axes_`, and its figure.
    estimator_ : BackpropClassifier or BackpropRegressor
        The estimator that the curves belong to: the fitted estimator that was passed to `from_estimator` or, if data
        was passed too, the clone that `from_estimator` has trained. Only set by `from_estimator`.
    """

    estimator_: BaseEstimator

    def __init__(self, *, loss, validation_loss=None, score=None, validation_score=None, score_name="Score"):
        self.loss = loss
        self.validation_loss = validation_loss
        self.score = score
        self.validation_score = validation_score
        self.score_name = score_name

    @classmethod
    def from_estimator(cls, estimator, X=None, y=None, *, X_val=None, y_val=None, ax=None):
        """Plot the loss curve of a fitted estimator, or train a clone of an estimator and plot its curves.

        Parameters
        ----------
        estimator : BackpropClassifier or BackpropRegressor
            A fitted estimator. If X and y are passed: an estimator, fitted or not, which is cloned; the clone is
            trained with `partial_fit` for `max_iter` epochs and kept in the attribute `estimator_`.
        X : {array-like, sparse matrix} of shape (n_samples, n_features), default=None
            Training data. If None, the `loss_curve_` of the estimator is plotted.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
            Class labels of the training data, or the targets of a regressor.
        X_val : {array-like, sparse matrix} of shape (n_val_samples, n_features), default=None
            Validation data.
        y_val : array-like of shape (n_val_samples,) or (n_val_samples, n_outputs), default=None
            Class labels or targets of the validation data.
        ax : Axes, or array of two Axes, default=None
            Axes to plot on: one for the loss or, with X and y, two for the loss and the score. If None, a new
            figure is created.

        Returns
        -------
        LossCurveDisplay

        Raises
        ------
        ValueError
            If only one of X_val and y_val is passed, or if y, X_val or y_val is passed without X; if X is passed and
            the estimator has the solver "lbfgs" or `early_stopping`, which `partial_fit` does not support.
        TypeError
            If `estimator` is not an estimator of this package.

        Notes
        -----
        Ctrl-C ends the training; the epochs that are complete are plotted.
        """
        if X is None:
            if any(data is not None for data in (y, X_val, y_val)):
                raise ValueError("y, X_val and y_val require X: validation curves are recorded during training.")
            check_network(estimator)
            display = cls(loss=list(estimator.loss_curve_))
            display.estimator_ = estimator
            return display.plot(ax)
        if (X_val is None) != (y_val is None):
            raise ValueError("X_val and y_val must be passed together.")
        check_network(estimator, fitted=False)
        for name, value in (("solver", "lbfgs"), ("early_stopping", True)):
            if getattr(estimator, name) == value:
                raise ValueError(
                    f"With X the estimator is trained epoch by epoch, which {name}={value!r} does not support. Fit it, "
                    "and pass the fitted estimator without X."
                )
        _check_axes(ax, 2)
        trained = clone(estimator)
        curves: dict[str, list[float]] = {"loss": [], "score": []}
        if X_val is not None:
            curves |= {"validation_loss": [], "validation_score": []}
        classes = {"classes": unique_labels(y)} if is_classifier(trained) else {}
        for _ in range(trained.max_iter):
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message="Training interrupted by user")
                try:
                    trained.partial_fit(X, y, **classes)
                except UserWarning:  # Ctrl-C; partial_fit has undone the incomplete epoch
                    break
            for prefix, inputs, labels in (("", X, y), ("validation_", X_val, y_val)):
                if inputs is not None:
                    curves[f"{prefix}loss"].append(mean_loss(trained, inputs, labels))
                    curves[f"{prefix}score"].append(trained.score(inputs, labels))
        display = cls(**curves, score_name=_name_of_score(trained))
        display.estimator_ = trained
        return display.plot(ax)

    def plot(self, ax=None):
        """Plot the curves.

        Parameters
        ----------
        ax : Axes, or array of two Axes, default=None
            Axes to plot on: two if there is a score. If None, a new figure is created.

        Returns
        -------
        LossCurveDisplay
        """
        panels = [("Loss", self.loss, self.validation_loss)]
        if self.score is not None or self.validation_score is not None:
            panels.append((self.score_name, self.score, self.validation_score))
        axes = _new_axes(ax, len(panels), figsize=(5.2 * len(panels), 3.8))
        for axis, (name, training, validation) in zip(axes, panels, strict=True):
            for values, style, color, label in (
                (training, "-", _COLORS[0], "training"),
                (validation, "--", _COLORS[1], "validation"),
            ):
                if values is not None:
                    # A single epoch is a point, which a line alone would not show.
                    marker = "o" if len(values) == 1 else None
                    epochs = np.arange(1, len(values) + 1)
                    axis.plot(epochs, values, style, color=color, marker=marker, label=label)
            if validation is not None:
                axis.legend()
            axis.set(xlabel="Epoch", ylabel=name, title=f"{name} per epoch")
            _use_integer_ticks(axis.xaxis)
            _use_plain_labels(axis.xaxis, axis.yaxis)
        return self._set_axes(axes)


class ActivationDisplay(_Display):
    """An activation function f(z) and its derivative (Maren 2020, Figs. 6.1, 6.2).

    Parameters
    ----------
    activation : Activation
        The activation function.
    z : ndarray of shape (n_points,)
        Pre-activations.
    value, derivative : ndarray of shape (n_points,)
        f(z) and f'(z).

    Attributes
    ----------
    axes_ : ndarray of one Axes
    ax_, figure_ : Axes, Figure
        The axes and their figure.
    """

    def __init__(self, *, activation, z, value, derivative):
        self.activation = activation
        self.z = z
        self.value = value
        self.derivative = derivative

    @classmethod
    def from_activation(cls, activation, *, z=(-6.0, 6.0), ax=None):
        """Compute and plot an activation function.

        Parameters
        ----------
        activation : str or Activation
            The name of an activation, or an object from `fastbp.activations`.
        z : pair of float, default=(-6.0, 6.0)
            Smallest and largest pre-activation.
        ax : Axes, default=None
            Axes to plot on. If None, a new figure is created.

        Returns
        -------
        ActivationDisplay

        Raises
        ------
        ValueError
            If there is no activation of that name.
        """
        return cls._of(get_activation(activation), z, ax)

    @classmethod
    def from_estimator(cls, estimator, *, layer=0, z=(-6.0, 6.0), ax=None):
        """Plot the activation function of one layer of an estimator.

        Parameters
        ----------
        estimator : BackpropClassifier or BackpropRegressor
            Fitted or initialized estimator.
        layer : int, default=0
            Index of the layer, counted as in `coefs_`: 0 is the first hidden layer, -1 the output layer.
        z : pair of float, default=(-6.0, 6.0)
            Smallest and largest pre-activation.
        ax : Axes, default=None
            Axes to plot on. If None, a new figure is created.

        Returns
        -------
        ActivationDisplay

        Raises
        ------
        ValueError
            If the layer is a softmax.
        """
        check_network(estimator)
        activation = estimator._activations[layer]
        if activation.by_rows:
            raise ValueError(
                f"layer={layer} is a softmax, which is not a function of a single pre-activation; pass the index of a "
                "hidden layer."
            )
        return cls._of(activation, z, ax)

    @classmethod
    def _of(cls, activation, z, ax):
        left, right = z
        points = np.linspace(left, right, 1201)
        display = cls(
            activation=activation, z=points, value=activation(points), derivative=activation.derivative(points)
        )
        return display.plot(ax)

    def plot(self, ax=None):
        """Plot the function and its derivative.

        Parameters
        ----------
        ax : Axes, default=None
            Axes to plot on. If None, a new figure is created.

        Returns
        -------
        ActivationDisplay
        """
        (axis,) = axes = _new_axes(ax, figsize=(5.2, 3.8))
        axis.axhline(0, color="0.8", linewidth=0.8, zorder=0)
        axis.axvline(0, color="0.8", linewidth=0.8, zorder=0)
        axis.plot(self.z, self.value, color=_COLORS[0], label="f(z)")
        surrogate = getattr(self.activation, "surrogate", None)
        label = f"f '(z) of the surrogate, {surrogate}" if surrogate else "f '(z)"
        axis.plot(self.z, self.derivative, "--", color=_COLORS[1], label=label)
        axis.set(xlabel="Pre-activation z", ylabel="f(z) and f '(z)", title=repr(self.activation))
        _use_plain_labels(axis.xaxis, axis.yaxis)
        axis.legend()
        return self._set_axes(axes)


class LossSliceDisplay(_Display):
    """The loss as a function of a single weight, with all other parameters fixed (Maren 2020, Fig. 6.3).

    Parameters
    ----------
    weights, losses : ndarray of shape (n_values,)
        Values of the weight, and the loss at each of them.
    weight, loss, derivative : float
        The weight of the network, and the loss and its derivative there: they give the point and its tangent.
    label : str
        Name of the weight.

    Attributes
    ----------
    axes_ : ndarray of one Axes
    ax_, figure_ : Axes, Figure
        The axes and their figure.
    """

    def __init__(self, *, weights, losses, weight, loss, derivative, label):
        self.weights = weights
        self.losses = losses
        self.weight = weight
        self.loss = loss
        self.derivative = derivative
        self.label = label

    @classmethod
    def from_estimator(cls, estimator, X, y, *, layer=-1, i="auto", j="auto", values=None, ax=None):
        """Compute and plot the loss as a function of one weight.

        Parameters
        ----------
        estimator : BackpropClassifier or BackpropRegressor
            Fitted or initialized estimator; not changed.
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Input data.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Class labels, or the targets of a regressor.
        layer : int, default=-1
            Index into `coefs_`; -1 is the output layer.
        i : int, None or "auto", default="auto"
            Index of the unit, or of the input, that the weight comes from. None is the bias of unit j.
        j : int or "auto", default="auto"
            Index of the unit that the weight leads to.

            "auto", for i, for j or for both, chooses the weight on which the data term of the loss depends most: that
            with the largest magnitude of the gradient, without the L2 term, among the weights of `layer` that agree
            with the other index. It never belongs to an inactive unit, unless the gradient is 0 for all of them.
        values : array-like of shape (n_values,), default=None
            Values of the weight. If None, 81 values in the interval of 5 to both sides of the current one.
        ax : Axes, default=None
            Axes to plot on. If None, a new figure is created.

        Returns
        -------
        LossSliceDisplay

        Raises
        ------
        ValueError
            If an index is out of range.
        """
        check_network(estimator)
        _check_axes(ax)
        layer, i, j = _steepest_weight(estimator, X, y, layer, i, j)
        if values is None:
            array, place = find_weight(estimator.coefs_, estimator.intercepts_, layer, i, j)
            values = np.linspace(array[place] - 5, array[place] + 5, 81)
        result = loss_slice(estimator, X, y, layer, i, j, values)
        label = _name(estimator, layer, i, j)
        return cls(**result, label=label).plot(ax)

    def plot(self, ax=None):
        """Plot the loss, the current value of the weight and the tangent there.

        Parameters
        ----------
        ax : Axes, default=None
            Axes to plot on. If None, a new figure is created.

        Returns
        -------
        LossSliceDisplay
        """
        (axis,) = axes = _new_axes(ax, figsize=(5.2, 3.8))
        axis.plot(self.weights, self.losses, color=_COLORS[0], label="loss")
        reach = np.ptp(self.weights) / 8
        ends = np.array([-reach, reach])
        axis.plot(self.weight + ends, self.loss + self.derivative * ends, "--", color=_COLORS[1], label="tangent")
        axis.plot(self.weight, self.loss, "o", color=_COLORS[1], label="current value")
        axis.set(xlabel=self.label, ylabel="Loss", title=f"Loss as a function of {self.label}")
        _use_plain_labels(axis.xaxis, axis.yaxis)
        axis.legend()
        return self._set_axes(axes)


class LossSurfaceDisplay(_Display):
    """The loss on a plane in parameter space, with a path of gradient descent in that plane.

    Parameters
    ----------
    first, second : ndarray of shape (n_first,), (n_second,)
        Coordinates along the two directions; the parameters of the network are in the middle.
    losses : ndarray of shape (n_second, n_first)
        The loss at each pair of coordinates.
    path : ndarray of shape (n_steps + 1, 2)
        Coordinates of the path.
    path_losses : ndarray of shape (n_steps + 1,)
        The losses along the path.
    labels : pair of str
        Names of the two directions.

    Attributes
    ----------
    axes_ : ndarray of one Axes
    ax_, figure_ : Axes, Figure
        The axes and their figure.
    """

    def __init__(self, *, first, second, losses, path, path_losses, labels):
        self.first = first
        self.second = second
        self.losses = losses
        self.path = path
        self.path_losses = path_losses
        self.labels = labels

    @classmethod
    def from_estimator(
        cls, estimator, X, y, *, weights=None, reach=1.5, n_points=31, n_steps=60, rate=None, random_state=0, ax=None
    ):
        """Compute and plot the loss around the parameters of an estimator, along two weights or two directions.

        Parameters
        ----------
        estimator : BackpropClassifier or BackpropRegressor
            Fitted or initialized estimator; not changed.
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Input data.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Class labels, or the targets of a regressor.
        weights : pair of (layer, i, j), default=None
            Indices of two weights, as in `fastbp.inspection.loss_slice`. If None, two random directions, scaled so
            that the weight vector of each unit has the same norm as in the network (Li et al. 2018).
        reach : float, default=1.5
            Distance from the middle to the border of the plane: in units of the weights, or in lengths of the random
            directions.
        n_points : int, default=31
            Number of points along each direction.
        n_steps : int, default=60
            Number of steps of gradient descent, within the plane, from its lower left corner.
        rate : float, default=None
            Learning rate of these steps. If None, it is set so that the length of the first step is a twentieth of
            the width of the plane.
        random_state : int, RandomState instance or None, default=0
            Generates the random directions.
        ax : Axes, default=None
            Axes to plot on. If None, a new figure is created.

        Returns
        -------
        LossSurfaceDisplay

        Raises
        ------
        ValueError
            If an index is out of range.

        References
        ----------
        Li et al., "Visualizing the loss landscape of neural nets", NeurIPS 2018.
        """
        check_network(estimator)
        _check_axes(ax)
        steps = np.linspace(-reach, reach, n_points)
        first = second = steps
        if weights is None:
            generator = check_random_state(random_state)
            directions = [_random_direction(estimator, generator) for _ in range(2)]
            labels = ("First random direction", "Second random direction")
        else:
            lines = [_along(estimator, *weight) for weight in weights]
            directions, present = [direction for direction, _ in lines], [value for _, value in lines]
            labels = tuple(_name(estimator, *weight) for weight in weights)
        if rate is None:
            corner = steps[:1]
            begin, end = loss_plane(estimator, X, y, directions, corner, corner, n_steps=1, rate=1.0).path
            rate = reach / 10 / max(float(np.linalg.norm(end - begin)), 1e-12)
        plane = loss_plane(estimator, X, y, directions, first, second, n_steps=n_steps, rate=rate)
        path = plane.path
        if weights is not None:
            first, second, path = steps + present[0], steps + present[1], path + np.array(present)
        return cls(
            first=first, second=second, losses=plane.losses, path=path, path_losses=plane.path_losses, labels=labels
        ).plot(ax)

    def plot(self, ax=None):
        """Plot the loss as filled contours, the path and the parameters of the network.

        Parameters
        ----------
        ax : Axes, default=None
            Axes to plot on. If None, a new figure is created.

        Returns
        -------
        LossSurfaceDisplay
        """
        (axis,) = axes = _new_axes(ax, figsize=(5.6, 4.8))
        from matplotlib.patheffects import Normal, Stroke

        filled = axis.contourf(self.first, self.second, self.losses, levels=24, cmap="Blues_r")
        axis.contour(self.first, self.second, self.losses, levels=24, colors="white", linewidths=0.3)
        bar = axis.figure.colorbar(filled, ax=axis, label="Loss")
        outlined = [Stroke(linewidth=3, foreground=_OUTLINE), Normal()]
        axis.plot(*self.path.T, color=_FILL[0], linewidth=1.6, path_effects=outlined, label="gradient descent")
        marks = {"linestyle": "none", "markeredgecolor": _OUTLINE, "clip_on": False, "zorder": 3}
        axis.plot(*self.path[0], "o", markerfacecolor=_FILL[0], markersize=8, label="start of the descent", **marks)
        middle = np.mean(self.first), np.mean(self.second)
        axis.plot(*middle, "X", markerfacecolor=_FILL[1], markersize=10, label="current parameters", **marks)
        # The path may leave the part of the plane that was computed; the axes do not follow it.
        axis.set(
            xlabel=self.labels[0], ylabel=self.labels[1], xlim=(self.first[0], self.first[-1]),
            ylim=(self.second[0], self.second[-1]), title="Loss surface",
        )  # fmt: skip
        _use_plain_labels(axis.xaxis, axis.yaxis, bar.ax.yaxis)
        # Below the axes, where it covers neither the path nor the marks.
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False)
        return self._set_axes(axes)


class GradientFlowDisplay(_Display):
    """The magnitude of the gradient, and the share of saturated or inactive units, in each layer.

    In deep networks of logistic units the gradient vanishes towards the first layer (Maren 2020, secs. 6.3.2, 6.4).

    Parameters
    ----------
    delta, saturated : ndarray of shape (n_layers,)
        The values of these names that `fastbp.inspection.gradient_flow` returns.
    activations : list of str of length n_layers, default=None
        Names of the activations. They decide whether a unit whose derivative is close to 0 is called inactive
        (rectifiers, such as relu) or saturated (all others).

    Attributes
    ----------
    axes_ : ndarray of two Axes
        The axes of the deltas and those of the saturated or inactive units.
    ax_, figure_ : Axes, Figure
        The first of `axes_`, and its figure.
    """

    def __init__(self, *, delta, saturated, activations=None):
        self.delta = delta
        self.saturated = saturated
        self.activations = activations

    @classmethod
    def from_estimator(cls, estimator, X, y, *, ax=None):
        """Compute and plot the flow of the gradient through the layers of an estimator.

        Parameters
        ----------
        estimator : BackpropClassifier or BackpropRegressor
            Fitted or initialized estimator.
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Input data.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Class labels, or the targets of a regressor.
        ax : array of two Axes, default=None
            Axes to plot on. If None, a new figure is created.

        Returns
        -------
        GradientFlowDisplay
        """
        _check_axes(ax, 2)
        flow = gradient_flow(estimator, X, y)
        activations = [activation.name for activation in estimator._activations]
        return cls(delta=flow.delta, saturated=flow.saturated, activations=activations).plot(ax)

    def plot(self, ax=None):
        """Plot the mean |delta| of each layer, and the share of its units that are saturated or inactive.

        The deltas have a logarithmic axis if they differ by a factor of ten or more. In the output layer the share is
        not defined ("n/a") under "log_loss" and "poisson", as the derivative cancels in its delta.

        Parameters
        ----------
        ax : array of two Axes, default=None
            Axes to plot on. If None, a new figure is created.

        Returns
        -------
        GradientFlowDisplay
        """
        axes = _new_axes(ax, 2, figsize=(10.4, 3.8))
        n = len(self.delta)
        self._plot_deltas(axes[0])
        self._plot_shares(axes[1])
        for axis in axes:
            _use_integer_ticks(axis.xaxis)
            axis.set(xlabel=f"Layer ({n} is the output layer)", xlim=(0.4, n + 0.6))
        return self._set_axes(axes)

    def _plot_deltas(self, axis):
        delta = np.asarray(self.delta, np.float64)
        layers = np.arange(1, len(delta) + 1)
        axis.plot(layers, delta, "o-", color=_COLORS[0])
        positive = delta[np.isfinite(delta) & (delta > 0)]
        decades = np.log10(positive.max() / positive.min()) if positive.size else 0.0
        if decades >= 1:
            _use_log_scale(axis, decades)
            if not delta.all():  # a logarithmic axis has no place for 0
                zeros = layers[delta == 0]
                mark = {"transform": axis.get_xaxis_transform(), "clip_on": False, "color": _COLORS[1]}
                axis.plot(zeros, np.zeros(len(zeros)), "v", linestyle="none", label="exactly 0", **mark)
                axis.legend()
        else:
            axis.set_ylim(0, 1.1 * positive.max() if positive.size else 1)
            _use_plain_labels(axis.yaxis)
        axis.set(ylabel="|dC/dz|, mean over samples and units", title="Mean |delta| per layer")

    def _plot_shares(self, axis):
        saturated = np.asarray(self.saturated, np.float64)
        layers = np.arange(1, len(saturated) + 1)
        names = self.activations or [None] * len(saturated)
        kinds = np.array([_kind(name) for name in names])
        # The identity and layers without a share say nothing about what the others are called.
        known = [name for name, share in zip(names, saturated, strict=True) if name != "identity" and share == share]
        present = sorted({_kind(name) for name in known} or {"saturated"})
        condition = "f '(z) = 0" if set(known) == {"relu"} else f"|f '(z)| ≤ {SATURATED:.0%} of its max."
        many = len(saturated) > 12  # too many bars for a number over each of them
        for kind in present:
            ours = kinds == kind if len(present) > 1 else np.ones(len(kinds), bool)
            color = _COLORS[0] if kind == "inactive" else _COLORS[1]
            bars = axis.bar(layers[ours], np.nan_to_num(saturated[ours]), color=color, width=0.7, label=kind)
            axis.bar_label(
                bars, ["n/a" if np.isnan(share) else "" if many else f"{share:.0%}" for share in saturated[ours]]
            )
        if len(present) > 1:
            axis.legend()
        title = " or ".join(sorted(present, reverse=True)).capitalize()
        axis.set(ylabel=f"Share with {condition}", ylim=(0, 1.1), title=f"{title} units")


class WeightImageDisplay(_Display):
    """The weights from the inputs to units of the first layer, one image per unit.

    Parameters
    ----------
    images : ndarray of shape (n_units, height, width)
        The weights of each unit.

    Attributes
    ----------
    axes_ : ndarray of Axes
        One for each image.
    ax_, figure_ : Axes, Figure
        The first of `axes_`, and its figure.
    """

    def __init__(self, *, images):
        self.images = images

    @classmethod
    def from_estimator(cls, estimator, *, shape=None, n_units=16, ax=None):
        """Plot the weights `coefs_[0][:, unit]` of the first units of an estimator.

        Parameters
        ----------
        estimator : BackpropClassifier or BackpropRegressor
            Fitted or initialized estimator.
        shape : pair of int, default=None
            Height and width of the input images. If None, the images are square.
        n_units : int, default=16
            Number of units.
        ax : array of Axes, default=None
            Axes to plot on, one for each unit. If None, a new figure is created.

        Returns
        -------
        WeightImageDisplay

        Raises
        ------
        ValueError
            If the number of inputs is not height times width.
        """
        check_network(estimator)
        weights = estimator.coefs_[0]
        side = round(np.sqrt(len(weights)))
        height, width = shape or (side, side)
        if height * width != len(weights):
            raise ValueError(
                f"{len(weights)} inputs are not an image of shape {(height, width)}; pass the `shape` of the images."
            )
        return cls(images=weights[:, :n_units].T.reshape(-1, height, width).copy()).plot(ax)

    def plot(self, ax=None):
        """Plot the images on a common colour scale with zero in the middle.

        Parameters
        ----------
        ax : array of Axes, default=None
            Axes to plot on, one for each image. If None, a new figure is created.

        Returns
        -------
        WeightImageDisplay
        """
        n = len(self.images)
        if ax is None:
            columns = int(np.ceil(np.sqrt(n)))
            rows = -(-n // columns)
            height, width = np.shape(self.images)[1:]
            row_height = 0.25 + 1.2 * min(max(height / width, 0.25), 4)
            (first,) = _new_axes(None, figsize=(max(1.3 * columns + 0.8, 4.2), max(row_height * rows + 0.5, 2.2)))
            figure = first.figure
            first.remove()
            figure.suptitle("Weights from the inputs to first-layer units")
            ax = figure.subplots(rows, columns, squeeze=False).ravel()
            for unused in ax[n:]:
                unused.remove()
            ax = ax[:n]
        axes = _new_axes(ax, n)
        largest = float(np.abs(self.images).max()) or 1.0
        for unit, (axis, image) in enumerate(zip(axes, self.images, strict=True)):
            drawn = axis.imshow(image, cmap="RdBu_r", vmin=-largest, vmax=largest)
            axis.set_title(f"unit {unit}", fontsize=8, pad=2)
            axis.set(xticks=[], yticks=[])
        bar = axes[0].figure.colorbar(drawn, ax=list(axes), label="Weight")
        _use_plain_labels(bar.ax.yaxis)
        return self._set_axes(axes)


def _name_of_score(estimator):
    """Return the name of what the method `score` of an estimator returns."""
    if is_classifier(estimator):
        return "Accuracy"
    # The score of several quantiles is not R², see `BackpropRegressor.score`.
    return "D²" if estimator.loss == "quantile" and np.size(estimator.quantile) > 1 else "R²"


def _kind(name):
    """Return what a unit of this activation is called if its derivative is close to 0."""
    if name is None:
        return "saturated or inactive"
    return "inactive" if name in _RECTIFIERS else "saturated"


def _steepest_weight(estimator, X, y, layer, i, j):
    """Return the indices of a weight, with those that are "auto" set to maximize the magnitude of the gradient."""
    automatic_i, automatic_j = isinstance(i, str) and i == "auto", isinstance(j, str) and j == "auto"
    coefs, intercepts = estimator.coefs_, estimator.intercepts_
    find_weight(coefs, intercepts, layer, 0 if automatic_i else i, 0 if automatic_j else j)
    if not (automatic_i or automatic_j):
        return layer, i, j
    # The L2 term has a gradient for the weights of inactive units too: leave it out.
    unpenalized = copy.copy(estimator).set_params(alpha=0.0)
    _, gradient = loss_and_gradient(unpenalized, X, y)
    shapes = [part.shape for pair in zip(coefs, intercepts, strict=True) for part in pair]
    parts = np.split(gradient, np.cumsum([np.prod(shape) for shape in shapes])[:-1])
    place = 2 * (layer % len(coefs)) + (i is None)
    magnitude = np.abs(parts[place].reshape(shapes[place]))
    if i is None:
        return layer, None, int(magnitude.argmax())
    rows = np.arange(magnitude.shape[0]) if automatic_i else np.array([i])
    columns = np.arange(magnitude.shape[1]) if automatic_j else np.array([j])
    allowed = magnitude[np.ix_(rows, columns)]
    row, column = np.unravel_index(allowed.argmax(), allowed.shape)
    return layer, int(rows[row]), int(columns[column])


def _random_direction(estimator, generator):
    """Return a random direction in which the weight vector of each unit has the same norm as in the network."""
    coefs, intercepts = [], []
    for coef in estimator.coefs_:
        change = generator.standard_normal(coef.shape)
        change *= np.linalg.norm(coef, axis=0) / np.linalg.norm(change, axis=0)
        coefs.append(change)
    for intercept in estimator.intercepts_:
        change = generator.standard_normal(intercept.shape)
        intercepts.append(change * np.linalg.norm(intercept) / max(np.linalg.norm(change), 1e-300))
    return coefs, intercepts


def _name(estimator, layer, i, j):
    """Return the expression by which a weight, or a bias, is found in the attributes of the estimator."""
    layer %= len(estimator.coefs_)
    return f"intercepts_[{layer}][{j}]" if i is None else f"coefs_[{layer}][{i}, {j}]"


def _along(estimator, layer, i, j):
    """Return the direction along one weight, and the current value of that weight."""
    coefs = [np.zeros(coef.shape) for coef in estimator.coefs_]
    intercepts = [np.zeros(intercept.shape) for intercept in estimator.intercepts_]
    array, place = find_weight(coefs, intercepts, layer, i, j)
    array[place] = 1
    present, _ = find_weight(estimator.coefs_, estimator.intercepts_, layer, i, j)
    return (coefs, intercepts), float(present[place])
