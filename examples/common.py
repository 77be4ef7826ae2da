"""Helpers of the examples: data sets that may be missing, and the command line."""

import argparse
import sys
import warnings

from sklearn.datasets import get_data_home, load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split

# The examples train for a fixed number of epochs, whether or not the optimization has converged.
warnings.simplefilter("ignore", ConvergenceWarning)


def digits():
    """Return scikit-learn's digits with pixels in [0, 1]: X_train, X_test, y_train, y_test."""
    X, y = load_digits(return_X_y=True)
    return train_test_split(X / 16, y, test_size=0.3, random_state=0, stratify=y)


def load_or_skip(load, *args, **kwargs):
    """Return load(*args, **kwargs); if the data set is missing, exit with a message that says so."""
    try:
        return load(*args, **kwargs)
    except FileNotFoundError as error:  # its message says what to do
        sys.exit(f"skipped: {error}")
    except OSError as error:  # of a download by scikit-learn
        sys.exit(
            f"skipped: the data could not be downloaded ({error}). Run this script once with a network: scikit-learn "
            f"keeps the data in {get_data_home()}. If you have them in another folder, set SCIKIT_LEARN_DATA to it."
        )


def parse_arguments(description, *, plot=False):
    """Parse the command line: every script has --help and refuses unknown arguments.

    Parameters
    ----------
    description : str
        The docstring of the script.
    plot : bool, default=False
        Whether the script has the option --plot FILE.

    Returns
    -------
    argparse.Namespace
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    if plot:
        parser.add_argument("--plot", metavar="FILE", help="save a plot to this file (needs matplotlib)")
    return parser.parse_args()
