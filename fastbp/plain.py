"""The same training in plain NumPy, with which the demo and the benchmarks compare fastbp.

This is how a fast network is written by hand in NumPy: BLAS computes the matrix products, all other operations work
in place where they can, and nothing is computed that the compiled kernels do not compute too.
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
        Initial weights of shape (fan_in, fan_out) and biases of shape (fan_out,) of each layer. They are copied, and
        their dtype is that of the training.
    activation : {"identity", "logistic", "tanh", "relu"}, default="relu"
        Activation of the hidden layers.
    loss : {"log_loss", "squared_error"}, default="log_loss"
        "log_loss" has softmax outputs, "squared_error" has logistic outputs.
    solver : {"adam", "sgd"}, default="adam"
        "sgd" is gradient descent without momentum.
    learning_rate : float, default=1e-3
        Learning rate.
    alpha : float, default=1e-4
        Strength of the L2 penalty.
    beta_1, beta_2 : float, default=0.9, 0.999
        Decay rates of the moments of Adam.
    epsilon : float, default=1e-8
        Value that Adam adds to the divisor of its update.
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
        """Return the activations of all layers, beginning with the inputs."""
        activations = [X]
        for index in range(self.n_layers):
            a = activations[-1] @ self.params[index]
            a += self.params[self.n_layers + index]
            last = "softmax" if self.loss == "log_loss" else "logistic"
            _ACTIVATE[self.activation if index < self.n_layers - 1 else last](a)
            activations.append(a)
        return activations

    def gradients(self, X, Y):
        """Return the gradients of the mean loss with respect to all coefs, then to all intercepts."""
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
        """Update the parameters with one batch."""
        grads = self.gradients(X, Y)
        if self.solver == "sgd":
            for p, g in zip(self.params, grads, strict=True):
                g *= self.learning_rate
                p -= g
            return
        self.steps += 1
        # A Python float keeps float32 arrays in float32, which a NumPy float64 would not.
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
        """Train for one epoch: once on the samples with the indices `order`, in batches."""
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            self.step(X[batch], Y[batch])

    def predict_proba(self, X):
        """Return the outputs of the network."""
        return self.forward(X)[-1]
