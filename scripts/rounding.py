"""A function whose matrix products see rounded operands: its jaxpr, evaluated operation by operation."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

EXPONENT = 8
"""Bits of the exponent that float32, TF32 and bf16 share."""


def rounded(function: Callable[..., Any], mantissa: int) -> Callable[..., Any]:
    """The same function with operands of every product rounded to `mantissa` bits, and sums in their own precision."""

    def run(*args: Any) -> Any:
        # Traced for these arguments; what a jit inside it compiles is opened, too.
        jaxpr, out = jax.make_jaxpr(function, return_shape=True)(*args)
        values = _evaluate(jaxpr.jaxpr, jaxpr.consts, jax.tree.leaves(args), mantissa)
        return jax.tree.unflatten(jax.tree.structure(out), values)

    return run


def _evaluate(jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any], mantissa: int) -> list[Any]:
    env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
    for eqn in jaxpr.eqns:
        inputs = [v.val if isinstance(v, Literal) else env[v] for v in eqn.invars]
        outputs = _apply(eqn, inputs, mantissa)
        env.update(zip(eqn.outvars, outputs, strict=True))
    return [v.val if isinstance(v, Literal) else env[v] for v in jaxpr.outvars]


def _apply(eqn: Any, inputs: list[Any], mantissa: int) -> Sequence[Any]:
    params = eqn.params

    def body(name: str) -> Callable[..., list[Any]]:
        return _function(params[name], mantissa)

    match eqn.primitive.name:
        case "scan":
            n_consts, n_carry = params["num_consts"], params["num_carry"]
            consts, carry, xs = _split(inputs, n_consts, n_carry)

            def step(carry: Any, x: Any) -> tuple[Any, Any]:
                out = body("jaxpr")(*consts, *carry, *x)
                return out[:n_carry], out[n_carry:]

            carry, ys = lax.scan(step, carry, xs, length=params["length"], reverse=params["reverse"])
            return [*carry, *ys]
        case "while":
            of_cond, of_body, start = _split(inputs, params["cond_nconsts"], params["body_nconsts"])
            again, turn = body("cond_jaxpr"), body("body_jaxpr")
            return lax.while_loop(lambda s: again(*of_cond, *s)[0], lambda s: turn(*of_body, *s), start)
        case "cond":
            return lax.switch(inputs[0], [_function(b, mantissa) for b in params["branches"]], *inputs[1:])
        case "dot_general":
            inputs = [lax.reduce_precision(x, EXPONENT, mantissa) for x in inputs]
    # A jit, a checkpoint, a custom derivative (which is past): one body, with all the inputs.
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if isinstance(params.get(name), (Jaxpr, ClosedJaxpr)):
            return body(name)(*inputs)
    found = eqn.primitive.bind(*inputs, **params)
    return found if eqn.primitive.multiple_results else [found]


def _function(jaxpr: Jaxpr | ClosedJaxpr, mantissa: int) -> Callable[..., list[Any]]:
    closed = isinstance(jaxpr, ClosedJaxpr)
    inner, consts = (jaxpr.jaxpr, jaxpr.consts) if closed else (jaxpr, ())
    return lambda *args: _evaluate(inner, consts, args, mantissa)


def _split(values: list[Any], first: int, second: int) -> tuple[list[Any], list[Any], list[Any]]:
    return values[:first], values[first : first + second], values[first + second :]
