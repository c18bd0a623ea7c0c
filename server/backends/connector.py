"""Connection to an engine of either kind: toolwire's own, or a vLLM server."""

from collections.abc import Sequence

from server.backends.connection import NotToolwire, connect_toolwire
from server.backends.remote import Connection
from server.backends.vllm import connect_vllm
from server.checkpoint.checkpoint import Checkpoint


async def connect_engine(checkpoint: Checkpoint, key: str, url: str) -> Connection:
    """A connection to the engine at this URL, toolwire's own or a vLLM server. Raises EngineLost and EngineRefused."""
    try:
        return await connect_toolwire(url, key)
    except NotToolwire:
        tokenizer = checkpoint.tokenizer

        def encode(text: str) -> Sequence[int]:
            ids: Sequence[int] = tokenizer.encode(text, add_special_tokens=False).ids
            return ids

        added_tokens = [token.content for _, token in sorted(tokenizer.get_added_tokens_decoder().items())]
        size = tokenizer.get_vocab_size()
        return await connect_vllm(url, key, size, encode, checkpoint.max_model_len, added_tokens)
