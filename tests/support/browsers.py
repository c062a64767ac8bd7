"""A real browser: Debian's chromium, driven by selenium; `make browser` installs it."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.common.keys import Keys

from tests.support.deadlines import DEADLINE, wait_until
from tests.support.mounts import ROOT

__all__ = ["PICTURES", "Browser", "Keys", "browsing"]

PICTURES = ROOT / ".cache" / "page"
"""Where the pictures are, for people to look at."""

_SIZE = (1280, 800)


class Browser:
    """A browser with one tab."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        """Load a page anew, with nothing that another test left, and wait for its first numbers."""
        self.driver.get("about:blank")
        self.problems()
        self.driver.get(url)
        self.wait(lambda: self.texts("#state", "live"), "the first numbers")

    def run(self, script: str, *arguments: object) -> Any:
        """Run a script in the page, and return what it returns."""
        return self.driver.execute_script(script, *arguments)

    def text(self, selector: str) -> str:
        """The texts of all elements that can be seen, a line each."""
        found: str = self.run(
            "return [...document.querySelectorAll(arguments[0])]"
            ".filter(one => one.offsetParent).map(one => one.innerText).join('\\n')",
            selector,
        )
        return found

    def texts(self, selector: str, *parts: str) -> bool:
        """Whether the elements have all these texts."""
        text = self.text(selector)
        return all(part in text for part in parts)

    def wait(self, condition: Callable[[], object], what: str) -> None:
        """Wait until a condition holds; say what the page shows if it does not."""
        try:
            wait_until(condition, what)
        except AssertionError as error:
            error.add_note(self.text("body"))
            raise

    def wait_for(self, selector: str, *parts: str) -> None:
        """Wait until the elements have all these texts."""
        self.wait(lambda: self.texts(selector, *parts), f"{parts} in {selector}")

    def click(self, selector: str, text: str = "") -> None:
        """Click the first element that has a text."""
        found = self.driver.find_elements("css selector", selector)
        next(one for one in found if text in one.text).click()

    def press(self, *keys: str) -> None:
        """Press keys, wherever the focus is."""
        for key in keys:
            self.driver.switch_to.active_element.send_keys(key)

    def problems(self) -> list[str]:
        """What the browser complained about: scripts that failed or were refused."""
        # Not that a server refuses, or is gone.
        entries = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        return [str(entry["message"]) for entry in entries if entry["source"] != "network"]

    def emulate(self, *, dark: bool = False, phone: bool = False) -> None:
        """Be another browser."""
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self._command("Emulation.setEmulatedMedia", features=features)
        self._command("Emulation.setTouchEmulationEnabled", enabled=phone)
        size = (390, 844) if phone else _SIZE
        names = ("width", "height", "deviceScaleFactor", "mobile")
        self._command(
            "Emulation.setDeviceMetricsOverride",
            **dict(zip(names, (*size, 2 if phone else 1, phone), strict=True)),
        )

    def picture(self, name: str) -> Path:
        """Save what is seen, as a PNG."""
        PICTURES.mkdir(parents=True, exist_ok=True)
        path = PICTURES / f"{name}.png"
        assert self.driver.save_screenshot(str(path))
        return path

    def _command(self, name: str, **arguments: object) -> None:
        self.driver.execute_cdp_cmd(name, arguments)


@contextlib.contextmanager
def browsing() -> Iterator[Browser]:
    """Run a browser without a window."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    # Its sandbox is not for root, and shared memory is small in containers.
    for option in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "hide-scrollbars"):
        options.add_argument(f"--{option}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(str(shutil.which("chromedriver"))))
    try:
        driver.set_page_load_timeout(DEADLINE)
        yield Browser(driver)
    finally:
        driver.quit()
