"""Whether intervals cover and false discoveries are as rare as said: splits and nulls made of a real run.

    python scripts/check_statistics.py RUN [--bundle DIR] [--every 8] [--stories 30] [--splits 3] [--json FILE]

It reads the edges of every N-th target feature (`--every`) of a run of one prompt a story, at the same position, and
encodes the stories again for what is active.

1. Stories are split in halves, at random. Of pairs with edges in at least `--stories` stories of each half, how often
   does the interval around one half's mean hold the other's (*held-out mean*), and the confidence interval, which is
   not made for that, because that mean has an error as well (*without its error*)? *Shrunk*: the squared error of the
   shrunk mean as a prediction of the other half's, in units of its mean absolute value, relative to the plain mean's.
2. Stories of one eighth are drawn; how often does the confidence interval hold the *mean of all*?
3. Target activations are dealt to other stories, of all target features or of every second: how many discoveries of
   joint activity are false?
4. The attributions of a pair change sign in stories that a coin decides, of all pairs or of every second: how many
   discoveries of a mean are false?
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from jaxcircuits import InputError, Run, encode, forward, load_bundle, load_run
from jaxcircuits.bulk.edge_statistics import FILE, merge_statistics, partial_statistics
from jaxcircuits.bulk.estimates import Mean, confidence_interval, held_out_interval
from jaxcircuits.bulk.reading import read_part, read_prompts_of
from jaxcircuits.bulk.scratch import write_scratch
from jaxcircuits.bundle import Bundle
from jaxcircuits.progress import progress

USED = (
    "prompt",
    "target_pos",
    "target_feature",
    "source_pos",
    "source_feature",
    "attribution",
    "source_act",
    "target_act",
)
Q = 0.05


class Data:
    """What is active in each story, and the edges of some target features, a part at a time."""

    def __init__(self, run: Run, bundle: Bundle, every: int) -> None:
        settings = run.record["settings"]
        if settings["positions"] != "same" or settings["splice"] != "none" or settings["source_basis"] != "features":
            raise InputError("expected a run of features at the same position, with nothing spliced.")
        self.run, self.every = run, every
        prompts = read_prompts_of(run)
        tokens = [np.array(t) for t in prompts["tokens"].to_pylist()]
        first = [int(not settings["include_bos"] and t[0] == bundle.cfg.bos_token_id) for t in tokens]
        rows = {"prompt": range(len(tokens)), "n_tokens": map(len, tokens), "first_counted": first}
        self.prompts = pa.table({name: pa.array(list(values), pa.int32()) for name, values in rows.items()})
        self.activations = self._activations(bundle, tokens, first)
        self.edges = list(self._edges())

    def _activations(self, bundle: Bundle, tokens: list[np.ndarray], first: list[int]) -> pa.Table:
        settings = self.run.record["settings"]
        saes = [bundle.saes[settings[end]] for end in ("source", "target")]
        hooks = [sae.cfg.hook_name for sae in saes]

        @jax.jit
        def both(ids: jax.Array) -> list[jax.Array]:
            acts = forward(bundle.params, bundle.cfg, ids, taps=hooks)[1]
            return [encode(sae, acts[hook]) for sae, hook in zip(saes, hooks, strict=True)]

        columns: dict[str, list[np.ndarray]] = {n: [] for n in ("side", "prompt", "pos", "feature", "activation")}
        with progress() as bar:
            for row in bar.track(range(len(tokens)), description="encoding"):
                padded = np.zeros(min(bundle.cfg.n_ctx, -(-len(tokens[row]) // 64) * 64), np.int32)
                padded[: len(tokens[row])] = tokens[row]
                for side, (acts, end) in enumerate(zip(both(jnp.asarray(padded)), ("source", "target"), strict=True)):
                    acts = np.asarray(acts)[: len(tokens[row])]
                    pos, feature = np.nonzero(acts > settings[f"{end}_threshold"])
                    keep = (pos >= first[row]) & ((feature % self.every == 0) | (side == 0))
                    pos, feature = pos[keep], feature[keep]
                    values = (np.full(len(pos), side), np.full(len(pos), row), pos, feature, acts[pos, feature])
                    for name, column in zip(columns, values, strict=True):
                        columns[name].append(column)
        types = (pa.int8(), pa.int32(), pa.int32(), pa.int32(), pa.float32())
        return pa.table({n: pa.array(np.concatenate(c), t) for (n, c), t in zip(columns.items(), types, strict=True)})

    def _edges(self) -> Iterator[tuple[np.ndarray, pa.Table]]:
        """The prompts of each part, and its edges."""
        with progress() as bar:
            for part in bar.track(self.run.record["parts"], description="reading edges"):
                edges = read_part(self.run, part, "edges").select(USED)
                mine = edges.filter(pa.array(edges["target_feature"].to_numpy() % self.every == 0))
                yield np.arange(*part["prompts"]), mine


def statistics(parts: Iterator[tuple[pa.Table, pa.Table, pa.Table]]) -> Any:
    """The statistics of some parts, as a pandas frame with the pair as its index."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        for kind in ("pairs", "features"):
            (place / "statistics" / kind).mkdir(parents=True)
        for i, part in enumerate(parts):
            for kind, table in partial_statistics(*part).items():
                write_scratch(place / "statistics" / kind / f"part-{i:05d}.arrow", table)
        merge_statistics(place)
        return pq.read_table(place / FILE).to_pandas().set_index(["target_feature", "source_feature", "offset"])


def of(table: pa.Table, prompts: np.ndarray) -> pa.Table:
    """The rows of some prompts."""
    return table.filter(pa.array(np.isin(table["prompt"].to_numpy(), prompts)))


def groups(data: Data, labels: list[np.ndarray]) -> list[Any]:
    """The statistics of groups of stories; each of `labels` says which stories are of one."""
    parts: list[list[tuple[pa.Table, ...]]] = [[] for _ in labels]
    for prompts, edges in data.edges:
        for mine, inside in zip(parts, labels, strict=True):
            own = prompts[inside[prompts]]
            mine.append((of(edges, own), of(data.activations, own), of(data.prompts, own)))
    return [statistics(iter(mine)) for mine in parts]


def mean_of(frame: Any) -> Mean:
    return Mean(*(frame[n].to_numpy() for n in ("mean", "standard_error", "degrees")))


def holds(interval: tuple[np.ndarray, np.ndarray], value: np.ndarray) -> float:
    return float(((interval[0] <= value) & (value <= interval[1])).mean())


def coverage(data: Data, stories: int, splits: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    out = []
    number = data.prompts.num_rows
    whole = groups(data, [np.ones(number, bool)])[0]
    for split in range(splits):
        half = rng.permutation(number) < number // 2
        eighth = rng.permutation(number) < number // 8
        a, b, few = groups(data, [half, ~half, eighth])
        both = a.index.intersection(b.index)
        a, b = a.loc[both], b.loc[both]
        judged = a.mean_shrunk.notna()
        scale = b.mean_absolute[judged]
        error = [(((a[n] - b["mean"])[judged] / scale) ** 2).mean() for n in ("mean", "mean_shrunk")]
        enough = (a.stories >= stories) & (b.stories >= stories)
        a, b = a[enough], b[enough]
        mean, other = mean_of(a), mean_of(b)
        few = few[few.stories >= stories]
        population = whole.loc[few.index, "mean"].to_numpy()
        out.append(
            {
                "split": split,
                "pairs": len(a),
                "held-out mean": holds(held_out_interval(mean, other), other.mean),
                "without its error": holds(confidence_interval(mean), other.mean),
                "pairs of an eighth": len(few),
                "mean of all": holds(confidence_interval(mean_of(few)), population),
                "shrunk": float(error[1] / error[0]),
            }
        )
    return out


def dealt(data: Data, null: np.ndarray, rng: np.random.Generator) -> Any:
    """The statistics if targets for which `null` holds are active where they are in another story."""
    import duckdb

    number = data.prompts.num_rows
    lengths = data.prompts["n_tokens"].to_numpy()
    to = rng.permutation(number)
    acts = data.activations
    side, prompt, pos, feature = (acts[n].to_numpy() for n in ("side", "prompt", "pos", "feature"))
    moved = (side == 1) & null[feature]
    prompt = np.where(moved, to[prompt], prompt).astype(np.int32)
    acts = acts.set_column(1, "prompt", pa.array(prompt)).filter(pa.array(pos < lengths[prompt]))

    def parts() -> Iterator[tuple[pa.Table, pa.Table, pa.Table]]:
        for prompts in np.array_split(np.arange(number), max(1, number // 20)):
            own = of(acts, prompts)
            both = duckdb.sql(
                """SELECT t.prompt, t.pos AS target_pos, t.feature AS target_feature, s.pos AS source_pos,
                s.feature AS source_feature, s.activation AS attribution, s.activation AS source_act,
                t.activation AS target_act FROM own s JOIN own t USING (prompt, pos) WHERE s.side = 0 AND t.side = 1"""
            ).to_arrow_table()
            yield both, own, of(data.prompts, prompts)

    return statistics(parts())


def flipped(data: Data, null: Any, rng: np.random.Generator) -> Any:
    """The statistics if a coin decides, for pairs for which `null` holds, the sign of each story."""
    salt = int(rng.integers(2**31))

    def parts() -> Iterator[tuple[pa.Table, pa.Table, pa.Table]]:
        for prompts, edges in data.edges:
            target, source, prompt = (
                edges[n].to_numpy().astype(np.uint64) for n in ("target_feature", "source_feature", "prompt")
            )
            coin = (target * np.uint64(2**40) + source * np.uint64(2**20) + prompt + np.uint64(salt)) * np.uint64(
                0x9E3779B97F4A7C15
            )
            coin ^= coin >> np.uint64(29)
            coin *= np.uint64(0xBF58476D1CE4E5B9)
            sign = np.where((coin >> np.uint64(60)) & np.uint64(1), 1, -1)
            values = edges["attribution"].to_numpy() * np.where(null(target, source), sign, 1)
            at = edges.column_names.index("attribution")
            yield (
                edges.set_column(at, "attribution", pa.array(values.astype(np.float32))),
                of(data.activations, prompts),
                of(data.prompts, prompts),
            )

    return statistics(parts())


def discoveries(frame: Any, column: str, null: np.ndarray) -> dict[str, Any]:
    called = (frame[column] < Q).to_numpy()
    false = int((called & null).sum())
    return {
        "tested": int(frame[column].notna().sum()),
        "of them null": int((frame[column].notna() & null).sum()),
        f"q < {Q}": int(called.sum()),
        "false": false,
        "share false": false / max(1, int(called.sum())),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--bundle")
    parser.add_argument("--every", type=int, default=8)
    parser.add_argument("--stories", type=int, default=30)
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json")
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    data = Data(load_run(args.run), load_bundle(args.bundle), args.every)
    width = int(data.activations["feature"].to_numpy().max()) + 1
    found: dict[str, list[dict[str, Any]]] = {"coverage": coverage(data, args.stories, args.splits, rng)}
    show("Coverage, to be 0.95", found["coverage"])
    found["nulls"] = []
    for name, step in (("all targets dealt to other stories", 1), ("every second target dealt", 2)):
        null = (np.arange(width) // args.every) % step == 0
        frame = dealt(data, null, rng)
        found["nulls"].append(
            {"null": name, **discoveries(frame, "q_association", null[frame.index.get_level_values(0)])}
        )
    for name, step in (("signs of all pairs by a coin", 1), ("signs of every second source's pairs", 2)):
        frame = flipped(data, lambda target, source, step=step: source % np.uint64(step) == 0, rng)
        null = frame.index.get_level_values(1).to_numpy() % step == 0
        found["nulls"].append({"null": name, **discoveries(frame, "q_mean", null)})
    show(f"Discoveries at q < {Q}", found["nulls"])
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=2) + "\n")


def show(title: str, rows: list[dict[str, Any]]) -> None:
    table = Table(*rows[0], title=title, title_justify="left")
    for row in rows:
        table.add_row(
            *(f"{v:.4f}" if isinstance(v, float) else f"{v:,}" if isinstance(v, int) else v for v in row.values())
        )
    Console().print(table)


if __name__ == "__main__":
    main()
