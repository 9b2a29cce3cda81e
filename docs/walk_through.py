"""The README's pictures of a schedule, a run that dies and its rerun, taken anew: python -m docs.walk_through

From the checkout's root, with the test extra, Debian's chromium and chromium-driver. All is real: a server, a worker, a
training that is killed.
"""

import os
import signal
import tempfile
import time
from pathlib import Path

from docs.screenshots import keep
from flows import ui
from tests.flows.house import LONG, TRAINING, opened, until
from tests.test_browser import Page, chromium

RETRY = """
const buttons = [...document.querySelectorAll("button")].filter(one => one.innerText.trim() == "Retry");
buttons.at(-1)?.click(); return buttons.length > 0
"""


def main() -> None:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ["PREFECT_HOME"] = str(Path(folder) / "prefect")
        server = ui.start_prefect(Path(folder), ui.free_port(0)).wait()
        try:
            house_folder = Path(folder) / "house"
            house_folder.mkdir()
            with opened(house_folder, f"{server.address}/api") as house, chromium() as driver:
                page = Page(driver, server.address)
                driver.get(f"{server.address}/deployments")
                page.shows("nightly-data", "weekly-pretraining", "champion-on-new-data")
                keep(driver, "schedules")
                known = house.ask(f"deployments/name/{TRAINING}")["id"]
                driver.get(f"{server.address}/deployments/deployment/{known}/run")
                page.shows("force_from")
                keep(driver, "form")
                house.kill_worker()
                house.start_worker(bare=True)
                run = house.begin(TRAINING, *LONG)
                os.kill(house.trains(run), signal.SIGKILL)
                until(lambda: house.state(run) == "CRASHED", 60)
                driver.get(f"{server.address}/runs/flow-run/{run}")
                page.shows("Crashed", "Retry")
                keep(driver, "crashed")
                time.sleep(30)  # its worker says a second time that it crashed
                for _ in range(2):  # the button, and the one that asks whether one is sure
                    page.until(lambda: driver.execute_script(RETRY), lambda: "no button says Retry")
                    time.sleep(1)
                until(lambda: house.state(run) == "COMPLETED", 240)
                driver.get(f"{server.address}/runs/flow-run/{run}")
                page.shows("Completed")
                keep(driver, "rerun")
        finally:
            server.stop()


if __name__ == "__main__":
    main()
