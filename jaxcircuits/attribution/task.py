"""What a compiled program depends on besides its arrays: what is asked, and in which sizes."""

from dataclasses import dataclass

from jaxcircuits.attribution.problem import Problem, Settings


@dataclass(frozen=True)
class Task:
    """What is asked and how it is computed; static, so it is part of a compiled program's key.

    Attributes:
        problem: What is differentiated.
        settings: Everything else that was asked for.
        way: `"reference"`, `"adjacent"` (structured) or `"between"` (structured, with layers between).
    """

    problem: Problem
    settings: Settings
    way: str


@dataclass(frozen=True)
class Shape:
    """The sizes of a program; static.

    Attributes:
        batch: Sequences.
        length: Positions of each.
        sources: Room for sources, a sequence.
        per_position: Room for sources at one position.
        targets: Room for targets, a sequence; a multiple of `chunk`.
        chunk: Targets of a sequence that are differentiated together.
        kept: Room for kept edges, a target; only with `min_attribution`.
        sequences_at_once: Sequences whose chunks are computed together.
        targets_at_once: Targets whose rows of a table are gathered together.
        sources_at_once: Sources that are pushed together.
        direction: `"reverse"` or `"forward"` through layers between.
        collapse: Whether MLPs of layers between become a matrix a position first.
        passes_at_once: Targets or sources that are taken through layers between together.
    """

    batch: int
    length: int
    sources: int
    per_position: int
    targets: int
    chunk: int
    kept: int
    sequences_at_once: int
    targets_at_once: int
    sources_at_once: int
    direction: str = "reverse"
    collapse: bool = False
    passes_at_once: int = 256
