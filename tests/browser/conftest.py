"""A real JupyterLab, and Debian's Chromium to look at it with."""

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from importlib import util
from pathlib import Path
from typing import Any

import nbformat
import pytest
from needed import require

START_S, DRAWN_S = 90, 10
TALL = 16_000
SETTINGS = {
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/apputils-extension/themes": {"theme": "JupyterLab Light"},
}
CELLS = """
() => {
  const notebook = window.jupyterapp.shell.currentWidget.content;
  const describe = (output, node) => {
    const data = output.data ?? {};
    const count = selector => node?.querySelectorAll(selector).length ?? 0;
    const images = [...node?.querySelectorAll('img') ?? []].flatMap(image => [image.naturalWidth, image.clientHeight]);
    const widget = 'application/vnd.jupyter.widget-view+json' in data, figure = 'image/png' in data && !widget;
    return {
      kind: output.output_type, widget, figure,
      name: output.name ?? output.ename ?? '',
      said: [output.evalue ?? output.text ?? ''].flat().join(''),
      text: node?.innerText ?? '',
      shown: Math.min(node?.clientWidth ?? 0, node?.clientHeight ?? 0, ...images) > 0
        && (!widget || count('button, input, canvas, img, table, svg') > 0) && (!figure || count('img') === 1),
    };
  };
  return notebook.widgets.map((cell, place) => ({cell, place})).filter(({cell}) => cell.model.type === 'code')
    .map(({cell, place}) => ({
      place,
      source: cell.model.sharedModel.getSource(),
      count: cell.model.executionCount,
      state: cell.model.executionState,
      outputs: cell.model.outputs.toJSON().map((output, i) =>
        describe(output, cell.outputArea.widgets[i]?.node.querySelector('.jp-OutputArea-output'))),
    }));
}
"""
DRAWN = f"""
() => ({CELLS})().flatMap(cell => cell.outputs).every(output => output.shown || !output.widget && !output.figure)
"""


class Lab:
    """A running JupyterLab, the folder it serves, and a page in a browser."""

    def __init__(self, address: str, token: str, folder: Path, page):
        self.address, self.token, self.folder, self.page = address, token, folder, page
        self.troubles: list[str] = []  # uncaught errors of the page, and what it wrote to its console as an error
        page.on("pageerror", lambda error: self.troubles.append(str(error)))
        page.on("console", lambda message: message.type == "error" and self.troubles.append(message.text))

    def write(self, name: str, *cells: str) -> Path:
        """A notebook with these code cells."""
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        path = self.folder / name
        nbformat.write(notebook, path)
        return path

    def start(self, command: str = "notebook:run-all-cells") -> None:
        """Have JupyterLab carry out one of its commands, and do not wait: `window.ended` is true when it has ended."""
        self.page.evaluate(
            "name => { window.ended = false;"
            " window.jupyterapp.commands.execute(name).finally(() => { window.ended = true; }); }",
            command,
        )

    def wait(self, condition: str, seconds: float) -> bool:
        """Wait for a condition of the page; False when it does not come true."""
        from playwright.sync_api import TimeoutError as TookTooLong

        try:
            self.page.wait_for_function(condition, timeout=seconds * 1000)
        except TookTooLong:
            return False
        return True

    def open(self, name: str) -> None:
        """Open a notebook and wait for its kernel."""
        self.page.goto(f"{self.address}/lab/tree/{name}?reset&token={self.token}")
        self.page.wait_for_function(
            "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'",
            timeout=START_S * 1000,
        )

    def command(self, name: str) -> None:
        """Have JupyterLab carry out one of its commands, and wait for its end."""
        self.page.evaluate("name => window.jupyterapp.commands.execute(name).then(() => null)", name)

    def cells(self) -> list[dict[str, Any]]:
        """The code cells of the notebook: what has become of each, and each of its outputs as it stands on the page."""
        size = self.page.viewport_size
        self.page.set_viewport_size(size | {"height": TALL})  # JupyterLab draws the cells in view
        self.page.evaluate("window.jupyterapp.shell.currentWidget.content.scrollToItem(0, 'start')")
        self.wait(DRAWN, DRAWN_S)
        cells = self.page.evaluate(CELLS)
        self.page.set_viewport_size(size)
        return cells

    def sources(self) -> list[str]:
        """The cells of the notebook as they stand on the page."""
        cells = "window.jupyterapp.shell.currentWidget.content.model.sharedModel.cells"
        return self.page.evaluate(f"{cells}.map(cell => cell.getSource())")


@pytest.fixture(scope="session")
def browser():
    """Chromium, or a reason why there is none."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    require("browser", path is not None, "no Chromium on this machine; on Debian: apt install chromium")
    found = util.find_spec("playwright") is not None
    require("browser", found, "playwright is not installed: pip install -e '.[dev]'")
    from playwright import sync_api as playwright

    with playwright.sync_playwright() as driver:
        # The sandbox of Chromium needs rights that a container may not give; the pages are our own.
        chromium = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def lab_server(tmp_path_factory):
    """(address, token, folder) of a JupyterLab with settings of its own."""
    home = tmp_path_factory.mktemp("jupyter")
    folder = home / "work"
    folder.mkdir()
    for name, values in SETTINGS.items():
        file = home / "settings" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    places = {
        "HOME": home,
        "JUPYTER_CONFIG_DIR": home / "config",
        "JUPYTER_DATA_DIR": home / "data",
        "JUPYTER_RUNTIME_DIR": home / "runtime",
        "JUPYTERLAB_SETTINGS_DIR": home / "settings",
        "JUPYTERLAB_WORKSPACES_DIR": home / "workspaces",
        "IPYTHONDIR": home / "ipython",
    }
    environment = {**os.environ, **{name: str(path) for name, path in places.items()}, "OMP_NUM_THREADS": "1"}
    environment |= {"WANDB_MODE": "disabled", "OMP_WAIT_POLICY": "PASSIVE"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}", "--ip=127.0.0.1"]
    command += ["--ServerApp.port_retries=0", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}"]
    command += ["--expose-app-in-browser", "--LabApp.news_url=", "--LabApp.collaborative=False"]
    with (home / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        _wait(process, f"{address}/api?token={token}", home / "log")
        yield address, token, folder
    finally:
        process.terminate()  # it ends its kernels first
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture
def lab(browser, lab_server):
    """The laboratory with a fresh page, 1300 pixels wide."""
    context = browser.new_context(viewport={"width": 1300, "height": 900})
    page = context.new_page()
    page.set_default_timeout(30_000)
    yield Lab(*lab_server, page)
    with contextlib.suppress(Exception):  # a page that is gone has been told of by its test
        page.evaluate("window.jupyterapp?.serviceManager.sessions.shutdownAll()")
    context.close()


def _wait(process: subprocess.Popen, address: str, log: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(address, timeout=2).close()
            return
        time.sleep(0.2)
    pytest.fail(f"JupyterLab did not start: {log.read_text()[-2000:]}")
