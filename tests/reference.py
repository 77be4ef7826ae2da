"""The network of the papers in plain NumPy float64, as slow and as plain as can be.

References
----------
A. J. Maren, "Backpropagation" (2020), Eqs. 6.1 to 6.30; A. Lopez Davila, "Neural Networks:
The Backpropagation Algorithm", secs. 2 to 5.
"""

import numpy as np
from scipy.special import expit, softmax, xlogy
from scipy.stats import norm


def logistic_derivative(z, slope=1.0):
    return slope * expit(slope * z) * expit(-slope * z)


SELU = 1.0507009873554805, 1.6732632423543772
# z, and the parameters of the activation object.
VALUE = {
    "identity": lambda z: z,
    "logistic": lambda z, slope=1.0: expit(slope * z),
    "tanh": np.tanh,
    "relu": lambda z: np.maximum(z, 0),
    "piecewise_linear": lambda z, x_min=-1.0, x_max=1.0: np.clip((z - x_min) / (x_max - x_min), 0, 1),
    "gaussian": lambda z, mu=0.0, sigma=1.0: norm.pdf(z, mu, sigma),
    "threshold": lambda z, surrogate=None: np.where(np.isnan(z), z, z >= 0),
    "leaky_relu": lambda z, negative_slope=0.01: np.where(z > 0, z, negative_slope * z),
    "elu": lambda z, alpha=1.0: np.where(z > 0, z, alpha * np.expm1(np.minimum(z, 0))),
    "selu": lambda z: SELU[0] * np.where(z > 0, z, SELU[1] * np.expm1(np.minimum(z, 0))),
    "gelu": lambda z: z * norm.cdf(z),
    "silu": lambda z: z * expit(z),
    "softmax": lambda z: softmax(z, axis=1),
    "exp": np.exp,
}
SURROGATE = {
    None: np.zeros_like,
    "logistic": logistic_derivative,
    "tanh": lambda z: 1 / np.cosh(z) ** 2,
    "identity": np.ones_like,
}
DERIVATIVE = {
    "identity": np.ones_like,
    "logistic": logistic_derivative,
    "tanh": lambda z: 1 / np.cosh(z) ** 2,
    "relu": lambda z: (z > 0).astype(float),
    "piecewise_linear": lambda z, x_min=-1.0, x_max=1.0: ((z > x_min) & (z < x_max)) / (x_max - x_min),
    "gaussian": lambda z, mu=0.0, sigma=1.0: -(z - mu) / sigma**2 * norm.pdf(z, mu, sigma),
    "threshold": lambda z, surrogate=None: SURROGATE[surrogate](z),
    "leaky_relu": lambda z, negative_slope=0.01: np.where(z > 0, 1, negative_slope),
    "elu": lambda z, alpha=1.0: np.where(z > 0, 1, alpha * np.exp(np.minimum(z, 0))),
    "selu": lambda z: SELU[0] * np.where(z > 0, 1, SELU[1] * np.exp(np.minimum(z, 0))),
    "gelu": lambda z: norm.cdf(z) + z * norm.pdf(z),
    "silu": lambda z: expit(z) * (1 + z * expit(-z)),
    "exp": np.exp,
}


def forward_naive(coefs, intercepts, activations, X, masks=None):
    """Return the lists of all layers' activations, after dropout, and of their pre-activations.

    `activations` holds (name, parameters) pairs, `masks` the factors of the hidden units.
    """
    layers, pre_activations = [np.asarray(X, dtype=np.float64)], []
    for i, (W, b, (name, parameters)) in enumerate(zip(coefs, intercepts, activations, strict=True)):
        pre_activations.append(layers[-1] @ W + b)
        layers.append(VALUE[name](pre_activations[-1], **parameters))
        if masks is not None and i < len(masks):
            layers[-1] = layers[-1] * masks[i]
    return layers, pre_activations


def quantile_naive(e, q):
    return np.where(e > 0, q * e, (q - 1) * e)


# The terms of a loss, and their derivatives by the outputs; p is the parameter of each output.
TERMS = {
    "squared_error": lambda y, a, p: (a - y) ** 2 / 2,
    "poisson": lambda y, a, p: xlogy(y, y / a) - y + a,
    "absolute_error": lambda y, a, p: abs(a - y),
    "huber": lambda y, a, p: np.where(abs(a - y) <= p, (a - y) ** 2 / 2, p * (abs(a - y) - p / 2)),
    "quantile": lambda y, a, p: quantile_naive(y - a, p),
}
SLOPES = {
    "squared_error": lambda y, a, p: a - y,
    "poisson": lambda y, a, p: 1 - y / a,
    "absolute_error": lambda y, a, p: np.sign(a - y),
    "huber": lambda y, a, p: np.clip(a - y, -p, p),
    "quantile": lambda y, a, p: np.where(a > y, 1 - p, np.where(a < y, -p, 0)),
}


def loss_naive(loss, name, Y, A, weight, parameter=0.0):
    """Return the weighted mean over the samples."""
    if loss in TERMS:
        rows = TERMS[loss](Y, A, parameter).sum(axis=1)
    else:
        eps = np.finfo(np.float64).eps
        P = np.clip(A, eps, 1 - eps)
        rows = -xlogy(Y, P).sum(axis=1)
        if name == "logistic":
            rows -= xlogy(1 - Y, 1 - P).sum(axis=1)
    return weight @ rows / weight.sum()


def backprop_naive(coefs, intercepts, activations, loss, X, Y, alpha=0.0, weight=None, parameter=0.0, masks=None):
    """Return the mean loss with its L2 term, and its gradients by coefs and by intercepts."""
    weight = np.ones(len(X)) if weight is None else weight
    layers, pre_activations = forward_naive(coefs, intercepts, activations, X, masks)
    name, parameters = activations[-1]
    value = loss_naive(loss, name, Y, layers[-1], weight, parameter)
    value += alpha / 2 * sum((W**2).sum() for W in coefs) / weight.sum()
    if loss in SLOPES:
        delta = SLOPES[loss](Y, layers[-1], parameter) * DERIVATIVE[name](pre_activations[-1], **parameters)
    else:  # the derivatives of the output activation cancel
        delta = layers[-1] - Y
    delta = delta * weight[:, None]
    coef_grads, intercept_grads = [], []
    for i in reversed(range(len(coefs))):
        coef_grads.insert(0, (layers[i].T @ delta + alpha * coefs[i]) / weight.sum())
        intercept_grads.insert(0, delta.sum(axis=0) / weight.sum())
        if i:
            name, parameters = activations[i - 1]
            delta = (delta @ coefs[i].T) * DERIVATIVE[name](pre_activations[i - 1], **parameters)
            if masks is not None:
                delta = delta * masks[i - 1]
    return value, coef_grads, intercept_grads


def clip_naive(grads, max_norm):
    """Return gradients, shortened where their global norm is above `max_norm`."""
    norm = np.sqrt(sum((g**2).sum() for g in grads))
    return [g * (max_norm / norm) for g in grads] if norm > max_norm else grads


# --- dropout, with Python's integers ---


def splitmix_naive(key, counter):
    """Return the output `counter` + 1 of splitmix64 with the seed `key`."""
    z = (key + (counter + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


def bits_naive(key, counter):
    """Return 32 random bits."""
    low, high = key % 2**32, key >> 32
    x = (low + counter * 0x9E3779B9) % 2**32
    x = (x ^ x >> 16) * 0x7FEB352D % 2**32
    x ^= high
    x = (x ^ x >> 15) * 0x846CA68B % 2**32
    return x ^ x >> 16


def mask_naive(seed, step, layer, n_rows, n_units, rate):
    """Return the factors of the units of a hidden layer for the rows of a batch: 0, or 1 / (1 - rate)."""
    layer_key = splitmix_naive(splitmix_naive(seed, step), layer)
    keys = [splitmix_naive(layer_key, row) for row in range(n_rows)]
    threshold = round(rate * 2**32)
    kept = [[bits_naive(key, unit) >= threshold for unit in range(n_units)] for key in keys]
    return np.array(kept) * 2**32 / (2**32 - threshold)


# --- optimizers ---


def sgd_naive(params, grads, velocities, rate, momentum, nesterov):
    """Change params and velocities in place."""
    for w, g, v in zip(params, grads, velocities, strict=True):
        v[...] = momentum * v - rate * g
        w += momentum * v - rate * g if nesterov else v


def adam_naive(params, grads, first, second, t, rate, beta_1=0.9, beta_2=0.999, epsilon=1e-8, weight_decay=0.0):
    """Change params and both moments in place; t counts from 1. With a decay, which is for weights, this is adamw."""
    for w, g, m, v in zip(params, grads, first, second, strict=True):
        m[...] = beta_1 * m + (1 - beta_1) * g
        v[...] = beta_2 * v + (1 - beta_2) * g**2
        w -= rate * weight_decay * w + rate * np.sqrt(1 - beta_2**t) / (1 - beta_1**t) * m / (np.sqrt(v) + epsilon)


def lazy_adam_naive(w, m, v, sizes, beta_1, beta_2, epsilon):
    """Take parameters through steps of these sizes without a gradient; change them and both moments in place."""
    for size in sizes:
        m *= beta_1
        v *= beta_2
        w -= size * m / (np.sqrt(v) + epsilon)


def lazy_sgd_naive(w, velocity, n_steps, momentum, nesterov):
    """Take parameters through steps without a gradient; change them and the velocity in place."""
    for _ in range(n_steps):
        velocity *= momentum
        w += momentum * velocity if nesterov else velocity
