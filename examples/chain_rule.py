"""The gradient of one weight as the product of four factors of the chain rule (Maren 2020, Eqs. 6.17 to 6.30)."""

from common import parse_arguments
from sklearn.datasets import load_iris
from sklearn.preprocessing import scale

from fastbp import BackpropClassifier
from fastbp.inspection import gradient_terms

parse_arguments(__doc__)
X, y = load_iris(return_X_y=True)
X = scale(X)
clf = BackpropClassifier((4,), "logistic", loss="squared_error", alpha=0.0, dtype="float64", random_state=0)
clf.initialize(X.shape[1], range(3))

sample, h, o = slice(0, 1), 2, 1  # one flower; the weight v from hidden node 2 to output node 1
hidden, outputs = gradient_terms(clf, X[sample], y[sample])
factors = {
    "dSSE/dE = E = desired - actual   (6.17)": outputs.d_loss_d_error[0, o],
    "dE/dF = -1                       (6.21)": outputs.d_error_d_activation[0, o],
    "dF/dNdInpt = F (1 - F)           (6.23)": outputs.d_activation_d_node_input[0, o],
    "dNdInpt/dv = H                   (6.27)": outputs.d_node_input_d_weight[0, h],
}
product = 1.0
for name, value in factors.items():
    product *= value
    print(f"{name} {value:22.17f}")
print(f"their product                    (6.30) {product:22.17f}")
print(f"gradient from the training kernels      {outputs.gradient[h, o]:22.17f}")

print("\nThe same rule one layer before, for the weight from input 3 to hidden node 2:")
backpropagated = float(outputs.delta[0] @ clf.coefs_[1][h])
product = backpropagated * hidden.d_activation_d_node_input[0, h] * X[0, 3]
print(f"sum over the outputs of delta_o v_ho    {backpropagated:22.17f}")
print(f"times H (1 - H) and the input           {product:22.17f}")
print(f"gradient from the training kernels      {hidden.gradient[3, h]:22.17f}")
