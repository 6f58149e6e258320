"""`ferid generate` against a server of 200 ms: rate, memory and the cost of a resume, beside the usual script.

    OMP_NUM_THREADS=1 python benchmarks/generation.py [--samples 5000] [--flat 50000] [--done 300000]

The server is a process of its own on the loopback interface; it answers every request after 200 ms. 64 requests are on
the way at a time, so 320 a second are ideal. Ours reads pictures, asks, applies the rules and commits each reply to
the journal; the usual script is an `asyncio.gather` over all samples behind a semaphore, which keeps replies in memory
and writes them at the end. Both use the SDK, send a JPEG of 224 x 224 pixels, and run in processes of their own,
taking turns. Memory is the peak of the process, over --samples and over --flat requests. The resume has --done of
339,000 samples done, and takes the time from the start of the process to its end, one sample being left to ask.
Expected, on 2 cores: at least 90 % of the ideal rate; the same memory; at most 5 s.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONCURRENCY, LATENCY = 64, 0.2
REPLY = {
    "turns": [
        {
            "question": "What is the facial expression of the person?",
            "answer": "The person has a happy facial expression. The corners of the mouth are raised.",
        }
    ]
}


class Server(asyncio.Protocol):
    """Answers every request after LATENCY, whatever it asks."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport, self.received, self.length = transport, bytearray(), 0
        message = {"role": "assistant", "content": json.dumps(REPLY)}
        completion = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "model": "m"}
        completion["usage"] = {"prompt_tokens": 900, "completion_tokens": 60}
        body = json.dumps(completion).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self.answer = head.encode() + body

    def data_received(self, data: bytes) -> None:
        self.received += data
        if not self.length and (end := self.received.find(b"\r\n\r\n")) >= 0:
            head = bytes(self.received[:end]).lower()
            self.length = end + 4
            if (start := head.find(b"content-length: ")) >= 0:
                self.length += int(head[start + 16 :].split(b"\r\n")[0])
        if self.length and len(self.received) >= self.length:
            del self.received[: self.length]
            self.length = 0
            asyncio.get_running_loop().call_later(LATENCY, self.transport.write, self.answer)


def serve(port: multiprocessing.Queue) -> None:
    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0, backlog=1000)
        port.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


def write_ferid(out: Path, samples: int) -> None:
    """A built FERID of stills, all of one picture."""
    import numpy as np
    import pyarrow.parquet as pq
    from huggingface_hub import DatasetCardData
    from PIL import Image

    from ferid_dataset.ferid import FEATURES, instruct, to_rows
    from ferid_dataset.prompts import options_of
    from ferid_dataset.sources.base import SAMPLES

    out.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (28, 28, 3), np.uint8)
    Image.fromarray(noise).resize((224, 224), Image.Resampling.BICUBIC).save(out / "face.jpg")
    sample = {"source": "raf_db", "split": "train", "media_type": "image", "paths": [str(out / "face.jpg")]}
    sample |= {"label": "happiness", "options": list(options_of("raf_db"))}
    table = SAMPLES.empty_table().from_pylist([sample | {"id": f"raf_db/{i:06}"} for i in range(samples)], SAMPLES)
    with pq.ParquetWriter(out / "train.parquet", FEATURES.arrow_schema) as writer:
        for shard in instruct(table, "category")["train"]:
            writer.write_table(to_rows(shard).cast(FEATURES.arrow_schema))
    files = [{"split": "train", "path": "train.parquet"}]
    card = DatasetCardData(configs=[{"config_name": "category", "data_files": files}])
    (out / "README.md").write_text(f"---\n{card.to_yaml()}\n---\n", encoding="utf-8")


def ours(ferid: Path, out: Path, url: str) -> None:
    from ferid_dataset.generate.pipeline import generate
    from ferid_dataset.generate.work import Order

    begun = time.perf_counter()
    summary = generate(Order(out=ferid, annotations=out, model="m", base_url=url, concurrency=CONCURRENCY))
    report(summary.count["accepted"], begun)


def usual(ferid: Path, out: Path, url: str) -> None:
    import base64

    import openai
    import pyarrow.parquet as pq

    from ferid_dataset.prompts import generation_prompt

    rows = pq.read_table(ferid / "train.parquet", columns=["id", "label", "images"]).to_pylist()
    begun = time.perf_counter()

    async def run() -> list:
        client, slots = openai.AsyncOpenAI(base_url=url, api_key="x", max_retries=8), asyncio.Semaphore(CONCURRENCY)

        async def ask(row: dict) -> dict:
            async with slots:
                system, user = generation_prompt(row["label"], "image")
                data = base64.b64encode(Path(row["images"][0]["path"]).read_bytes()).decode()
                picture = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}}
                content = [{"type": "text", "text": user}, picture]
                messages = [{"role": "system", "content": system}, {"role": "user", "content": content}]
                reply = await client.chat.completions.create(model="m", messages=messages)
                return {"id": row["id"], "turns": json.loads(reply.choices[0].message.content)}

        return await asyncio.gather(*map(ask, rows))

    lines = asyncio.run(run())
    out.mkdir()
    (out / "train.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    report(len(lines), begun)


def report(count: int, begun: float) -> None:
    cpu = time.process_time()
    print(count, time.perf_counter() - begun, cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)


def measure(way: str, ferid: Path, out: Path, url: str) -> tuple[float, float, float, float]:
    """Requests a second, CPU milliseconds a request, peak megabytes, and seconds of the whole process."""
    command = [sys.executable, __file__, "--way", way, "--ferid", str(ferid), "--out", str(out), "--url", url]
    environment = os.environ | {"OPENAI_API_KEY": "x", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    begun = time.perf_counter()
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    whole = time.perf_counter() - begun
    count, seconds, cpu, peak = map(float, done.stdout.split())
    return count / seconds, 1000 * cpu / count, peak, whole


def fill_journal(out: Path, samples: int) -> None:
    """A journal with this many done, and the annotation files that belong to it."""
    from ferid_dataset.generate.annotation_files import write_annotations
    from ferid_dataset.generate.journal import Journal, Reply

    reply = Reply("", "conversation", 1, "raf_db", "train", "happiness", "", "", "m", "1", 900, 60, 0.0, "2026-01-01")
    out.mkdir()
    with Journal(out / "journal.sqlite") as journal:
        for start in range(0, samples, 10_000):
            ids = (f"raf_db/{i:06}" for i in range(start, min(start + 10_000, samples)))
            journal.add(reply._replace(id=id_, text=json.dumps(REPLY)) for id_ in ids)
        begun = time.perf_counter()
        write_annotations(out, journal)
        print(f"annotation files of {samples:,} replies: written in {time.perf_counter() - begun:.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--flat", type=int, default=50_000)
    parser.add_argument("--done", type=int, default=300_000)
    parser.add_argument("--rounds", type=int, default=3)
    for name in ("--way", "--ferid", "--out", "--url"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        way = {"ours": ours, "usual": usual}[arguments.way]
        way(Path(arguments.ferid), Path(arguments.out), arguments.url)
        return
    port: multiprocessing.Queue = multiprocessing.Queue()
    server = multiprocessing.Process(target=serve, args=(port,), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{port.get()}/v1"
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_ferid(root / "small", arguments.samples)
        rounds = {"ours": [], "usual": []}
        for round_ in range(arguments.rounds):
            for way in rounds:
                rounds[way].append(measure(way, root / "small", root / f"{way}_{round_}", url))
        for way, figures in rounds.items():
            rate, cpu, peak, _ = map(statistics.median, zip(*figures, strict=True))
            share = rate * LATENCY / CONCURRENCY
            print(f"{way:5}  {rate:5.0f} a second, {share:.1%} of ideal; {cpu:.2f} CPU ms each; peak {peak:.0f} MB")
        ratios = [ours[0] / usual[0] for ours, usual in zip(rounds["ours"], rounds["usual"], strict=True)]
        print(f"rate of ours / usual: {statistics.median(ratios):.2f} (rounds {min(ratios):.2f} to {max(ratios):.2f})")
        if arguments.flat:
            write_ferid(root / "large", arguments.flat)
            for way in rounds:
                _, _, peak, _ = measure(way, root / "large", root / f"{way}_large", url)
                print(f"{way:5}  peak over {arguments.flat:,}: {peak:.0f} MB")
        if arguments.done:
            write_ferid(root / "resumed", arguments.done + 1)
            fill_journal(root / "journal", arguments.done)
            rate, _, peak, whole = measure("ours", root / "resumed", root / "journal", url)
            print(f"resume over {arguments.done:,} done: {whole:.1f} s of the whole process, peak {peak:.0f} MB")
    server.terminate()


if __name__ == "__main__":
    main()
