"""Three tiny streams, learnt on the command line; MLflow's pages of them, served as a user serves them; a browser."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from e2e_server import Served, environment

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SCREENSHOTS = Path(os.environ.get("MEDUSA_CL_SCREENSHOTS", Path(__file__).with_name("screenshots")))
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
TINY = [
    "scenario.image_size=[32,64]", "scenario.train_size=8", "scenario.val_size=0", "scenario.test_size=4",
    "scenario.stream=[normals,edges]", "backbone.name=test_efficientnet", "backbone.pretrained=false", "head_width=8",
    "head.mix_width=8", "trainer.base_steps=2", "trainer.max_steps=2", "trainer.batch_size=4", "trainer.threads=1",
]  # fmt: skip
STREAMS = [
    "experiment=demo",  # medusa, and then, from the same base:
    "compare=['strategy=finetune','strategy=finetune plugins=[ewc,replay]']",
]
# Milliseconds: of a machine that does other things too. Nothing waits for longer than it must.
PATIENCE = 90_000


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder a user works in, with three finished streams in runs/."""
    folder = tmp_path_factory.mktemp("home")
    command = [sys.executable, "-m", "medusa_cl.run", *STREAMS, *TINY]
    done = subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return folder


@pytest.fixture(scope="session")
def served(home: Path) -> Iterator[Served]:
    """`track ui`, until the tests are through; then Ctrl-C must end it without a word."""
    command = [sys.executable, "-m", "medusa_cl.track", "ui", "run=last"]
    with (home / "ui.err").open("w+") as errors:
        process = subprocess.Popen(
            command, cwd=home, env=environment(home), stdout=subprocess.PIPE, stderr=errors, text=True
        )
        assert process.stdout is not None
        said = ""
        for line in process.stdout:  # ends where the process does
            said += line
            if line.startswith("ready"):
                break
        errors.seek(0)
        assert "ready" in said, said + errors.read()
        yield Served(home, said)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 128 + signal.SIGINT
        errors.seek(0)
        assert errors.read() == "stopped\n"


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium without a window, which reaches this machine alone."""
    from playwright.sync_api import sync_playwright

    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    alone = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    options = [alone, "--disable-dev-shm-usage", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, args=options)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A fresh profile for each test; how its page looked at the end is kept."""
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    context.set_default_timeout(PATIENCE)
    # MLflow opens its assistant over a third of the first page.
    context.add_init_script("localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')")
    context.add_init_script("localStorage.setItem('mlflow.workflowType_v1', '\"machine_learning\"')")
    page = context.new_page()
    yield page
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{request.node.name.removeprefix('test_')}.png")
    context.close()
