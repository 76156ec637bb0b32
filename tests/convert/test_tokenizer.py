"""The bundle's tokenizer gives the ids of the source's."""

import json
from pathlib import Path

import pytest
from tokenizers import ByteLevelBPETokenizer, Tokenizer

from jaxcircuits.bundle import load_bundle
from jaxcircuits.convert import convert
from jaxcircuits.convert.tokenizer import read_tokenizer_of
from jaxcircuits.errors import InputError

TEXTS = [
    "Once upon a time, there was a dog.",
    " Two  spaces\n\nand lines",
    "naïve — ünïcode 🙂",
    "one<|endoftext|>two",
    "",
]


def _trained() -> ByteLevelBPETokenizer:
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(
        TEXTS[:1] * 20 + ["a dog, a time"] * 9, vocab_size=300, special_tokens=["<|endoftext|>"], show_progress=False
    )
    return tokenizer


def _save_slow(path: Path) -> ByteLevelBPETokenizer:
    path.mkdir(exist_ok=True)
    tokenizer = _trained()
    tokenizer.save_model(str(path))
    return tokenizer


def _assert_equal(ours: Tokenizer | None, theirs: ByteLevelBPETokenizer) -> None:
    assert ours is not None
    for text in TEXTS:
        ids = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, add_special_tokens=False).ids == ids
        assert ours.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("settings", [False, True])
def test_vocabulary_and_merges_are_converted(tmp_path: Path, settings: bool) -> None:
    theirs = _save_slow(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt_neo"}')
    if settings:  # as GPT-2's own files say it
        special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
        (tmp_path / "special_tokens_map.json").write_text(json.dumps(special))
        config = special | {"add_prefix_space": False, "tokenizer_class": "GPT2Tokenizer", "model_max_length": 2048}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer, files = read_tokenizer_of(tmp_path, 300)
    _assert_equal(tokenizer, theirs)
    assert len(files) == (4 if settings else 2)


def test_a_tokenizer_json_is_taken_and_never_truncates(tmp_path: Path) -> None:
    theirs = _trained()
    cutting = Tokenizer.from_str(theirs.to_str())
    cutting.enable_truncation(3)
    cutting.enable_padding(length=8)
    cutting.save(str(tmp_path / "tokenizer.json"))
    tokenizer, files = read_tokenizer_of(tmp_path, 300)
    _assert_equal(tokenizer, theirs)
    assert files == [tmp_path / "tokenizer.json"]


def test_a_directory_without_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert read_tokenizer_of(tmp_path, 31) == (None, [])


def test_tokenizers_are_refused(tmp_path: Path) -> None:
    theirs = _save_slow(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt_neo"}')
    size = theirs.get_vocab_size()
    with pytest.raises(InputError, match=rf"ids up to {size - 1}, but the model's vocabulary ends at {size - 2}"):
        read_tokenizer_of(tmp_path, size - 1)
    theirs.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InputError, match=rf"tokenizer\.json: the tokenizer has ids up to {size - 1}"):
        read_tokenizer_of(tmp_path, size - 1)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer\.json is not a tokenizer"):
        read_tokenizer_of(tmp_path, size)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text("[")
    with pytest.raises(InputError, match="are no tokenizer"):
        read_tokenizer_of(tmp_path, size)
    (tmp_path / "vocab.json").unlink()
    with pytest.raises(InputError, match=r"there is no file .*vocab\.json"):
        read_tokenizer_of(tmp_path, size)


@pytest.mark.torch
def test_text_of_a_converted_bundle_begins_with_bos(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from tests.convert.foreign import hugging_face

    hugging_face(vocab_size=300).save_pretrained(tmp_path / "neo")
    theirs = _save_slow(tmp_path / "neo")
    convert(str(tmp_path / "neo"), [], tmp_path / "bundle")
    bundle = load_bundle(tmp_path / "bundle")
    assert list(bundle.tokenize(TEXTS[0])) == [0, *theirs.encode(TEXTS[0]).ids]
    names = json.loads((tmp_path / "bundle" / "manifest.json").read_text())["source_sha256"]
    assert {"model/vocab.json", "model/merges.txt"} < set(names)
