"""The README's pictures of MLflow, taken anew: python -m docs.screenshots HOME EXPERIMENT MODEL

From the checkout's root, with the test extra, Debian's chromium and chromium-driver, and a home with runs.
"""

import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image

from flows import ui
from tasks import tracking
from tests.test_browser import Page, chromium

FOLDER = Path(__file__).parent


def main(home: Path, experiment: str, model: str) -> None:
    client = tracking.connect(home)
    number = client.get_experiment_by_name(experiment).experiment_id
    runs = client.search_runs([number], "tags.stage = 'pretrain'", max_results=1)
    version = max(int(one.version) for one in client.search_model_versions(f"name = '{model}'"))
    server = ui.start_mlflow(home, ui.free_port(0))
    try:
        with chromium() as driver:
            page = Page(driver, server.wait().address)
            page.open(f"experiments/{number}/runs")
            page.click("button[data-component-id*='runnamecellrenderer']")
            page.shows("vocabulary")
            keep(driver, "runs")
            page.open(f"experiments/{number}/runs/{runs[0].info.run_id}/model-metrics")
            page.write("input[placeholder='Search metric charts']", "train/")
            page.until(lambda: page.count("path.js-line") > 3, lambda: "no line is drawn")
            keep(driver, "curves")
            page.open(f"models/{model}/versions/{version}")
            page.shows("How good it is")
            keep(driver, "version")
    finally:
        server.stop()


def keep(driver: Any, name: str) -> None:
    """64 colours are enough for a page, and a third of the bytes."""
    time.sleep(5)  # what moves comes to rest
    path = FOLDER / f"{name}.png"
    driver.save_screenshot(str(path))
    Image.open(path).convert("RGB").quantize(64).save(path, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
