"""A graph of features alone, from a run of `jaxcircuits attribute`: one of its prompts."""

from typing import Any

import numpy as np
from jaxtyping import Int

from jaxcircuits.bulk.run import Run
from jaxcircuits.errors import InputError
from jaxcircuits.graph import Graph, Nodes


def run_to_graph(run: Run, prompt: int | None = None) -> Graph:
    """Source and target features of a prompt, and the edges between them; weights are attributions.

    What edges leave out is in `cut` (other sources) and `unexplained` (all else that the target's value is made of).

    Args:
        run: A run that kept its edges.
        prompt: Number of a prompt; may be left out where there is one.

    Raises:
        InputError: The run has several prompts, or not this one; its sources are neurons; or it kept no edges.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from jaxcircuits import Settings, load_bundle, load_run
    >>> from jaxcircuits.bulk import attribute_to_run, read_prompts
    >>> from jaxcircuits.report.explorer import run_to_graph
    >>> bundle = load_bundle()
    >>> prompts = read_prompts(bundle, texts=["The dog ran to the park."])
    >>> place = Path(tempfile.mkdtemp(), "run")
    >>> _ = attribute_to_run(bundle, Settings(positions="all", top_k=3), prompts, place, quiet=True)
    >>> graph = run_to_graph(load_run(place))
    >>> len(graph.weight) == load_run(place).rows("edges"), set(graph.nodes.kind.tolist())
    (True, {'feature'})
    """
    import pyarrow.dataset as ds

    settings = run.record["settings"]
    if settings["source_basis"] != "features":
        raise InputError("the run's sources are neurons, and a graph's nodes are features; run it with features.")
    number = run.record["prompts"]
    if prompt is None and number != 1:
        raise InputError(f"the run has {number} prompts and a graph is of one; name it with --prompt-row N.")
    prompt = prompt or 0
    if not 0 <= prompt < number:
        raise InputError(f"--prompt-row must lie in 0..{number - 1}, got {prompt}.")
    mine = ds.field("prompt") == prompt
    (text,) = run.prompts.to_table(filter=mine).to_pylist()
    edges = {name: column.to_numpy() for name, column in _columns(run.edges.to_table(filter=mine))}
    targets = {name: column.to_numpy() for name, column in _columns(run.targets.to_table(filter=mine))}

    drawn = np.stack([edges["source_pos"], edges["source_feature"]], 1)
    sources, first, source = np.unique(drawn, axis=0, return_index=True, return_inverse=True)
    ends = np.stack([targets["target_pos"], targets["target_feature"]], 1)
    ends, of_end = np.unique(ends, axis=0, return_index=True)
    target = _row_of(np.stack([edges["target_pos"], edges["target_feature"]], 1), ends) + len(sources)
    order = np.lexsort((source.ravel(), target))

    n, m = len(sources), len(ends)
    quantity = settings["target_quantity"]  # also a column's name
    names = (quantity, "attribution_sum", "attribution_cut", "baseline")
    value, total, cut, baseline = (
        np.nan_to_num(targets[name].astype(np.float64)[of_end]) if name in targets else np.zeros(m) for name in names
    )
    nothing = np.zeros(n)
    nodes = Nodes(
        kind=np.full(n + m, "feature"),
        sae=np.repeat(np.array([0, 1], np.int32), [n, m]),
        layer=np.repeat([_layer(settings["source_hook"]), _layer(settings["target_hook"])], [n, m]).astype(np.int32),
        pos=np.concatenate([sources[:, 0], ends[:, 0]]),
        feature=np.concatenate([sources[:, 1], ends[:, 1]]),
        minus=np.full(n + m, -1, np.int32),
        value=np.concatenate([edges["source_act"][first].astype(np.float64), value]),
        probability=np.full(n + m, np.nan),
        cut=np.concatenate([nothing, cut]),
        baseline=np.concatenate([nothing, baseline]),
        unexplained=np.concatenate([np.zeros(n), value - baseline - total - cut]),
    )
    return Graph(
        tokens=np.asarray(text["tokens"], np.int32),
        token_strings=tuple(text["token_strings"]),
        saes=(settings["source"], settings["target"]),
        biases=(),
        nodes=nodes,
        source=source.ravel()[order].astype(np.int32),
        target=target[order].astype(np.int32),
        weight=edges["attribution"][order],
        settings={**settings, "versions": run.record["versions"], "sha256": run.record["bundle"]["sha256"]},
    )


def _columns(table: Any) -> list[tuple[str, Any]]:
    return list(zip(table.column_names, table.columns, strict=True))


def _row_of(pairs: Int[np.ndarray, "edge 2"], rows: Int[np.ndarray, "n 2"]) -> Int[np.ndarray, "edge"]:
    """The row in which each pair is; rows are sorted."""
    width = int(max(rows.max(initial=0), pairs.max(initial=0))) + 1
    of_row, of_pair = (ends[:, 0].astype(np.int64) * width + ends[:, 1] for ends in (rows, pairs))
    return np.searchsorted(of_row, of_pair)


def _layer(hook: str) -> int:
    first, _, rest = hook.partition(".")
    return int(rest.partition(".")[0]) if first == "blocks" else -1
