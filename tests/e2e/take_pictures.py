"""Take the pictures of docs/mlflow.md, where runs/ holds runs: `python tests/e2e/take_pictures.py docs/images`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from playwright.sync_api import sync_playwright
from test_mlflow_pages import card, section, shown

if TYPE_CHECKING:
    from playwright.sync_api import Page

SIZE = {"width": 1400, "height": 860}
SEEN = "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')"
TRAINING = "localStorage.setItem('mlflow.workflowType_v1', '\"machine_learning\"')"
# MLflow's hint at the view, and its assistant's button.
HIDDEN = "[data-assistant-ui], [data-component-id*='shared_view'] { display: none !important }"
COLOURS = 128


def main(out: Path) -> None:
    """Serve runs/, take the pictures, end the server."""
    server = subprocess.Popen([sys.executable, "-m", "medusa_cl.track", "ui"], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    said = ""
    for line in server.stdout:
        said += line
        if line.startswith("ready"):
            break
    try:
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
            context = browser.new_context(viewport=SIZE)
            context.add_init_script(SEEN)
            context.add_init_script(TRAINING)
            for name, take in {
                "runs": runs,
                "charts": charts,
                "scatter": scatter,
                "compare": compare,
                "images": images,
            }.items():
                page = context.new_page()
                page.set_default_timeout(90_000)
                save(take(page, said), out / f"mlflow_{name}.png", page)
                page.close()
    finally:
        server.terminate()
        server.wait()


def address(said: str, label: str) -> str:
    """Return the page after a label."""
    found = re.search(rf"^ *{label} +(http\S+)$", said, re.MULTILINE)
    assert found, said
    return found[1]


def runs(page: Page, said: str) -> dict[str, Any]:
    """The list."""
    page.goto(address(said, "list"))
    shown(page.locator(".ag-row [col-id='tags.`strategy`']"))
    return {"height": 340}


def charts(page: Page, said: str) -> dict[str, Any]:
    """The first charts."""
    page.goto(address(said, "charts"))
    shown(page.locator(".js-plotly-plot .barlayer .point"))
    return {}


def scatter(page: Page, said: str) -> dict[str, Any]:
    """Forgetting against transfer, over the window."""
    page.goto(address(said, "charts"))
    one = card(page, "final/forgetting_mean vs. final/transfer_mean")
    shown(one.locator(".scatterlayer .point"))
    one.get_by_role("button").first.click()
    shown(page.get_by_role("dialog").locator(".scatterlayer .point"))
    return {}


def compare(page: Page, said: str) -> dict[str, Any]:
    """What differs between the runs."""
    page.goto(address(said, "list"))
    shown(page.locator(".ag-row [col-id='tags.`strategy`']"))
    page.get_by_label("Select all runs").first.check(force=True)
    page.get_by_role("button", name="Compare").click()
    shown(page.get_by_text("Run details"))
    page.get_by_text("Show diff only").first.click()
    page.get_by_text("scenario.image_size", exact=True).wait_for(state="detached")
    page.get_by_text("Run details").evaluate("element => element.scrollIntoView()")
    return {}


def images(page: Page, said: str) -> dict[str, Any]:
    """Pictures of the first tasks after the last one."""
    page.set_viewport_size({"width": 1000, "height": 900})
    page.goto(address(said, "charts"))
    shown(page.locator(".js-plotly-plot .barlayer .point"))
    shown(section(page, "what it predicts"))
    grid = card(page, "Image grid")
    shown(grid.get_by_role("row").filter(has_text="predictions/").locator("img"))
    grid.get_by_role("button").first.click()
    shown(page.get_by_role("dialog").locator("img"))
    page.wait_for_function("() => [...document.querySelectorAll('[role=dialog] img')].some(i => i.naturalWidth > 99)")
    return {}


def save(clip: dict[str, Any], path: Path, page: Page) -> None:
    """Save what is shown, in few colours: diagrams need no more."""
    page.add_style_tag(content=HIDDEN)
    page.wait_for_timeout(1500)  # for what still fades in: a picture is worth it
    page.screenshot(path=path, clip={"x": 0, "y": 0, **SIZE, **clip} if clip else None)
    with Image.open(path) as picture:
        picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(path, path.stat().st_size // 1024, "kB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
