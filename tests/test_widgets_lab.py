"""The widgets in JupyterLab itself, in a browser, by keyboard alone."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from importlib.util import find_spec

import pytest

pytestmark = pytest.mark.slow
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
SOURCES = (
    """
from matplotlib.figure import Figure
from prefkit.widgets.view import Explorer, Slider


def line(slope):
    figure = Figure(figsize=(3, 2))
    figure.subplots().plot([0, 1], [0, slope])
    return figure


Explorer(line, "A line", {"slope": Slider(0, 10, 3)})
""",
    """
from pathlib import Path
from prefkit.widgets.arena import Arena


def answers(model, texts):
    return [
        {"prompt_id": str(i), "prompt": f"Question {i}", "model": model, "answer": text}
        for i, text in enumerate(texts)
    ]


pairs = answers("alpha", ["one", "two", "three"]), answers("omega", ["1", "2", "3"])
Arena(*pairs, Path.cwd() / "votes")
""",
)


def notebook():
    "Two cells without outputs, as nbformat stores them."
    cells = [
        {
            "cell_type": "code",
            "execution_count": None,
            "id": f"cell{number}",
            "metadata": {},
            "outputs": [],
            "source": source.strip(),
        }
        for number, source in enumerate(SOURCES)
    ]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {
        "cells": cells,
        "metadata": {"kernelspec": kernel},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def jupyterlab(folder, root):
    "JupyterLab over a folder, with none of the user's own settings; gives its address."
    port = free_port()
    settings = {
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,
        "ServerApp.open_browser": False,
        "ServerApp.allow_root": True,
        "ServerApp.root_dir": str(folder),
        "IdentityProvider.token": "",
        "LabApp.extension_manager": "readonly",
    }
    options = [f"--{name}={value}" for name, value in settings.items()]
    own = {
        name: str(folder / name)
        for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    }
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    quiet = folder / "JUPYTER_CONFIG_DIR/lab/user-settings/@jupyterlab/apputils-extension"
    quiet.mkdir(parents=True)  # else it asks for news, of the network and of the reader
    (quiet / "notification.jupyterlab-settings").write_text(
        '{"fetchNews": "false", "checkForUpdates": false}'
    )
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options],
            cwd=folder,
            env={**os.environ, **own, "PYTHONPATH": path, "PREFKIT_ROOT": str(root)},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        address = f"http://127.0.0.1:{port}"
        try:
            wait_for(address, process, folder / "server.log")
            yield address
        finally:
            process.terminate()
            process.wait(30)


def wait_for(address, process, log, seconds=120):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            with urllib.request.urlopen(f"{address}/api", timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"JupyterLab did not answer within {seconds} s:\n{log.read_text()[-2000:]}")


@pytest.fixture
def lab(tmp_path, root):
    "A page of JupyterLab with the notebook open, and what its console has complained of."
    if not CHROMIUM:
        pytest.skip("there is no chromium on this machine to open JupyterLab in")
    for name in ("playwright", "jupyterlab"):
        if not find_spec(name):
            pytest.skip(f"{name} is not installed: pip install -e '.[dev,docs]'")
    from playwright.sync_api import sync_playwright

    (tmp_path / "widgets.ipynb").write_text(json.dumps(notebook()))
    with jupyterlab(tmp_path, root) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page, complaints = browser.new_page(viewport={"width": 1100, "height": 1000}), []
        page.set_default_timeout(90_000)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "console",
            lambda said: complaints.append(said.text) if said.type == "error" else None,
        )
        page.goto(f"{address}/lab/tree/widgets.ipynb")
        yield page, complaints
        browser.close()


def test_a_slider_and_a_vote_by_keyboard(lab, tmp_path):
    page, complaints = lab
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
    page.get_by_text("| Idle").wait_for()  # cells that are run before there is a kernel are not
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    picture = page.locator(".jp-OutputArea img[alt^='A line']")
    picture.wait_for()

    before = picture.get_attribute("src")
    slider = page.locator(".noUi-handle").first
    slider.focus()
    page.keyboard.press("ArrowRight")
    page.locator("img[alt^='A line (slope 4)']").wait_for()
    assert picture.get_attribute("src") != before

    page.get_by_text("0 of 3 pairs voted on").wait_for()
    keys = page.get_by_placeholder("1 2 3 s u")
    keys.focus()
    page.keyboard.press("1")
    page.get_by_text("1 of 3 pairs voted on").wait_for()
    page.keyboard.press("s")
    page.get_by_text("Skipped").wait_for()
    tie = page.get_by_role("button", name="2: tie")
    tie.focus()
    page.keyboard.press("Enter")
    page.get_by_text("2 of 3 pairs voted on, 1 tie").wait_for()

    lines = (tmp_path / "votes/arena.jsonl").read_text().splitlines()
    assert [json.loads(line)["winner"] == "tie" for line in lines] == [False, True]
    assert page.get_by_text("Traceback").count() == 0
    assert complaints == []
