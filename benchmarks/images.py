"""How fast are images? The stages before training, and a step beside that of the text engine at equal shape.

    python benchmarks/images.py DATA/images/mnist DATA/images/cifar10_jpg
    python benchmarks/images.py DATA/images/mnist --rounds 5 --threads 2

Stages: each of corpus, vocabulary and shards from nothing, one worker, images a second of wall time and of CPU time.
Step: `maskmill profile` on the shards of the first source, tokens in and tokens out (the text engine itself, with
images as its text) and payload in, tokens out (patches of pixels embedded), in turn; medians, and their ratio. `at
best` is the share of a step that its matrix products take when nothing else is done (tasks/meter.py): the roofline.
"""

import argparse
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))

from tasks import image_corpus, image_vocabulary, pretrain, shards
from tasks.artifacts import Manifest, Store
from tasks.image_settings import ImagePretrainConfig, ImageShardsConfig
from tasks.image_sources import ImageSource


def stages(source: str, folder: Path) -> tuple[Store, Manifest, Manifest]:
    """Makes the artifacts of a source, and prints how fast."""
    store, made = Store(folder), []
    print(f"{source}")
    for name in ("corpus", "vocabulary", "shards"):
        wall, cpu = time.perf_counter(), sum(os.times()[:4])
        if name == "corpus":
            config = image_corpus.ImageCorpusConfig((ImageSource(source),), test="0.1", workers=1)
            made.append(image_corpus.corpus(config, store)[0])
        elif name == "vocabulary":
            made.append(image_vocabulary.vocabulary(image_vocabulary.ImageVocabularyConfig(), made[0], store)[0])
        else:
            made.append(shards.shards(ImageShardsConfig(workers=1), made[0], made[1], store)[0])
        wall, cpu = time.perf_counter() - wall, sum(os.times()[:4]) - cpu
        images = made[0].counts["documents_kept"]
        print(
            f"    {name:<12}{wall:6.2f} s  {images / wall:10,.0f} images/s  {images / cpu:10,.0f} images per CPU second"
        )
    return store, made[1], made[2]


def steps(store: Store, words: Manifest, rows: Manifest, rounds: int, threads: int) -> None:
    """Steps of both kinds in turn."""
    base = ImagePretrainConfig(size="small", intermediate=384, batch_tokens=8320, threads=threads, compile="off")
    sides = {"tokens in": replace(base, input="tokens"), "payload in": base}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    best: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides)[:: 1 if number % 2 else -1]:
            found = pretrain.profile(sides[name], words, rows, store, steps=20)
            seconds[name].append(found["step_seconds"])
            best[name].append(found["products"]["at_best_share"])
    for name in sides:
        print(f"    {name:<12}{1000 * median(seconds[name]):7.1f} ms a step, at best {median(best[name]):.2f}")
    ratios = [one / two for one, two in zip(seconds["payload in"], seconds["tokens in"], strict=True)]
    print(f"    payload in / tokens in: {median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}, {rounds} rounds)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made = [stages(source, Path(folder, str(number))) for number, source in enumerate(given.sources)]
        steps(*made[0], given.rounds, given.threads)


if __name__ == "__main__":
    main()
