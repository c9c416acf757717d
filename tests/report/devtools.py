"""A page in headless Chromium, driven as a reader would: keys, clicks, window size, colour scheme, print; over the DevTools protocol."""

import asyncio
import base64
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import aiohttp


class Page:
    """One tab. Use as a context manager.

    Args:
        chromium: the browser's path.
        scratch: an empty folder for its profile.
        width, height: of the window, CSS px.
        dark: whether the reader prefers a dark scheme.
    """

    def __init__(self, chromium: str, scratch: Path, width: int = 1280, height: int = 1000, dark: bool = False) -> None:
        command = [
            chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync", "--disable-dev-shm-usage",
            "--hide-scrollbars", "--remote-debugging-port=0", f"--user-data-dir={scratch}", f"--window-size={width},{height}",
            "about:blank",
        ]  # fmt: skip
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._scratch, self._size, self._dark, self._number = scratch, (width, height), dark, 0
        self._loop = asyncio.new_event_loop()
        self.console: list[str] = []
        self.requests: list[str] = []

    def __enter__(self) -> "Page":
        port = self._port()
        self._loop.run_until_complete(self._connect(port))
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        width, height = self._size
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if self._dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.run_until_complete(self._close())
        self._loop.close()
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:  # the page is closed: how Chromium ends is not what is tested
            self._process.kill()
            self._process.wait()

    def _port(self) -> int:
        file, until = self._scratch / "DevToolsActivePort", time.monotonic() + 60
        while time.monotonic() < until:
            if file.exists() and len(file.read_text().splitlines()) >= 2:
                return int(file.read_text().splitlines()[0])
            time.sleep(0.05)
        raise TimeoutError("Chromium did not open its DevTools port in 60 s")

    async def _connect(self, port: int) -> None:
        self._session = aiohttp.ClientSession()
        async with self._session.get(f"http://127.0.0.1:{port}/json/list") as answer:
            tabs = [tab for tab in await answer.json() if tab["type"] == "page"]
        self._socket = await self._session.ws_connect(tabs[0]["webSocketDebuggerUrl"], max_msg_size=0)

    async def _close(self) -> None:
        await self._socket.close()
        await self._session.close()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Calls a method of the protocol and returns its result; what the page says meanwhile is kept."""
        return self._loop.run_until_complete(self._call(method, parameters))

    async def _call(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        self._number += 1
        await self._socket.send_str(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads((await self._socket.receive(timeout=120)).data)
            self._hear(message)
            if message.get("id") == self._number:
                assert "error" not in message, message
                return dict(message["result"])

    def _hear(self, message: dict[str, Any]) -> None:
        what, said = message.get("method"), message.get("params", {})
        if what == "Log.entryAdded":
            self.console.append(said["entry"]["text"])
        elif what == "Runtime.consoleAPICalled":
            self.console.append(str(said["args"]))
        elif what == "Runtime.exceptionThrown":
            self.console.append(str(said["exceptionDetails"]))
        elif what == "Network.requestWillBeSent":
            self.requests.append(said["request"]["url"])

    def open(self, page: Path, hash: str = "") -> "Page":
        """Opens a file and waits until it is loaded."""
        self.call("Page.navigate", url=page.absolute().as_uri() + hash)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")
        return self

    def js(self, expression: str) -> Any:
        """Returns the value of an expression in the page; the test's own, so the page's policy does not hold for it."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, expression: str) -> None:
        """Waits until an expression is true."""
        until = time.monotonic() + 60
        while not self.js(f"!!({expression})"):
            assert time.monotonic() < until, f"never true: {expression}"
            time.sleep(0.05)

    def click(self, selector: str) -> None:
        """Clicks with the mouse in the middle of an element, after scrolling it into view."""
        self.js(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'center', behavior: 'instant'}})")
        box = self.js(
            f"(b => [b.left + b.width / 2, b.top + b.height / 2])(document.querySelector({json.dumps(selector)}).getBoundingClientRect())"
        )
        for kind, button in (("mouseMoved", "none"), ("mousePressed", "left"), ("mouseReleased", "left")):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button=button, clickCount=1)

    def key(self, name: str) -> None:
        """Presses and releases a key: Tab, Enter, ArrowRight ..."""
        codes = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
        pressed = {"key": name, "code": name, "windowsVirtualKeyCode": codes[name]}
        text = {"text": "\r"} if name == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **pressed, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **pressed)

    def picture(self, path: Path, selector: str = "") -> Path:
        """Writes a PNG of the whole page, or of one element."""
        clip = self.js(
            f"(() => {{ const e = document.querySelector({json.dumps(selector or 'html')}); const b = e.getBoundingClientRect();"
            "return {x: b.left + scrollX, y: b.top + scrollY, width: b.width, height: Math.min(b.height, 16000), scale: 1}; })()"
        )
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(shot["data"]))
        return path

    def print(self) -> bytes:
        """Returns the page as a PDF, A4."""
        return base64.b64decode(self.call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69, printBackground=True)["data"])
