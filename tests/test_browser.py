"""What a person sees in MLflow: runs and their children, a curve, the page of a version. With Debian's Chromium."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from flows import ui
from tasks import tracking
from tests import servers

STAGES = ("corpus", "vocabulary", "shards", "pretrain", "evaluate", "register")
PATIENCE = 180.0
"""Seconds that a page may take on a busy machine."""
ASSISTANT = "[data-component-id=\\'mlflow.assistant.chat_panel.close\\']"
"""The panel that covers a quarter of each page at first; how it is closed."""
QUIET = ("headless", "no-sandbox", "disable-gpu", "disable-quic", "disable-sync", "disable-dev-shm-usage")
QUIET += ("no-first-run", "disable-background-networking", "disable-component-update", "window-size=1440,1000")


class Page:
    """A browser at MLflow's pages."""

    def __init__(self, driver: Any, address: str) -> None:
        self.driver, self.address = driver, address

    def open(self, place: str) -> None:
        """A place below the address; MLflow shows its registry in this mode only."""
        mark = "&" if "?" in place else "?"
        self.driver.get(f"{self.address}/#/{place}{mark}workflowType=machine_learning")
        self.driver.refresh()  # another place of the same page is no reason for a browser to load anything
        self.until(lambda: bool(self.text.strip()), lambda: "an empty page")
        self.driver.execute_script(f"document.querySelector('{ASSISTANT}')?.click()")

    def shows(self, *words: str) -> None:
        """Waits until all of these can be read."""
        self.until(lambda: all(word in self.text for word in words), lambda: [w for w in words if w not in self.text])

    @property
    def text(self) -> str:
        return str(self.driver.execute_script("return document.body.innerText"))

    def count(self, css: str) -> int:
        """How many elements a selector finds."""
        return int(self.driver.execute_script("return document.querySelectorAll(arguments[0]).length", css))

    def click(self, css: str) -> None:
        self.until(lambda: self.count(css) > 0, lambda: css)
        self.driver.execute_script("document.querySelector(arguments[0]).click()", css)

    def write(self, css: str, text: str) -> None:
        """Types into a field."""
        self.until(lambda: self.count(css) > 0, lambda: css)
        self.driver.find_element("css selector", css).send_keys(text)

    def until(self, true: Callable[[], bool], what: Callable[[], Any]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not true():
            assert time.monotonic() < deadline, (what(), self.driver.current_url, self.text[:3000])
            time.sleep(0.2)


@contextmanager
def chromium() -> Iterator[Any]:
    """Chromium without a window. MLflow's pages load nothing from elsewhere; the browser itself is kept from trying."""
    webdriver = pytest.importorskip("selenium.webdriver")
    browser, helper = shutil.which("chromium"), shutil.which("chromedriver")
    if not browser or not helper:
        pytest.skip("there is no Chromium here: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for word in QUIET:
        options.add_argument(f"--{word}")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options.add_argument(f"--user-data-dir={profile}")
        driver = webdriver.Chrome(options, webdriver.ChromeService(helper))
        try:
            yield driver
        finally:
            driver.quit()


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with chromium() as driver:
        yield driver


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, prefect_server: str) -> Path:
    """A home with one run of the tiny recipe."""
    folder = tmp_path_factory.mktemp("seen")
    (folder / "texts").mkdir()
    for number in range(200):
        words = [f"word{(number * 7 + at * at) % 31} of the {at % 5} files" for at in range(12)]
        (folder / "texts" / f"{number}.txt").write_text(" ".join(words) + f" and text {number}.")
    own = servers.calm({"MASKMILL_HOME": str(folder / "home"), "PREFECT_API_URL": prefect_server})
    whole = [sys.executable, "-m", "flows.cli", "run", "tiny", "--source", str(folder / "texts")]
    done = subprocess.run(whole, cwd=servers.ROOT, env=own, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "home"


@pytest.fixture(scope="module")
def page(driver: Any, home: Path) -> Iterator[Page]:
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
            patch.delenv(name)
        server = ui.start_mlflow(home, ui.free_port(0))
        try:
            yield Page(driver, server.wait().address)
        finally:
            server.stop()


@pytest.fixture(scope="module")
def ids(home: Path) -> dict[str, str]:
    """Stage -> id of its run; "" of the run above them, "experiment" of the experiment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        client = tracking.connect(home)
        experiment = client.get_experiment_by_name("tiny").experiment_id
        runs = client.search_runs([experiment])
    return {run.data.tags.get("stage", ""): run.info.run_id for run in runs} | {"experiment": experiment}


@pytest.mark.slow
def test_the_experiment_shows_the_run_its_corpus_and_its_children(page: Page, ids: dict[str, str]) -> None:
    page.open(f"experiments/{ids['experiment']}/runs")
    page.shows("tiny 2", "corpus (")
    page.click("button[data-component-id*='runnamecellrenderer']")  # the plus before the run's name
    page.shows(*STAGES)


@pytest.mark.slow
def test_a_run_shows_parameters_tags_and_curve(page: Page, ids: dict[str, str]) -> None:
    page.open(f"experiments/{ids['experiment']}/runs/{ids['']}")
    page.shows("pretrain.steps", "maskmill run tiny", "test/rate_0.3/masked_cross_entropy", "tiny", "corpus (")
    page.open(f"experiments/{ids['experiment']}/runs/{ids['pretrain']}/model-metrics")
    page.write("input[placeholder='Search metric charts']", "train/loss")
    page.until(lambda: page.count("path.js-line") > 0, lambda: "no line is drawn")


@pytest.mark.slow
def test_the_page_of_a_version_shows_card_and_parents(page: Page, home: Path) -> None:
    page.open("models/tiny/versions/1")
    page.shows("maskmill run tiny", "@\u00a0champion", "@\u00a0challenger", "How good it is")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        tags = tracking.connect(home).get_model_version("tiny", "1").tags
    page.shows(*(text for stage in STAGES for text in (stage, tags[stage])))  # the digests of all that it was made from
    page.until(lambda: page.count("table td") > 5, lambda: "the card has no table")
