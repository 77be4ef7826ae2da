"""The network of the papers in plain NumPy float64, as slow and as plain as can be.

References
----------
A. J. Maren, "Backpropagation" (2020), Eqs. 6.1 to 6.30; A. Lopez Davila, "Neural Networks:
The Backpropagation Algorithm", secs. 2 to 5.
"""

import numpy as np
from scipy.special import expit, softmax, xlogy

VALUE = {
    "identity": lambda z, **_: z,
    "logistic": lambda z, slope=1.0: expit(slope * z),
    "tanh": lambda z, **_: np.tanh(z),
    "relu": lambda z, **_: np.maximum(z, 0),
    "softmax": lambda z, **_: softmax(z, axis=1),
}
DERIVATIVE = {  # in the output a
    "identity": lambda a, **_: np.ones_like(a),
    "logistic": lambda a, slope=1.0: slope * a * (1 - a),
    "tanh": lambda a, **_: 1 - a**2,
    "relu": lambda a, **_: (a > 0).astype(float),
}


def forward_naive(coefs, intercepts, activations, X):
    """Return the list of all layers' activations; `activations` holds (name, parameters) pairs."""
    layers = [np.asarray(X, dtype=np.float64)]
    for W, b, (name, parameters) in zip(coefs, intercepts, activations, strict=True):
        layers.append(VALUE[name](layers[-1] @ W + b, **parameters))
    return layers


def loss_naive(loss, name, Y, A, weight):
    """Return the weighted mean over the samples."""
    if loss == "squared_error":
        rows = 0.5 * ((A - Y) ** 2).sum(axis=1)
    else:
        eps = np.finfo(np.float64).eps
        P = np.clip(A, eps, 1 - eps)
        rows = -xlogy(Y, P).sum(axis=1)
        if name == "logistic":
            rows -= xlogy(1 - Y, 1 - P).sum(axis=1)
    return weight @ rows / weight.sum()


def backprop_naive(coefs, intercepts, activations, loss, X, Y, alpha=0.0, weight=None):
    """Return the mean loss with its L2 term, and its gradients by coefs and by intercepts."""
    weight = np.ones(len(X)) if weight is None else weight
    layers = forward_naive(coefs, intercepts, activations, X)
    name, parameters = activations[-1]
    value = loss_naive(loss, name, Y, layers[-1], weight)
    value += alpha / 2 * sum((W**2).sum() for W in coefs) / weight.sum()
    delta = (layers[-1] - Y) * weight[:, None]
    if loss == "squared_error":
        delta *= DERIVATIVE[name](layers[-1], **parameters)
    coef_grads, intercept_grads = [], []
    for i in reversed(range(len(coefs))):
        coef_grads.insert(0, (layers[i].T @ delta + alpha * coefs[i]) / weight.sum())
        intercept_grads.insert(0, delta.sum(axis=0) / weight.sum())
        if i:
            name, parameters = activations[i - 1]
            delta = (delta @ coefs[i].T) * DERIVATIVE[name](layers[i], **parameters)
    return value, coef_grads, intercept_grads


def sgd_naive(params, grads, velocities, rate, momentum, nesterov):
    """Change params and velocities in place."""
    for w, g, v in zip(params, grads, velocities, strict=True):
        v[...] = momentum * v - rate * g
        w += momentum * v - rate * g if nesterov else v


def adam_naive(params, grads, first, second, t, rate, beta_1=0.9, beta_2=0.999, epsilon=1e-8):
    """Change params and both moments in place; t counts from 1."""
    for w, g, m, v in zip(params, grads, first, second, strict=True):
        m[...] = beta_1 * m + (1 - beta_1) * g
        v[...] = beta_2 * v + (1 - beta_2) * g**2
        w -= rate * np.sqrt(1 - beta_2**t) / (1 - beta_1**t) * m / (np.sqrt(v) + epsilon)
