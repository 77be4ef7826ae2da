"""Damaged files for `fastbp.load`, and what becomes of them in a process that is watched.

``python tests/mutations.py FOLDER COUNT SEED`` takes the files of a folder, loads COUNT mutations of them, and prints
as JSON what came of it: see `watch`.
"""

import contextlib
import json
import random
import re
import sys
import warnings
from copy import deepcopy
from pathlib import Path

import numpy as np

import fastbp

# What may take the place of a value in the JSON of a header.
VALUES = [
    None, True, False, 0, 1, -1, 3, 2**31, 2**63, 2**64, -(2**63), 10**400, 0.0, -0.5, 1e308, "", "x", "inf", "relu",
    "softmax", "log_loss", "adam", "lbfgs", "coefs.0", "F32", "F64", "BF16", "\x00", "\ud800", "os.system", [], [[]],
    [1, 2], [0, 0], {}, {"float": "nan"}, {"float": "inf"}, {"tensor": "coefs.0"}, {"tuple": [1]}, {"pairs": [[1, 2]]},
    {"activation": {"name": "relu"}}, {"activation": {"name": "threshold", "surrogate": None}}, {"pairs": [[[], 1]]},
]  # fmt: skip


def split(data):
    """Return header, the object "model" in it, and the bytes of the tensors."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    return header, json.loads(header["__metadata__"]["model"]), data[8 + size :]


def join(header, model, rest):
    if model is not None:
        header["__metadata__"]["model"] = json.dumps(model)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + rest


def places(value, found):
    """Collect the containers of a JSON value, each with a key."""
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            found.append((value, key))
            places(value[key], found)
    return found


def flip_bits(rng, data):
    data, end = bytearray(data), 8 + int.from_bytes(data[:8], "little")
    begin, end = rng.choice([(0, end), (end, len(data))])  # in the header, or in the arrays
    for _ in range(rng.choice([1, 1, 2, 8, 64])):
        data[rng.randrange(begin, end)] ^= 1 << rng.randrange(8)
    return bytes(data)


def truncate(rng, data):
    return data[: rng.randrange(len(data))]


def insert(rng, data):
    at = rng.randrange(len(data))
    return data[:at] + rng.randbytes(rng.choice([1, 8, 100])) + data[at:]


def cut_out(rng, data):
    at = rng.randrange(len(data))
    return data[:at] + data[at + rng.choice([1, 4, 8, 100]) :]


def edit(rng, data):
    """Change values of the JSON, in the header and in the model."""
    header, model, rest = split(data)
    for _ in range(rng.choice([1, 1, 2, 3])):
        container, key = rng.choice(places(model if rng.random() < 0.7 else header, []))
        kind = rng.random()
        if kind < 0.3:
            container[key] = deepcopy(rng.choice([v for v in VALUES if type(v) is type(container[key])]))
        elif kind < 0.6 or isinstance(container, list):
            container[key] = deepcopy(rng.choice(VALUES))
        elif kind < 0.8:
            del container[key]
        else:
            container[rng.choice([*container, "x", "coefs.0"])] = container.pop(key)
        if "__metadata__" not in header or not isinstance(header["__metadata__"], dict):
            return join(header, None, rest)
    return join(header, model, rest)


def swap(rng, data):
    """Exchange two values."""
    header, model, rest = split(data)
    found = places(rng.choice([model, header]), [])
    (one, a), (other, b) = rng.sample(found, 2)
    one[a], other[b] = other[b], one[a]
    try:
        return join(header, model if isinstance(header.get("__metadata__"), dict) else None, rest)
    except ValueError:  # a value inside itself
        return b""


def repeat_key(rng, data):
    header, _, rest = split(data)
    text = json.dumps(header)
    entry = rng.choice(list(re.finditer(r'"[\w.]+": (\{[^{}]*\}|"[^"]*"|\d+)', text)))
    text = text[: entry.start()] + entry[0] + ", " + text[entry.start() :]
    return len(text).to_bytes(8, "little") + text.encode() + rest


def huge_header(rng, data):
    size = rng.choice([2**20, 2**31, 2**63, 2**64 - 1, 100_000_001, len(data)])
    return size.to_bytes(8, "little") + data[8:]


def pad_header(rng, data):
    """A long header: spaces, nested lists, many objects, long numbers."""
    size = int.from_bytes(data[:8], "little")
    n = rng.choice([1, 1000, 100_000])
    more = rng.choice([" " * n, "[" * n, '{"a":' * n, "[]," * n, "1" * n, '"' + "x" * n])
    text = data[8 : 8 + size] + more.encode() if rng.random() < 0.5 else more.encode() + data[8 : 8 + size]
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


MUTATIONS = [
    flip_bits,
    flip_bits,
    truncate,
    insert,
    cut_out,
    edit,
    edit,
    edit,
    edit,
    swap,
    repeat_key,
    huge_header,
    pad_header,
]


def kilobytes(name):
    """What Linux says about the memory of this process."""
    return int(re.search(rf"^{name}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)[1])


def growth_during(call):
    """Return by how many bytes more than before it the memory of this process had at some moment of a call."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = kilobytes("VmRSS")
    call()
    return 1024 * (kilobytes("VmHWM") - before)


def use(model):
    """Predict and train; parameters may be as absurd as those that `set_params` takes."""
    X, y = np.zeros((20, model.n_features_in_)), np.zeros((20, getattr(model, "_n_targets", 1)))
    if hasattr(model, "classes_"):
        y = np.resize(model.classes_, 20)
    with contextlib.suppress(Exception):
        model.predict(X)
    with contextlib.suppress(Exception):
        model.partial_fit(X, y)


def watch(folder, count, seed):
    """Load mutations; return what they have led to.

    Returns
    -------
    dict
        "loaded" and "refused": how many; "others": the errors that are no FormatError; "events": what else than reading
        the one file the process has done; "growth": by how many bytes its memory has grown.
    """
    originals = [path.read_bytes() for path in sorted(Path(folder).glob("*.safetensors"))]
    target = Path(folder) / "mutation"
    for data in originals:  # so that all is imported
        target.write_bytes(data)
        fastbp.load(target)
    try:
        target.write_bytes(b"")
        fastbp.load(target)
    except fastbp.FormatError:
        pass
    rng, events, others, is_loading = random.Random(seed), set(), [], False

    def hook(event, arguments):
        harmless = event in ("builtins.id", "object.__getattr__", "sys._getframe") or (
            event == "open" and arguments[0] == str(target)
        )
        if is_loading and not harmless:
            events.add(f"{event} {arguments}"[:200])

    sys.addaudithook(hook)
    counts, kept = {"loaded": 0, "refused": 0}, []

    def load_all():
        nonlocal is_loading
        for _ in range(count):
            target.write_bytes(rng.choice(MUTATIONS)(rng, rng.choice(originals)))
            is_loading = True
            try:
                model = fastbp.load(target)
                counts["loaded"] += 1
                if len(kept) < 100:
                    kept.append(model)
            except fastbp.FormatError:
                counts["refused"] += 1
            except BaseException as error:
                others.append(repr(error)[:200])
            is_loading = False

    growth = growth_during(load_all)
    for model in kept:  # kernels trust what was loaded
        use(model)
    return {**counts, "others": others, "events": sorted(events), "growth": growth}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps(watch(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
