"""Datasets of the hub: what it says when it is asked, and when it cannot be. pytest tests/tasks/test_hub.py"""

from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import OfflineModeIsEnabled, RepositoryNotFoundError

from tasks import hub
from tasks.errors import UnreachableError, UsageError


def answers(monkeypatch: pytest.MonkeyPatch, what: Any) -> None:
    def info(name: str, revision: str | None = None, timeout: float = 0) -> Any:
        if isinstance(what, Exception):
            raise what
        return SimpleNamespace(sha=what)

    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: SimpleNamespace(dataset_info=info))


def test_a_name_has_a_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, "c" * 40)
    assert hub.resolved("hf:some/name:en@main") == ("some/name:en", "c" * 40)


@pytest.mark.parametrize("error", [ConnectionResetError("reset by peer"), TimeoutError("took too long")])
def test_a_hub_that_does_not_answer_may_do_so_later(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    answers(monkeypatch, error)
    with pytest.raises(UnreachableError, match=r"hf:some/name is no folder here.*(reset by peer|took too long)"):
        hub.resolved("hf:some/name")


def test_offline_by_wish_and_a_name_that_is_none_stay_so(monkeypatch: pytest.MonkeyPatch) -> None:
    answer: Any = SimpleNamespace(headers={}, request=None, status_code=404)
    missing = RepositoryNotFoundError("404 no such\nand more", response=answer)
    for error in (OfflineModeIsEnabled("by wish"), missing):
        answers(monkeypatch, error)
        with pytest.raises(UsageError) as caught:
            hub.resolved("hf:some/name")
        assert "\n" not in str(caught.value)
