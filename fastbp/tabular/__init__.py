"""Tables: frames with gaps and categories in, strong defaults, several networks that answer together.

`make_tabular_classifier` and `make_tabular_regressor` are what most users need. What they return has three parts, each
of which can be inspected, replaced or used alone: a transformer from the columns of a table to the inputs of a network
(`make_table_transformer`), the parameters of the network, and the ensemble that trains several of them.
"""

from fastbp.tabular.columns import make_table_transformer
from fastbp.tabular.encoding import PiecewiseLinearEncoder
from fastbp.tabular.ensembles import TabularClassifier, TabularRegressor
from fastbp.tabular.factories import make_tabular_classifier, make_tabular_regressor

__all__ = [
    "PiecewiseLinearEncoder", "TabularClassifier", "TabularRegressor", "make_table_transformer",
    "make_tabular_classifier", "make_tabular_regressor",
]  # fmt: skip
