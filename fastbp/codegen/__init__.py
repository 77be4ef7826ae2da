"""Machine code: what the formulas and kernels are made of, below the level that Numba expresses by itself.

- `target`: what the processor can do that Numba compiles for.
- `jit`: how functions are compiled, cached on disk, and called by their address.
- `memory`: typed pointers, scalar loads and stores, prefetch. `vectors`: a vector register as a value with arithmetic.
- `elementary`: exp, log, tanh, erf of a vector.
- `tiles`, `rows`, `transpose`, `bitmask`: products and permutations that stay in the vector registers.
- `atomics`, `processor`: what threads need.
- `emit`: pieces of LLVM IR that several of these share.

Nothing here knows of neural networks.
"""
