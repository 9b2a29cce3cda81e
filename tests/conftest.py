import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from flows import environment, ui

settings.register_profile("calm", deadline=None)  # a busy machine makes no test wrong
settings.load_profile("calm")


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One real Prefect server for all tests that need one (it takes seconds to boot). Its API's address."""
    home: Path = tmp_path_factory.mktemp("prefect")
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        del os.environ[name]
    environment.settle(home)
    server = ui.start_embedded_prefect(home)
    os.environ.clear()
    os.environ.update(before)
    try:
        yield server.wait().address + "/api"
    finally:
        server.stop()
