"""A language model of half a megabyte with random weights, and llama.cpp's OpenAI-compatible server on it.

What it says is noise: single bytes, halves of characters among them. That is what a real server sends, and all that is
needed of it. Nothing is downloaded.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

EMBEDDING, HEADS, FEED_FORWARD, LAYERS, CONTEXT = 64, 4, 128, 2, 512
WORDS = [*"▁abcdefghijklmnopqrstuvwxyz.,!é漢😀", "▁the", "▁and", "ing", "er"]
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


def write_tiny_model(path: Path, seed: int = 1) -> None:
    """Write the model; the same seed writes the same weights."""
    import gguf
    import numpy as np

    random = np.random.default_rng(seed)
    tokens = [b"<unk>", b"<s>", b"</s>"]
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    tokens += [f"<0x{byte:02X}>".encode() for byte in range(256)] + [word.encode() for word in WORDS]
    kinds += [gguf.TokenType.BYTE] * 256 + [gguf.TokenType.NORMAL] * len(WORDS)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny-random")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(EMBEDDING)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(EMBEDDING // HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0 if kind != gguf.TokenType.NORMAL else -float(n) for n, kind in enumerate(kinds)])
    writer.add_token_types(kinds)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd": (len(tokens), EMBEDDING), "output_norm": (EMBEDDING,), "output": (len(tokens), EMBEDDING),
    }
    for layer in range(LAYERS):
        shapes |= {f"blk.{layer}.{norm}": (EMBEDDING,) for norm in ("attn_norm", "ffn_norm")}
        shapes |= {f"blk.{layer}.attn_{part}": (EMBEDDING, EMBEDDING) for part in ("q", "k", "v", "output")}
        shapes |= {f"blk.{layer}.ffn_{part}": (FEED_FORWARD, EMBEDDING) for part in ("gate", "up")}
        shapes[f"blk.{layer}.ffn_down"] = (EMBEDDING, FEED_FORWARD)
    for name, shape in shapes.items():
        weights = np.ones(shape) if len(shape) == 1 else random.normal(0, 0.2, shape)
        writer.add_tensor(f"{name}.weight", weights.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@contextlib.asynccontextmanager
async def llama_server(folder: Path, key: str) -> AsyncIterator[str]:
    """The server as a process of its own, on a model written to `folder`; gives the base URL."""
    model = folder / "tiny.gguf"
    write_tiny_model(model)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (folder / "llama.log").open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "llama_cpp.server", "--model", str(model), "--host", "127.0.0.1", "--port", str(port),
            "--n_ctx", str(CONTEXT), "--n_threads", "1", "--api_key", key,
            stdout=output, stderr=output, cwd=folder,
        )  # fmt: skip
        try:
            async with asyncio.timeout(60):
                while True:
                    assert process.returncode is None, (folder / "llama.log").read_text()[-2000:]
                    with contextlib.suppress(OSError):
                        _, writer = await asyncio.open_connection("127.0.0.1", port)
                        writer.close()
                        break
                    await asyncio.sleep(0.1)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
