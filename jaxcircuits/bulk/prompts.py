"""Prompts on their way in: checked one by one, written to `prompts.parquet`, read from there a part at a time."""

import hashlib
import json
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from jaxcircuits.attribution.api import prompt_table, tokenized
from jaxcircuits.attribution.prompts import check_tokens
from jaxcircuits.bundle import Bundle
from jaxcircuits.corpus import Skip, read_corpus
from jaxcircuits.errors import InputError
from jaxcircuits.files import read_json
from jaxcircuits.places import Place, Where, digest_of

FILE = "prompts.parquet"

GROUP = 512
"""Prompts a row group: what is read to have one."""

SAMPLE = 256
"""Prompts that are kept to make a plan by; their choice depends on nothing but their number."""

SENTENCES = 1000
"""Of what is left out, that are kept; all are counted."""


class Prompt(NamedTuple):
    """Token ids, and the text where there was one."""

    tokens: Int[np.ndarray, "_pos"]
    text: str | None


@dataclass(frozen=True)
class Prompts:
    """What is attributed, from one of three places; read anew each time it is asked for.

    Attributes:
        bundle: The model and its tokenizer.
        texts: Prompts as text.
        rows: Prompts as token ids.
        corpus: A corpus file.
        truncate: Cut prompts that are longer than the context.
        skip_bad: Leave out prompts that cannot be used.
    """

    bundle: Bundle
    texts: Sequence[str] = ()
    rows: Sequence[Sequence[int]] = ()
    corpus: Where | None = None
    truncate: bool = False
    skip_bad: bool = False

    def each(self, skip: Skip, check: Callable[[Int[np.ndarray, "_pos"]], Any] | None = None) -> Iterator[Prompt]:
        """Yields each prompt that can be used.

        Args:
            skip: Told of each that cannot, where that is allowed.
            check: Raises `InputError` for token ids that cannot be used, besides what the model refuses.

        Raises:
            InputError: A prompt cannot be used, or the corpus cannot be read.
        """
        given: Any = self.rows or self.texts
        if self.corpus is not None:
            given = read_corpus(self.corpus, skip if self.skip_bad else None)
        for number, prompt in enumerate(given):
            try:
                text = prompt if isinstance(prompt, str) else None
                tokens = np.array(prompt, np.int64) if text is None else tokenized(self.bundle, text)
                if self.truncate:
                    tokens = tokens[: self.bundle.cfg.n_ctx]
                check_tokens(tokens, self.bundle, number)
                if check is not None:
                    check(tokens)
            except InputError as error:
                if not self.skip_bad:
                    raise
                skip(f"prompt {number}: {error}")
                continue
            yield Prompt(tokens.astype(np.int32), text)

    @property
    def ids(self) -> list[Int[np.ndarray, "_pos"]]:
        """Token ids of all prompts, in memory."""
        return [prompt.tokens for prompt in self.each(lambda _: None)]

    def description(self) -> dict[str, Any]:
        """What tells these prompts from others."""
        how = {"truncate": self.truncate, "skip_bad": self.skip_bad}
        if self.corpus is not None:
            return {"corpus": os.fspath(self.corpus), "corpus_sha256": digest_of(self.corpus, "corpus"), **how}
        content = json.dumps([[list(row) for row in self.rows], list(self.texts)])
        return {"prompts_sha256": hashlib.sha256(content.encode()).hexdigest(), **how}


def read_prompts(
    bundle: Bundle,
    *,
    texts: Sequence[str] = (),
    ids_file: Where | None = None,
    corpus: Where | None = None,
    truncate: bool = False,
    skip_bad: bool = False,
) -> Prompts:
    """Prompts from one of three places; those of a corpus are read when they are needed.

    Args:
        bundle: The model and its tokenizer.
        texts: Prompts as text.
        ids_file: JSON: a list of token ids, or a list of such lists.
        corpus: A corpus file, at a path or URL.
        truncate: Cut prompts that are longer than the context.
        skip_bad: Leave out prompts that cannot be used, and say which.

    Raises:
        InputError: The file of token ids cannot be used.
    """
    rows: list[list[int]] = []
    if ids_file is not None:
        parsed = read_json(ids_file, "token ids")
        rows = [parsed] if isinstance(parsed, list) and parsed and not isinstance(parsed[0], list) else parsed
        good = isinstance(rows, list) and rows and all(isinstance(r, list) for r in rows)
        if not good or not all(type(i) is int for r in rows for i in r):
            raise InputError(f"{ids_file}: expected a JSON list of token ids, or a list of such lists.")
        huge = [i for r in rows for i in r if abs(i) >= 2**31]
        if huge:  # no integer type may hold it
            raise InputError(f"{ids_file}: token ids must lie in 0..{bundle.cfg.d_vocab - 1}, got {huge[0]:.2e}.")
    return Prompts(bundle, texts, rows, corpus, truncate, skip_bad)


@dataclass
class Survey:
    """What is known of a job's prompts once all have been looked at; its size does not grow with theirs.

    Attributes:
        number: How many there are.
        lengths: How many have each number of tokens.
        sample: Row and token ids of some.
        skipped: What was left out and why, as far as it is kept.
        n_skipped: How many were left out.
        digest: SHA-256 of all token ids.
    """

    lengths: Int[np.ndarray, "_n"]
    number: int = 0
    sample: list[tuple[int, Int[np.ndarray, "_pos"]]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    n_skipped: int = 0
    digest: Any = field(default_factory=hashlib.sha256)

    def skip(self, sentence: str) -> None:
        """Notes what is left out."""
        self.n_skipped += 1
        if len(self.skipped) < SENTENCES:
            self.skipped.append(sentence)

    def add(self, tokens: Int[np.ndarray, "_pos"], random: np.random.Generator) -> None:
        """Notes a prompt; of all seen so far, each is as likely in the sample."""
        self.digest.update(len(tokens).to_bytes(4, "little") + tokens.astype("<i4").tobytes())
        self.lengths[len(tokens)] += 1
        place = self.number if self.number < SAMPLE else int(random.integers(self.number + 1))
        if place < SAMPLE:
            self.sample[place:] = [(self.number, tokens), *self.sample[place + 1 :]]
        self.number += 1

    def some_lengths(self, most: int = 2**16) -> list[int]:
        """Lengths that stand for all: each that occurs, as often as it does or in proportion."""
        shrink = max(1.0, self.number / most)
        return np.repeat(np.arange(len(self.lengths)), np.ceil(self.lengths / shrink).astype(int)).tolist()


def write_prompts(
    place: Place,
    prompts: Prompts,
    counted: Callable[[Int[np.ndarray, "_pos"]], Bool[np.ndarray, "_pos"]],
    check: Callable[[Int[np.ndarray, "_pos"]], Any],
    step: Callable[[int], Any],
) -> Survey:
    """Writes `prompts.parquet` as the prompts come, and says what they are like.

    Args:
        place: The run's directory.
        prompts: The prompts.
        counted: Which positions of a prompt count.
        check: See `Prompts.each`.
        step: Told how many prompts were written.

    Raises:
        InputError: A prompt cannot be used, none is left, or the file cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    bundle, random = prompts.bundle, np.random.default_rng(0)
    survey = Survey(np.zeros(bundle.cfg.n_ctx + 1, np.int64))
    with place.new_file(FILE) as file:
        writer = None
        given = prompts.each(survey.skip, check)
        while group := list(islice(given, GROUP)):
            rows = range(survey.number, survey.number + len(group))
            for prompt in group:
                survey.add(prompt.tokens, random)
            table = prompt_table(bundle, rows, [p.text for p in group], [p.tokens for p in group])
            first = [int(np.argmax(counted(p.tokens))) for p in group]
            for name, values in (("n_tokens", [len(p.tokens) for p in group]), ("first_counted", first)):
                table = table.append_column(name, pa.array(values, pa.int32()))
            writer = writer or pq.ParquetWriter(file, table.schema, compression="zstd")
            writer.write_table(table)
            step(len(group))
        if writer is None:
            raise InputError("there is no prompt to attribute; expected at least one.")
        writer.close()
    survey.sample.sort(key=lambda member: member[0])
    return survey


class PromptRows(Sequence[np.ndarray]):
    """Token ids by row of `prompts.parquet`, of which one row group is held."""

    def __init__(self, place: Place) -> None:
        import pyarrow.parquet as pq

        self._file = pq.ParquetFile(place.open(FILE))
        groups = self._file.metadata.num_row_groups
        sizes = [self._file.metadata.row_group(i).num_rows for i in range(groups)]
        self._starts = [0, *accumulate(sizes)]
        self._held: tuple[int, list[list[int]]] = (-1, [])

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, row: Any) -> Any:
        if not 0 <= row < len(self):
            raise IndexError(row)
        group = bisect_right(self._starts, row) - 1
        if self._held[0] != group:
            tokens = self._file.read_row_group(group, columns=["tokens"]).column("tokens")
            self._held = (group, tokens.to_pylist())
        return np.array(self._held[1][row - self._starts[group]], np.int32)
