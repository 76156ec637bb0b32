"""Where sources enter the residual stream, and from where in a block a target is pulled back.

A source whose hook is followed by at most one matrix before the residual stream enters it along a fixed direction, and
a target in a block reads what attention and the norm before it make of that stream: for these hooks the method
`structured` has closed forms, whatever lies between their blocks.
"""

from typing import NamedTuple

from jaxtyping import Array, Float

from jaxcircuits.types import ModelWeights

ATTENTION_ENDS = ("attn.hook_z", "hook_attn_out")
"""Targets that see attention alone, not the stream beside it."""

MLP_READS = ("mlp.hook_pre", "mlp.hook_pre_linear")
"""What an MLP's activation is of: the second where it is gated."""

MLP_OUT_ENDS = ("hook_mlp_out", "hook_resid_post")
"""Targets behind the block's MLP."""

GELU_ENDS = ("mlp.hook_post", *MLP_OUT_ENDS)
"""Targets behind its GELU."""

MLP_ENDS = ("ln2.hook_normalized", *MLP_READS, *GELU_ENDS)
"""Targets behind the block's second norm."""

TARGET_ENDS = (*ATTENTION_ENDS, "hook_resid_mid", *MLP_ENDS)


class Entry(NamedTuple):
    """Where a source's direction enters the residual stream.

    Attributes:
        block: The block that reads it first.
        hook: The hook point at which it is added.
        after_edits: Whether it is added after what else is done there, because the source sits there itself.
        written_by: The block and component (`"mlp"`, `"attn"`) whose output matrix leads from the source there; `None`
            where it is there already.
        middle: Whether it enters behind that block's attention.
    """

    block: int
    hook: str
    after_edits: bool
    written_by: tuple[int, str] | None
    middle: bool = False

    def matrix(self, params: ModelWeights) -> Float[Array, "d_in d_model"] | None:
        """What leads from the source's hook to the residual stream; `None` for the identity."""
        if self.written_by is None:
            return None
        block, component = self.written_by
        if component == "mlp":
            return params.blocks[block].mlp.W_out
        W_O = params.blocks[block].attn.W_O
        return W_O.reshape(-1, W_O.shape[-1])


def split(hook: str) -> tuple[int | None, str]:
    """The block of a hook point, and its name in there.

    >>> from jaxcircuits.attribution.ends import split
    >>> split("blocks.1.mlp.hook_post"), split("hook_embed")
    ((1, 'mlp.hook_post'), (None, 'hook_embed'))
    """
    first, _, rest = hook.partition(".")
    if first != "blocks":
        return None, hook
    block, _, name = rest.partition(".")
    return int(block), name


def entry_of(hook: str, *, parallel: bool = False, norms_behind: bool = False) -> Entry | None:
    """Where sources on a hook point enter the residual stream; `None` where more than a matrix lies before it.

    Where residuals are `parallel`, no part of a block reads what its attention writes, so that enters behind the block.
    With `norms_behind`, a norm lies between the output matrices and the stream.

    >>> from jaxcircuits.attribution.ends import entry_of
    >>> entry_of("blocks.0.hook_mlp_out").hook
    'blocks.0.hook_resid_post'
    """
    block, name = split(hook)
    if block is None:
        return Entry(0, "blocks.0.hook_resid_pre", False, None) if name.endswith("embed") else None
    mid, after = f"blocks.{block}.hook_resid_mid", f"blocks.{block}.hook_resid_post"
    if norms_behind and name in ("attn.hook_z", "mlp.hook_post"):
        return None
    reader, behind = (block + 1, after) if parallel else (block, mid)
    return {
        "hook_resid_pre": Entry(block, hook, True, None),
        "attn.hook_z": Entry(reader, behind, False, (block, "attn"), not parallel),
        "hook_attn_out": Entry(reader, behind, False, None, not parallel),
        "hook_resid_mid": Entry(block, mid, True, None, True),
        "mlp.hook_post": Entry(block + 1, after, False, (block, "mlp")),
        "hook_mlp_out": Entry(block + 1, after, False, None),
        "hook_resid_post": Entry(block + 1, after, True, None),
    }.get(name)


def target_end(hook: str) -> tuple[int, str] | None:
    """The block whose attention a target reads, and where in there it sits; `None` where no closed form pulls it.

    >>> from jaxcircuits.attribution.ends import target_end
    >>> target_end("blocks.1.hook_resid_pre")
    (0, 'hook_resid_post')
    """
    block, name = split(hook)
    if block is None:
        return None
    if name == "hook_resid_pre":
        return (block - 1, "hook_resid_post") if block else None
    return (block, name) if name in TARGET_ENDS else None
