"""What the examples share: their data, which may not be there, and their options."""

import argparse
import sys
import warnings

from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split

# The examples train for a number of epochs, converged or not.
warnings.simplefilter("ignore", ConvergenceWarning)


def digits():
    """Return scikit-learn's digits, pixels in [0, 1]: X_train, X_test, y_train, y_test."""
    X, y = load_digits(return_X_y=True)
    return train_test_split(X / 16, y, test_size=0.3, random_state=0, stratify=y)


def load_or_skip(load, *args, **kwargs):
    """Return what `load` returns; where the data is not there, say so and end."""
    try:
        return load(*args, **kwargs)
    except OSError as error:  # a missing file, or no network
        sys.exit(f"skipped: {error}")


def plot_file(description):
    """Read the command line: the file of a picture, or None."""
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument("--plot", metavar="FILE", help="draw into this file")
    return parser.parse_args().plot
