"""How fast is pseudo-likelihood? Ours beside a plain loop over sentences, and over single copies.

    python benchmarks/pseudo_likelihood.py                       6×256, V 8192, 200 sentences of BLiMP, 3 rounds
    python benchmarks/pseudo_likelihood.py --data FOLDER --sentences 500 --profile

The same random weights, the same tokens and the same masks (within-word left-to-right) on all three sides:

    ours       all copies of all sentences together, sorted by length, the head at the positions that are asked for
    sentence   transformers, a batch of a sentence's masked copies, logits of all positions: what minicons does
    copy       transformers, one masked copy at a time

What can be saved beside `sentence` is the head at all positions but one (2 D V flops a position) and the last block, so
the ratio grows with V: by flops at most 1.9 at 6×256 and V 8192, 4.5 at V 50368 (--vocabulary). Every copy still passes
through all the blocks before.

They take turns, in one process with one number of threads; a round is all sentences (for `copy` every tenth). Printed
are sentences a second by the wall clock and by CPU time (the one to look at where others use the machine), medians over
the rounds, ratios round by round, and the largest difference of a log probability, which must be below 1e-4.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from tasks.encoder import EncoderConfig, MaskedLanguageModel
from tasks.pseudo_likelihood import log_probabilities
from tasks.special_tokens import SPECIAL_IDS, set_template, special_token
from tasks.stock import save_stock
from tasks.subjects import Encoded, Ours

Values = list[np.ndarray]


def sentences(folder: Path, count: int) -> list[str]:
    """Good sentences, taken in turn from all paradigms."""
    files = sorted(folder.glob("*.jsonl"))
    lines = [path.read_text().splitlines() for path in files]
    return [json.loads(lines[n % len(files)][n // len(files)])["sentence_good"] for n in range(count)]


def tokenizer_of(texts: list[str], size: int, path: Path) -> None:
    """Byte-level BPE learnt from the texts, so that words of several tokens are there."""
    from tokenizers import AddedToken

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[AddedToken(**special_token(name)) for name in SPECIAL_IDS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    set_template(tokenizer, SPECIAL_IDS)
    tokenizer.save(str(path))


def random_model(given: argparse.Namespace) -> MaskedLanguageModel:
    config = EncoderConfig(
        given.vocabulary, length=128, layers=given.layers, width=given.width, heads=4, intermediate=given.intermediate
    )
    model, generator = MaskedLanguageModel(config), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.06 + (parameter.ndim == 1))
    return model


def copies(text: Encoded, mask_id: int) -> tuple[torch.Tensor, list[int]]:
    """Masked copies of a text (T, N), written down plainly, and the place that each asks for."""
    rows, places = [], []
    for place in range(len(text)):
        if text.word[place] < 0:
            continue
        row = text.ids.copy()
        for later in range(place, len(text)):
            if text.word[later] == text.word[place]:
                row[later] = mask_id
        rows.append(row)
        places.append(place)
    return torch.from_numpy(np.stack(rows)), places


def plain(stock: torch.nn.Module, encoded: list[Encoded], mask_id: int, at_once: bool) -> Values:
    """A loop over sentences, and over their copies where not `at_once`."""
    found = []
    for text in encoded:
        rows, places = copies(text, mask_id)
        values = np.zeros(len(text))
        for start in range(0, len(rows), len(rows) if at_once else 1):
            some = slice(start, len(rows) if at_once else start + 1)
            with torch.inference_mode():
                logits = stock(input_ids=rows[some]).logits[torch.arange(len(rows[some])), places[some]]
            log_p = logits.log_softmax(dim=-1)
            for row, place in zip(log_p, places[some], strict=True):
                values[place] = float(row[int(text.ids[place])])
        found.append(values)
    return found


def timed(side: Callable[[], Values]) -> tuple[float, float, Values]:
    wall, cpu = time.perf_counter(), time.process_time()
    found = side()
    return time.perf_counter() - wall, time.process_time() - cpu, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared/data/eval/blimp_first300")
    parser.add_argument("--sentences", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--intermediate", type=int, default=384)
    parser.add_argument("--positions", type=int, default=0, help="computed at a time; 0 is the default")
    parser.add_argument("--only", nargs="*", default=["ours", "sentence", "copy"])
    parser.add_argument("--profile", action="store_true", help="operators of ours")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    from transformers import AutoModelForMaskedLM

    texts = sentences(given.data, given.sentences)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer_of(texts, 1000, Path(folder) / "tokenizer.json")
        model = random_model(given)
        save_stock(model, Path(folder))
        stock = AutoModelForMaskedLM.from_pretrained(folder).eval()
        subject = Ours(model, Path(folder) / "tokenizer.json", "ours")
    encoded, tenth = subject.encode(texts), slice(None, None, 10)
    options = {"positions": given.positions} if given.positions else {}
    sides: dict[str, tuple[list[Encoded], Callable[[list[Encoded]], Values]]] = {
        "ours": (encoded, lambda some: log_probabilities(subject, some, **options)),
        "sentence": (encoded, lambda some: plain(stock, some, subject.mask_id, True)),
        "copy": (encoded[tenth], lambda some: plain(stock, some, subject.mask_id, False)),
    }
    sides = {name: side for name, side in sides.items() if name in given.only}
    print(
        f"{len(texts)} sentences, {sum(len(text.ordinary) for text in encoded)} tokens to ask for, "
        f"{given.layers}×{given.width}, V {given.vocabulary}, {given.threads} threads, load {os.getloadavg()[0]:.1f}"
    )
    for some, side in sides.values():
        side(some)  # warm
    per_sentence = sum(len(text.ordinary) for text in encoded) / len(encoded)
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    values: dict[str, Values] = {}
    for _ in range(given.rounds):
        for name, (some, side) in sides.items():
            wall, cpu, values[name] = timed(lambda side=side, some=some: side(some))
            count = sum(len(text.ordinary) for text in some) / per_sentence  # sentences of the mean length
            rates[name].append((count / wall, count / cpu))
    for name, found in rates.items():
        wall, cpu = (median(one[kind] for one in found) for kind in (0, 1))
        line = f"{name:9} {wall:8.1f} sentences/s   {cpu:8.1f} by CPU second"
        if name != "ours" and "ours" in rates:
            ratios = [[a[kind] / b[kind] for a, b in zip(rates["ours"], found)] for kind in (0, 1)]
            line += "".join(f"   ours ×{median(one):.2f} ({min(one):.2f} to {max(one):.2f})" for one in ratios)
            ours = values["ours"] if name == "sentence" else values["ours"][tenth]
            line += f"   largest difference {max(np.abs(a - b).max() for a, b in zip(ours, values[name])):.1e}"
        print(line)
    print(f"load at the end {os.getloadavg()[0]:.1f}")
    if given.profile:
        with torch.profiler.profile() as profile:
            sides["ours"][1](encoded)
        print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=25))


if __name__ == "__main__":
    main()
