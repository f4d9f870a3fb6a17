"""A real Chromium for tests of pages: clicks, keys, screenshots; what it requested, and what its console said."""

import asyncio
import base64
import itertools
import json
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp

PROGRAM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
FLAGS += ("--hide-scrollbars", "--disable-component-update", "--disable-sync", "--remote-debugging-port=0")
QUIET = ("Log", "Network", "Page", "Runtime")  # the protocol's domains that report events


class Browser:
    """One tab, driven through the DevTools protocol."""

    def __init__(self, url: str) -> None:
        self.messages: list[str] = []  # console lines, uncaught exceptions, refused loads
        self.requests: list[str] = []  # addresses, other than the page itself and data:
        self._numbers = itertools.count(1)
        self._answers: dict[int, Future] = {}
        self._loop = asyncio.new_event_loop()
        self._opened: Future = Future()
        threading.Thread(target=self._loop.run_until_complete, args=(self._listen(url),), daemon=True).start()
        self._opened.result(30)
        for domain in QUIET:
            self.call(f"{domain}.enable")

    async def _listen(self, url: str) -> None:
        async with aiohttp.ClientSession() as session, session.ws_connect(url, max_msg_size=0) as self._socket:
            self._opened.set_result(None)
            async for message in self._socket:
                self._take(json.loads(message.data))

    def _take(self, message: dict[str, Any]) -> None:
        method, details = message.get("method"), message.get("params", {})
        if "id" in message:
            self._answers.pop(message["id"]).set_result(message)
        elif method == "Runtime.exceptionThrown":
            self.messages.append(json.dumps(details["exceptionDetails"])[:500])
        elif method == "Runtime.consoleAPICalled":
            self.messages.append(json.dumps(details["args"])[:500])
        elif method == "Log.entryAdded":
            self.messages.append(details["entry"]["text"])
        elif method == "Network.requestWillBeSent" and not details["request"]["url"].startswith("data:"):
            self.requests.append(details["request"]["url"])

    def call(self, method: str, **details: Any) -> dict[str, Any]:
        """A command of the protocol, and what it returns."""
        answer: Future = Future()
        number = next(self._numbers)
        self._answers[number] = answer
        text = json.dumps({"id": number, "method": method, "params": details})
        asyncio.run_coroutine_threadsafe(self._socket.send_str(text), self._loop)
        message = answer.result(120)
        if "error" in message:
            raise RuntimeError(f"{method}: {message['error']}")
        return message["result"]

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression; promises are waited for."""
        result = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{script}: {result['exceptionDetails']['exception'].get('description')}")
        return result["result"].get("value")

    def wait(self, condition: str, seconds: float = 10) -> None:
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + seconds
        while not self.run(f"Boolean({condition})"):
            if time.monotonic() > end:
                raise TimeoutError(f"not in {seconds} s: {condition}; the console has {self.messages}")
            time.sleep(0.01)

    def open(self, path: Path, fragment: str = "", ready: str = "document.readyState === 'complete'") -> None:
        """Go to a file, as a person opens one."""
        self.call("Page.navigate", url="about:blank")
        self.requests.clear()
        self.call("Page.navigate", url=path.resolve().as_uri() + fragment)
        self.wait(f"location.protocol === 'file:' && document.body && {ready}")
        assert self.requests.pop(0).startswith("file:")

    def size(self, width: int, height: int) -> None:
        """The window's size in CSS pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def colours(self, scheme: str) -> None:
        """`light` or `dark`."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def click(self, selector: str) -> None:
        """A click with the mouse, into the middle of an element that is visible there."""
        element = f"document.querySelector({json.dumps(selector)})"
        self.run(f"{element}.scrollIntoView({{block: 'nearest'}})")
        box = self.run(f"{element}.getBoundingClientRect().toJSON()")
        self.drag([(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)])

    def move(self, x: float, y: float, kind: str = "mouseMoved") -> None:
        """The mouse to a place."""
        button = "none" if kind == "mouseMoved" else "left"
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, buttons=1, clickCount=1)

    def drag(self, places: list[tuple[float, float]]) -> None:
        """Press at the first place, move through the others, release at the last."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=places[0][0], y=places[0][1])
        self.move(*places[0], kind="mousePressed")
        for place in places[1:]:
            self.call("Input.dispatchMouseEvent", type="mouseMoved", x=place[0], y=place[1], button="left", buttons=1)
        self.move(*places[-1], kind="mouseReleased")

    def key(self, name: str) -> None:
        """A key pressed and released, by the name that a page sees."""
        text = {"Enter": "\r"}.get(name, name if len(name) == 1 else "")
        code = {"Enter": 13, "Escape": 27}.get(name, 0)
        down = {"text": text} if text else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=name, windowsVirtualKeyCode=code, **down)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=name, windowsVirtualKeyCode=code)

    def type(self, text: str) -> None:
        """Text into what has the focus."""
        self.call("Input.insertText", text=text)

    def screenshot(self, path: Path, quality: int = 80) -> None:
        """The window as a PNG, or a WebP or JPEG by its name."""
        kind = path.suffix[1:].replace("jpg", "jpeg")
        options = {} if kind == "png" else {"quality": quality}
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format=kind, **options)["data"]))


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser with an empty profile; ended afterwards."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        command = [str(PROGRAM), *FLAGS, f"--user-data-dir={folder}", "about:blank"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        try:
            assert process.stderr is not None
            line = next(line for line in process.stderr if "DevTools listening on ws://" in line)
            threading.Thread(target=process.stderr.read, daemon=True).start()
            yield Browser(_tab(line.split("//")[1].split("/")[0]))
        finally:
            process.terminate()
            process.wait(20)


def _tab(address: str) -> str:
    """The websocket of the browser's first tab."""
    from urllib.request import urlopen

    with urlopen(f"http://{address}/json/list") as answer:
        return next(tab["webSocketDebuggerUrl"] for tab in json.load(answer) if tab["type"] == "page")
