"""Inspect what backpropagation computes: loss and gradient, the factors of the chain rule, saturation.

This is not a second implementation. The training kernels take one step of plain gradient descent with learning rate 1
on a copy of the network; that step is minus the gradient, and the workspace holds the other arrays.

References
----------
A. J. Maren, "Backpropagation", ch. 6 of *Statistical Mechanics, Neural Networks, and Artificial Intelligence*
(draft, 2020): Eqs. 6.5 to 6.30 and Fig. 6.3.
A. Lopez Davila, "Neural Networks: The Backpropagation Algorithm": sec. 5.
"""

from numbers import Integral
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array
from sklearn.utils import Bunch, check_scalar
from sklearn.utils.validation import check_is_fitted

from fastbp.activations import Identity
from fastbp.estimator import BaseBackprop
from fastbp.kernels.csr_matrix import CsrMatrix, split_inputs
from fastbp.kernels.network import make_network
from fastbp.kernels.records import Data
from fastbp.kernels.session import OptimizerState, Session, StepSettings
from fastbp.losses import CANONICAL_ACTIVATIONS
from fastbp.prediction import Predictor, check_shapes

__all__ = ["flatten", "gradient_flow", "gradient_terms", "loss_and_gradient", "loss_plane", "loss_slice", "mean_loss"]

# A unit counts as saturated where its derivative is at most this share of the largest derivative of its activation.
SATURATED = 0.05


class _Samples(NamedTuple):
    """Checked samples."""

    data: Data
    csr: CsrMatrix | None  # the inputs, where they are sparse

    def inputs(self):
        """Return the inputs as a new array of the network's type."""
        if self.csr is None:
            return np.array(self.data.x, self.data.y.dtype)
        indptr, indices, values, n_features = self.csr
        return csr_array((values, indices, indptr), shape=(len(self.data.y), n_features)).toarray()


class _Step:
    """One step of plain gradient descent with all samples.

    Parameters
    ----------
    estimator : BackpropClassifier or BackpropRegressor
        Whose loss and activations are used.
    coefs, intercepts : list of ndarray
        Its parameters, or others of the same shapes.
    samples : _Samples
        From `_check_samples`.
    alpha : float
        Factor of the L2 term.
    keep : bool, default=False
        Whether `values` can be asked for.
    activations : list of Activation, default=None
        One for each layer, where they are not those of the estimator.

    Attributes
    ----------
    loss : float
        Mean loss with the L2 term, before the step.
    coef_grads, intercept_grads : list of ndarray
        The gradient.
    """

    def __init__(self, estimator, coefs, intercepts, samples, *, alpha, keep=False, activations=None):
        data, csr = samples
        n = len(data.y)
        units = [len(coefs[0]), *map(len, intercepts)]
        network = make_network(units, activations or estimator._activations, coefs[0].dtype, n, csr is not None)
        settings = StepSettings(
            loss=estimator._loss, solver="sgd", alpha=alpha, batch_size=n, momentum=0.0, nesterovs_momentum=False,
            n_jobs=estimator.n_jobs,
        )  # fmt: skip
        optimizer = OptimizerState.empty(network, "sgd", 1.0)
        session = Session(network, network.pack(coefs, intercepts), optimizer, settings, n, keep=keep, csr=csr)
        session.run(data, rates=np.ones(1))
        self.loss = float(session.losses[0])
        # The velocity after one step is -g; 0 - (-g) instead of its negative, so that no zero gets a sign.
        self.coef_grads, self.intercept_grads = network.unpack(0 - optimizer.first)
        self._session, self._n = session, n

    def values(self, layer, what):
        """Return z, a or delta of a layer, of shape (n_samples, units)."""
        return self._session.values(layer, what, self._n)


def check_network(estimator, *, fitted=True):
    """Check that `estimator` is an estimator of this package and, unless `fitted` is False, that it is fitted.

    Raises
    ------
    TypeError
        If it is anything else. The message says how to get the network out of a pipeline, a search or another
        meta-estimator.
    sklearn.exceptions.NotFittedError
        If it is not fitted.
    """
    if isinstance(estimator, type):
        raise TypeError(f"{estimator.__name__} is a class, not an instance.")
    if not isinstance(estimator, BaseBackprop):
        raise TypeError(
            f"Expected a BackpropClassifier or BackpropRegressor, got {type(estimator).__name__}."
            f"{_way_to_network(estimator)}"
        )
    if fitted:
        check_is_fitted(estimator)


def _way_to_network(estimator):
    """Return a sentence that says how to get the network out of an estimator that contains one, else nothing."""
    if _is_a(estimator, "Pipeline"):
        return " Pass the last step, pipe[-1], and the transformed data, pipe[:-1].transform(X)."
    if _is_a(estimator, "BaseSearchCV"):
        best = "search.best_estimator_"
        if _is_a(estimator.estimator, "Pipeline"):
            return f" Pass the last step of the best pipeline, {best}[-1], and the data {best}[:-1].transform(X)."
        return f" Pass the best estimator, {best}, which is available after fit with refit=True."
    parameters = estimator.get_params() if hasattr(estimator, "get_params") else {}
    for value in parameters.values():
        if isinstance(value, BaseBackprop):
            return f" Pass one of the fitted {type(value).__name__}s in it."
    return ""


def _is_a(estimator, name):
    """Whether an object is an instance of a class of this name, without importing that class."""
    return any(cls.__name__ == name for cls in type(estimator).__mro__)


def _check_samples(estimator, X, y, sample_weight=None):
    """Check an estimator, whose `coefs_` the user may have edited, and the data; return the samples for the kernels."""
    check_network(estimator)
    units = check_shapes(estimator.coefs_, estimator.intercepts_, estimator.n_features_in_, estimator._activations)
    X, Y, weight = estimator._encode(X, y, sample_weight)
    if units[-1] != Y.shape[1]:
        raise ValueError(f"coefs_[-1] has {units[-1]} units for {Y.shape[1]} outputs.")
    x, csr = split_inputs(X, Y.dtype)
    return _Samples(Data(x, Y, weight, np.arange(len(Y))), csr)


def _backward_product(estimator, layer, delta):
    """Return delta W^T, computed as the outputs of a layer with weights W^T, zero biases and the identity."""
    weights = np.ascontiguousarray(estimator.coefs_[layer].T)
    zeros = np.zeros(weights.shape[1], weights.dtype)
    return Predictor([weights], [zeros], [Identity()], weights.shape[0]).outputs(delta, estimator.n_jobs)[0]


def _loss_by_output(estimator, y, a):
    """Return dC/da for each output, computed as the delta of a layer that hands the outputs on as they are."""
    n_outputs = a.shape[1]
    samples = _Samples(Data(a, y, np.empty(0, a.dtype), np.arange(len(a))), None)
    coefs, intercepts = [np.eye(n_outputs, dtype=a.dtype)], [np.zeros(n_outputs, a.dtype)]
    step = _Step(estimator, coefs, intercepts, samples, alpha=0.0, keep=True, activations=[Identity()])
    return step.values(0, "delta")


def mean_loss(estimator, X, y):
    """Compute the mean loss of a network on data, without the L2 term.

    Parameters
    ----------
    estimator : BackpropClassifier or BackpropRegressor
        Fitted or initialized estimator.
    X : {array-like, sparse matrix} of shape (n_samples, n_features)
        Input data.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        Class labels, or the targets of a regressor.

    Returns
    -------
    float
        The mean over the samples.
    """
    samples = _check_samples(estimator, X, y)
    return _Step(estimator, estimator.coefs_, estimator.intercepts_, samples, alpha=0.0).loss


def loss_and_gradient(estimator, X, y, sample_weight=None):
    """Compute the mean loss of a network on data, with the L2 term, and its gradient.

    Parameters
    ----------
    estimator : BackpropClassifier or BackpropRegressor
        Fitted or initialized estimator.
    X : {array-like, sparse matrix} of shape (n_samples, n_features)
        Input data.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        Class labels, or the targets of a regressor.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the samples. If None, all are 1.

    Returns
    -------
    loss : float
        The mean of the samples' losses, weighted by `sample_weight`, plus the L2 term: alpha / 2 times the sum of all
        squared weights, divided by the number of samples or by the sum of `sample_weight`. Training uses the same
        formula for each batch, whose L2 term is therefore divided by the number of samples in the batch.
    gradient : ndarray of shape (n_parameters,)
        [dC/dW^1, dC/db^1, ..., dC/dW^L, dC/db^L] (Lopez Davila, end of sec. 5), with each W in C order and in the shape
        of `coefs_`; of the dtype of the network.

    Notes
    -----
    The squared error here has the factor 1/2 of Maren's Eq. 6.5, so that its gradient has no factor of 2. Lopez
    Davila's C = (a - y)^2 has that factor in its gradient.

    The "squared_error" of a regressor with several outputs is their mean, but the gradient is that of their sum: so
    scikit-learn defines both, and so they are here.

    What changes the targets, the samples or the step of training only is left out: `class_weight` (pass the weights in
    `sample_weight`), `label_smoothing`, `dropout`, `max_grad_norm` and `weight_decay`.

    Examples
    --------
    >>> from fastbp import BackpropClassifier
    >>> from fastbp.inspection import loss_and_gradient
    >>> clf = BackpropClassifier((2,), random_state=0).initialize(3, classes=[0, 1])
    >>> loss, gradient = loss_and_gradient(clf, [[0.0, 1.0, 2.0]], [1])
    >>> gradient.shape  # 3 * 2 + 2 + 2 * 1 + 1
    (11,)
    """
    samples = _check_samples(estimator, X, y, sample_weight)
    step = _Step(estimator, estimator.coefs_, estimator.intercepts_, samples, alpha=estimator.alpha)
    return step.loss, flatten(step.coef_grads, step.intercept_grads)


def flatten(coefs, intercepts):
    """Concatenate all parameters, or their gradients, into one vector in the order of `loss_and_gradient`.

    Parameters
    ----------
    coefs : list of ndarray of shape (fan_in, fan_out)
        Weights of each layer, or their gradients.
    intercepts : list of ndarray of shape (fan_out,)
        Biases of each layer, or their gradients.

    Returns
    -------
    ndarray of shape (n_parameters,)
        A copy.
    """
    return np.concatenate(
        [part.ravel() for pair in zip(coefs, intercepts, strict=True) for part in pair]
    )  # fmt: skip


def gradient_terms(estimator, X, y):
    """Compute the factors of the chain rule of which the gradient is the product, layer by layer.

    Parameters
    ----------
    estimator : BackpropClassifier or BackpropRegressor
        Fitted or initialized estimator.
    X : {array-like, sparse matrix} of shape (n_samples, n_features)
        Input data.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        Class labels, or the targets of a regressor.

    Returns
    -------
    list of Bunch
        One for each layer of weights, from the first hidden layer to the output layer. The arrays have the shape
        (n_samples, n_units) unless stated otherwise, and C is the loss of a single sample, the sum over its outputs
        (Maren's SSE, or the cross entropy, for example). The numbers are Maren's equations.

        - ``node_input``: the pre-activation z (NdInpt; 6.3, 6.9); ``activation``: f(z) (F or H; 6.4, 6.10).
        - ``error``: E = desired - actual (6.6); ``d_loss_d_error``: dC/dE = E (6.17); ``d_error_d_activation``:
          dE/da = -1 (6.21). Only for the output layer under "squared_error".
        - ``d_loss_d_activation``: dC/da. In the output layer under "squared_error" it is the product of the two
          derivatives above; in a hidden layer it is backpropagated from the next layer, sum_o delta_o v_ho.
        - ``d_activation_d_node_input``: the derivative f'(z) (6.23).
        - ``delta``: dC/dz, the product of ``d_loss_d_activation`` and ``d_activation_d_node_input``. In the output
          layer under "log_loss" and "poisson" these two cancel to delta = actual - desired, and are not among the
          keys.
        - ``d_node_input_d_weight``: dz/dW, which is the input of the layer (6.27), of shape (n_samples, fan_in).
        - ``gradient``: dC/dW of the shape of `coefs_`, the mean over the samples of input times delta (6.30), plus the
          gradient of the L2 term; ``intercept_gradient``: dC/db.
        - ``d_loss_d_input``: the derivative of C by the input of the layer, delta W^T, of shape (n_samples, fan_in).
          For the first layer this is the gradient with respect to X.

    Notes
    -----
    The arrays of all layers, dense also where X is sparse, are in memory at the same time; pass a subset of the
    samples if they are many.

    Maren derives the weights between hidden and output nodes only. The same rule holds for the weights of the layers
    before, with delta_h = (sum_o delta_o v_ho) f'(z_h).

    Misprints in the two texts: the sums over the hidden nodes in Maren's Eqs. 6.3 and 6.9 run to H, not to O, and H_h
    in Eq. 6.26 should have the summation index q. The last sum of Lopez Davila's sec. 5 lacks the weight that is
    dz_j/da_k: it is sum_j w_jk f'(z_j) dC/da_j.

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
    samples = _check_samples(estimator, X, y)
    activations, n_layers = estimator._activations, len(estimator.coefs_)
    step = _Step(estimator, estimator.coefs_, estimator.intercepts_, samples, alpha=estimator.alpha, keep=True)
    inputs = [samples.inputs(), *(step.values(k, "a") for k in range(n_layers))]
    deltas = [step.values(k, "delta") for k in range(n_layers)]
    carried = [_backward_product(estimator, k, delta) for k, delta in enumerate(deltas)]
    terms = []
    for k, activation in enumerate(activations):
        z, a = step.values(k, "z"), step.values(k, "a")
        term = Bunch(node_input=z, activation=a)
        is_output = k == n_layers - 1
        if not is_output:
            term.update(d_loss_d_activation=carried[k + 1].copy(), d_activation_d_node_input=activation.derivative(z))
        elif estimator._loss.name == "squared_error":
            error = samples.data.y - a
            ones = np.full_like(error, -1)
            term.update(
                error=error, d_loss_d_error=error.copy(), d_error_d_activation=ones, d_loss_d_activation=error * ones,
                d_activation_d_node_input=activation.derivative(z),
            )  # fmt: skip
        elif estimator._loss.name not in CANONICAL_ACTIVATIONS:
            by_output = _loss_by_output(estimator, samples.data.y, a)
            term.update(d_loss_d_activation=by_output, d_activation_d_node_input=activation.derivative(z))
        term.update(
            delta=deltas[k], d_node_input_d_weight=inputs[k], gradient=step.coef_grads[k],
            intercept_gradient=step.intercept_grads[k], d_loss_d_input=carried[k],
        )  # fmt: skip
        terms.append(term)
    return terms


def gradient_flow(estimator, X, y):
    """Measure the magnitude of the gradient in each layer: whether it vanishes, or explodes, towards the first layer.

    The delta of a layer has the derivatives of this layer and of all later ones as factors. That of a logistic
    unit is at most a quarter of its slope, and close to 0 if the unit is saturated. In deep logistic networks the
    gradient therefore vanishes towards the first layer (Maren 2020, secs. 6.3.2, 6.4).

    Parameters
    ----------
    estimator : BackpropClassifier or BackpropRegressor
        Fitted or initialized estimator.
    X : {array-like, sparse matrix} of shape (n_samples, n_features)
        Input data.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        Class labels, or the targets of a regressor.

    Returns
    -------
    Bunch
        Arrays of shape (n_layers,), one value for each layer of weights, from the first hidden layer to the output
        layer:

        - ``delta``: the mean of |dC/dz| over samples and units.
        - ``gradient_norm``: the Frobenius norm of dC/dW, with the L2 term.
        - ``saturated``: the share of samples and units where |f'(z)| is at most 5 % of its maximum. For relu these are
          the inactive units, with f'(z) = 0. NaN for the output layer under "log_loss" and "poisson", where the
          derivative cancels.
        - ``ratio_to_last``: ``delta`` divided by that of the output layer.

    Notes
    -----
    The activations and deltas of all layers are in memory at the same time; pass a subset of the samples if they are
    many.
    """
    samples = _check_samples(estimator, X, y)
    step = _Step(estimator, estimator.coefs_, estimator.intercepts_, samples, alpha=estimator.alpha, keep=True)
    sizes, norms, saturated = [], [], []
    for k, activation in enumerate(estimator._activations):
        sizes.append(float(np.abs(step.values(k, "delta")).mean(dtype=np.float64)))
        norms.append(float(np.linalg.norm(step.coef_grads[k].astype(np.float64))))
        if k == len(estimator.coefs_) - 1 and estimator._loss.name in CANONICAL_ACTIVATIONS:
            saturated.append(np.nan)
        else:
            slopes = np.abs(activation.derivative(step.values(k, "z")))
            saturated.append(float((slopes <= SATURATED * activation.max_derivative).mean()))
    delta = np.array(sizes)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = delta / delta[-1]
    return Bunch(delta=delta, gradient_norm=np.array(norms), saturated=np.array(saturated), ratio_to_last=ratio)


def loss_slice(estimator, X, y, layer, i, j, values):
    """Compute the loss as a function of one weight, with all other parameters fixed (Maren 2020, Fig. 6.3).

    Parameters
    ----------
    estimator : BackpropClassifier or BackpropRegressor
        Fitted or initialized estimator; not changed.
    X : {array-like, sparse matrix} of shape (n_samples, n_features)
        Input data.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        Class labels, or the targets of a regressor.
    layer : int
        Index into `coefs_`; negative numbers count from the output layer.
    i : int or None
        Index of the unit, or of the input, that the weight comes from. None is the bias of unit j.
    j : int
        Index of the unit that the weight leads to.
    values : array-like of shape (n_values,)
        Values of the weight.

    Returns
    -------
    Bunch
        - ``weights`` and ``losses``, of shape (n_values,): the values, and the loss at each, with the L2 term.
        - ``weight``, ``loss`` and ``derivative``: the current value of the weight, and the loss and its derivative
          there.

    Raises
    ------
    ValueError
        If an index is out of range.
    """
    samples = _check_samples(estimator, X, y)
    coefs, intercepts = ([part.copy() for part in parts] for parts in (estimator.coefs_, estimator.intercepts_))
    array, place = find_weight(coefs, intercepts, layer, i, j)
    values = np.asarray(values, dtype=np.float64).ravel()
    weight = float(array[place])
    now = _Step(estimator, coefs, intercepts, samples, alpha=estimator.alpha)
    grads, _ = find_weight(now.coef_grads, now.intercept_grads, layer, i, j)
    derivative = float(grads[place])
    # The gradient is that of the sum over the outputs, the loss of a regressor can be their mean.
    penalty = 0.0 if i is None else estimator.alpha * weight / len(samples.data.y)
    derivative -= (1 - estimator._loss.scale) * (derivative - penalty)
    losses = np.empty(len(values))
    for k, value in enumerate(values):
        array[place] = value
        losses[k] = _Step(estimator, coefs, intercepts, samples, alpha=estimator.alpha).loss
    return Bunch(weights=values, losses=losses, weight=weight, loss=now.loss, derivative=derivative)


def loss_plane(estimator, X, y, directions, first, second, *, n_steps=0, rate=0.1):
    """Compute the loss on a plane through the parameters of a network, and a path of gradient descent in that plane.

    Parameters
    ----------
    estimator : BackpropClassifier or BackpropRegressor
        Fitted or initialized estimator; not changed. Its parameters are the origin of the plane.
    X : {array-like, sparse matrix} of shape (n_samples, n_features)
        Input data.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        Class labels, or the targets of a regressor.
    directions : pair of (list of ndarray, list of ndarray)
        Two directions in parameter space: two lists of arrays of the shapes of `coefs_` and `intercepts_`.
    first, second : array-like of shape (n_first,), (n_second,)
        Coordinates along the two directions: the loss is computed at ``parameters + u * first_direction + v *
        second_direction`` for each u in `first` and v in `second`.
    n_steps : int, default=0
        Number of steps of gradient descent on the loss of all samples, from the corner (first[0], second[0]).
    rate : float, default=0.1
        Learning rate of these steps.

    Returns
    -------
    Bunch
        - ``losses``, of shape (n_second, n_first): the loss at each pair of coordinates, with the L2 term.
        - ``path``, of shape (n_steps + 1, 2), and ``path_losses``, of shape (n_steps + 1,): the coordinates, and the
          loss there, at the start and after each step.

    Raises
    ------
    ValueError
        If the directions do not have the shapes of the parameters.
    """
    samples = _check_samples(estimator, X, y)
    origin = [*estimator.coefs_, *estimator.intercepts_]
    n = len(estimator.coefs_)
    changes = [[np.asarray(part) for part in (*coefs, *intercepts)] for coefs, intercepts in directions]
    if len(changes) != 2 or any([p.shape for p in change] != [w.shape for w in origin] for change in changes):
        raise ValueError("directions must be two pairs of lists of arrays, of the shapes of coefs_ and intercepts_.")
    lengths = [sum(float(np.vdot(p, p)) for p in change) for change in changes]

    def at(u, v):
        params = [(w + u * p + v * q).astype(w.dtype) for w, p, q in zip(origin, *changes, strict=True)]
        return _Step(estimator, params[:n], params[n:], samples, alpha=estimator.alpha)

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
        # A step in parameter space, in units of the directions, whose length need not be 1.
        place = place - rate * np.array(slopes) / np.maximum(lengths, np.finfo(float).tiny)
    return Bunch(losses=losses, path=np.array(path), path_losses=np.array(path_losses))


def find_weight(coefs, intercepts, layer, i, j):
    """Return the array that holds a weight or, if i is None, a bias, and its index in that array.

    Raises
    ------
    TypeError
        If an index is not an integer.
    ValueError
        If an index is out of range.
    """
    for name, value in (("layer", layer), ("i", i), ("j", j)):
        if not (name == "i" and value is None):
            check_scalar(value, name, Integral)
    n = len(coefs)
    if not -n <= layer < n:
        raise ValueError(f"layer={layer} is out of range: the network has {n} layers of weights, 0 to {n - 1}.")
    array = intercepts[layer] if i is None else coefs[layer]
    place = (j,) if i is None else (i, j)
    if not all(-size <= index < size for index, size in zip(place, array.shape, strict=True)):
        raise ValueError(
            f"i={i}, j={j} is out of range: layer {layer} has {coefs[layer].shape[0]} inputs and "
            f"{coefs[layer].shape[1]} units."
        )
    return array, place
