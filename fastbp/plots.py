"""Displays in the manner of scikit-learn: what networks compute, drawn with matplotlib (the extra `plots`).

Each has `from_estimator`, which computes the figures and draws them, and `plot`, which draws them again, on other
axes. matplotlib is imported when something is drawn.

References
----------
A. J. Maren, "Backpropagation", ch. 6 of *Statistical Mechanics, Neural Networks, and Artificial Intelligence*
(draft, 2020): Figs. 6.1, 6.2, 6.3.
"""

import warnings

import numpy as np
from sklearn.base import clone
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import unique_labels

from fastbp.activations import get_activation
from fastbp.inspection import check_network, find_weight, gradient_flow, loss_plane, loss_slice, mean_loss

__all__ = [
    "ActivationDisplay", "GradientFlowDisplay", "LossCurveDisplay", "LossSliceDisplay", "LossSurfaceDisplay",
    "WeightImageDisplay",
]  # fmt: skip

# Two colours that differ in print too, and for readers who do not see red and green apart; with two kinds of line.
_COLORS = ("#1f4e9c", "#d9730d")


def _check_axes(ax, n=1):
    """Check, before anything is computed, that n axes were given, if any, and that there is matplotlib."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("Displays need matplotlib: pip install 'fastbp[plots]'.") from error
    if ax is not None and np.size(ax) != n:
        raise ValueError(f"ax must be {n} axes, got {np.size(ax)}.")
    return plt


def _new_axes(ax, n=1, **kwargs):
    """Return n axes: those given, or new ones."""
    plt = _check_axes(ax, n)
    if ax is None:
        _, ax = plt.subplots(1, n, layout="constrained", **kwargs)
    return np.ravel(ax)


class _Display:
    """What all displays do after drawing."""

    def _keep(self, axes):
        self.axes_ = axes
        self.ax_ = axes[0]
        self.figure_ = axes[0].figure
        return self


class LossCurveDisplay(_Display):
    """Loss, and accuracy where it is known, over the epochs of training.

    Parameters
    ----------
    loss : array-like of shape (n_epochs,)
        Mean loss on the training data: the `loss_curve_` of an estimator, with the L2 term; or, where training was
        watched, after each epoch and without it.
    validation_loss : array-like of shape (n_epochs,), default=None
        Mean loss on the validation data, without the L2 term.
    accuracy, validation_accuracy : array-like of shape (n_epochs,), default=None
        Shares of samples that are classified right.

    Attributes
    ----------
    axes_ : ndarray of Axes
        That of the loss, and that of the accuracy if it is known.
    ax_, figure_ : Axes, Figure
        The first of them, and the figure.
    """

    def __init__(self, *, loss, validation_loss=None, accuracy=None, validation_accuracy=None):
        self.loss = loss
        self.validation_loss = validation_loss
        self.accuracy = accuracy
        self.validation_accuracy = validation_accuracy

    @classmethod
    def from_estimator(cls, estimator, X=None, y=None, *, X_val=None, y_val=None, ax=None):
        """Draw the curve of a fitted estimator, or train one and watch it.

        Parameters
        ----------
        estimator : BackpropClassifier
            Fitted; or with X and y, an estimator that is cloned and trained for `max_iter` epochs.
        X : array-like of shape (n_samples, n_features), default=None
            Training data; None to draw the `loss_curve_` of the estimator.
        y : array-like of shape (n_samples,), default=None
            Class labels.
        X_val, y_val : array-like, default=None
            Validation data.
        ax : Axes or array of two Axes, default=None
            Where to draw; new ones if None. Two where the accuracy is drawn: that is, with X and y.

        Returns
        -------
        LossCurveDisplay
        """
        if X is None:
            if X_val is not None or y is not None:
                raise ValueError("y, X_val and y_val go with X: validation curves need training to be watched.")
            check_network(estimator)
            return cls(loss=list(estimator.loss_curve_)).plot(ax)
        if (X_val is None) != (y_val is None):
            raise ValueError("X_val and y_val go together.")
        _check_axes(ax, 2)
        # A generator: with a number each call of partial_fit would shuffle alike.
        watched = clone(estimator).set_params(random_state=check_random_state(estimator.random_state))
        curves: dict[str, list[float]] = {"loss": [], "accuracy": []}
        if X_val is not None:
            curves |= {"validation_loss": [], "validation_accuracy": []}
        classes = unique_labels(y)
        for _ in range(watched.max_iter):
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message="Training interrupted by user")
                try:
                    watched.partial_fit(X, y, classes=classes)
                except UserWarning:  # Ctrl-C: draw what there is
                    break
            for prefix, inputs, labels in (("", X, y), ("validation_", X_val, y_val)):
                if inputs is not None:
                    curves[f"{prefix}loss"].append(mean_loss(watched, inputs, labels))
                    curves[f"{prefix}accuracy"].append(watched.score(inputs, labels))
        return cls(**curves).plot(ax)

    def plot(self, ax=None):
        """Draw.

        Parameters
        ----------
        ax : Axes or array of Axes, default=None
            Where; new ones if None.

        Returns
        -------
        LossCurveDisplay
        """
        panels = [("Loss", self.loss, self.validation_loss)]
        if self.accuracy is not None:
            panels.append(("Accuracy", self.accuracy, self.validation_accuracy))
        axes = _new_axes(ax, len(panels), figsize=(5.2 * len(panels), 3.8))
        for axis, (name, training, validation) in zip(axes, panels, strict=True):
            epochs = np.arange(1, len(training) + 1)
            axis.plot(epochs, training, color=_COLORS[0], label="training")
            if validation is not None:
                axis.plot(epochs, validation, "--", color=_COLORS[1], label="validation")
                axis.legend()
            axis.set(xlabel="Epoch", ylabel=name)
            if ax is None:
                axis.xaxis.get_major_locator().set_params(integer=True)
        return self._keep(axes)


class ActivationDisplay(_Display):
    """An activation function and its derivative (Maren 2020, Figs. 6.1, 6.2).

    Parameters
    ----------
    activation : Activation
        The function.
    z, value, derivative : ndarray of shape (n_points,)
        Where, f(z) and f'(z).

    Attributes
    ----------
    ax_, figure_ : Axes, Figure
        Where it was drawn.
    """

    def __init__(self, *, activation, z, value, derivative):
        self.activation = activation
        self.z = z
        self.value = value
        self.derivative = derivative

    @classmethod
    def from_activation(cls, activation, *, z=(-6.0, 6.0), ax=None):
        """Compute and draw an activation.

        Parameters
        ----------
        activation : str or Activation
            A name, or an object from `fastbp.activations`.
        z : pair of float, default=(-6.0, 6.0)
            From where to where.
        ax : Axes, default=None
            Where to draw; new ones if None.

        Returns
        -------
        ActivationDisplay
        """
        activation = get_activation(activation)
        left, right = z
        points = np.linspace(left, right, 1201)
        display = cls(
            activation=activation, z=points, value=activation(points), derivative=activation.derivative(points)
        )
        return display.plot(ax)

    @classmethod
    def from_estimator(cls, estimator, *, layer=0, z=(-6.0, 6.0), ax=None):
        """Draw the activation of one layer of an estimator.

        Parameters
        ----------
        estimator : BackpropClassifier
            Fitted or initialized.
        layer : int, default=0
            Which layer after the inputs; -1 for the outputs, if they are not a softmax.
        z : pair of float, default=(-6.0, 6.0)
            From where to where.
        ax : Axes, default=None
            Where to draw; new ones if None.

        Returns
        -------
        ActivationDisplay
        """
        check_network(estimator)
        activation = estimator._activations[layer]
        if activation.by_rows:
            raise ValueError(f"layer={layer} is a softmax, no function of one number: take a hidden layer.")
        return cls.from_activation(activation, z=z, ax=ax)

    def plot(self, ax=None):
        """Draw.

        Parameters
        ----------
        ax : Axes, default=None
            Where; new ones if None.

        Returns
        -------
        ActivationDisplay
        """
        (axis,) = axes = _new_axes(ax, figsize=(5.2, 3.8))
        axis.axhline(0, color="0.8", linewidth=0.8, zorder=0)
        axis.axvline(0, color="0.8", linewidth=0.8, zorder=0)
        axis.plot(self.z, self.value, color=_COLORS[0], label="f(z)")
        surrogate = getattr(self.activation, "surrogate", None)
        label = f"f '(z) of its surrogate, {surrogate}" if surrogate else "f '(z)"
        axis.plot(self.z, self.derivative, "--", color=_COLORS[1], label=label)
        axis.set(xlabel="z, what the unit receives", title=repr(self.activation))
        axis.legend()
        return self._keep(axes)


class LossSliceDisplay(_Display):
    """The loss as a function of one weight, all others held (Maren 2020, Fig. 6.3).

    Parameters
    ----------
    weights, losses : ndarray of shape (n_values,)
        Values of the weight, and the losses there.
    weight, loss, derivative : float
        What the network has: the point and the tangent.
    label : str
        Which weight it is.

    Attributes
    ----------
    ax_, figure_ : Axes, Figure
        Where it was drawn.
    """

    def __init__(self, *, weights, losses, weight, loss, derivative, label):
        self.weights = weights
        self.losses = losses
        self.weight = weight
        self.loss = loss
        self.derivative = derivative
        self.label = label

    @classmethod
    def from_estimator(cls, estimator, X, y, *, layer=-1, i=0, j=0, values=None, ax=None):
        """Compute and draw the loss along one weight.

        Parameters
        ----------
        estimator : BackpropClassifier
            Fitted or initialized; not changed.
        X : array-like of shape (n_samples, n_features)
            Inputs.
        y : array-like of shape (n_samples,)
            Class labels.
        layer, i, j : int
            Which weight, as in `fastbp.inspection.loss_slice`; i=None for the bias of unit j.
        values : array-like of shape (n_values,), default=None
            Values of the weight; None for 81 of them, 5 to both sides of the present one.
        ax : Axes, default=None
            Where to draw; new ones if None.

        Returns
        -------
        LossSliceDisplay
        """
        check_network(estimator)
        _check_axes(ax)
        if values is None:
            array, place = find_weight(estimator.coefs_, estimator.intercepts_, layer, i, j)
            values = np.linspace(array[place] - 5, array[place] + 5, 81)
        result = loss_slice(estimator, X, y, layer, i, j, values)
        label = _name(estimator, layer, i, j)
        return cls(**result, label=label).plot(ax)

    def plot(self, ax=None):
        """Draw.

        Parameters
        ----------
        ax : Axes, default=None
            Where; new ones if None.

        Returns
        -------
        LossSliceDisplay
        """
        (axis,) = axes = _new_axes(ax, figsize=(5.2, 3.8))
        axis.plot(self.weights, self.losses, color=_COLORS[0], label="loss")
        reach = np.ptp(self.weights) / 8
        ends = np.array([-reach, reach])
        axis.plot(self.weight + ends, self.loss + self.derivative * ends, "--", color=_COLORS[1], label="tangent")
        axis.plot(self.weight, self.loss, "o", color=_COLORS[1], label="the network")
        axis.set(xlabel=self.label, ylabel="Loss")
        axis.legend()
        return self._keep(axes)


class LossSurfaceDisplay(_Display):
    """The loss on a plane through the parameters, with a path of gradient descent over it.

    Parameters
    ----------
    first, second : ndarray of shape (n_first,), (n_second,)
        Coordinates.
    losses : ndarray of shape (n_second, n_first)
        The loss at each pair.
    path : ndarray of shape (n_steps + 1, 2)
        Coordinates of the descent.
    path_losses : ndarray of shape (n_steps + 1,)
        The losses there.
    labels : pair of str
        What the coordinates are.

    Attributes
    ----------
    ax_, figure_ : Axes, Figure
        Where it was drawn.
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
        """Compute and draw the loss around the parameters of an estimator, along two weights or two directions.

        Parameters
        ----------
        estimator : BackpropClassifier
            Fitted or initialized; not changed. It is in the middle.
        X : array-like of shape (n_samples, n_features)
            Inputs.
        y : array-like of shape (n_samples,)
            Class labels.
        weights : pair of (layer, i, j), default=None
            Two weights, as in `fastbp.inspection.loss_slice`. None for two random directions, in which each unit's
            weights are as long as its own (Li et al. 2018).
        reach : float, default=1.5
            How far the picture reaches from the middle; for two weights in their own units.
        n_points : int, default=31
            Points along each axis.
        n_steps : int, default=60
            Steps of gradient descent within the plane, from a corner.
        rate : float, default=None
            Learning rate of these steps; None for one with which the first step is a twentieth of the picture.
        random_state : int, RandomState instance or None, default=0
            For the random directions.
        ax : Axes, default=None
            Where to draw; new ones if None.

        Returns
        -------
        LossSurfaceDisplay

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
        """Draw.

        Parameters
        ----------
        ax : Axes, default=None
            Where; new ones if None.

        Returns
        -------
        LossSurfaceDisplay
        """
        (axis,) = axes = _new_axes(ax, figsize=(5.6, 4.4))
        filled = axis.contourf(self.first, self.second, self.losses, levels=24, cmap="Blues_r")
        axis.contour(self.first, self.second, self.losses, levels=24, colors="white", linewidths=0.3)
        axis.figure.colorbar(filled, ax=axis, label="Loss")
        axis.plot(*self.path.T, ".-", color=_COLORS[1], markersize=4, linewidth=1.2, label="gradient descent")
        axis.plot(*self.path[0], "o", color=_COLORS[1], markeredgecolor="black", clip_on=False, label="its beginning")
        axis.plot(np.mean(self.first), np.mean(self.second), "kx", label="the network")
        # The path may leave the plane's part that was computed; the picture does not follow it.
        axis.set(
            xlabel=self.labels[0], ylabel=self.labels[1], xlim=(self.first[0], self.first[-1]),
            ylim=(self.second[0], self.second[-1]),
        )  # fmt: skip
        axis.legend(loc="upper right")
        return self._keep(axes)


class GradientFlowDisplay(_Display):
    """How the gradient fades from the outputs back to the first layer (Maren 2020, secs. 6.3.2, 6.4).

    Parameters
    ----------
    delta, saturated : ndarray of shape (n_layers,)
        As `fastbp.inspection.gradient_flow` returns them.

    Attributes
    ----------
    axes_ : ndarray of two Axes
        That of the deltas and that of the saturation.
    ax_, figure_ : Axes, Figure
        The first of them, and the figure.
    """

    def __init__(self, *, delta, saturated):
        self.delta = delta
        self.saturated = saturated

    @classmethod
    def from_estimator(cls, estimator, X, y, *, ax=None):
        """Measure and draw the flow of the gradient.

        Parameters
        ----------
        estimator : BackpropClassifier
            Fitted or initialized.
        X : array-like of shape (n_samples, n_features)
            Inputs.
        y : array-like of shape (n_samples,)
            Class labels.
        ax : array of two Axes, default=None
            Where to draw; new ones if None.

        Returns
        -------
        GradientFlowDisplay
        """
        _check_axes(ax, 2)
        flow = gradient_flow(estimator, X, y)
        return cls(delta=flow.delta, saturated=flow.saturated).plot(ax)

    def plot(self, ax=None):
        """Draw.

        Parameters
        ----------
        ax : array of two Axes, default=None
            Where; new ones if None.

        Returns
        -------
        GradientFlowDisplay
        """
        axes = _new_axes(ax, 2, figsize=(10.4, 3.8))
        layers = np.arange(1, len(self.delta) + 1)
        axes[0].bar(layers, self.delta, color=_COLORS[0], width=0.7)
        if (np.asarray(self.delta) > 0).any():
            axes[0].set_yscale("log")
        axes[0].set(xlabel="Layer", ylabel="Mean |delta|", title="What comes back")
        bars = axes[1].bar(layers, np.nan_to_num(self.saturated), color=_COLORS[1], width=0.7)
        axes[1].bar_label(
            bars, ["log loss:\nno factor" if np.isnan(share) else f"{share:.0%}" for share in self.saturated]
        )
        axes[1].set(xlabel="Layer", ylabel="Share of saturated units", ylim=(0, 1.1), title="Saturation")
        for axis in axes:
            axis.set(xticks=layers, xlim=(0.4, len(layers) + 0.6))
        return self._keep(axes)


class WeightImageDisplay(_Display):
    """The weights into the first layer's units, each as an image of the inputs.

    Parameters
    ----------
    images : ndarray of shape (n_units, height, width)
        Weights of each unit.

    Attributes
    ----------
    axes_ : ndarray of Axes
        One for each image.
    ax_, figure_ : Axes, Figure
        The first of them, and the figure.
    """

    def __init__(self, *, images):
        self.images = images

    @classmethod
    def from_estimator(cls, estimator, *, shape=None, n_units=16, ax=None):
        """Draw the weights of the first units of an estimator.

        Parameters
        ----------
        estimator : BackpropClassifier
            Fitted or initialized.
        shape : pair of int, default=None
            Height and width of the images that the inputs are; None for squares.
        n_units : int, default=16
            How many units.
        ax : array of Axes, default=None
            Where to draw, one for each unit; new ones if None.

        Returns
        -------
        WeightImageDisplay

        Raises
        ------
        ValueError
            If the inputs do not fill images of that shape.
        """
        check_network(estimator)
        weights = estimator.coefs_[0]
        side = round(np.sqrt(len(weights)))
        height, width = shape or (side, side)
        if height * width != len(weights):
            raise ValueError(f"{len(weights)} inputs are no image of shape {(height, width)}; pass another `shape`.")
        return cls(images=weights[:, :n_units].T.reshape(-1, height, width).copy()).plot(ax)

    def plot(self, ax=None):
        """Draw.

        Parameters
        ----------
        ax : array of Axes, default=None
            Where, one for each image; new ones if None.

        Returns
        -------
        WeightImageDisplay
        """
        n = len(self.images)
        if ax is None:
            columns = int(np.ceil(np.sqrt(n)))
            rows = -(-n // columns)
            (first,) = _new_axes(None, figsize=(1.3 * columns + 0.8, 1.3 * rows))
            figure = first.figure
            first.remove()
            ax = figure.subplots(rows, columns, squeeze=False).ravel()
            for unused in ax[n:]:
                unused.remove()
            ax = ax[:n]
        axes = _new_axes(ax, n)
        largest = float(np.abs(self.images).max()) or 1.0
        for unit, (axis, image) in enumerate(zip(axes, self.images, strict=True)):
            drawn = axis.imshow(image, cmap="RdBu_r", vmin=-largest, vmax=largest)
            axis.set_title(str(unit), fontsize=8, pad=2)
            axis.set(xticks=[], yticks=[])
        axes[0].figure.colorbar(drawn, ax=list(axes), label="Weight", shrink=0.8)
        return self._keep(axes)


def _random_direction(estimator, generator):
    """Return a direction in which each unit's weights are as long as its own."""
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
    """Name a weight, or a bias, as in the code of a user."""
    layer %= len(estimator.coefs_)
    return f"intercepts_[{layer}][{j}]" if i is None else f"coefs_[{layer}][{i}, {j}]"


def _along(estimator, layer, i, j):
    """Return the direction along one weight, and its present value."""
    coefs = [np.zeros(coef.shape) for coef in estimator.coefs_]
    intercepts = [np.zeros(intercept.shape) for intercept in estimator.intercepts_]
    array, place = find_weight(coefs, intercepts, layer, i, j)
    array[place] = 1
    present, _ = find_weight(estimator.coefs_, estimator.intercepts_, layer, i, j)
    return (coefs, intercepts), float(present[place])
