"""A JupyterLab and a Chromium of our own, as a person would have them."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, expect, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE_SECONDS = 60.0
# generous: what is promised in seconds is measured, not waited for
expect.set_options(timeout=20_000)


def executable() -> str | None:
    """The Chromium of this machine."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A browser without a window."""
    quiet = ["--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    memory = ["--enable-precise-memory-info", "--js-flags=--expose-gc"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable(), args=[*quiet, *root, *memory])
        yield browser
        browser.close()


class Lab:
    """A JupyterLab with folders of its own, so that it finds no pools but ours and changes no settings.

    With the ``python`` of another environment it is the JupyterLab of that one; kernels are of this one all the same.
    """

    def __init__(self, directory: Path, python: str | Path = sys.executable) -> None:
        self.directory, self.token, self._python = directory, secrets.token_hex(8), python
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.env = {f"JUPYTER_{kind}_DIR": str(directory / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")}
        for folder in self.env.values():
            Path(folder).mkdir(parents=True, exist_ok=True)
        self.env["JUPYTER_PATH"] = str(self._offer_kernels(directory / "share"))
        self.work = directory / "work"
        self.work.mkdir()
        self.forget()
        self.start()

    @property
    def runtime(self) -> Path:
        return Path(self.env["JUPYTER_RUNTIME_DIR"])

    def _offer_kernels(self, share: Path) -> Path:
        """This environment's kernels, under the name that notebooks ask for: this goes before what a server has."""
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        spec = {"argv": command, "display_name": "Python 3 (ipykernel)", "language": "python"}
        folder = share / "kernels" / "python3"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "kernel.json").write_text(json.dumps(spec))
        return share

    def kernels(self, page: Page) -> list[dict[str, Any]]:
        """Those of all notebooks."""
        found: list[dict[str, Any]] = page.request.get(self.url("api/kernels")).json()
        return found

    def end_kernels(self, page: Page) -> None:
        headers = {"Authorization": f"token {self.token}"}
        for kernel in self.kernels(page):
            page.request.delete(self.url(f"api/kernels/{kernel['id']}"), headers=headers)

    def forget(self) -> None:
        """Settings, files and pools are as if nobody had ever been here."""
        for old in (self._settings, self.runtime / "kalavai_nb", *self.work.iterdir()):
            shutil.rmtree(old, ignore_errors=True) if old.is_dir() else old.unlink(missing_ok=True)
        # a question about news would lie over what we look at
        self.set("@jupyterlab/apputils-extension", "notification", fetchNews="false")

    @property
    def _settings(self) -> Path:
        return Path(self.env["JUPYTER_CONFIG_DIR"]) / "lab" / "user-settings"

    def set(self, extension: str, plugin: str, **settings: object) -> None:
        """Settings of this user."""
        folder = self._settings / extension
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{plugin}.jupyterlab-settings").write_text(json.dumps(settings))

    def start(self) -> None:
        """Start it, again on the same port, and wait until it answers."""
        options = {
            "ServerApp.ip": "127.0.0.1",
            "ServerApp.port": self.port,
            "ServerApp.port_retries": 0,
            "ServerApp.open_browser": False,
            "ServerApp.root_dir": self.work,
            "ServerApp.allow_unauthenticated_access": False,
            "ServerApp.allow_root": True,
            "IdentityProvider.token": self.token,
        }
        log = (self.directory / "log").open("ab")
        self.process = subprocess.Popen(
            [self._python, "-m", "jupyterlab", *(f"--{name}={value}" for name, value in options.items())],
            env={**os.environ, **self.env},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        log.close()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/login", timeout=2).close()
                return
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.1)

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text()

    def kill(self) -> None:
        """As a machine that loses its power does."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                # of a kernel that had just been asked for, a thread of the server may wait for ever
                self.kill()

    def url(self, path: str = "lab", query: str = "reset") -> str:
        return f"http://127.0.0.1:{self.port}/{path}?token={self.token}&{query}"


class Front:
    """A page with JupyterLab in it, and all that it complained of."""

    def __init__(
        self, browser: Browser, lab: Lab, *, path: str = "lab", ready: str = "#jp-main-dock-panel", **options: Any
    ) -> None:
        chosen = {"viewport": {"width": 1280, "height": 900}, **options}
        self.context = browser.new_context(**chosen)
        self.page: Page = self.context.new_page()
        self.lab = lab
        self.complaints: list[str] = []
        self.sent = 0
        self.page.on("console", self._hear)
        self.page.on("pageerror", self._hear_error)
        self.page.on("websocket", self._watch)
        self.page.goto(lab.url(path))
        self.page.wait_for_selector(ready, timeout=60_000)

    def open_sidebar(self) -> None:
        """By the tab at the side, as people do it."""
        self.page.locator(f'li[data-id="{SIDEBAR}"]').click()
        expect(self.sidebar).to_be_visible()

    def close_sidebar(self) -> None:
        self.page.locator(f'li[data-id="{SIDEBAR}"]').click()
        expect(self.sidebar).to_be_hidden()

    def wait_for_kernel(self) -> None:
        """Until the notebook in front has one: a cell that is run earlier asks for which one to take."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not any(
            each["connections"] and each["execution_state"] == "idle" for each in self.lab.kernels(self.page)
        ):
            assert time.monotonic() < deadline, self.lab.kernels(self.page)
            self.page.wait_for_timeout(200)
        expect(self.page.locator(".jp-Notebook-ExecutionIndicator[data-status='idle']")).to_be_visible()

    @property
    def sidebar(self) -> Any:
        return self.page.locator(f"#{SIDEBAR}")

    def close(self) -> None:
        self.context.close()

    def _hear(self, message: Any) -> None:
        ours = "kalavai" in message.text or "kn-" in message.text
        if message.type in ("error", "warning") and ours:
            self.complaints.append(message.text)

    def _hear_error(self, error: Any) -> None:
        # Notebook 7 has one of its own, of a setting it does not have; it is there without us too
        if "/static/notebook/" not in error.stack or "kalavai" in error.stack:
            self.complaints.append(str(error))

    def _watch(self, socket: Any) -> None:
        if "kalavai-nb/stream" in socket.url:
            socket.on("framereceived", lambda _: self._count())

    def _count(self) -> None:
        self.sent += 1


SIDEBAR = "kalavai_nb-sidebar"
