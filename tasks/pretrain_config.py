"""The settings of pretrain: the model, how it is trained, on what; checked when a recipe is read."""

import re
from dataclasses import asdict, dataclass, field

from .errors import UsageError
from .guards import GuardsConfig
from .hardware import device_count, thread_count
from .pace import BatchWarmup, Lengths, Pace, check_row
from .rates import MaskRates
from .sizes import dimensions

NOT_IDENTITY = {"checkpoint_every", "devices", "nodes", "rendezvous", "restarts", "rank_timeout"}
"""Settings that cannot change the bytes, or that a run may change between two starts: a checkpoint holds the whole
state, so it is no matter when one is taken."""


INPUTS = ("tokens", "payload")


@dataclass(frozen=True)
class BesideConfig:
    """A second modality, where the recipe has one `beside` the first: it goes through the same blocks."""

    batch_tokens: int = 0
    """Positions of its rows in a step, beside those of the first modality; 0 without a second one."""
    input: str = "payload"
    """What the model sees of its tokens: their ids (tokens), or the bytes that go along with them (payload)."""
    target: str = "tokens"
    """What it is asked for where one is hidden."""
    alone: bool = False
    """Whether each modality is trained alone, too, in as many steps of its own rows, for the report to compare."""

    def __post_init__(self) -> None:
        for name in ("input", "target"):
            if getattr(self, name) not in INPUTS:
                raise UsageError(f"pretrain.beside.{name} is {getattr(self, name)!r}; use {' or '.join(INPUTS)}.")
        if self.batch_tokens < 0:
            raise UsageError(f"pretrain.beside.batch_tokens is {self.batch_tokens}; use 0 or more.")


@dataclass(frozen=True)
class PretrainConfig:
    """The model, how it is trained, and on what."""

    input: str = "tokens"
    """What the model sees of a token: its id (tokens), or the bytes that the shards carry with it (payload)."""
    target: str = "tokens"
    """What it is asked for where one is hidden: its id, or these bytes."""
    beside: BesideConfig = field(default_factory=BesideConfig)
    """The second modality of a mixed recipe; by default none."""
    size: str = "mini"
    """tiny 2x128, mini 4x128, small 6x256, medium 8x512, base-12 12x768, base 22x768, large 28x1024. Each dimension
    that is 0 is that of the size."""
    layers: int = 0
    """Blocks of the encoder."""
    width: int = 0
    """Width of the residual stream; a multiple of 2 * heads."""
    heads: int = 0
    """Attention heads."""
    intermediate: int = 0
    """Width inside the GeGLU."""
    global_every: int = 3
    """Every n-th layer attends to the whole segment, the others to a window."""
    window: int = 128
    """Width of the local layers' window, in tokens."""
    rope_global: float = 160_000.0
    """Base of the rotary frequencies in global layers."""
    rope_local: float = 10_000.0
    """Base of the rotary frequencies in local layers."""
    norm_eps: float = 1e-5
    """Added to the variance in every norm."""
    dropout: float = 0.0
    """Share of the numbers that are zeroed after the embedding, in attention and in the GeGLU; none helps here."""
    isolate: bool = True
    """Documents in a packed row do not attend to each other."""
    optimizer: str = "muon"
    """"muon" (hidden matrices; AdamW on the rest) or "adamw"."""
    matrix_learning_rate: float = 0.02
    """Muon's learning rate; unused with adamw."""
    matrix_adjustment: str = "original"
    """How Muon's rate follows a matrix's shape: original, times sqrt(max(1, rows / columns)); or match_rms_adamw, times
    0.2 sqrt(max(rows, columns)), so that AdamW's rates fit."""
    learning_rate: float = 3e-3
    """AdamW's learning rate."""
    momentum: float = 0.95
    """Muon's, Nesterov's form."""
    beta1: float = 0.9
    """Decay of AdamW's first moment."""
    beta2: float = 0.95
    """Decay of AdamW's second moment."""
    weight_decay: float = 0.01
    """Decoupled, on matrices only."""
    schedule: str = "wsd"
    """Of the learning rates: wsd (warm-up, stable, 1 - sqrt decay), cosine or linear."""
    warmup: float = 0.05
    """Share of the budget in which the learning rates rise."""
    decay: float = 0.3
    """Share of the budget in which they fall, with wsd."""
    clip: float = 1.0
    """Largest gradient norm; larger ones are scaled down to it."""
    batch_tokens: int = 4096
    """Positions of an optimiser step, rows times their length, whatever the number of devices."""
    micro_tokens: int = 0
    """Positions at a time on a device; 0 takes all at once, on a CUDA device as many as fit. The same gradient."""
    batch_warmup: BatchWarmup = field(default_factory=BatchWarmup)
    """Small batches to begin with; by default none."""
    mask_rates: MaskRates = field(default_factory=MaskRates)
    """The mask rate over the run; by default that of the shards all along."""
    lengths: Lengths = field(default_factory=Lengths)
    """Shorter rows to begin with; by default all rows are those of the shards."""
    fork: str = ""
    """A pretrain artifact whose stable checkpoint this run goes on from: the beginning of its key, or its folder; and
    @STEP, where it is not the last one. The run stays at the full learning rate, then decays; its budget is that of
    both together."""
    tokens: int = 2_400_000
    """Budget in ordinary tokens, rounded up to whole steps."""
    steps: int = 0
    """Budget in steps; takes the place of `tokens` where it is not 0."""
    minutes: float = 0.0
    """Budget in minutes, turned into steps once, by measuring; takes the place of both where it is not 0."""
    stable_checkpoints: int = 0
    """Checkpoints of the stable phase that are published with the model, for forks; the last one just before the decay.
    Each is as large as weights and optimizer state."""
    checkpoint_every: int = 100
    """Steps between two checkpoints: what a kill can cost at most."""
    validation_every: int = 200
    """Steps between two looks at the validation split; the last step always has one."""
    validation_rows: int = 512
    """Rows of the validation split that a look takes at most."""
    log_every: int = 10
    """Steps between two points of the curve."""
    guards: GuardsConfig = field(default_factory=GuardsConfig)
    """What counts as a step that went wrong, and what is done then."""
    seed: int = 0
    """Of the initial weights and of the sample order; the masks have the shards' own."""
    device: str = "auto"
    """auto, cpu or cuda."""
    devices: str = "auto"
    """Ranks on this machine: a number, or auto for all CUDA devices, one on CPUs."""
    nodes: str = "1"
    """Machines, such as 2; or 2:4 for as many of these as there are. On the others: maskmill join."""
    rendezvous: str = ""
    """host:port of the first machine, where there are several."""
    dtype: str = "auto"
    """auto, bfloat16 or float32: type of the matrix products. Weights and sums stay float32."""
    threads: int = 0
    """CPU threads of a rank; 0 shares the cores that this process may use out among the ranks of this machine. Part of
    the identity, since sums are split by thread: 0 counts there as all these cores, however many devices there are, so
    that a run goes on where that number changes. For the same key on another machine, write a number."""
    compile: str = "auto"
    """torch.compile: on, off, or auto, which measures where the run is long enough to pay for it."""
    recompute: bool = False
    """Activations are computed again in the backward pass: less memory, a third more work."""
    parallel: str = "ddp"
    """How several ranks share the model: ddp, each has all of it; fsdp, each a part (FSDP2), for large models."""
    reduction: str = "fast"
    """fast; or exact: the same bits for every number of ranks that divides logical_shards, one thread a rank."""
    logical_shards: int = 8
    """With reduction exact: parts of a step with a gradient of their own, added in order."""
    restarts: int = 3
    """How often all ranks are started again because one was lost."""
    rank_timeout: float = 300.0
    """Seconds without a word after which a rank counts as lost."""

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_choices()
        dimensions(self.size, asdict(self))
        if not self.minutes:
            Pace.of(asdict(self))
        if self.reduction == "exact":
            self._check_exact()
        if self.fork:
            Pace.of(asdict(self) | ({"steps": 1} if self.minutes else {})).check_fork()

    def _check_numbers(self) -> None:
        counts = ("global_every", "window", "log_every", "checkpoint_every", "validation_every", "validation_rows")
        for name in (*counts, "batch_tokens", "logical_shards"):
            if getattr(self, name) < 1:
                raise UsageError(f"pretrain.{name} is {getattr(self, name)}; use at least 1.")
        for name in ("micro_tokens", "minutes", "stable_checkpoints", "restarts", "weight_decay", "threads", "seed"):
            if not 0 <= getattr(self, name) < 2**63:
                raise UsageError(f"pretrain.{name} is {getattr(self, name)}; use 0 or more.")
        for name in ("rope_global", "rope_local"):
            if not 1 < getattr(self, name) < float("inf"):
                raise UsageError(f"pretrain.{name} is {getattr(self, name)}; use a number above 1, 10000 is usual.")
        for name in ("clip", "learning_rate", "matrix_learning_rate", "norm_eps"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UsageError(f"pretrain.{name} is {getattr(self, name)}; use a positive number.")
        for name in ("momentum", "beta1", "beta2", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"pretrain.{name} is {getattr(self, name)}; use 0 or more, and less than 1.")
        if not 1 <= self.rank_timeout <= 1e6:
            raise UsageError(f"pretrain.rank_timeout is {self.rank_timeout}; use 1 to 1000000 seconds, 300 is usual.")
        if self.stable_checkpoints and self.schedule != "wsd":
            raise UsageError(
                f"pretrain.stable_checkpoints is {self.stable_checkpoints}, and pretrain.schedule {self.schedule} has "
                "no stable phase; use wsd, or 0 of them."
            )

    def _check_choices(self) -> None:
        for name, known in (
            ("input", INPUTS),
            ("target", INPUTS),
            ("optimizer", ("muon", "adamw")),
            ("matrix_adjustment", ("original", "match_rms_adamw")),
            ("compile", ("auto", "on", "off")),
            ("parallel", ("ddp", "fsdp")),
            ("reduction", ("fast", "exact")),
        ):
            if getattr(self, name) not in known:
                raise UsageError(f"pretrain.{name} is {getattr(self, name)!r}; use {' or '.join(known)}.")
        if self.devices != "auto" and not re.fullmatch(r"[1-9]\d{0,3}", self.devices):
            raise UsageError(f"pretrain.devices is {self.devices!r}; use auto, or how many ranks this machine has.")
        if not re.fullmatch(r"[1-9]\d{0,3}(:[1-9]\d{0,3})?", self.nodes):
            raise UsageError(f"pretrain.nodes is {self.nodes!r}; use a number of machines, or a range such as 2:4.")
        low, _, high = self.nodes.partition(":")
        if high and int(high) < int(low):
            raise UsageError(f"pretrain.nodes is {self.nodes!r}; in a range the smaller number comes first.")
        if self.nodes != "1" and not re.fullmatch(r"\S+:\d{1,5}", self.rendezvous):
            raise UsageError(
                f"pretrain.rendezvous is {self.rendezvous!r}; with pretrain.nodes {self.nodes} use host:port of the "
                "first machine, a port that is free there."
            )

    def _check_exact(self) -> None:
        for wrong, remedy in (
            (self.compile == "on", "pretrain.compile: off, since compiled code sums in an order of its own"),
            (self.parallel != "ddp", "pretrain.parallel: ddp"),
            (self.threads > 1, "pretrain.threads: 1"),
            (self.micro_tokens, "pretrain.micro_tokens: 0, since each logical shard is a micro-batch"),
        ):
            if wrong:
                raise UsageError(f"pretrain.reduction is exact, which needs {remedy}.")
        if self.devices != "auto" and ":" not in self.nodes:
            ranks = int(self.nodes) * int(self.devices)
            if self.logical_shards % ranks:
                raise UsageError(
                    f"pretrain.logical_shards is {self.logical_shards}, and there are {ranks} ranks; use a number of "
                    "ranks that divides it (pretrain.devices, pretrain.nodes)."
                )

    def check(self, length: int) -> None:
        """Raises UsageError for what does not fit shards with rows of `length`; can be asked before these are made."""
        budget = {"steps": 1} if self.minutes else {}
        Pace.of(asdict(self) | budget).check(length)
        lengths = (*self.lengths.lengths, length)
        if self.micro_tokens:
            check_row("micro_tokens", self.micro_tokens, length)
        if self.reduction == "exact":
            if 0 < (least := self.batch_warmup.start) < self.logical_shards * lengths[0]:
                raise UsageError(
                    f"pretrain.batch_warmup.start is {least}, and with pretrain.reduction exact each of the "
                    f"{self.logical_shards} logical shards takes a row of {lengths[0]}; use "
                    f"{self.logical_shards * lengths[0]} or more."
                )
            for one in lengths:
                rows = self.batch_tokens // one
                if rows % self.logical_shards:
                    raise UsageError(
                        f"pretrain.logical_shards is {self.logical_shards}, and a step has {rows} rows of {one}; use a "
                        "number that divides them, so that all shards have one shape."
                    )

    def threads_of(self, device: str, ranks: int) -> int:
        """CPU threads of each of the ranks on this machine; for a CUDA device they are no matter."""
        if device == "cuda" or self.reduction == "exact":
            return 1
        return self.threads or max(1, thread_count() // ranks)

    def ranks_here(self, device: str) -> int:
        """Ranks on this machine, for cpu or cuda."""
        if self.devices != "auto":
            return int(self.devices)
        return max(1, device_count()) if device == "cuda" else 1

    def several(self, device: str) -> bool:
        """Does torchrun start the training?"""
        return self.nodes != "1" or self.ranks_here(device) > 1


def fork_parts(fork: str) -> tuple[str, int]:
    """("1f2e", 700) of "1f2e@700": which artifact, and after how many steps; 0 for its last stable checkpoint."""
    name, at, step = fork.rpartition("@")
    return (name, int(step)) if at and step.isdecimal() and len(step) < 19 else (fork, 0)
