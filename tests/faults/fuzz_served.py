"""What comes over a network or out of a registry: requests, models, tags, vocabularies."""

import asyncio
import hashlib
import json
import os
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tasks.errors import DataError
from tests.faults.fuzz import Build, Parser, Silent
from tests.faults.fuzz_cases import Case

HEADS = (b"host: localhost", b"content-type: application/json", b"authorization: Bearer secret", b"content-length: 9")
PIECES = (
    b"[MASK]",
    b'"top_k"',
    b"dataframe_split",
    b"\xc3\x28",
    b"\\ud83d",
    b"1e309",
    b'"image"',
    b"iVBORw0KGgo",
    b"=",
    b"\n",
)


# Requests


class Client:
    """An application, asked without a socket. Its event loop is of this process: a fork makes its own."""

    def __init__(self, model: Any, token: str | None = None) -> None:
        self.model, self.token, self.process = model, token, 0

    def ask(self, method: str, path: str, heads: list[tuple[bytes, bytes]], body: bytes) -> tuple[int, bytes]:
        if self.process != os.getpid():
            from flows.answering import Limits, application

            self.process, self.loop = os.getpid(), asyncio.new_event_loop()
            self.app = application(self.model, {"model": "m"}, Limits(inputs=8, body=100_000, seconds=60), self.token)
            self.life = self.app.router.lifespan_context(self.app)
            self.loop.run_until_complete(self.life.__aenter__())
        sent: list[Any] = []
        parts = [{"type": "http.request", "body": body[:50], "more_body": True}]
        parts += [{"type": "http.request", "body": body[50:], "more_body": False}]

        async def receive() -> Any:
            return parts.pop(0) if parts else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b""}
        scope |= {"headers": heads, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "scheme": "http"}
        scope |= {"http_version": "1.1", "root_path": "", "asgi": {"version": "3.0"}}
        self.loop.run_until_complete(self.app(scope, receive, send))  # type: ignore[arg-type]
        return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


def judged(status: int, body: bytes, route: str = "/invocations") -> str | None:
    """What an answer is; raises where it is none that is documented."""
    if status == 200:
        if route == "/invocations":
            assert set(json.loads(body)) == {"predictions"}
        return None
    if not 400 <= status < 500:
        raise AssertionError(f"status {status}: {body[:200]!r}")
    if status not in (404, 405):
        told = json.loads(body)
        sentence = told["message"]
        assert set(told) == {"error_code", "message"} and sentence and "\n" not in sentence and len(sentence) < 600, (
            body
        )
    return str(status) if status in (400, 413) else "4xx"


def text_model(folder: Path) -> Any:
    from tasks.fill_mask import FillMask

    return FillMask().open(text_folder(folder))


def text_folder(folder: Path) -> Path:
    """A served folder of a model of texts, as the registry writes it."""
    from tasks.artifacts import Store
    from tasks.fill_mask import CONFIG, NAMES, TOKENIZER, WEIGHTS
    from tests.tasks import small_model

    store, served = Store(folder / "store"), folder / "model"
    words = small_model.vocabulary(store, small_model.corpus(store))
    weights = small_model.pretrain(store, words, small_model.shards(store, words, rows=16))
    served.mkdir()
    for name in (CONFIG, WEIGHTS, TOKENIZER, NAMES):
        (served / name).write_bytes(weights.path(f"model/{name}").read_bytes())
    return digested(served)


def image_folder(folder: Path) -> Path:
    from tasks import registry
    from tasks.artifacts import Store
    from tests.tasks import small_image_model

    (folder / "images").mkdir()
    made = small_image_model.parents(Store(folder / "store"), ("payload", "tokens"))
    registry._write_folder(folder / "images", "small", dict(zip(registry.PARENTS, made, strict=False)))
    return folder / "images" / "model"


def digested(folder: Path) -> Path:
    """digests.json of what lies there now."""
    names = [path.name for path in sorted(folder.iterdir()) if path.name != "digests.json" and path.is_file()]
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    (folder / "digests.json").write_text(json.dumps({"sha256": digests}))
    return folder


def requests(folder: Path, of: str) -> Parser:
    """Bodies for /invocations."""
    if of == "texts":
        client = Client(text_model(folder))
        bodies: list[Any] = [
            {"inputs": ["the [MASK] sat", "a [MASK]"], "params": {"top_k": 3, "targets": "", "output": "fill-mask"}},
            {"dataframe_split": {"columns": ["text"], "data": [["a [MASK]"]]}, "params": {"output": "embedding"}},
            {"dataframe_records": [{"text": "the [MASK]"}]},
        ]
    else:
        import base64

        from tasks.fill_image import FillImage
        from tests.tasks import drawn_images, small_image_model

        client = Client(FillImage().open(image_folder(folder)))
        pixels = drawn_images.drawn(1, *small_image_model.SHAPE)[0]
        png = base64.b64encode(small_image_model.png(pixels)).decode()
        photo = base64.b64encode(small_image_model.png(pixels, "JPEG")).decode()
        bodies = [
            {"inputs": [{"image": png, "mask": [1, 4]}], "params": {"top_k": 2}},
            {"inputs": [{"image": photo, "mask": [0]}, png], "params": {"output": "embedding"}},
            {"instances": [{"image": pixels.tolist(), "mask": [1]}]},
        ]

    def read(case: Case) -> str | None:
        heads = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        return judged(*client.ask("POST", "/invocations", heads, case.data))

    return Parser([json.dumps(body).encode() for body in bodies], read, "json", pieces=PIECES)


def heads(folder: Path) -> Parser:
    """Methods, paths and headers, with a token and without."""
    model = text_model(folder)
    clients = Client(model, "secret"), Client(model)
    body = b'{"inputs": ["a [MASK]"]}'
    wholes = [b"\n".join((start, *HEADS)) for start in (b"POST /invocations", b"GET /version", b"GET /health")]

    def read(case: Case) -> str | None:
        start, *lines = case.data.split(b"\n")
        method, _, path = start.decode("latin-1").partition(" ")
        pairs = [(name.strip().lower(), value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
        answers = [judged(*client.ask(method, path, pairs, body), path) for client in clients]
        return next((one for one in answers if one), None)

    pieces = (
        b"/",
        b"//",
        b"?",
        b"%00",
        b"..",
        b"\n",
        b": ",
        b"host: evil.example",
        b"host: [::1]:80",
        b"host: 127.1",
        b"Bearer ",
    )
    return Parser(wholes, read, pieces=pieces)


# What lies in a registry


def exported(folder: Path, kind: str, name: str, forged: bool) -> Parser:
    """A registered model's folder with one file damaged; `forged`: digests.json says that it is right.

    Then it has to be refused in words or opened; what such a model answers is its maker's, whose name is on the tag.
    """
    from tasks import serving

    place = text_folder(folder) if kind == "texts" else image_folder(folder)
    whole = (place / name).read_bytes()

    def read(case: Case) -> None:
        (place / name).write_bytes(case.data)
        if forged:
            digested(place)
        model, *_ = serving.opened(place, "a model")
        if not forged and case.data != whole and name != "digests.json":
            raise Silent("a damaged model was served")
        if kind == "texts" and not forged:
            model.answers(model.questions(["a [MASK] text"], {}))

    read(Case(whole))
    return Parser([whole], read, "json" if name.endswith(".json") else "bytes")


def tags(folder: Path) -> Parser:
    """Tags of a version and the report of its gate: anybody who writes to the registry may change them."""
    from tasks.board import Board

    kept = [json.dumps({"tolerance": 0.1, "class_tokens": 1000}), json.dumps({"model": "m", "earlier": [{"a": 1}]})]
    report = folder / "report.json"
    client = SimpleNamespace(
        list_artifacts=lambda run: [SimpleNamespace(path="gate_report.json")],
        download_artifacts=lambda *_: str(report),
        log_text=lambda *_: None,
    )
    board = Board(client, folder, "m")  # type: ignore[arg-type]

    def read(case: Case) -> str | None:
        report.write_bytes(case.data)
        version: Any = SimpleNamespace(
            tags={"rule": case.data.decode("utf-8", "surrogateescape")}, version=1, run="r", name="m"
        )
        board._report(version, {"against": "x"})
        try:
            board.rule(version)
        except DataError:
            return "rejected"
        return None

    return Parser([one.encode() for one in kept], read, "json")


def vocabulary(folder: Path) -> Parser:
    """The tokenizer.json of a vocabulary, opened for text and for prompts."""
    from tasks import tokens

    path = folder / "tokenizer.json"

    def read(case: Case) -> None:
        path.write_bytes(case.data)
        tokens.open_for_text(path)
        tokens.open_for_prompts(path)

    return Parser(small_tokenizers(), read, "json")


def small_tokenizers() -> list[bytes]:
    """One of each model, of a few dozen tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "##d", "text", "the", "ab"]
    numbers = {word: number for number, word in enumerate(words)}
    special = [AddedToken(word, special=True, normalized=False) for word in words[:5]]
    wordpiece = Tokenizer(models.WordPiece(numbers, unk_token="[UNK]"))
    wordpiece.normalizer = normalizers.BertNormalizer()
    wordpiece.pre_tokenizer, wordpiece.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    pair = [("[CLS]", 2), ("[SEP]", 3)]
    wordpiece.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=pair)
    bpe = Tokenizer(models.BPE(numbers | {"Ġ": 12, "Ġa": 13}, [("a", "b"), ("Ġ", "a")]))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    unigram = Tokenizer(models.Unigram([(word, -1.0 - n) for n, word in enumerate([*words, "▁", "▁text"])], 1, False))
    unigram.pre_tokenizer, unigram.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    unigram.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("x", "y")])
    wordlevel = Tokenizer(models.WordLevel(numbers, "[UNK]"))
    wordlevel.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Digits(True)])
    found = []
    for tokenizer in (wordpiece, bpe, unigram, wordlevel):
        tokenizer.add_special_tokens(special)
        found.append(tokenizer.to_str().encode())
    return found


PARSERS: dict[str, Build] = {
    "request": partial(requests, of="texts"),
    "request-image": partial(requests, of="images"),
    "request-heads": heads,
    "tags": tags,
    "vocabulary": vocabulary,
    **{
        f"model-{name}{'-forged' if forged else ''}": partial(exported, kind="texts", name=name, forged=forged)
        for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
        for forged in (False, True)
    },
    "model-digests.json": partial(exported, kind="texts", name="digests.json", forged=False),
    "model-codebook.npy-forged": partial(exported, kind="images", name="codebook.npy", forged=True),
    "model-payload.json-forged": partial(exported, kind="images", name="payload.json", forged=True),
}
