"""How kernels are compiled: by numba, cached on disk, without the interpreter's lock.

numba counts references to arrays, also to the views that a loop makes of them. `_nrt=False`, which is not
documented, compiles a kernel without that: a tenth of a step's time less, and no figure changes. Such a
kernel makes no array (scratch space and results are arguments), and calls no kernel that returns one, which
would leak memory. tests/test_kernels.py holds both rules, and fails where the installed numba ignores or
rejects the flag; one that rejects it compiles the same kernels with counting.
"""

from typing import Any

import numpy as np
from numba import njit


def accepted(options: dict[str, Any]) -> bool:
    """Return whether this numba accepts compiler options; it checks them itself at a kernel's first call."""
    try:
        from numba.core.compiler import Flags
        from numba.core.registry import cpu_target

        cpu_target.options.parse_as_flags(Flags(), options)
    except (ImportError, AttributeError, KeyError):
        return False
    return True


NO_COUNTING: dict[str, Any] = {"_nrt": False}
# numpy's error model: x / 0 is inf, and no test for it keeps a loop from vector registers (Adagrad: 11 times)
OPTIONS = {"cache": True, "nogil": True, "error_model": "numpy"} | (
    NO_COUNTING if accepted(NO_COUNTING) else {}
)


def kernel(**options: Any) -> Any:
    """Return the decorator of a kernel that allocates nothing; `options` are further ones of `njit`."""
    return njit(**OPTIONS, **options)


# a piece of other kernels: inlined by LLVM at every call
inlined = kernel(forceinline=True)
# a sum of floats may use vector registers; its order is fixed all the same
summing = kernel(fastmath={"reassoc", "contract", "nsz", "arcp"})


@inlined
def log32(x):  # type: ignore[no-untyped-def]
    """Return ln x of a positive normal float32, within 2e-7 of it: logf of Moshier's Cephes library."""
    one, half = np.float32(1), np.float32(0.5)
    bits = np.float32(x).view(np.int32)
    exponent = (bits >> np.int32(23)) - np.int32(126)
    m = np.int32((bits & np.int32(0x7FFFFF)) | np.int32(0x3F000000)).view(np.float32)  # half .. one
    low = m < np.float32(0.70710678)
    t = (m + m if low else m) - one
    e = np.float32(exponent - (1 if low else 0))
    y = np.float32(7.0376836292e-2)
    y = y * t + np.float32(-1.1514610310e-1)
    y = y * t + np.float32(1.1676998740e-1)
    y = y * t + np.float32(-1.2420140846e-1)
    y = y * t + np.float32(1.4249322787e-1)
    y = y * t + np.float32(-1.6668057665e-1)
    y = y * t + np.float32(2.0000714765e-1)
    y = y * t + np.float32(-2.4999993993e-1)
    y = y * t + np.float32(3.3333331174e-1)
    z = t * t
    return t + (y * t * z - half * z) + e * np.float32(0.69314718)


@kernel()
def log_all(values, count):  # type: ignore[no-untyped-def]
    """Take the logarithms of the first `count` values in place, in vector registers."""
    for i in range(count):
        values[i] = log32(values[i])
