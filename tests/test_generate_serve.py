"""`ferid generate` against a real OpenAI-compatible server, `transformers serve`, with a model that talks nonsense."""

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from made_ferid import make_ferid

from ferid_dataset.generate.pipeline import generate
from ferid_dataset.generate.work import Order

pytest.importorskip("fastapi", reason="transformers serve needs fastapi and uvicorn")
pytest.importorskip("uvicorn", reason="transformers serve needs fastapi and uvicorn")


def save_nonsense_model(folder: Path) -> None:
    """A Llama of random weights, which writes random bytes as text."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    template = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", chat_template=template)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8192,
        eos_token_id=fast.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(max_new_tokens=24, do_sample=True, eos_token_id=fast.eos_token_id)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)


@pytest.mark.slow
def test_nonsense_is_rejected_and_does_not_crash(tmp_path, monkeypatch):
    save_nonsense_model(tmp_path / "model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(tmp_path / "model")]
    log = tmp_path / "log"
    with log.open("wb") as stream:
        server = subprocess.Popen([*command, "--port", str(port), "--device", "cpu"], stdout=stream, stderr=stream)
    try:
        url = f"http://localhost:{port}"
        wait_for(f"{url}/health", server, log)
        monkeypatch.setenv("OPENAI_API_KEY", "any word")
        order = Order(
            make_ferid(tmp_path / "ferid", 6), tmp_path / "annotations", str(tmp_path / "model"), f"{url}/v1"
        )
        summary = generate(order)
        assert summary.count == {"rejected": 6} and set(summary.rules) <= {"malformed", "cut", "empty"}
        assert summary.totals.replies == 6 and summary.totals.input_tokens > 6 * 1000  # a token a byte
        rejected = (tmp_path / "annotations" / "rejected.jsonl").read_text(encoding="utf-8")
        assert len(rejected.splitlines()) == 6
    finally:
        server.terminate()
        server.wait(30)


def wait_for(url: str, server: subprocess.Popen, log: Path) -> None:
    for _ in range(240):
        assert server.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                if response.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise AssertionError(log.read_text())
