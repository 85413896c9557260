"""Strategies of good and bad arguments."""

from __future__ import annotations

import math

import torch
from hypothesis import strategies as st

__all__ = ["bad_number", "bad_object", "either", "small_int", "some_number", "table", "tensor_of"]

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64]

bad_object = st.sampled_from([None, "", "1", [], {}, object, b"1", (1, "a"), 1j, 1.5])
bad_number = st.one_of(
    st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -1.0, -0.0, 5e-324, 1e308, 10**310, -(2**63), True]),
    bad_object,
)
some_number = st.one_of(st.floats(-10.0, 10.0), st.integers(-5, 5), bad_number)
small_int = st.one_of(st.integers(-3, 5), st.sampled_from([1.5, math.nan, True]), bad_object)


def either(good, bad):
    """Mostly good, so that several arguments together get past each other's checks."""
    return st.one_of(st.just(good) if not isinstance(good, st.SearchStrategy) else good, bad)


def table(elements, max_rows=3, max_columns=3):
    """Lists of lists, ragged ones too."""
    return st.lists(st.lists(elements, max_size=max_columns), max_size=max_rows)


@st.composite
def tensor_of(draw, elements=None, max_dims=3, max_side=3):
    """Tensors of any small shape (empty ones too) and dtype, with NaN and infinity."""
    shape = draw(st.lists(st.integers(0, max_side), max_size=max_dims))
    count = math.prod(shape)
    element = st.one_of(st.floats(-2.0, 2.0), st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 1.0]))
    values = draw(st.lists(element if elements is None else elements, min_size=count, max_size=count))
    tensor = torch.tensor(values, dtype=torch.float64).reshape(shape)
    return tensor if draw(st.booleans()) else tensor.nan_to_num(0.5).to(draw(st.sampled_from(DTYPES)))
