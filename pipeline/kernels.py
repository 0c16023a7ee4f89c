"""How kernels are compiled: by numba, cached on disk, without the interpreter's lock.

numba counts references to arrays, also to the views that a loop makes of them (`row = table[m]`): an atomic
addition and a subtraction each, in the innermost loops. `_nrt=False` compiles a kernel without numba's memory
manager (NRT): it counts nothing, which saves a tenth of a step's time and changes no figure. The flag is not
documented. Two rules follow from it: such a kernel makes no array, so that scratch space and results are
arguments; and it calls no kernel that returns one, which numba would compile and which would leak memory.
tests/test_kernels.py holds them, and fails where the installed numba ignores the flag or rejects it. A numba
that rejects it compiles the same kernels with counting.
"""

from typing import Any

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
OPTIONS = {"cache": True, "nogil": True} | (NO_COUNTING if accepted(NO_COUNTING) else {})


def kernel(**options: Any) -> Any:
    """Return the decorator of a kernel that allocates nothing; `options` are further ones of `njit`."""
    return njit(**OPTIONS, **options)


# a piece of other kernels: inlined by LLVM at every call
inlined = kernel(forceinline=True)
# a sum of floats may use vector registers; its order is fixed all the same
summing = kernel(fastmath={"reassoc", "contract", "nsz", "arcp"})
