"""What the documents show is true: Python runs, commands parse, SQL answers, links lead somewhere."""

import doctest
import re
import shlex
from pathlib import Path

import pytest

from jaxcircuits.cli import main, parser

ROOT = Path(__file__).parents[1]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "weights/README.md"]
DOCUMENTS += [f"docs/{file.name}" for file in sorted((ROOT / "docs").glob("*.md"))]


def blocks(document: str, language: str) -> list[str]:
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("document", ["README.md", "docs/evaluation.md", "docs/graph.md"])
def test_python_sessions(document: str) -> None:
    results = doctest.testfile(str(ROOT / document), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert results.attempted > 5
    assert results.failed == 0


def test_the_first_code_of_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text[: text.index("```")].count("\n") < 15
    names: dict = {}
    exec(blocks("README.md", "python")[0], names)  # the project's own file
    assert names["result"].edges.num_rows > 100


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_parse(document: str) -> None:
    """Each `jaxcircuits` line is one that the command line takes."""
    text = (ROOT / document).read_text(encoding="utf-8")
    lines = re.findall(r"^(?:.*&& | {4})?(jaxcircuits [a-z].*)$", text, re.MULTILINE)
    for line in lines:
        parser().parse_args(shlex.split(line, comments=True)[1:])
    assert lines or document not in ("README.md", "weights/README.md")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("#"):
            headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
            assert target[1:] in [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings], target
        elif not target.startswith("https://"):
            assert ((ROOT / document).parent / target).exists(), target


def test_a_run_s_files_open_as_the_readme_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    texts = [
        "The dog was happy.",
        "The cat was happy.",
        "The dog was sad.",
        "The cat sat.",
        "The dog ran.",
        "A dog was happy.",
    ]
    Path("stories.txt").write_text("\n".join(texts))
    assert main(["attribute", "--corpus", "stories.txt", "--out", "runs/stories", "--quiet"]) == 0
    (lines,) = [block for block in blocks("README.md", "python") if "read_parquet" in block]
    shown: dict[str, object] = {}
    exec(lines.replace("\npandas.", "\nfirst = pandas.").replace("\npolars.", "\nsecond = polars."), shown)
    assert {"mean_shrunk", "q_mean"} <= set(shown["first"].columns)  # pyright: ignore
    assert "attribution" in shown["second"].columns  # pyright: ignore
