"""What backpropagation computes, made visible: loss and gradient, the factors of the chain rule, saturation.

Nothing here is a second implementation. All figures are what the kernels of training leave behind when they take
one step of plain gradient descent, at rate 1, on a copy of the network: its step is minus the gradient.

References
----------
A. J. Maren, "Backpropagation", ch. 6 of *Statistical Mechanics, Neural Networks, and Artificial Intelligence*
(draft, 2020): Eqs. 6.5 to 6.30 and Fig. 6.3.
A. Lopez Davila, "Neural Networks: The Backpropagation Algorithm": sec. 5.
"""

from numbers import Integral

import numpy as np
from sklearn.utils import Bunch, check_scalar
from sklearn.utils.validation import check_is_fitted

from fastbp.activations import Identity
from fastbp.estimator import BaseBackprop
from fastbp.kernels.network import make_network
from fastbp.kernels.records import Data
from fastbp.kernels.session import OptimizerState, Session, StepSettings
from fastbp.prediction import Predictor, check_shapes

__all__ = ["flatten", "gradient_flow", "gradient_terms", "loss_and_gradient", "loss_plane", "loss_slice", "mean_loss"]

# A unit counts as saturated where its derivative is below this share of its activation's max_derivative.
SATURATED = 0.05


class _Step:
    """One step of plain gradient descent with all samples.

    Parameters
    ----------
    clf : BackpropClassifier
        Whose loss and activations are used.
    coefs, intercepts : list of ndarray
        Its parameters, or others of the same shapes.
    data : Data
        From `_data`.
    alpha : float
        Factor of the L2 term.
    keep : bool, default=False
        Whether `values` can be asked for.

    Attributes
    ----------
    loss : float
        Mean loss with the L2 term, before the step.
    coef_grads, intercept_grads : list of ndarray
        The gradient.
    """

    def __init__(self, clf, coefs, intercepts, data, *, alpha, keep=False):
        n = len(data.x)
        units = [clf.n_features_in_, *map(len, intercepts)]
        network = make_network(units, clf._activations, coefs[0].dtype, n)
        settings = StepSettings(
            loss=clf._loss, solver="sgd", alpha=alpha, batch_size=n, momentum=0.0, nesterovs_momentum=False,
            n_jobs=clf.n_jobs,
        )  # fmt: skip
        optimizer = OptimizerState.empty(network, "sgd", 1.0)
        session = Session(network, network.pack(coefs, intercepts), optimizer, settings, n, keep=keep)
        self.loss = session.run(data, rates=np.ones(1))
        # The velocity after one step is -g; 0 - (-g) instead of its negative, so that no zero gets a sign.
        self.coef_grads, self.intercept_grads = network.unpack(0 - optimizer.first)
        self._session, self._n = session, n

    def values(self, layer, what):
        """Return z, a or delta of a layer, of shape (n_samples, units)."""
        return self._session.values(layer, what, self._n)


def check_network(clf):
    """Check that this is one of our estimators, and fitted.

    Raises
    ------
    TypeError
        For any other, as a pipeline.
    """
    if not isinstance(clf, BaseBackprop):
        raise TypeError(
            f"A BackpropClassifier is needed, got {type(clf).__name__}. Of a pipeline pass its last step, pipe[-1], "
            "and pipe[:-1].transform(X)."
        )
    check_is_fitted(clf)


def _data(clf, X, y, sample_weight=None):
    """Check an estimator, whose weights its user may have edited, and data for it."""
    check_network(clf)
    units = check_shapes(clf.coefs_, clf.intercepts_, clf.n_features_in_, clf._activations)
    X, Y, weight = clf._encode(X, y, sample_weight)
    if units[-1] != Y.shape[1]:
        raise ValueError(f"coefs_[-1] has {units[-1]} units for {Y.shape[1]} outputs.")
    return Data(X, Y, weight, np.arange(len(X)))


def _backward_product(clf, layer, delta):
    """Return delta W^T: what a layer without bias or bend makes of the deltas, if its weights are the transpose."""
    weights = np.ascontiguousarray(clf.coefs_[layer].T)
    zeros = np.zeros(weights.shape[1], weights.dtype)
    return Predictor([weights], [zeros], [Identity()], weights.shape[0]).outputs(delta, clf.n_jobs)[0]


def mean_loss(clf, X, y):
    """Compute the mean loss of a network on some data, without the L2 term.

    Parameters
    ----------
    clf : BackpropClassifier
        Fitted or initialized.
    X : array-like of shape (n_samples, n_features)
        Inputs.
    y : array-like of shape (n_samples,) or (n_samples, n_labels)
        Class labels.

    Returns
    -------
    float
        The mean over the samples.
    """
    data = _data(clf, X, y)
    return _Step(clf, clf.coefs_, clf.intercepts_, data, alpha=0.0).loss


def loss_and_gradient(clf, X, y, sample_weight=None):
    """Compute the mean loss of a network on some data, and its gradient.

    Parameters
    ----------
    clf : BackpropClassifier
        Fitted or initialized.
    X : array-like of shape (n_samples, n_features)
        Inputs.
    y : array-like of shape (n_samples,) or (n_samples, n_labels)
        Class labels.
    sample_weight : array-like of shape (n_samples,), default=None
        How much each sample counts.

    Returns
    -------
    loss : float
        Mean loss of the samples, and alpha / 2 times the sum of all squared weights, over the number of samples or the
        sum of their weights. Training has the batch in place of all samples, also in the share of the L2 term.
    gradient : ndarray of shape (n_parameters,)
        [dC/dW^1, dC/db^1, ..., dC/dW^L, dC/db^L], each W row by row as in `coefs_`, of the network's dtype
        (Lopez Davila, end of sec. 5).

    Notes
    -----
    Lopez Davila's C = (a - y)^2 has a factor of 2 in its gradient; with the 1/2 of Maren's Eq. 6.5, as here, it is
    gone.

    Examples
    --------
    >>> from fastbp import BackpropClassifier
    >>> from fastbp.inspection import loss_and_gradient
    >>> clf = BackpropClassifier((2,), random_state=0).initialize(3, classes=[0, 1])
    >>> loss, gradient = loss_and_gradient(clf, [[0.0, 1.0, 2.0]], [1])
    >>> gradient.shape  # 3 * 2 + 2 + 2 * 1 + 1
    (11,)
    """
    data = _data(clf, X, y, sample_weight)
    step = _Step(clf, clf.coefs_, clf.intercepts_, data, alpha=clf.alpha)
    return step.loss, flatten(step.coef_grads, step.intercept_grads)


def flatten(coefs, intercepts):
    """Return all parameters, or their gradients, as one vector in the order of `loss_and_gradient`.

    Parameters
    ----------
    coefs, intercepts : list of ndarray
        Of each layer.

    Returns
    -------
    ndarray of shape (n_parameters,)
    """
    return np.concatenate(
        [part.ravel() for pair in zip(coefs, intercepts, strict=True) for part in pair]
    )  # fmt: skip


def gradient_terms(clf, X, y):
    """Take the gradient apart into the factors of the chain rule, layer by layer.

    Parameters
    ----------
    clf : BackpropClassifier
        Fitted or initialized.
    X : array-like of shape (n_samples, n_features)
        Inputs.
    y : array-like of shape (n_samples,) or (n_samples, n_labels)
        Class labels.

    Returns
    -------
    list of Bunch
        One for each layer after the inputs, with arrays of shape (n_samples, units) for a single sample's loss
        (Maren's SSE, or the cross entropy), named after what they are:

        - ``node_input``: z = NdInpt (Maren 6.3, 6.9), and ``activation``: F or H = f(z) (6.4, 6.10).
        - ``error``: E = desired - actual (6.6); ``d_loss_d_error``: E (6.17); ``d_error_d_activation``: -1 (6.21).
          For the output layer under "squared_error" only.
        - ``d_loss_d_activation``: dC/da. For the outputs the product of the two above, for hidden layers what comes
          back from the layer above, sum_o delta_o v_ho.
        - ``d_activation_d_node_input``: f'(z) (6.23).
        - ``delta``: dC/dz, the product of the two before. For the outputs under "log_loss" it is actual - desired, as
          the factors cancel: the two are not given there.
        - ``d_node_input_d_weight``: the activations of the layer below (6.27), of shape (n_samples, fan_in).
        - ``gradient``: dC/dW, the mean over the samples of input times delta (6.30), and the L2 term; of the shape of
          `coefs_`. ``intercept_gradient``: dC/db.
        - ``d_loss_d_input``: dC/da of the layer below, delta W^T; for the first layer the gradient by the inputs.

    Notes
    -----
    All arrays are in memory at once: for a large set pass some of its samples.

    Maren stops at the weights between hidden and output nodes; for the weights before them the same rule holds one
    layer further down, with delta_h = (sum_o delta_o v_ho) f'(z_h). Maren's Eqs. 6.3 and 6.9 print sums over the
    hidden nodes up to O where H is meant, and Eq. 6.26 prints H_h inside a sum over q. Lopez Davila's last sum in
    sec. 5 leaves out the weight in dz_j/da_k: it is sum_j w_jk f'(z_j) dC/da_j.

    Examples
    --------
    >>> import numpy as np
    >>> from fastbp import BackpropClassifier
    >>> from fastbp.inspection import gradient_terms
    >>> clf = BackpropClassifier((2,), activation="logistic", loss="squared_error", alpha=0.0, random_state=0)
    >>> outputs = gradient_terms(clf.initialize(3, classes=[0, 1]), [[0.0, 1.0, 2.0]], [1])[-1]
    >>> factors = outputs.d_loss_d_error * outputs.d_error_d_activation * outputs.d_activation_d_node_input
    >>> np.allclose(outputs.d_node_input_d_weight.T @ factors, outputs.gradient)
    True
    """
    data = _data(clf, X, y)
    activations, n_layers = clf._activations, len(clf.coefs_)
    step = _Step(clf, clf.coefs_, clf.intercepts_, data, alpha=clf.alpha, keep=True)
    inputs = [np.array(data.x, clf.coefs_[0].dtype), *(step.values(k, "a") for k in range(n_layers))]
    deltas = [step.values(k, "delta") for k in range(n_layers)]
    carried = [_backward_product(clf, k, delta) for k, delta in enumerate(deltas)]
    terms = []
    for k, activation in enumerate(activations):
        z, a = step.values(k, "z"), step.values(k, "a")
        term = Bunch(node_input=z, activation=a)
        is_output = k == n_layers - 1
        if not is_output:
            term.update(d_loss_d_activation=carried[k + 1].copy(), d_activation_d_node_input=activation.derivative(z))
        elif clf._loss == "squared_error":
            error = data.y - a
            ones = np.full_like(error, -1)
            term.update(
                error=error, d_loss_d_error=error.copy(), d_error_d_activation=ones, d_loss_d_activation=error * ones,
                d_activation_d_node_input=activation.derivative(z),
            )  # fmt: skip
        term.update(
            delta=deltas[k], d_node_input_d_weight=inputs[k], gradient=step.coef_grads[k],
            intercept_gradient=step.intercept_grads[k], d_loss_d_input=carried[k],
        )  # fmt: skip
        terms.append(term)
    return terms


def gradient_flow(clf, X, y):
    """Measure how the gradient fades, or grows, from the outputs back to the first layer.

    All activations and deltas are in memory at once: for a large set pass some of its samples.

    Each derivative of a saturated unit is close to 0, and the deltas are products of them: in deep networks of
    logistic units, whose derivative is at most a quarter of the slope, little comes back (Maren 2020, secs. 6.3.2,
    6.4).

    Parameters
    ----------
    clf : BackpropClassifier
        Fitted or initialized.
    X : array-like of shape (n_samples, n_features)
        Inputs.
    y : array-like of shape (n_samples,) or (n_samples, n_labels)
        Class labels.

    Returns
    -------
    Bunch
        Arrays with a number for each layer after the inputs:

        - ``delta``: the mean size of dC/dz, over samples and units.
        - ``gradient_norm``: the root of the sum of squares of dC/dW.
        - ``saturated``: the share of samples and units whose derivative is at most 5 % of the max_derivative of their
          activation; NaN for the outputs under "log_loss", where the derivative cancels.
        - ``ratio_to_last``: ``delta``, divided by that of the last layer.
    """
    data = _data(clf, X, y)
    step = _Step(clf, clf.coefs_, clf.intercepts_, data, alpha=clf.alpha, keep=True)
    sizes, norms, saturated = [], [], []
    for k, activation in enumerate(clf._activations):
        sizes.append(float(np.abs(step.values(k, "delta")).mean(dtype=np.float64)))
        norms.append(float(np.linalg.norm(step.coef_grads[k].astype(np.float64))))
        if k == len(clf.coefs_) - 1 and clf._loss == "log_loss":
            saturated.append(np.nan)
        else:
            slopes = np.abs(activation.derivative(step.values(k, "z")))
            saturated.append(float((slopes <= SATURATED * activation.max_derivative).mean()))
    delta = np.array(sizes)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = delta / delta[-1]
    return Bunch(delta=delta, gradient_norm=np.array(norms), saturated=np.array(saturated), ratio_to_last=ratio)


def loss_slice(clf, X, y, layer, i, j, values):
    """Compute the loss as a function of one weight, all others held (Maren 2020, Fig. 6.3).

    Parameters
    ----------
    clf : BackpropClassifier
        Fitted or initialized; not changed.
    X : array-like of shape (n_samples, n_features)
        Inputs.
    y : array-like of shape (n_samples,) or (n_samples, n_labels)
        Class labels.
    layer : int
        Which of `coefs_`; negative numbers count from the last.
    i : int or None
        The unit that the weight comes from; None for the bias.
    j : int
        The unit that it leads to.
    values : array-like of shape (n_values,)
        Values of the weight.

    Returns
    -------
    Bunch
        - ``weights`` and ``losses``, of shape (n_values,): the values, and the loss at each.
        - ``weight``, ``loss`` and ``derivative``: what the network has now, for the point and the tangent there.

    Raises
    ------
    ValueError
        If there is no such weight.
    """
    data = _data(clf, X, y)
    coefs, intercepts = ([part.copy() for part in parts] for parts in (clf.coefs_, clf.intercepts_))
    array, place = find_weight(coefs, intercepts, layer, i, j)
    values = np.asarray(values, dtype=np.float64).ravel()
    weight = float(array[place])
    now = _Step(clf, coefs, intercepts, data, alpha=clf.alpha)
    grads, _ = find_weight(now.coef_grads, now.intercept_grads, layer, i, j)
    losses = np.empty(len(values))
    for k, value in enumerate(values):
        array[place] = value
        losses[k] = _Step(clf, coefs, intercepts, data, alpha=clf.alpha).loss
    return Bunch(weights=values, losses=losses, weight=weight, loss=now.loss, derivative=float(grads[place]))


def loss_plane(clf, X, y, directions, first, second, *, n_steps=0, rate=0.1):
    """Compute the loss on a plane through the network's parameters, and a path of gradient descent in it.

    Parameters
    ----------
    clf : BackpropClassifier
        Fitted or initialized; not changed. Its parameters are the origin of the plane.
    X : array-like of shape (n_samples, n_features)
        Inputs.
    y : array-like of shape (n_samples,) or (n_samples, n_labels)
        Class labels.
    directions : pair of (list of ndarray, list of ndarray)
        Two directions in the space of the parameters, each as changes of `coefs_` and `intercepts_`.
    first, second : array-like of shape (n_first,), (n_second,)
        Coordinates along each.
    n_steps : int, default=0
        Steps of gradient descent, with all samples, from the corner (first[0], second[0]).
    rate : float, default=0.1
        Learning rate of these steps.

    Returns
    -------
    Bunch
        - ``losses``, of shape (n_second, n_first).
        - ``path``, of shape (n_steps + 1, 2), and ``path_losses``: coordinates before each step and after the last.
    """
    data = _data(clf, X, y)
    origin = [*clf.coefs_, *clf.intercepts_]
    n = len(clf.coefs_)
    changes = [[np.asarray(part) for part in (*coefs, *intercepts)] for coefs, intercepts in directions]
    if len(changes) != 2 or any([p.shape for p in change] != [w.shape for w in origin] for change in changes):
        raise ValueError("directions must be two, each with an array of the same shape for each of the parameters.")
    lengths = [sum(float(np.vdot(p, p)) for p in change) for change in changes]

    def at(u, v):
        params = [(w + u * p + v * q).astype(w.dtype) for w, p, q in zip(origin, *changes, strict=True)]
        return _Step(clf, params[:n], params[n:], data, alpha=clf.alpha)

    first, second = (np.asarray(coordinates, np.float64).ravel() for coordinates in (first, second))
    losses = np.array([[at(u, v).loss for u in first] for v in second])
    place = np.array([first[0], second[0]])
    path, path_losses = [], []
    for _ in range(n_steps + 1):
        step = at(*place)
        path.append(place)
        path_losses.append(step.loss)
        grads = [*step.coef_grads, *step.intercept_grads]
        slopes = [sum(float(np.vdot(g, p)) for g, p in zip(grads, change, strict=True)) for change in changes]
        # A step among the parameters, as coordinates: a direction may be longer than 1.
        place = place - rate * np.array(slopes) / np.maximum(lengths, np.finfo(float).tiny)
    return Bunch(losses=losses, path=np.array(path), path_losses=np.array(path_losses))


def find_weight(coefs, intercepts, layer, i, j):
    """Return the array that holds a weight or, for i None, a bias, and its index there.

    Raises
    ------
    ValueError
        If there is no such weight.
    """
    for name, value in (("layer", layer), ("i", i), ("j", j)):
        if not (name == "i" and value is None):
            check_scalar(value, name, Integral)
    n = len(coefs)
    if not -n <= layer < n:
        raise ValueError(f"layer={layer} is not there: the network has {n} layers of weights, 0 to {n - 1}.")
    array = intercepts[layer] if i is None else coefs[layer]
    place = (j,) if i is None else (i, j)
    if not all(-size <= index < size for index, size in zip(place, array.shape, strict=True)):
        raise ValueError(
            f"i={i}, j={j} is not there: layer {layer} has {coefs[layer].shape[0]} inputs and "
            f"{coefs[layer].shape[1]} units."
        )
    return array, place
