"""A browser without a window for tests: the DevTools protocol over pipes, with the standard library alone."""

import base64
import fcntl
import json
import os
import select
import time
from pathlib import Path
from typing import Any

QUIET = [
    "--headless",
    "--no-sandbox",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]
SOFTWARE_GL = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
PATIENCE = 60.0  # seconds for an answer, on a machine that is busy


class Browser:
    """Chromium with one page; ``said`` gathers its errors, ``asked`` the addresses that it requested."""

    def __init__(self, profile: Path) -> None:
        theirs_in, self._out, self._in, theirs_out = (_moved(end) for end in (*os.pipe(), *os.pipe()))
        silent = [(os.POSIX_SPAWN_OPEN, end, os.devnull, os.O_WRONLY, 0) for end in (1, 2)]
        duplicated = [(os.POSIX_SPAWN_DUP2, theirs_in, 3), (os.POSIX_SPAWN_DUP2, theirs_out, 4)]
        command = ["chromium", *QUIET, *SOFTWARE_GL, "--remote-debugging-pipe", f"--user-data-dir={profile}"]
        self._process = os.posix_spawnp("chromium", command, os.environ, file_actions=[*silent, *duplicated])
        os.close(theirs_in)
        os.close(theirs_out)
        self._count, self._held, self._session = 0, b"", ""
        self.said: list[str] = []
        self.asked: list[str] = []
        self._loaded = False
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        self._session = ""
        self._send("Browser.close", {})
        os.waitpid(self._process, 0)
        os.close(self._in)
        os.close(self._out)

    def open(
        self, path: Path, width: int = 800, height: int = 900, scripts: bool = True, scale: float = 1.0, **media: str
    ) -> None:
        """Load a page; ``media``: features such as prefers_color_scheme="dark". Motion is reduced unless it says otherwise."""
        features = {"prefers_reduced_motion": "reduce", **media}
        named = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.call("Emulation.setEmulatedMedia", media="", features=named)
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=width < 500)
        self.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.said, self.asked, self._loaded = [], [], False
        self.call("Page.navigate", url=path.absolute().as_uri())
        self._wait(lambda: self._loaded)

    def run(self, expression: str) -> Any:
        """What a JavaScript expression comes to, awaited; exceptions are raised here."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def floats(self, expression: str) -> bytes:
        """The bytes of a typed array."""
        coded = f"""(() => {{ const bytes = new Uint8Array(({expression}).buffer); let text = "";
            for (let i = 0; i < bytes.length; i += 4096) text += String.fromCharCode(...bytes.subarray(i, i + 4096));
            return btoa(text); }})()"""
        return base64.b64decode(self.run(coded))

    def press(self, key: str) -> None:
        """A key as the user presses it, text included where it is a character."""
        code = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Home": 36, "Tab": 9}.get(key, 0)
        text = {"text": key} if len(key) == 1 else {}
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **(text if kind == "keyDown" else {})
            )

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def screenshot(self, path: Path) -> None:
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._send(method, params)
        answers: list[dict[str, Any]] = []
        self._wait(lambda: bool(answers), answers)
        assert "error" not in answers[0], answers[0]["error"]
        return answers[0]["result"]

    def _send(self, method: str, params: dict[str, Any]) -> None:
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        session = {"sessionId": self._session} if self._session else {}
        os.write(self._out, json.dumps(message | session).encode() + b"\0")

    def _wait(self, done: Any, answers: list[dict[str, Any]] | None = None) -> None:
        until = time.monotonic() + PATIENCE
        while not done():
            ready, _, _ = select.select([self._in], [], [], max(until - time.monotonic(), 0))
            assert ready, "chromium does not answer"
            more = os.read(self._in, 2**20)
            assert more, "chromium has ended"
            self._held += more
            *messages, self._held = self._held.split(b"\0")
            for message in map(json.loads, messages):
                if answers is not None and message.get("id") == self._count:
                    answers.append(message)
                self._note(message.get("method", ""), message.get("params", {}))

    def _note(self, event: str, params: dict[str, Any]) -> None:
        if event == "Page.loadEventFired":
            self._loaded = True
        elif event == "Network.requestWillBeSent":
            self.asked.append(params["request"]["url"])
        elif event == "Runtime.exceptionThrown":
            self.said.append(str(params["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled":
            self.said.append(str(params["args"]))
        elif event == "Log.entryAdded":
            self.said.append(str(params["entry"]["text"]))


def _moved(end: int) -> int:
    """An end of a pipe under another number than 3 and 4, which chromium takes its own ends from."""
    moved = fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(end)
    return moved
