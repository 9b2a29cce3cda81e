from pathlib import Path

import pytest

from flows import environment


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    mine: dict[str, str] = {}
    monkeypatch.setattr(environment.os, "environ", mine)
    return mine


def test_no_library_reports_home(variables: dict[str, str], tmp_path: Path) -> None:
    environment.settle(tmp_path)
    environment.reach_hub(False)
    assert variables["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert variables["DO_NOT_TRACK"] == "true"
    assert variables["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert variables["HF_HUB_DISABLE_TELEMETRY"] == "1"
    assert variables["HF_HUB_OFFLINE"] == "1"


def test_all_that_is_written_lies_in_one_folder(variables: dict[str, str], tmp_path: Path) -> None:
    environment.settle(tmp_path)
    assert variables["PREFECT_HOME"].startswith(str(tmp_path))
    assert variables["HF_DATASETS_CACHE"].startswith(str(tmp_path))


def test_no_pickle_is_loaded(variables: dict[str, str], tmp_path: Path) -> None:
    environment.settle(tmp_path)
    assert variables["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    assert variables["PREFECT_RESULTS_DEFAULT_SERIALIZER"] == "json"


def test_what_the_user_has_set_stays(variables: dict[str, str], tmp_path: Path) -> None:
    variables["PREFECT_LOGGING_LEVEL"] = "DEBUG"
    environment.settle(tmp_path)
    assert variables["PREFECT_LOGGING_LEVEL"] == "DEBUG"


def test_home_is_a_variable_or_a_folder_of_the_checkout(variables: dict[str, str], tmp_path: Path) -> None:
    assert environment.home() == Path(__file__).parents[2] / ".maskmill"
    variables["MASKMILL_HOME"] = str(tmp_path)
    assert environment.home() == tmp_path
