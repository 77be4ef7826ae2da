"""Values of parameters that the estimators refuse."""

import numpy as np

from fastbp.activations import Relu

NO_INTEGER = [0, -1, 2.5, np.nan, None, "5"]
NO_BOOLEAN = ["yes", 1, None]
NO_SHARE = [-0.1, 1.0, np.inf, np.nan, None, "0.5", 1j]  # of [0, 1)
NOT_ABOVE_0 = [0, -1.0, np.inf, np.nan, "0.1", 1j, 10**400]
BELOW_0 = [-1e-9, np.inf, np.nan, None, "0.1", 1j, 10**400]
# What scikit-learn refuses, by `_parameter_constraints`.
PARAMETERS = {
    "hidden_layer_sizes": [0, -1, 2.5, None, "five"],
    "activation": ["swish", "exp", "softmax", None, 3, Relu],
    "output_activation": ["swish", "exp", "softmax", None, 3, ["relu"]],
    "solver": ["newton", None, 1],
    "alpha": BELOW_0,
    "batch_size": [*NO_INTEGER, "all"],
    "learning_rate": ["linear", None, 0.1],
    "power_t": BELOW_0,
    "learning_rate_init": [*NOT_ABOVE_0, None],
    "max_iter": [*NO_INTEGER, np.inf],
    "shuffle": NO_BOOLEAN,
    "random_state": [-1, 2**32, 0.5, "0", np.random.default_rng(0)],
    "tol": BELOW_0,
    "verbose": [-1, 0.5, "yes", None],
    "warm_start": NO_BOOLEAN,
    "momentum": [-0.1, 1.1, np.inf, np.nan, None, "0.5", 1j],
    "nesterovs_momentum": NO_BOOLEAN,
    "early_stopping": NO_BOOLEAN,
    "validation_fraction": NO_SHARE,
    "beta_1": NO_SHARE,
    "beta_2": NO_SHARE,
    "epsilon": [*NOT_ABOVE_0, None],
    "n_iter_no_change": [*NO_INTEGER, -np.inf],
    "max_fun": [*NO_INTEGER, np.inf],
    "dropout": NO_SHARE,
    "weight_decay": BELOW_0,
    "max_grad_norm": NOT_ABOVE_0,
    "weight_init": ["he", None, 1],
    "scoring": [3, ["accuracy"]],
    "max_time": NOT_ABOVE_0,
    "dtype": ["float16", None, np.float32],
    "n_jobs": [0, 1.5, np.nan, "all"],
}
OWN_PARAMETERS = {
    "classifier": {
        "loss": ["hinge", None, 1],
        "class_weight": ["heavy", 2.0, (1, 2)],
        "label_smoothing": NO_SHARE,
    },
    "regressor": {
        "loss": ["log_loss", None, 1],
        "delta": [*NOT_ABOVE_0, None],
        "quantile": [0, 1, -0.1, np.nan, None, "0.5", 1j],
    },
}
