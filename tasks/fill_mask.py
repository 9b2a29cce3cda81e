"""The registered model: fills the masks of a text, or makes a vector of it. MLflow logs this very file, not a pickle.

It stands alone: it must load where the project is not installed, so it imports nothing of it. Nor does it import
transformers, which takes three seconds to come and half of the time of a request (README): the few lines of `Network`
compute what transformers' ModernBERT computes on the same folder, and a test compares the two. Weights come as
safetensors beside `digests.json`; a file that is not what was registered is refused, by name.

    mlflow.pyfunc.load_model("models:/NAME@champion").predict(["A [MASK] text."], params={"top_k": 3})

gives for each text, for each [MASK] in it, the k most probable tokens:

    [[[{"token": " short", "probability": 0.12}, …]]]

With params={"output": "embedding"} each text, with a [MASK] or without, becomes one vector of D numbers.

Suffixes: B texts, L positions, M masked positions, D width, H heads, K width of a head, V vocabulary.
"""

import hashlib
import json
import reprlib
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import safetensors.torch
import torch
import torch.nn.functional as F
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from pydantic import BaseModel
from tokenizers import Tokenizer
from torch import Tensor

DIGESTS = "digests.json"
CONFIG, WEIGHTS = "config.json", "model.safetensors"
TOKENIZER, NAMES = "tokenizer.json", "tokenizer_config.json"
MASK = "[MASK]"
"""What a text may always say, whatever the vocabulary calls it."""
FILL, EMBED = "fill-mask", "embedding"
PARAMETERS = {"top_k": 5, "targets": "", "output": FILL}
"""Parameters of predict with their defaults; targets is a list of words, or one string of words between spaces."""
LONGEST_TEXT = 200_000
"""Characters; a longer text is refused before it is tokenised."""
MOST_MASKS = 1_000
"""In a text."""
MOST_TARGETS = 1_000
"""Words."""
LONGEST_TARGET = 500
"""Characters; no vocabulary has such a token."""
MOST_CANDIDATES = 500_000
"""Masks times top_k in a request: the length of its answer."""
POSITIONS = 4096
"""Positions that pass the encoder at a time."""
SPARE = 32
"""Positions of padding that cost as much as a group of its own."""
LOGITS = 1 << 24
"""Logits at a time: 64 MB."""


class Candidate(BaseModel):
    """One answer. For the signature only: predict returns plain dictionaries of this form."""

    token: str
    probability: float


class Question(NamedTuple):
    """A text that was checked, and what is asked about it."""

    ids: list[int]
    """[CLS] text [SEP]."""
    masks: list[int]
    """Positions to fill; none where an embedding is asked for."""
    top_k: int
    targets: tuple[int, ...]


def refuse(sentence: str) -> MlflowException:
    """An error that says what is wrong with the request; an HTTP server answers it with 400."""
    return MlflowException.invalid_parameter_value(sentence)


class FillMask(PythonModel):
    """Texts in; probable tokens, or vectors, out."""

    def load_context(self, context: PythonModelContext) -> None:
        """What MLflow calls. Raises where a byte of the model differs from what was registered."""
        self.open(Path(context.artifacts["model"]))

    def open(self, folder: Path) -> "FillMask":
        """Checks every file against digests.json, then loads tokenizer and weights from the bytes that were checked."""
        files = check_digests(folder)
        config = json.loads(files[CONFIG])
        self.network = Network(config, safetensors.torch.load(files[WEIGHTS]))
        self.tokenizer = Tokenizer.from_str(files[TOKENIZER].decode())
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.size, self.length = config["vocab_size"], config["max_position_embeddings"]
        named = json.loads(files[NAMES])
        names = [_content(named[f"{role}_token"]) for role in ("cls", "sep", "mask")]
        ids: list[Any] = [self.tokenizer.token_to_id(name) for name in names]
        self.cls_id, self.sep_id, self.mask_id = ids
        self.mask = names[2]
        added = self.tokenizer.get_added_tokens_decoder()
        self.special = {number for number, token in added.items() if token.special}
        return self

    def predict(  # type: ignore[override]
        self, model_input: list[str], params: dict[str, Any] | None = None
    ) -> list[list[list[Candidate]]]:
        """Per text, per mask, the top_k tokens with their probabilities, most probable first.

        With targets, only those words are ranked; each must be one token of the vocabulary. Probabilities are always
        over the whole vocabulary. With output "embedding", per text one list of D numbers instead: the mean of the last
        layer over the text's own tokens. (The signature shows the default output only: MLflow's would else be "any".)
        What else is in the list changes digits behind the fifth only.

        Refused with one sentence: a text without a mask or longer than the context, an unknown or impossible parameter,
        a wrong type.
        """
        return self.answers(self.questions(model_input, params))

    def questions(self, texts: list[str], params: Mapping[str, Any] | None = None) -> list[Question]:
        """The request, checked and tokenised; `answers` takes questions of several requests together."""
        top_k, targets, output = self._parameters(params)
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise refuse("The input must be a list of texts (or a table with a column of them).")
        found = [self._question(text, f"Text {n}", output, top_k, targets) for n, text in enumerate(texts)]
        candidates = sum(len(one.masks) for one in found) * (len(targets) or top_k)
        if candidates > MOST_CANDIDATES:
            raise refuse(
                f"The answer would have {candidates:,} candidates, more than {MOST_CANDIDATES:,}; lower top_k."
            )
        return found

    def answers(self, questions: Sequence[Question]) -> list[Any]:
        """One answer a question, in their order."""
        found: list[Any] = [None] * len(questions)
        with torch.inference_mode():
            masked: list[tuple[int, Tensor]] = []
            for group in groups(questions):
                some = [questions[number] for number in group]
                if some[0].masks:
                    masked += zip(group, self._hidden(some))
                    continue
                for number, answer in zip(group, self._embed(some), strict=True):
                    found[number] = answer
            # One head for all groups: with few rows it takes the time in which its matrix comes from memory.
            for (number, _), answer in zip(masked, self._fill(questions, masked), strict=True):
                found[number] = answer
        return found

    def _parameters(self, params: Mapping[str, Any] | None) -> tuple[int, tuple[int, ...], str]:
        if params is not None and not isinstance(params, Mapping):
            raise refuse(f"The parameters must be given by name; they are {', '.join(PARAMETERS)}.")
        given = PARAMETERS | dict(params or {})
        if unknown := sorted(set(given) - set(PARAMETERS), key=str):
            raise refuse(f"Unknown parameter {reprlib.repr(unknown[0])}; the parameters are {', '.join(PARAMETERS)}.")
        top_k, words, output = given["top_k"], given["targets"], given["output"]
        if isinstance(top_k, bool) or not isinstance(top_k, int) or not 1 <= top_k <= self.size:
            said = f"top_k is {reprlib.repr(top_k)}; it must be a whole number"
            raise refuse(f"{said} from 1 to {self.size}, the size of the vocabulary.")
        if output not in (FILL, EMBED):
            raise refuse(f"output is {reprlib.repr(output)}; it must be {FILL} or {EMBED}.")
        words = words.split() if isinstance(words, str) else words
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise refuse("targets must be a string of words between spaces, or a list of words.")
        if len(words) > MOST_TARGETS:
            raise refuse(f"targets has {len(words):,} words, more than {MOST_TARGETS:,}; give fewer.")
        return top_k, tuple(sorted({self._target(word) for word in words})), output

    def _target(self, word: str) -> int:
        """The id of a word that is one token: with a space before it, as within a text, else without.

        Where the vocabulary drops spaces both are the same; [UNK] and reserved tokens are special, so no target.
        """
        refuse_half_characters(word, "A target")
        for form in (" " + word, word) if len(word) <= LONGEST_TARGET else ():
            ids = self.tokenizer.encode(form, add_special_tokens=False).ids
            if len(ids) == 1 and ids[0] not in self.special:
                return int(ids[0])
        raise refuse(f"The target {reprlib.repr(word)} is not one token of this vocabulary; give words that are.")

    def _question(self, text: str, name: str, output: str, top_k: int, targets: tuple[int, ...]) -> Question:
        if len(text) > LONGEST_TEXT:
            raise refuse(f"{name} has {len(text):,} characters, more than {LONGEST_TEXT:,}; cut it.")
        ids = self._encode(text, name)
        masks = [at for at, token in enumerate(ids) if token == self.mask_id] if output == FILL else []
        if output == FILL and not masks:
            raise refuse(f"{name} holds no {self.mask}; put one where a token is to be filled in.")
        if output == EMBED and len(ids) == 2:
            raise refuse(f"{name} holds no token; an embedding is the mean over a text's tokens.")
        if len(masks) > MOST_MASKS:
            raise refuse(f"{name} has {len(masks):,} masks, more than {MOST_MASKS:,}; ask about fewer at a time.")
        if len(ids) > self.length:
            raise refuse(f"{name} has {len(ids):,} tokens, but the context is {self.length:,} tokens long; cut it.")
        return Question(ids, masks, top_k, targets)

    def _encode(self, text: str, name: str) -> list[int]:
        refuse_half_characters(text, name)
        text = text.replace(MASK, self.mask)  # a vocabulary that was taken over may call it <mask>
        body = self.tokenizer.encode(unicodedata.normalize("NFC", text), add_special_tokens=False).ids
        return [self.cls_id, *body, self.sep_id]

    def _hidden(self, some: Sequence[Question]) -> Sequence[Tensor]:
        """Hidden states (M, D) at the masks of each."""
        at_M = [(number, place) for number, one in enumerate(some) for place in one.masks]
        h_MD = self.network.encode([one.ids for one in some], at_M)
        return torch.split(h_MD, [len(one.masks) for one in some])

    def _fill(self, questions: Sequence[Question], masked: Sequence[tuple[int, Tensor]]) -> Iterator[list[Any]]:
        """The answers to those questions whose hidden states are given, in that order."""
        if not masked:
            return
        h_MD = torch.cat([h for _, h in masked])
        wishes = [(questions[at].top_k, questions[at].targets) for at, h in masked for _ in h]
        ranked: list[Any] = []
        for start in range(0, len(wishes), step := max(1, LOGITS // self.size)):
            p_MV = self.network.head(h_MD[start : start + step]).softmax(dim=-1)
            ranked += self._rank(p_MV, wishes[start : start + step])
        rest = iter(ranked)
        for _, h in masked:
            yield [next(rest) for _ in h]

    def _rank(self, p_MV: Tensor, wanted: Sequence[tuple[int, tuple[int, ...]]]) -> list[Any]:
        """The best tokens of each row; rows with the same wishes together. Equal ones by their number."""
        found: list[Any] = [None] * len(wanted)
        for top_k, targets in dict.fromkeys(wanted):
            rows = [row for row, wish in enumerate(wanted) if wish == (top_k, targets)]
            p = p_MV if len(rows) == len(wanted) else p_MV[rows]
            p = p[:, list(targets)] if targets else p
            best = p.topk(min(top_k, p.shape[1]))
            for row, values, places in zip(rows, best.values.tolist(), best.indices.tolist(), strict=True):
                order = sorted(zip(values, places), key=lambda it: (-it[0], it[1]))
                found[row] = [
                    {"token": self._text(targets[place] if targets else place), "probability": value}
                    for value, place in order
                ]
        return found

    def _text(self, token: int) -> str:
        """The token as it reads in a text, with the space before it where it has one."""
        return str(self.tokenizer.decode([token], skip_special_tokens=False))

    def _embed(self, some: Sequence[Question]) -> list[list[float]]:
        """Means over the text's own tokens: [CLS], [SEP] and padding say nothing of it."""
        h_BLD = self.network.encode([one.ids for one in some])
        means = [h_LD[1 : len(one.ids) - 1].mean(dim=0) for one, h_LD in zip(some, h_BLD, strict=True)]
        return [mean.tolist() for mean in means]


class Network:
    """ModernBERT (Warner et al. 2024, arXiv 2412.13663) without dropout, in float32, from its stock state dict.

    (2) H_L = f(H_0), (3) H' = h at 𝓜, (4) Ĥ = g(H'): what stands after the last attention is computed at 𝓜 only.
    """

    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        if config.get("model_type") != "modernbert":
            raise refuse(f"{CONFIG} of the registered model is of type {config.get('model_type')!r}, not modernbert.")
        self.heads, self.eps, self.window = config["num_attention_heads"], config["norm_eps"], config["local_attention"]
        # x W with W as it lies in memory: 1.4 times as fast as x Wᵀ at 20 positions, twice at one
        flat = {name.removesuffix(".weight"): _turned(name, tensor) for name, tensor in weights.items()}
        self.embedding = flat["model.embeddings.tok_embeddings"]
        self.first_norm, self.final_norm = flat["model.embeddings.norm"], flat["model.final_norm"]
        self.dense, self.head_norm, self.bias = flat["head.dense"], flat["head.norm"], flat["decoder.bias"]
        parts = ("attn.Wqkv", "attn.Wo", "mlp_norm", "mlp.Wi", "mlp.Wo")
        self.layers = [
            (kind, flat.get(f"{at}.attn_norm"), [flat[f"{at}.{part}"] for part in parts])  # the first has no attn_norm
            for at, kind in ((f"model.layers.{number}", kind) for number, kind in enumerate(config["layer_types"]))
        ]
        width = config["hidden_size"] // self.heads
        positions = torch.arange(config["max_position_embeddings"], dtype=torch.float32)
        exponents = torch.arange(0, width, 2, dtype=torch.float32) / width
        self.turns = {}
        for kind, rope in config["rope_parameters"].items():
            angles = positions[:, None] * (1.0 / rope["rope_theta"] ** exponents)
            cos, sin = angles.cos(), angles.sin()
            self.turns[kind] = torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)

    def encode(self, texts: Sequence[Sequence[int]], at_M: Sequence[tuple[int, int]] | None = None) -> Tensor:
        """Hidden states (B, L, D); with places (text, position) those only (M, D)."""
        length = max(map(len, texts))
        tokens_BL = torch.tensor([[*ids, *[0] * (length - len(ids))] for ids in texts])
        seen = self._seen([len(ids) for ids in texts], length)
        flat_M = None if at_M is None else torch.tensor([text * length + place for text, place in at_M])
        h = self._norm(F.embedding(tokens_BL, self.embedding), self.first_norm)
        for number, (kind, attn_norm, (qkv, attn_out, mlp_norm, into, out)) in enumerate(self.layers):
            x = h if attn_norm is None else self._norm(h, attn_norm)
            mixed = self._attend(x @ qkv, self.turns[kind], seen[kind])
            if flat_M is not None and number == len(self.layers) - 1:
                h, mixed = h.flatten(0, 1)[flat_M], mixed.flatten(0, 1)[flat_M]
            h = h + mixed @ attn_out
            gate, up = (self._norm(h, mlp_norm) @ into).chunk(2, dim=-1)
            h = h + (F.gelu(gate) * up) @ out
        return self._norm(h, self.final_norm)

    def head(self, h_MD: Tensor) -> Tensor:
        """Logits (M, V)."""
        return F.linear(self._norm(F.gelu(h_MD @ self.dense), self.head_norm), self.embedding, self.bias)

    def _norm(self, h: Tensor, weight: Tensor) -> Tensor:
        return F.layer_norm(h, weight.shape, weight, None, self.eps)

    def _attend(self, qkv_BLX: Tensor, turn: tuple[Tensor, Tensor], seen: Tensor | None) -> Tensor:
        texts, length, _ = qkv_BLX.shape
        query, key, value = qkv_BLX.view(texts, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        cos, sin = (part[:length] for part in turn)
        half = query.shape[-1] // 2
        query, key = (x * cos + x.roll(half, dims=-1) * sin for x in (query, key))
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        return mixed.transpose(1, 2).flatten(2)

    def _seen(self, lengths: Sequence[int], length: int) -> dict[str, Tensor | None]:
        """Which positions see which, by kind of layer; None is all. A position sees itself, also in the padding:
        a row of nothing would be NaN, and NaN times zero is NaN."""
        places = torch.arange(length)
        near = (places[:, None] - places).abs() <= self.window // 2 if length > self.window // 2 + 1 else None
        if min(lengths) == length:
            return {"full_attention": None, "sliding_attention": near}
        filled = (places < torch.tensor(lengths)[:, None])[:, None, None, :] | torch.eye(length, dtype=torch.bool)
        return {"full_attention": filled, "sliding_attention": filled if near is None else filled & near}


def _turned(name: str, tensor: Tensor) -> Tensor:
    """Matrices of products the other way round; the embedding is looked up in rows, and twice would be too much."""
    return tensor if tensor.ndim < 2 or "embeddings" in name else tensor.t().contiguous()


def _content(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)


def groups(questions: Sequence[Question]) -> Iterator[list[int]]:
    """Numbers of questions of one kind and of like length: of a group's positions SPARE or an eighth may be padding."""
    lengths = [len(one.ids) for one in questions]
    group: list[int] = []
    filled = 0
    for number in sorted(range(len(lengths)), key=lambda n: (not questions[n].masks, lengths[n])):
        positions = lengths[number] * (len(group) + 1)
        padding = positions - filled - lengths[number]
        if group and (
            bool(questions[number].masks) != bool(questions[group[0]].masks)
            or padding > max(SPARE, positions // 8)
            or positions > POSITIONS
        ):
            yield group
            group, filled = [], 0
        group.append(number)
        filled += lengths[number]
    if group:
        yield group


def refuse_half_characters(text: str, name: str) -> None:
    """Refuses a text with half of a surrogate pair, which has no encoding."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise refuse(
            f"{name} has half of a surrogate pair at character {error.start}; give whole characters."
        ) from None


def check_digests(folder: Path) -> dict[str, bytes]:
    """The files named in digests.json, with the sha256 they have there; names the first that differs or is missing."""
    files = {}
    for name, expected in json.loads((folder / DIGESTS).read_bytes())["sha256"].items():
        if not (folder / name).is_file():
            raise refuse(f"{name} of the registered model is missing.")
        files[name] = (folder / name).read_bytes()
        found = hashlib.sha256(files[name]).hexdigest()
        if found != expected:
            raise refuse(f"{name} is not the file that was registered: sha256 {found[:12]}…, not {expected[:12]}…")
    if unnamed := [name for name in (CONFIG, WEIGHTS, TOKENIZER, NAMES) if name not in files]:
        raise refuse(f"{DIGESTS} of the registered model does not name {unnamed[0]}.")
    return files


mlflow.models.set_model(FillMask())
