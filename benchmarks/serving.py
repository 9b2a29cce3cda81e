"""How many requests a second? `maskmill serve` beside transformers' fill-mask pipeline behind the same HTTP server.

    python benchmarks/serving.py                                  6×256, V 8192, 16 and 1 at a time, 3 rounds of 5 s
    python benchmarks/serving.py --vocabulary 32768 --layers 12 --width 768 --intermediate 1152

The same random weights and the same requests: 1 to --sentences sentences with one [MASK], the five best tokens. Sides:

    ours       tasks.fill_mask in flows.answering, one process, --threads threads
    stock      pipeline("fill-mask", top_k=5) called per request in the same server, one process, --threads threads
    stock×2    two such processes with half of the threads each, requests in turn: better for it where many ask
    ours×2     the same of ours

Each side is asked by so many callers at once, who send their next request when they have an answer. They take turns in
every round; medians over the rounds, ratios round by round. The callers are one process on the same cores, on plain
asyncio streams, since a real HTTP client costs as much as the model; what it used is printed. CPU ms is what the server
used for a request: the figure to look at where others use the machine.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import psutil
from pseudo_likelihood import random_model, sentences, tokenizer_of

TOP = 5
SIDES = {"ours": ("ours", 1), "stock": ("stock", 1), "stock×2": ("stock", 2), "ours×2": ("ours", 2)}


class Round(NamedTuple):
    """What a side did in a round."""

    per_second: float
    p50: float
    p99: float
    cpu: float
    """Milliseconds of the server's CPU time for a request."""
    callers: float
    """Share of a core that the callers used."""


class Pipeline:
    """The opponent, in the place of FillMask. The server's line hands it one request at a time."""

    def __init__(self, folder: Path) -> None:
        from transformers import pipeline

        self.fill = pipeline("fill-mask", model=str(folder), tokenizer=str(folder), top_k=TOP)

    def questions(self, texts: list[str], params: Mapping[str, Any] | None) -> Sequence[str]:
        return texts

    def answers(self, questions: Sequence[str]) -> list[Any]:
        found = [self.fill(text) for text in questions]
        return [[[{"token": it["token_str"], "probability": it["score"]} for it in one]] for one in found]


def serve(kind: str, folder: Path, threads: int) -> None:
    """A server of one side, until it is killed; prints its port."""
    import torch

    from flows import answering, serve_commands
    from tasks.fill_mask import FillMask

    torch.set_num_threads(threads)
    model = FillMask().open(folder) if kind == "ours" else Pipeline(folder)
    model.answers(model.questions(["A [MASK]."], None))  # as serve does before the first request
    limits = answering.Limits(at_once=64 if kind == "ours" else 1)
    listener = serve_commands.listen("127.0.0.1", 0)
    print(listener.getsockname()[1], flush=True)
    serve_commands.run(answering.application(model, {}, limits), listener, 5)


def write_model(given: argparse.Namespace, folder: Path) -> None:
    import hashlib

    from tasks.special_tokens import tokenizer_config
    from tasks.stock import save_stock

    save_stock(random_model(given), folder)
    tokenizer_of(sentences(given.data, 2000), given.vocabulary, folder / "tokenizer.json")
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config()))
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    (folder / "digests.json").write_text(json.dumps({"sha256": digests}))


def requests(given: argparse.Namespace) -> list[bytes]:
    """Bodies in the protocol, of many lengths."""
    chance = random.Random(0)
    known, bodies = sentences(given.data, 2000), []
    for _ in range(500):
        words = " ".join(chance.sample(known, chance.randint(1, given.sentences))).split()
        words[chance.randrange(1, len(words))] = "[MASK]"
        bodies.append(json.dumps({"inputs": [" ".join(words)]}).encode())
    return bodies


@contextmanager
def servers(given: argparse.Namespace, folder: Path) -> Iterator[dict[str, list[tuple[psutil.Process, int]]]]:
    """Processes and ports of each side."""
    started: list[subprocess.Popen[str]] = []
    found: dict[str, list[tuple[psutil.Process, int]]] = {}
    try:
        for side in given.sides:
            kind, count = SIDES[side]
            found[side] = []
            for _ in range(count):
                words = [sys.executable, __file__, "--serve", kind, str(folder)]
                words += ["--threads", str(max(1, given.threads // count))]
                started.append(subprocess.Popen(words, stdout=subprocess.PIPE, text=True))
                found[side].append((psutil.Process(started[-1].pid), int(started[-1].stdout.readline())))  # type: ignore[union-attr]
        yield found
    finally:
        for process in started:
            process.terminate()
            process.wait(20)


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> Any:
    head = f"POST /invocations HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    said = await reader.readuntil(b"\r\n\r\n")
    length = int(said.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
    answer = await reader.readexactly(length)
    assert b" 200 " in said.partition(b"\r\n")[0], answer
    return answer


async def caller(port: int, bodies: Sequence[bytes], start: int, until: float, seconds: list[float]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    number = start
    while (before := time.perf_counter()) < until:
        await ask(reader, writer, bodies[number % len(bodies)])
        seconds.append(time.perf_counter() - before)
        number += 1
    writer.close()


async def measured(
    side: Sequence[tuple[psutil.Process, int]], bodies: Sequence[bytes], callers: int, length: float
) -> Round:
    def used() -> float:
        return sum(sum(process.cpu_times()[:2]) for process, _ in side)

    seconds: list[float] = []
    cpu, own, begin = used(), time.process_time(), time.perf_counter()
    ports = [side[number % len(side)][1] for number in range(callers)]
    await asyncio.gather(
        *(caller(port, bodies, 31 * number, begin + length, seconds) for number, port in enumerate(ports))
    )
    wall, own = time.perf_counter() - begin, time.process_time() - own
    seconds.sort()
    at = [1000 * seconds[int(share * (len(seconds) - 1))] for share in (0.5, 0.99)]
    return Round(len(seconds) / wall, *at, 1000 * (used() - cpu) / len(seconds), own / wall)


async def agree(found: Mapping[str, Sequence[tuple[psutil.Process, int]]], body: bytes) -> None:
    """The sides give the same five probabilities; raises where they do not."""
    told = {}
    for side, ((_, port), *_) in found.items():
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        (masks,) = json.loads(await ask(reader, writer, body))["predictions"]
        told[side] = [it["probability"] for it in masks[0]]
        writer.close()
    first = next(iter(told.values()))
    assert all(abs(a - b) < 1e-5 for other in told.values() for a, b in zip(first, other, strict=True)), told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared/data/eval/blimp_first300")
    parser.add_argument("--sentences", type=int, default=4, help="in a request, at most")
    parser.add_argument("--callers", type=int, nargs="*", default=[16, 1])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--intermediate", type=int, default=384)
    parser.add_argument("--sides", nargs="*", default=list(SIDES), choices=list(SIDES))
    parser.add_argument("--serve", nargs=2, metavar=("KIND", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.serve[0], Path(given.serve[1]), given.threads)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the servers end, too
    bodies = requests(given)
    rounds: dict[tuple[int, str], list[Round]] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_model(given, Path(folder))
        with servers(given, Path(folder)) as found:
            asyncio.run(agree(found, bodies[0]))
            for _ in range(given.rounds):
                for callers in given.callers:
                    for side, processes in found.items():
                        one = asyncio.run(measured(processes, bodies, callers, given.seconds))
                        rounds.setdefault((callers, side), []).append(one)
    print(
        f"{given.layers}×{given.width}, V {given.vocabulary}, {given.threads} threads, "
        f"1 to {given.sentences} sentences, load {os.getloadavg()[0]:.1f}"
    )
    for (callers, side), some in rounds.items():
        rate, p50, p99, cpu, own = (median(column) for column in zip(*some))
        line = f"{callers:3} callers  {side:8} {rate:7.1f} requests/s  p50 {p50:6.1f} ms  p99 {p99:6.1f} ms  "
        line += f"{cpu:5.1f} CPU ms  callers {own:.0%} of a core"
        if side.startswith("stock") and (callers, "ours") in rounds:
            pairs = list(zip(rounds[callers, "ours"], some))
            for name, ratios in (
                ("requests/s", [ours.per_second / other.per_second for ours, other in pairs]),
                ("CPU", [other.cpu / ours.cpu for ours, other in pairs]),
            ):
                line += f"  ours ×{median(ratios):.2f} by {name} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(line)


if __name__ == "__main__":
    main()
