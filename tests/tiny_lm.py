"""A tiny random model that can be talked to: with a tokenizer of bytes, and a chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_models import tiny_model

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"
# a byte each, then the tokens that mean something else
VOCABULARY = 260
PAD, BOS, EOS = 256, 257, 258


def tiny_lm(directory: Path, family: str = "llama", **overrides: Any) -> Path:
    """A model of this family with a vocabulary of bytes, in ``directory``."""
    sizes = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
    path = tiny_model(family, directory, **{"max_position_embeddings": 8192, **sizes, **overrides})
    _tokenizer().save_pretrained(path)
    return path


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: number for number, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<pad>", "<bos>", "<eos>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        chat_template=TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
