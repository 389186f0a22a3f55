"""Drives the demo page in headless Chromium, and takes pictures of it.

    apt-get install chromium chromium-driver
    python3 -m venv browser && browser/bin/pip install selenium pillow
    browser/bin/python scripts/demo_screenshots.py --out docs/images

It starts `python -m llava.serve.demo` on the bundled model by itself (--python: with which Python;
--address: use a page that is served already), uploads a picture, asks, moves the slider, asks
again, gives a file that is no picture and one of 10,000 x 10,000 pixels, and looks at the page in a
narrow window. It fails where the page says something else than it should, and where the browser
fetched anything from another host. Needs neither the project's packages nor a display.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "playground/data/eval/textvqa/train_images/7ce7568e50680e06.jpg"
QUESTION = "What is the shape of the pink object?"
LIMIT = 240
"""Seconds for a step; two CPU cores need a few."""
MOST_BYTES = 300_000


@contextlib.contextmanager
def served(python: str, model: str) -> Iterator[str]:
    """The page on a free port, for the length of the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [python, "-m", "llava.serve.demo", "--model-path", model, "--port", str(port)]
    server = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + LIMIT
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(address, timeout=5).close()
                break
            if server.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"the page did not come up: {' '.join(command)}")
            time.sleep(0.5)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


class Visitor:
    """A browser on the page."""

    def __init__(self, address: str, out: Path, size: tuple[int, int]):
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
        for flag in ("--headless=new", "--no-sandbox", "--hide-scrollbars", "--disable-gpu"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        driver = shutil.which("chromedriver")
        service = webdriver.ChromeService(driver) if driver else None
        self.browser = webdriver.Chrome(options=options, service=service)
        self.address, self.out = address, out
        self.foreign: set[str] = set()
        self.resize(*size)
        self.browser.get(address)
        self.until(lambda: self.find("#told .vd-message"), "the page is there")

    def find(self, css: str) -> list:
        return self.browser.find_elements(By.CSS_SELECTOR, css)

    def text(self, css: str) -> str:
        found = self.find(css)
        return found[0].text if found else ""

    def value(self, css: str) -> str:
        return self.find(css)[0].get_attribute("value") or ""

    def until(self, holds: Callable[[], object], what: str) -> None:
        end = time.monotonic() + LIMIT
        while not holds():
            if time.monotonic() > end:
                self.shoot("failed")
                raise SystemExit(f"not so after {LIMIT} s: {what}; the page says {self.told!r}")
            time.sleep(0.2)
        print(f"ok: {what}", flush=True)

    @property
    def told(self) -> str:
        return self.text("#told")

    def upload(self, file: Path) -> None:
        if clear := self.find('button[aria-label="Clear"], button[aria-label="Remove this file"]'):
            clear[0].click()
            self.until(lambda: self.find('input[type="file"]'), "the field is empty")
        before = self.told
        self.find('input[type="file"]')[0].send_keys(str(file))
        self.until(lambda: self.told != before and file.name in self.told, f"it took {file.name}")

    def ask(self, question: str) -> None:
        box = self.find("#question textarea")[0]
        box.send_keys(Keys.CONTROL, "a")
        box.send_keys(question)
        table = self.find("#table table")
        self.find("#ask")[0].click()
        gone = lambda: not table or not self.find("#table table") or self.changed(table[0])  # noqa: E731
        self.until(gone, "it asks")
        self.until(lambda: self.find("#table table") and "answers" in self.told, "both answered")

    @staticmethod
    def changed(element: object) -> bool:
        """Whether an element is no longer part of the page."""
        try:
            element.is_displayed()  # type: ignore[attr-defined]
        except Exception:
            return True
        return False

    def slide(self, tokens: int) -> None:
        number = self.find('#budget input[type="number"]')[0]
        number.send_keys(Keys.CONTROL, "a")
        number.send_keys(str(tokens), Keys.TAB)
        self.until(lambda: self.value('#budget input[type="range"]') == str(tokens), "it slid")

    def resize(self, width: int, height: int) -> None:
        """The window's inside; narrower than Chromium's windows may be, too."""
        self.browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )

    def shoot(self, name: str, whole: bool = True) -> Path:
        """A PNG of the page, in few enough colours to be small."""
        self.note_requests()
        time.sleep(0.5)
        self.browser.execute_script("window.scrollTo(0, 0); document.activeElement.blur();")
        data = self.browser.execute_cdp_cmd(
            "Page.captureScreenshot", {"captureBeyondViewport": whole, "format": "png"}
        )["data"]
        image = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
        file = self.out / f"{name}.png"
        for colours in (256, 128, 64, 32):
            small = image.quantize(colours, dither=Image.Dither.NONE)
            small.save(file, optimize=True)
            if file.stat().st_size < MOST_BYTES:
                break
        print(f"wrote {file} ({file.stat().st_size} bytes, {image.size})", flush=True)
        return file

    def overflow(self) -> int:
        """Pixels by which the page is wider than the window."""
        return int(
            self.browser.execute_script(
                "return document.documentElement.scrollWidth - window.innerWidth"
            )
        )

    def note_requests(self) -> None:
        for entry in self.browser.get_log("performance"):
            event = json.loads(entry["message"])["message"]
            if event["method"] == "Network.requestWillBeSent":
                url = event["params"]["request"]["url"]
                if not url.startswith((self.address, "data:", "blob:", "about:", "chrome")):
                    self.foreign.add(url)


def huge_png(file: Path) -> Path:
    """10,000 x 10,000 pixels of one bit."""
    Image.new("1", (10_000, 10_000), 1).save(file)
    return file


def visit(address: str, out: Path, folder: Path) -> list[str]:
    """The whole tour; returns addresses elsewhere that the browser asked."""
    desktop = Visitor(address, out, (1280, 900))
    try:
        desktop.upload(PICTURE)
        desktop.ask(QUESTION)
        assert "star" in desktop.value("#full textarea"), desktop.value("#full textarea")
        assert "64 (11.1 % of full)" in desktop.text("#table"), desktop.text("#table")
        desktop.slide(128)
        desktop.ask(QUESTION)
        assert "128 (22.2 % of full)" in desktop.text("#table"), desktop.text("#table")
        assert len(desktop.find("#drawing img")) == 5
        desktop.shoot("demo")
        desktop.slide(16)
        desktop.ask(QUESTION)
        assert "16 (2.8 % of full)" in desktop.text("#table"), desktop.text("#table")
        desktop.shoot("demo-16-tokens")
        assert desktop.overflow() <= 0
        notes = folder / "notes.txt"
        notes.write_text("This is no picture.")
        desktop.upload(notes)
        assert "notes.txt cannot be read as a picture" in desktop.told
        desktop.shoot("demo-no-picture", whole=False)
        desktop.upload(huge_png(folder / "huge.png"))
        assert "10000 x 10000 pixels, brought to 2048 x 2048" in desktop.told
        desktop.ask("Is it white?")
        desktop.resize(390, 844)
        desktop.upload(PICTURE)
        desktop.ask(QUESTION)
        desktop.shoot("demo-narrow")
        assert desktop.overflow() <= 0, f"{desktop.overflow()} pixels too wide"
        errors = [
            e["message"] for e in desktop.browser.get_log("browser") if e["level"] == "SEVERE"
        ]
        print("console:", errors)
        return sorted(desktop.foreign)
    finally:
        desktop.browser.quit()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--address", help="of a page that is served already")
    parser.add_argument("--python", default=str(ROOT / ".venv" / "bin" / "python"))
    parser.add_argument("--model", default=str(ROOT / "checkpoints" / "pocket-llava"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    page = contextlib.nullcontext(args.address) if args.address else served(args.python, args.model)
    with page as address, tempfile.TemporaryDirectory() as folder:
        foreign = visit(address, args.out, Path(folder))
    if foreign:
        print(f"the page asked other hosts: {foreign}", file=sys.stderr)
    return 1 if foreign else 0


if __name__ == "__main__":
    sys.exit(main())
