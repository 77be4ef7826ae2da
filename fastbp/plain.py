"""The same training in plain NumPy: what the demo and the benchmarks compare with.

Written as one writes a fast network in NumPy by hand: matrix products by BLAS, everything
else in place, no work that the compiled kernels do not do as well.
"""

import numpy as np


def _logistic(z):
    np.negative(z, out=z)
    np.exp(z, out=z)
    z += 1
    np.reciprocal(z, out=z)


def _softmax(z):
    z -= z.max(axis=1, keepdims=True)
    np.exp(z, out=z)
    z /= z.sum(axis=1, keepdims=True)


_ACTIVATE = {
    "identity": lambda z: None,
    "logistic": _logistic,
    "tanh": lambda z: np.tanh(z, out=z),
    "relu": lambda z: np.maximum(z, 0, out=z),
    "softmax": _softmax,
}


def _times_derivative(activation, a, delta):
    if activation == "logistic":
        delta *= a * (1 - a)
    elif activation == "tanh":
        delta *= 1 - a * a
    elif activation == "relu":
        delta *= a > 0


class PlainNetwork:
    """A multilayer perceptron in plain NumPy.

    Parameters
    ----------
    coefs, intercepts : list of ndarray
        First parameters; copied.
    activation : {"identity", "logistic", "tanh", "relu"}
        Activation of the hidden layers.
    loss : {"log_loss", "squared_error"}
        Softmax outputs with the first, logistic ones with the second.
    solver : {"adam", "sgd"}
        "sgd" is without momentum.
    """

    def __init__(self, coefs, intercepts, *, activation="relu", loss="log_loss", solver="adam",
                 learning_rate=1e-3, alpha=1e-4, beta_1=0.9, beta_2=0.999, epsilon=1e-8):  # fmt: skip
        self.params = [p.copy() for p in [*coefs, *intercepts]]
        self.n_layers = len(coefs)
        self.activation, self.loss, self.solver = activation, loss, solver
        self.learning_rate, self.alpha = learning_rate, alpha
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon
        self.first = [np.zeros_like(p) for p in self.params]
        self.second = [np.zeros_like(p) for p in self.params]
        self.steps = 0

    def forward(self, X):
        """Return the activations of all layers, the inputs first."""
        activations = [X]
        for index in range(self.n_layers):
            a = activations[-1] @ self.params[index]
            a += self.params[self.n_layers + index]
            last = "softmax" if self.loss == "log_loss" else "logistic"
            _ACTIVATE[self.activation if index < self.n_layers - 1 else last](a)
            activations.append(a)
        return activations

    def gradients(self, X, Y):
        """Return the gradients of the mean loss, coefs first, then intercepts."""
        activations = self.forward(X)
        n = len(X)
        delta = activations[-1] - Y
        if self.loss == "squared_error":
            _times_derivative("logistic", activations[-1], delta)
        coef_grads: list[np.ndarray] = []
        intercept_grads: list[np.ndarray] = []
        for index in reversed(range(self.n_layers)):
            grad = activations[index].T @ delta
            if self.alpha:
                grad += self.alpha * self.params[index]
            grad /= n
            coef_grads.insert(0, grad)
            intercept_grads.insert(0, delta.sum(axis=0) / n)
            if index:
                delta = delta @ self.params[index].T
                _times_derivative(self.activation, activations[index], delta)
        return coef_grads + intercept_grads

    def step(self, X, Y):
        """Train on one batch."""
        grads = self.gradients(X, Y)
        if self.solver == "sgd":
            for p, g in zip(self.params, grads, strict=True):
                g *= self.learning_rate
                p -= g
            return
        self.steps += 1
        # A plain float: NumPy's own would turn the arithmetic to float64.
        size = float(self.learning_rate * np.sqrt(1 - self.beta_2**self.steps) / (1 - self.beta_1**self.steps))
        for p, g, m, v in zip(self.params, grads, self.first, self.second, strict=True):
            m *= self.beta_1
            m += (1 - self.beta_1) * g
            v *= self.beta_2
            g *= g
            g *= 1 - self.beta_2
            v += g
            update = np.sqrt(v)
            update += self.epsilon
            np.divide(m, update, out=update)
            update *= size
            p -= update

    def epoch(self, X, Y, order, batch_size):
        """Train once on all samples, in the given order."""
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            self.step(X[batch], Y[batch])

    def predict_proba(self, X):
        """Return the outputs."""
        return self.forward(X)[-1]
