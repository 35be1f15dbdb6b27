"""What a researcher sees in MLflow, by clicks: which strategy forgot, which transferred, how predictions went."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import TYPE_CHECKING

from e2e_server import Served, environment

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

MARK = "experiment-view-compare-runs-"
COLUMNS = """() => [...document.querySelectorAll('.ag-header-cell')]
  .sort((a, b) => a.getBoundingClientRect().left - b.getBoundingClientRect().left).map(cell => cell.innerText)"""
# The cells at the height of one: this table has no rows in the page's text.
ROW = """link => {
  const top = element => Math.round(element.getBoundingClientRect().top), cells = 'div[style*=top]';
  const here = top(link.closest(cells));
  return [...document.querySelectorAll(cells)].filter(cell => top(cell) === here).map(cell => cell.innerText.trim());
}"""
LOAD = """
import json, sys, numpy as np, mlflow
uri, model = sys.argv[1:]
mlflow.set_tracking_uri(uri)
images = np.full((1, 32, 64, 3), 128, np.uint8)
found = mlflow.pyfunc.load_model(model).predict(images)
print("PREDICTED", json.dumps({task: list(np.asarray(array).shape) for task, array in found.items()}))
"""


def section(page: Page, name: str) -> Locator:
    """The header of a section of charts."""
    return page.get_by_test_id(f"{MARK}section-header").filter(has_text=re.compile(rf"^{re.escape(name)}\s*\(\d+\)"))


def card(page: Page, title: str) -> Locator:
    """A chart by its title; it is drawn once it is near."""
    return page.get_by_test_id(f"{MARK}card").filter(has=page.get_by_text(title, exact=True))


def shown(locator: Locator) -> Locator:
    """The element, once it is there and in view."""
    locator.first.wait_for()
    locator.first.scroll_into_view_if_needed()
    return locator.first


def test_runs(page: Page, served: Served) -> None:
    page.goto(served.page("list"))
    rows = page.locator(".ag-center-cols-container .ag-row")
    shown(page.locator("[col-id='tags.`plugins`']").get_by_text("ewc,replay"))
    columns = page.evaluate(COLUMNS)
    wanted = ["strategy", "plugins", "head", "backbone", "seed", "final/forgetting_mean", "final/transfer_mean"]
    assert [text.strip() for text in columns if text.strip() in wanted] == wanted
    assert rows.count() == 3
    strategies = page.locator(".ag-row [col-id='tags.`strategy`']").all_inner_texts()
    assert sorted(strategies) == ["finetune", "finetune", "medusa"]
    forgotten = page.locator(".ag-row [col-id='metrics.`final/forgetting_mean`']").all_inner_texts()
    assert len([text for text in forgotten if text.strip()]) == 3
    assert "0" in [text.strip() for text in forgotten]  # medusa's


def test_charts(page: Page, served: Served) -> None:
    page.goto(served.page("charts"))
    shown(page.locator(".js-plotly-plot .barlayer .point"))
    headers = page.get_by_test_id(f"{MARK}section-header").all_inner_texts()
    names = [re.sub(r"\s*\(\d+\).*", "", text, flags=re.DOTALL).strip() for text in headers]
    assert names[:5] == ["which strategy?", "final", "forgetting", "transfer", "test"]
    assert card(page, "final/forgetting_mean").locator(".barlayer .point").count() == 3
    shown(section(page, "forgetting"))
    curves = card(page, "forgetting/mean")
    shown(curves.locator(".scatterlayer .trace .point"))
    assert curves.locator(".scatterlayer .trace:has(.point)").count() == 3


def test_scatter(page: Page, served: Served) -> None:
    page.goto(served.page("charts"))
    scatter = card(page, "final/forgetting_mean vs. final/transfer_mean")
    shown(scatter.locator(".scatterlayer .point"))
    scatter.get_by_role("button").first.click()  # fills the window
    whole = page.get_by_role("dialog")
    shown(whole.locator(".scatterlayer .point"))
    assert whole.locator(".scatterlayer .point").count() == 3
    assert whole.get_by_text("final/transfer_mean").count() and whole.get_by_text("final/forgetting_mean").count()


def test_compare(page: Page, served: Served) -> None:
    page.goto(served.page("list"))
    shown(page.locator("[col-id='tags.`plugins`']").get_by_text("ewc,replay"))
    page.get_by_label("Select all runs").first.check(force=True)
    page.get_by_role("button", name="Compare").click()
    shown(page.get_by_text("Comparing 3 Runs from 1 Experiment"))
    shown(page.get_by_text("Parameters", exact=True))
    shown(page.get_by_text("scenario.image_size", exact=True))  # equal in all
    page.get_by_text("Show diff only").first.click()
    page.get_by_text("scenario.image_size", exact=True).wait_for(state="detached")
    row = page.get_by_role("row").filter(has=page.get_by_text("strategy.name", exact=True))
    assert {"medusa", "finetune"} <= set(row.first.inner_text().split())
    score = shown(page.locator("a[title='Plot chart']").filter(has_text="final/depth_rmse"))
    cells = score.evaluate(ROW)
    assert "final/depth_rmse" in cells
    assert len([cell for cell in cells if re.fullmatch(r"-?\d+(\.\d+)?", cell)]) == 3, cells


def test_images(page: Page, served: Served) -> None:
    page.goto(served.page("charts"))
    shown(page.locator(".js-plotly-plot .barlayer .point"))
    shown(section(page, "what it predicts"))
    grid = card(page, "Image grid")
    rows = grid.get_by_role("row").filter(has_text="predictions/")
    semseg = rows.filter(has_text="predictions/semseg").locator("img")
    shown(semseg)
    assert sorted(text.strip() for text in rows.all_inner_texts()) == [
        f"predictions/{task}" for task in ("depth", "edges", "normals", "semseg")
    ]
    assert semseg.count() == 3
    assert {"finetune", "finetune+ewc,replay", "medusa"} <= set(grid.get_by_role("row").first.inner_text().split())
    last = shown(semseg).get_attribute("src")
    slider = shown(grid.get_by_role("slider"))
    assert [slider.get_attribute(f"aria-value{what}") for what in ("min", "now", "max")] == ["2", "4", "4"]
    slider.press("ArrowLeft")  # before edges were learnt
    page.wait_for_function("([image, last]) => image.src !== last", arg=[semseg.first.element_handle(), last])
    assert slider.get_attribute("aria-valuenow") == "3"
    picture = semseg.first.element_handle()
    page.wait_for_function("image => image.complete && image.naturalWidth > 32", arg=picture)
    assert rows.filter(has_text="predictions/edges").locator("img").count() == 0


def test_figures(page: Page, served: Served) -> None:
    page.goto(served.page("run"))
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("figures", exact=True).click()
    page.get_by_text("forgetting_heatmap.png").first.click()
    shown(page.get_by_text("figures/forgetting_heatmap.png"))
    page.wait_for_function("() => [...document.images].some(image => image.naturalWidth > 300)")


def test_matrix(page: Page, served: Served) -> None:
    page.goto(served.page("run"))
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("task_matrix.json").first.click()
    for text in ("after", "semseg (miou, %)", "depth (rmse, m)", "normals (mean, deg)"):
        shown(page.get_by_text(text, exact=True))


def test_model(page: Page, served: Served) -> None:
    page.goto(served.page("list"))
    shown(page.locator("[col-id='tags.`plugins`']").get_by_text("ewc,replay"))
    page.get_by_role("link", name="medusa", exact=False).first.click()
    shown(page.get_by_text("About this run"))
    model = shown(page.get_by_role("link", name="model", exact=True))
    model_id = re.search(r"m-[0-9a-f]{32}", model.get_attribute("href") or "")
    assert model_id, model.get_attribute("href")
    model.click()
    shown(page.get_by_text(model_id[0]))
    command = [sys.executable, "-c", LOAD, served.uri, f"models:/{model_id[0]}"]
    done = subprocess.run(
        command, cwd=served.home, env=environment(served.home), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    shapes = json.loads(done.stdout.split("PREDICTED", 1)[1])
    learnt = ("semseg", "depth", "normals", "edges")
    assert {task: shape[-2:] for task, shape in shapes.items()} == {task: [32, 64] for task in learnt}, shapes
