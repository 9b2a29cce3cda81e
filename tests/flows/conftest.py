import os
from collections.abc import Iterator

import pytest

from flows import ui
from tests.flows import house as houses


@pytest.fixture(scope="session")
def whole_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with its services, as `maskmill ui` starts it: they act on events, and take back slots of the dead."""
    folder = tmp_path_factory.mktemp("server")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("PREFECT_")]:
            patch.delenv(name)
        patch.setenv("PREFECT_HOME", str(folder / "prefect"))
        server = ui.start_prefect(folder, ui.free_port(0))
    try:
        yield server.wait().address + "/api"
    finally:
        server.stop()


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, whole_server: str) -> Iterator[houses.House]:
    with houses.opened(tmp_path_factory.mktemp("house"), whole_server) as house:
        yield house
