"""Made-up corpora of active features and edges between them."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jaxcircuits.bulk.edge_statistics import FILE, merge_statistics, partial_statistics
from jaxcircuits.bulk.scratch import write_scratch

FIRST = 1  # position 0 holds BOS


class Corpus:
    """Stories of unequal lengths in which features come in bursts.

    Args:
        rng: Whatever is random.
        stories: How many.
        sources: Source features.
        targets: Target features.
        length: Of the longest story.
        offsets: At which edges are listed.
        rate: How often a burst begins at most, a position.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        stories: int,
        sources: int,
        targets: int,
        length: int,
        offsets: Sequence[int] = (0,),
        rate: float = 0.2,
    ) -> None:
        self.lengths = rng.integers(2, length + 1, stories)
        counted = np.arange(length)[None] < self.lengths[:, None]
        counted[:, :FIRST] = False
        self.source, self.target = (
            bursts(rng, stories, n, length, rate) * counted[:, None] for n in (sources, targets)
        )
        self.offsets = offsets
        self.rng = rng

    @property
    def prompts(self) -> pa.Table:
        rows = range(len(self.lengths))
        columns = {"prompt": rows, "n_tokens": self.lengths, "first_counted": [FIRST] * len(rows)}
        return pa.table({name: pa.array(values, pa.int32()) for name, values in columns.items()})

    @property
    def activations(self) -> pa.Table:
        sides = []
        for side, acts in enumerate((self.source, self.target)):
            prompt, feature, pos = np.nonzero(acts)
            sides.append(
                pa.table(
                    {
                        "side": pa.array(np.full(len(prompt), side), pa.int8()),
                        **{
                            n: pa.array(v, pa.int32())
                            for n, v in (("prompt", prompt), ("pos", pos), ("feature", feature))
                        },
                        "activation": pa.array(acts[prompt, feature, pos], pa.float32()),
                    }
                )
            )
        return pa.concat_tables(sides)

    @property
    def edges(self) -> pa.Table:
        """Every pair of active features at an offset; an attribution has a mean, a story's share and noise."""
        parts = []
        stories, sources, length = self.source.shape
        mean = self.rng.standard_normal((sources, self.target.shape[1]))
        own = self.rng.standard_normal((stories, *mean.shape))
        for offset in self.offsets:
            late = self.target[:, None, :, offset:] * (self.source[:, :, None, : length - offset] > 0)
            prompt, source, target, pos = np.nonzero(late)
            noise = self.rng.standard_normal(len(prompt))
            attribution = mean[source, target] + own[prompt, source, target] + noise
            parts.append(
                {
                    "prompt": prompt,
                    "target_pos": pos + offset,
                    "target_feature": target,
                    "source_pos": pos,
                    "source_feature": source,
                    "attribution": attribution,
                    "source_act": self.source[prompt, source, pos],
                    "target_act": self.target[prompt, target, pos + offset],
                }
            )
        floats = ("attribution", "source_act", "target_act")
        table = pa.table(
            {
                name: pa.array(np.concatenate([p[name] for p in parts]), pa.float32() if name in floats else pa.int32())
                for name in parts[0]
            }
        )
        return table.sort_by([("prompt", "ascending"), ("target_pos", "ascending"), ("target_feature", "ascending")])


def bursts(rng: np.random.Generator, stories: int, features: int, length: int, rate: float) -> np.ndarray:
    """Activations `[story, feature, pos]`: a two-state chain that stays on; some features prefer early positions."""
    start = rng.uniform(0.1 * rate, rate, (features, 1)) * np.exp(
        -np.arange(length) * rng.choice([0, 0.1], (features, 1))
    )
    stay = rng.uniform(0, 0.7, features)
    on = np.zeros((stories, features, length), bool)
    for p in range(length):
        before = on[:, :, p - 1] if p else False
        on[:, :, p] = rng.random((stories, features)) < np.where(before, stay, start[:, p])
    return np.where(on, rng.gamma(2, 1, on.shape), 0).astype(np.float32)


def write_parts(
    directory: Path, edges: pa.Table, activations: pa.Table, prompts: pa.Table, cuts: Sequence[int]
) -> None:
    """Writes the additive sums as a run does, a part ending before each of some prompts."""
    for kind in ("pairs", "features"):
        (directory / "statistics" / kind).mkdir(parents=True)
    bounds = [0, *cuts, prompts.num_rows]
    for i, (first, last) in enumerate(pairwise(bounds)):
        own = [
            t.filter(pc.and_(pc.greater_equal(t["prompt"], first), pc.less(t["prompt"], last)))
            for t in (edges, activations, prompts)
        ]
        for kind, table in partial_statistics(*own).items():
            write_scratch(directory / "statistics" / kind / f"part-{i:05d}.arrow", table)


def statistics(directory: Path, *tables: pa.Table, cuts: Sequence[int] = (), **options) -> pa.Table:
    """The statistics of a corpus, by way of files."""
    import pyarrow.parquet as pq

    write_parts(directory, *tables, cuts=cuts)
    merge_statistics(directory, **options)
    return pq.read_table(directory / FILE)
