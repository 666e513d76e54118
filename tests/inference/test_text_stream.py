"""Text that comes token by token is the text of all tokens, cut at stop texts, for byte-level and word-piece tokenizers."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from tests.conftest import TALK, byte_tokenizer
from tuneloop.inference.text_stream import PIECE, TextStream, decoding, first_stop
from tuneloop.inference.token_bytes import TokenBytes


def metaspace_tokenizer() -> Any:
    """A BPE tokenizer as Llama 2 and Gemma have it: ▁ for blanks, bytes to fall back on."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers
    from transformers import PreTrainedTokenizerFast

    learned = Tokenizer(models.BPE(unk_token="<unk>"))
    learned.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    learned.train_from_iterator([text for pair in TALK for text in pair], trainer)
    state = json.loads(learned.to_str())["model"]
    vocabulary = state["vocab"] | {f"<0x{n:02X}>": len(state["vocab"]) + n for n in range(256)}
    merges = [tuple(pair) for pair in state["merges"]]
    made = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


TOKENIZERS = {
    "byte level": lambda: byte_tokenizer("{{ messages }}", eos_token="<|im_end|>", pad_token="<|endoftext|>"),
    "metaspace": metaspace_tokenizer,
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return TOKENIZERS[request.param]()


def sequences(tokenizer: Any, count: int) -> list[list[int]]:
    """Random ids, special tokens and halves of characters among them, and real text cut anywhere.

    Whole and without single bytes where a tokenizer falls back on them: a run of them that is no UTF-8 becomes, as a
    whole, other text than its beginning.
    """
    draw = random.Random(0)
    drawn = [n for n in range(len(tokenizer)) if not tokenizer.convert_ids_to_tokens(n).startswith("<0x")]
    texts = [draw.choice(TALK)[1] + draw.choice(["", " 🙂", "  x", "\n\n é", "你好，世界"]) for _ in range(count)]
    real = [tokenizer(text)["input_ids"] for text in texts]
    whole_texts = len(drawn) < len(tokenizer)
    return [
        *(draw.choices(drawn, k=draw.randrange(1, 40)) for _ in range(count)),
        *(ids if whole_texts else ids[: draw.randrange(1, len(ids) + 1)] for ids in real),
    ]


def test_the_pieces_are_the_text(tokenizer: Any) -> None:
    decode = decoding(tokenizer)
    for ids in sequences(tokenizer, 300):
        stream = TextStream(decode)
        pieces = [stream.feed(token) for token in ids]
        assert not any(piece.endswith(PIECE) for piece in pieces)
        assert "".join(pieces) + stream.end() == decode(ids).rstrip(PIECE), ids


def test_stop_texts_cut_as_in_the_text(tokenizer: Any) -> None:
    decode, draw = decoding(tokenizer), random.Random(1)
    cut = 0
    for ids in sequences(tokenizer, 200):
        text = decode(ids)
        at = draw.randrange(max(1, len(text)))
        stops = (text[at : at + draw.randrange(1, 6)], "never")
        stream, out = TextStream(decode, stops), ""
        for token in ids:
            out += stream.feed(token)
            assert all(stop not in out for stop in stops if stop and PIECE not in stop)
            if stream.stopped:
                break
        if stream.stopped:
            place = first_stop(text, stops)
            assert place is not None
            assert out == text[: len(out)]
            assert len(out) >= place
            assert stream.feed(ids[0]) == stream.end() == ""
            cut += 1
        else:
            assert out + stream.end() == text.rstrip(PIECE)
    assert cut > 50


def test_the_bytes_of_tokens_are_those_of_the_text(tokenizer: Any) -> None:
    octets = TokenBytes(tokenizer)
    for text in [text for pair in TALK for text in pair] + ["🙂 é\n\t x  y", "<|im_end|>"]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert b"".join(octets[token] for token in ids).decode().removeprefix(" ") == text
    assert octets[len(tokenizer) + 5] == b""
