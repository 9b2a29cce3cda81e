"""Models of other makers, as transformers saves them."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer

from tests.tasks import other_tokenizers

NAMES = {
    "bert": {"unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]", "mask": "[MASK]"},
    "roberta": {"unk": "<unk>", "cls": "<s>", "sep": "</s>", "pad": "<pad>", "mask": "<mask>"},
    "albert": {"unk": "<unk>", "cls": "[CLS]", "sep": "[SEP]", "pad": "<pad>", "mask": "[MASK]"},
}
"""Layout -> its special tokens."""


def saved(folder: Path, layout: str) -> Path:
    """The folder of a small model with random weights, and of a tokenizer in the layout of a well-known one."""
    import transformers

    other_tokenizers.saved(folder, layout)
    named = {f"{role}_token": name for role, name in NAMES[layout].items()}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 48, **named}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    sizes = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
        "pad_token_id": tokenizer.token_to_id(NAMES[layout]["pad"]),
        "initializer_range": 0.3,
    }
    if layout == "albert":
        sizes["embedding_size"] = 16
    kind = {"bert": "Bert", "roberta": "Roberta", "albert": "Albert"}[layout]
    config = getattr(transformers, f"{kind}Config")(**sizes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        getattr(transformers, f"{kind}ForMaskedLM")(config).save_pretrained(folder)
    return folder
