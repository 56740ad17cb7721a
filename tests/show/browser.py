"""A headless Chromium, driven through its DevTools protocol over two pipes: no library and no port are needed."""

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "")
KEYS = {"Tab": 9, "Enter": 13, "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}


class Browser:
    """One page in one browser; `problems` are errors and warnings of its console, `requests` the addresses that it asked for."""

    def __enter__(self) -> "Browser":
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        inward, self.outward = os.pipe()
        self.inward, outward = os.pipe()
        options = "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --disable-extensions --remote-debugging-pipe"
        command = f"exec {CHROMIUM} {options} --user-data-dir={self.profile.name} 3<&{inward} 4>&{outward}"
        self.process = subprocess.Popen(["bash", "-c", command], pass_fds=(inward, outward), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(inward), os.close(outward)
        self.rest, self.number, self.session = b"", 0, ""
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.loaded = False
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(timeout=30)
        os.close(self.outward), os.close(self.inward)
        self.profile.cleanup()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters} | ({"sessionId": self.session} if self.session else {})
        os.write(self.outward, json.dumps(message).encode() + b"\0")
        while (answer := self.read()).get("id") != self.number:
            self.note(answer)
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def read(self) -> dict[str, Any]:
        deadline = time.monotonic() + 60
        while b"\0" not in self.rest:
            assert select.select([self.inward], [], [], max(0, deadline - time.monotonic()))[0], "the browser does not answer"
            self.rest += os.read(self.inward, 1 << 20)
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)

    def note(self, event: dict[str, Any]) -> None:
        method, values = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent" and not values["request"]["url"].startswith("data:"):
            self.requests.append(values["request"]["url"])
        if method == "Runtime.exceptionThrown" or (method == "Runtime.consoleAPICalled" and values["type"] in ("error", "warning")) or method == "Log.entryAdded":
            self.problems.append(json.dumps(values))
        self.loaded |= method == "Page.loadEventFired"

    def open(self, path: Path, *, width: int = 1360, height: int = 1000) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}])
        self.loaded = False
        self.call("Page.navigate", url=path.as_uri())
        while not self.loaded:
            self.note(self.read())

    def run(self, script: str) -> Any:
        """The value of an expression."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        named = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]} | ({"text": "\r"} if key == "Enter" else {})
        self.call("Input.dispatchKeyEvent", type="keyDown", **named)
        self.call("Input.dispatchKeyEvent", type="keyUp", **{name: value for name, value in named.items() if name != "text"})

    def mouse(self, x: float, y: float, *, click: bool = False) -> None:
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind in ("mousePressed", "mouseReleased") if click else ():
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def mouse_on(self, selector: str, *, click: bool = False) -> None:
        script = f"(e => {{e.scrollIntoView({{block: 'center'}}); const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2];}})(document.querySelector({json.dumps(selector)}))"
        self.mouse(*self.run(script), click=click)

    def choose(self, selector: str, value: object) -> None:
        """Choose an option of a select, as a user does."""
        self.run(f"(e => {{e.value = {json.dumps(str(value))}; e.dispatchEvent(new Event('change', {{bubbles: true}}));}})(document.querySelector({json.dumps(selector)}))")

    def text(self, selector: str) -> str:
        return self.run(f"document.querySelector({json.dumps(selector)}).textContent")

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"]))
