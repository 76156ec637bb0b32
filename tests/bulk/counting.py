"""Statistics as simple as can be: how many edges a pair has, and their sum; how often a feature is active."""

from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

PAIR = ["source_feature", "target_feature"]
FEATURE = ["side", "feature"]


def partial_statistics(edges: pa.Table, activations: pa.Table, prompts: pa.Table) -> dict[str, pa.Table]:
    counted = sum((prompts["n_tokens"].to_numpy() - prompts["first_counted"].to_numpy()).tolist())
    pairs = edges.group_by(PAIR, use_threads=False).aggregate([("attribution", "count"), ("attribution", "sum")])
    features = activations.group_by(FEATURE, use_threads=False).aggregate([("activation", "count")])
    return {"pairs": pairs, "features": features.append_column("tokens", pa.array([counted] * features.num_rows))}


def merge_statistics(directory: Path) -> None:
    pairs = ds.dataset(directory / "statistics/pairs").to_table()
    merged = pairs.group_by(PAIR, use_threads=False).aggregate(
        [("attribution_count", "sum"), ("attribution_sum", "sum")]
    )
    pq.write_table(merged.sort_by([(name, "ascending") for name in PAIR]), directory / "statistics.parquet")
