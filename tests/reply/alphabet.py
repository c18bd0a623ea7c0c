"""A vocabulary of single bytes and a few control tokens: every text can be cut anywhere, inside characters too."""

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from server.reply.text import BYTE_OF, Vocabulary

CONTROL = ("<|im_end|>", "<tool_call>", "</tool_call>", "<think>", "</think>")
SPECIAL = frozenset({"<|im_end|>"})


def byte_tokenizer() -> Tokenizer:
    """Ids 0 to 255 are the bytes, then CONTROL; the first of them is special."""
    characters = {byte: character for character, byte in BYTE_OF.items()}
    tokenizer = Tokenizer(BPE({characters[byte]: byte for byte in range(256)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(text, special=text in SPECIAL, normalized=False) for text in CONTROL])
    return tokenizer


TOKENIZER = byte_tokenizer()
VOCABULARY = Vocabulary(TOKENIZER)
IM_END: int = TOKENIZER.token_to_id("<|im_end|>")  # type: ignore[assignment]


def ids_of(text: str) -> list[int]:
    """One id a byte; control tokens as one id each."""
    return list(TOKENIZER.encode(text, add_special_tokens=False).ids)
