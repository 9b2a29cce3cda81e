"""`maskmill profile`, up to the training process. python -m pytest tests/flows/test_speed.py"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows import cli, recipes, speed
from tasks import pretrain
from tasks.artifacts import Store
from tasks.errors import NumericError, UsageError

runner = CliRunner()

FOUND = {
    "steps": 20,
    "device": "cpu",
    "dtype": "bfloat16",
    "threads": 1,
    "ranks": 1,
    "parameters": 1_201_408,
    "step_seconds": 0.32,
    "waiting_for_core_share": 0.0,
    "tokens_per_second": 12_310.0,
    "positions": {"per_step": 4096, "masked": 1148, "tokens": 0.962, "specials": 0.032, "padding": 0.006},
    "shares": {
        "data": 0.002,
        "forward": 0.518,
        "backward": 0.411,
        "communication": 0.0,
        "optimizer": 0.067,
        "other": 0.002,
    },
    "flops": {"blocks": 18 * 10**9, "attention": 10**9, "head": 2 * 10**9, "total": 21 * 10**9},
    "matmul_peak_flops": 2.2e11,
    "mfu": 0.298,
    "products": {"share": 0.596, "at_best_seconds": 0.127, "at_best_share": 0.397},
    "fixed_share": 0.085,
    "peak_memory_bytes": 670_000_000,
    "bound_by": "memory",
    "why": "the matrix products alone would take 40% of a step; the rest moves numbers",
    "advice": ["pretrain.compile: on, which joins [small] operations", "pretrain.micro_tokens: 1024"],
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith(("PREFECT_", "MASKMILL_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MASKMILL_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(cli.environment, "settle", lambda home: None)
    return tmp_path / "home"


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    (tmp_path / "texts").mkdir()
    for number in range(60):
        words = " ".join(f"word{(number * 7 + place) % 90} of a text number {place}" for place in range(40))
        (tmp_path / "texts" / f"{number}.txt").write_text(f"{words}. It ends here, as the {number}th does.")
    return tmp_path / "texts"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the training process was asked for; it answers FOUND."""
    seen: list[Any] = []

    def profile(*arguments: Any) -> dict[str, Any]:
        seen.append(arguments)
        return FOUND

    monkeypatch.setattr(pretrain, "profile", profile, raising=False)
    return seen


def test_the_stages_before_training_are_made_once_and_training_gets_them(
    texts: Path, calls: list[Any], home: Path
) -> None:
    command = ["profile", "tiny", "--source", str(texts), "--steps", "7", "--set", "pretrain.width=16"]
    first, second = (
        runner.invoke(cli.terminal.app, [*command, "--json"]),
        runner.invoke(cli.terminal.app, [*command, "--json"]),
    )
    assert first.exit_code == second.exit_code == 0, first.output
    assert json.loads(first.stdout) == FOUND
    for stage in ("corpus", "vocabulary", "shards"):
        assert f"{stage:<10}  made in" in first.stderr and f"{stage:<10}  reused in" in second.stderr
    config, words, rows, store, steps, shorter, beside = calls[0]
    assert (config.width, words.stage, rows.stage, steps) == (16, "vocabulary", "shards", 7) and not shorter + beside
    assert words.digest == calls[1][1].digest and rows.digest == calls[1][2].digest
    assert sorted(path.name for path in store.root.iterdir() if store.folders(path.name)) == [
        "corpus",
        "shards",
        "vocabulary",
    ]
    assert not (home / "prefect").exists() and "prefect" not in first.stderr


def test_an_error_of_the_training_process_keeps_its_exit_status(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise NumericError("pretrain: step 3 has loss nan; lower pretrain.learning_rate.")

    monkeypatch.setattr(pretrain, "profile", fail, raising=False)
    result = runner.invoke(cli.terminal.app, ["profile", "tiny", "--source", str(texts)])
    assert result.exit_code == 78 and "Error: pretrain: step 3 has loss nan" in result.stderr


def test_fewer_steps_than_one_are_refused(tmp_path: Path, texts: Path) -> None:
    with pytest.raises(UsageError, match="--steps is 0"):
        speed.profile(recipes.load("tiny", [str(texts)]), Store(tmp_path / "store"), 0)


def test_the_page_says_what_a_newcomer_asks_in_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    speed.show(FOUND)
    page = capsys.readouterr().out
    table, _, words = page.partition("Bound by")
    assert max(map(len, page.splitlines())) <= 80
    places = [table.index(f"\n{part}") for part in speed.PARTS if part in FOUND["shares"]]  # type: ignore[operator]
    assert places == sorted(places)
    for part in (
        *FOUND["shares"],
        "320.0 ms",
        "12,310",
        "96.2% text",
        "21.0 GFLOP",
        "220.0 GFLOP/s",
        "29.8%",
        "0.67 GB",
    ):  # type: ignore[misc]
        assert part in table, part
    assert words.splitlines()[0].strip().startswith("memory: moving numbers")
    assert "Change first  pretrain.compile: on, which joins [small] operations" in words
    assert "Then          pretrain.micro_tokens: 1024" in words and "Careful" not in page


def test_the_page_says_that_others_had_the_cores(capsys: pytest.CaptureFixture[str]) -> None:
    speed.show(FOUND | {"waiting_for_core_share": 0.32})
    page = " ".join(capsys.readouterr().out.split())
    assert "positions: 96.2% text" in page
    speed.show(FOUND | {"ranks": 2})
    assert "positions on one of 2 ranks: 96.2% text" in " ".join(capsys.readouterr().out.split())
    assert "Careful others had the cores for 32% of the time" in page and "waits for a core left out" in page


@pytest.mark.parametrize("bound_by", ["data", "launch", "compute", "memory", "communication"])
def test_every_verdict_has_its_words(bound_by: str, capsys: pytest.CaptureFixture[str]) -> None:
    speed.show(FOUND | {"bound_by": bound_by, "device": "cuda:0"})
    assert f"Bound by      {bound_by}: " in capsys.readouterr().out


def test_no_flow_file_hides_a_module_of_the_standard_library() -> None:
    # Prefect puts the folder of a flow file first on sys.path: a flows/profile.py would break `import cProfile`.
    names = {path.stem for path in Path(speed.__file__).parent.glob("*.py")}
    assert not names & sys.stdlib_module_names
