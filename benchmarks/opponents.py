"""The opponents, at their best: stock transformers models in plain torch loops.

    bert        BertForMaskedLM as run_mlm.py trains it: documents end to end in blocks of L, 15 % with 80/10/10
                (DataCollatorForLanguageModeling), logits at all positions, AdamW (fused, 5e-5, no decay), gradients
                clipped at 1, dropout 0.1, 8 blocks a step, float32
    modernbert  ModernBertForMaskedLM on the same blocks, and whatever its user can set

All favours go to them: blocks lie in memory and are masked off the clock, nobody pays for a Trainer, a log or an
`.item()`, the optimizer is the fused one, gradients are set to None, and a batch has no attention mask, for it has no
padding. The stock ModernBERT has our very shape, BERT's mlp the width that makes its parameters as many.

Suffixes: B rows, L positions, M masked positions, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from trial import Data, Shape

from tasks import scoring
from tasks.encoder import Segments


@dataclass(frozen=True)
class Settings:
    """How an opponent is trained; the defaults are run_mlm.py's."""

    kind: str = "bert"
    """bert or modernbert."""
    dtype: str = "float32"
    """float32, or bfloat16: autocast, weights and sums in float32."""
    rows: int = 8
    """Blocks of a step; 0 takes the shape's."""
    micro: int = 0
    """Blocks at a time; 0 takes the whole step."""
    compile: str = ""
    """Nothing, "whole" (the model with head and loss) or "encoder"."""
    sparse: bool = False
    """ModernBERT's sparse_prediction."""
    attention: str = "sdpa"
    """sdpa or eager."""
    dropout: float = 0.1
    """BERT's two dropouts."""
    global_every: int = 3
    """Of ModernBERT's layers; with 1 no layer has a window, and none needs a mask."""
    mask_rate: float = 0.15
    all_mask: bool = False
    """[MASK] at every hidden place instead of 80/10/10."""
    rate: float = 5e-5
    """Highest learning rate."""
    beta2: float = 0.999
    eps: float = 1e-8
    decay: float = 0.0
    """Decoupled weight decay."""
    warmup: float = 0.0
    """Share of the budget in which the learning rate rises; then it falls linearly to 0."""

    def __post_init__(self) -> None:
        allowed = {"kind": ("bert", "modernbert"), "dtype": ("float32", "bfloat16")}
        allowed |= {"compile": ("", "whole", "encoder"), "attention": ("sdpa", "eager")}
        for key, values in allowed.items():
            if getattr(self, key) not in values:
                raise SystemExit(f"{key} is {getattr(self, key)!r}; use one of {', '.join(map(repr, values))}.")

    def multiplier(self, share: float) -> float:
        """Of the learning rate, after a share of the budget: linear, as get_linear_schedule_with_warmup."""
        if share < self.warmup:
            return share / self.warmup
        return max(0.0, (1 - share) / (1 - self.warmup))


def modernbert(shape: Shape, data: Data, settings: Settings) -> nn.Module:
    """The stock model in our shape, with transformers' own initial weights and defaults."""
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    sizes = {"vocab_size": shape.vocabulary, "hidden_size": shape.width, "intermediate_size": shape.intermediate}
    sizes |= {"num_hidden_layers": shape.layers, "num_attention_heads": shape.heads}
    special = {f"{name}_token_id": data.special_ids[name] for name in ("pad", "cls", "sep")}
    ends = {"bos_token_id": special["cls_token_id"], "eos_token_id": special["sep_token_id"]}
    config = ModernBertConfig(
        **sizes,
        **special,
        **ends,
        max_position_embeddings=shape.length,
        global_attn_every_n_layers=settings.global_every,
        sparse_prediction=settings.sparse,
        attn_implementation=settings.attention,
    )
    return ModernBertForMaskedLM(config)


def bert(shape: Shape, data: Data, settings: Settings) -> nn.Module:
    """BERT with as many parameters."""
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.bert_intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=shape.length,
        hidden_dropout_prob=settings.dropout,
        attention_probs_dropout_prob=settings.dropout,
        pad_token_id=data.special_ids["pad"],
        attn_implementation=settings.attention,
    )
    return BertForMaskedLM(config)


class Opponent:
    """A stock model, its optimizer and its endless stream of masked blocks."""

    def __init__(self, shape: Shape, data: Data, settings: Settings, seed: int = 0) -> None:
        from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

        torch.manual_seed(seed)  # of the weights and of dropout
        self.settings, self.rows = settings, settings.rows or shape.rows
        self.model: nn.Module = (bert if settings.kind == "bert" else modernbert)(shape, data, settings).train()
        self.parameters = list(self.model.parameters())
        self.forward: Callable[..., Any] = self.model
        if settings.compile == "whole":
            self.forward = torch.compile(self.model)
        elif settings.compile == "encoder":
            getattr(self.model, self.model.base_model_prefix).compile()
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=settings.rate,
            betas=(0.9, settings.beta2),
            eps=settings.eps,
            weight_decay=settings.decay,
            fused=True,
        )
        hidden = {"mask_replace_prob": 1.0, "random_replace_prob": 0.0} if settings.all_mask else {}
        tokenizer = PreTrainedTokenizerFast.from_pretrained(data.vocabulary.folder)
        self.collator = DataCollatorForLanguageModeling(
            tokenizer, mlm_probability=settings.mask_rate, seed=seed, **hidden
        )
        self.collator.generator = torch.Generator().manual_seed(seed)
        self.special = torch.tensor([data.special_ids[name] for name in ("pad", "cls", "sep", "mask")])
        self.blocks_NL, self.order = data.blocks_NL, torch.Generator().manual_seed(seed)
        self._queue: list[int] = []
        self._next: list[tuple[Tensor, Tensor, int, int]] = []

    def prepare(self, steps: int = 1) -> None:
        """Masks the blocks of the coming steps: off the clock."""
        while len(self._next) < steps:
            while len(self._queue) < self.rows:
                self._queue += torch.randperm(len(self.blocks_NL), generator=self.order).tolist()
            taken, self._queue = self._queue[: self.rows], self._queue[self.rows :]
            clean_BL = torch.from_numpy(self.blocks_NL[np.sort(taken)].astype(np.int64))
            special_BL = torch.isin(clean_BL, self.special)
            tokens_BL, labels_BL = self.collator.torch_mask_tokens(clean_BL.clone(), special_BL)
            counts = int((~special_BL).sum()), int((labels_BL != -100).sum())
            self._next.append((tokens_BL, labels_BL, *counts))

    def step(self, share: float = 0.0) -> int:
        """One step at a share of the budget; returns the ordinary tokens that it took."""
        self.prepare()
        tokens_BL, labels_BL, tokens, masked = self._next.pop(0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.rate * self.settings.multiplier(share)
        self.optimizer.zero_grad(set_to_none=True)
        for at in range(0, self.rows, self.settings.micro or self.rows):
            part = slice(at, at + (self.settings.micro or self.rows))
            with torch.autocast("cpu", torch.bfloat16, enabled=self.settings.dtype == "bfloat16"):
                loss = self.forward(input_ids=tokens_BL[part], labels=labels_BL[part]).loss
            if self.settings.micro:  # the mean over the whole step, as num_items_in_batch makes it
                loss = loss * ((labels_BL[part] != -100).sum() / masked)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        return tokens

    def scorers(self) -> dict[str, scoring.Scorer]:
        """Two ways to ask: segments kept apart, as ours are, and whole rows, one text after the other, as in training.

        Whichever suits the model counts: nobody is judged by a layout that it did not learn.
        """
        return {
            "apart": lambda tokens_BL, ids_BL, masked_M: self._logits(tokens_BL, ids_BL, masked_M, True),
            "whole": lambda tokens_BL, ids_BL, masked_M: self._logits(tokens_BL, ids_BL, masked_M, False),
        }

    def _logits(self, tokens_BL: Tensor, segment_ids_BL: Tensor, masked_M: Tensor, apart: bool) -> Tensor:
        segments = Segments.from_ids(segment_ids_BL, 128)
        seen: Any = (segment_ids_BL >= 0).long()
        places = None
        stock = self.settings.kind == "modernbert"
        if apart:
            places = segments.positions_BL
            everywhere, window = (
                torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
                for mask in (segments.mask_B1LL(True), segments.mask_B1LL(False))
            )
            seen = {"full_attention": everywhere, "sliding_attention": window} if stock else everywhere
        model: Any = self.model
        h_BLD = getattr(model, model.base_model_prefix)(tokens_BL, attention_mask=seen, position_ids=places)[0]
        h_MD = h_BLD.flatten(0, 1).index_select(0, masked_M)
        logits_MV: Tensor = model.decoder(model.head(h_MD)) if stock else model.cls(h_MD)
        return logits_MV
