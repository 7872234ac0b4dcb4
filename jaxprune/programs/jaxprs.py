"""What is written differently in the jaxprs of different versions of JAX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def scan_ends(params: Mapping[str, Any]) -> tuple[int, int]:
    """Where, among the operands of a scan with these parameters, its constants and its carry end.

    JAX 0.11 has trees of them in place of `num_consts` and `num_carry`.
    """
    if "num_consts" in params:
        return params["num_consts"], params["num_consts"] + params["num_carry"]
    consts, carry, _ = (len(list(part)) for part in params["ft_in"].unpack())
    return consts, consts + carry


def dot_numbers(eqn: Any) -> Any:
    """((contracted axes of either operand), (batch axes)) of a product, ragged or not."""
    ragged = eqn.params.get("ragged_dot_dimension_numbers")
    return eqn.params["dimension_numbers"] if ragged is None else ragged.dot_dimension_numbers


def leading_experts(eqn: Any) -> int:
    """How many axes of experts a product's result begins with: 1 in derivatives of ragged ones."""
    ragged = eqn.params.get("ragged_dot_dimension_numbers")
    (contracted, _), _ = dot_numbers(eqn)
    return 0 if ragged is None else int({*ragged.lhs_ragged_dimensions} <= {*contracted})


def bind(eqn: Any, operands: Sequence[Any]) -> list[Any]:
    """The results of an equation of these operands.

    Until JAX 0.10 functions inside an equation were handed to it apart from its parameters.
    """
    params = eqn.primitive.get_bind_params(eqn.params)
    functions, params = params if isinstance(params, tuple) else ((), params)
    results = eqn.primitive.bind(*functions, *operands, **params)
    return list(results) if eqn.primitive.multiple_results else [results]
