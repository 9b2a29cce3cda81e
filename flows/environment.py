"""Where maskmill keeps things, and the variables that keep its libraries quiet, offline and local.

Prefect, MLflow and Hugging Face read their settings when they are imported: so `settle` comes first. It never overrides
what the user has set.
"""

import os
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent


def home() -> Path:
    """The one folder that everything is written to: MASKMILL_HOME, or .maskmill in the checkout."""
    return Path(os.environ.get("MASKMILL_HOME") or CHECKOUT / ".maskmill").expanduser().absolute()


def store_root(home: Path) -> Path:
    """Where the artifacts lie."""
    return home / "store"


def settle(home: Path) -> None:
    """Sets every variable that the user has not set."""
    settings = {
        "MASKMILL_HOME": str(home),
        # MLflow wants the word "true"; "1" is ignored. Prefect takes both.
        "DO_NOT_TRACK": "true",
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_LOGGING_LEVEL": "WARNING",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        "PREFECT_CLI_PROMPT": "false",
        # Prefect's default serializer is pickle. Nothing of ours is persisted there, and nothing is to be unpickled.
        "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # the default blocks for four minutes when a server is away
        "GIT_PYTHON_REFRESH": "quiet",
        "HF_DATASETS_CACHE": str(home / "huggingface" / "datasets"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "true",
        "GOMP_SPINCOUNT": "1000",  # torch's threads: see pretrain; evaluate is in this process
        "TRANSFORMERS_VERBOSITY": "error",
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def reach_hub(allowed: bool) -> None:
    """Only a recipe that names a source on the Hugging Face hub may go there."""
    os.environ.setdefault("HF_HUB_OFFLINE", "0" if allowed else "1")
