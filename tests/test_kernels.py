"""Kernels without numba's reference counting: the installed numba knows the flag, no kernel misuses it."""

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

import numpy as np
from numba import njit, types
from numba.core.dispatcher import Dispatcher

import pipeline
from pipeline import kernels
from pipeline.kernels import NO_COUNTING, OPTIONS, accepted, log_all
from pipeline.models.registry import MODELS
from pipeline.settings import BatchConfig, ModelConfig, Settings
from pipeline.warm_up import warm_up


def all_kernels() -> Iterator[tuple[str, Any]]:
    for module in pkgutil.walk_packages(pipeline.__path__, "pipeline."):
        if module.name.startswith("pipeline.app.") or module.name == kernels.__name__:
            continue
        for name, value in vars(importlib.import_module(module.name)).items():
            if isinstance(value, Dispatcher) and value.py_func.__module__ == module.name:
                yield f"{module.name}.{name}", value


@njit
def first(row):  # type: ignore[no-untyped-def]
    return row[0]


def sum_rows(table, rows):  # type: ignore[no-untyped-def]
    total = 0.0
    for r in range(rows.shape[0]):
        row = table[rows[r]]
        total += first(row) + row[1]
    return total


def code_of(options: dict[str, Any]) -> str:
    compiled = njit(**options)(sum_rows)
    assert compiled(np.ones((3, 2)), np.array([0, 2])) == 4.0
    return "".join(compiled.inspect_llvm().values())


def test_the_installed_numba_counts_references_only_without_the_flag() -> None:
    assert OPTIONS["_nrt"] is False, "numba rejects _nrt=False: kernels are compiled with reference counting"
    assert "NRT_decref" in code_of({}), "numba counts no more by itself: _nrt=False can be removed"
    assert "NRT_" not in code_of(NO_COUNTING), "numba ignores _nrt=False"


def test_an_option_that_numba_does_not_know_is_left_out() -> None:
    assert not accepted({"_no_such_option": False})


def test_no_kernel_counts_references_or_returns_an_array() -> None:
    """One that makes an array can't be compiled; one that calls one that returns it would leak."""
    for name in MODELS:
        warm_up(Settings(model=ModelConfig(name=name), batch=BatchConfig(max_events=64)))
    found, compiled = dict(all_kernels()), 0
    for name, kernel in found.items():
        inlined = kernel.targetoptions.get("inline") == "always"
        assert inlined or kernel.targetoptions.get("_nrt") is False, f"{name}: use pipeline.kernels"
        for signature in kernel.nopython_signatures:
            compiled += 1
            kinds = signature.return_type
            for kind in kinds if isinstance(kinds, types.BaseTuple) else [kinds]:
                assert not isinstance(kind, types.Array), f"{name} returns an array: make it an argument"
    assert len(found) > 50
    assert compiled > 30


def test_float32_logarithms_agree_with_those_of_double_precision() -> None:
    near_one = np.linspace(0.5, 2, 100_000, dtype=np.float32)
    values = np.concatenate(
        [np.ones(1, np.float32), near_one, np.geomspace(1e-30, 1e30, 999, dtype=np.float32)]
    )
    exact = np.log(values.astype(np.float64))
    log_all(values, values.size)
    np.testing.assert_allclose(values, exact, rtol=2e-7, atol=1e-7)
    assert values[0] == 0
