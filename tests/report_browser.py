"""Opens a report in headless Chromium, by its DevTools protocol over a pipe.

python tests/report_browser.py REPORT.html WIDTH SCREENSHOT.png
"""

import base64
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

COMMAND = "chromium"
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--host-resolver-rules=MAP * ~NOTFOUND", "--remote-debugging-pipe"),
)
HEIGHT = 900
# The page's script defines Plotly and then, without a pause, draws what is to be seen.
READY = """new Promise((resolve) => {
  (function wait() { globalThis.Plotly ? resolve() : setTimeout(wait, 50); })();
})"""


class Page:
    """A page open in a browser."""

    def __init__(self, read: BinaryIO, write: BinaryIO) -> None:
        """Opens an empty page of the browser at the other end of the pipe."""
        self.read, self.write, self.session, self.last = read, write, "", 0
        self.requests: list[str] = []  # addresses of everything that was asked for
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        self.call("Network.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Returns the browser's answer; the requests that it tells of before are kept."""
        self.last += 1
        message = {"id": self.last, "method": method, "params": parameters}
        message |= {"sessionId": self.session} if self.session else {}
        self.write.write(json.dumps(message).encode() + b"\0")
        self.write.flush()
        while True:
            told = json.loads(self._next())
            if told.get("method") == "Network.requestWillBeSent":
                self.requests.append(told["params"]["request"]["url"])
            if told.get("id") == self.last:
                assert "error" not in told, told
                return told["result"]

    def _next(self) -> bytes:
        text = bytearray()
        while (byte := self.read.read(1)) != b"\0":
            assert byte, "the browser has ended"
            text += byte
        return bytes(text)

    def open(self, path: Path, width: int) -> None:
        """Opens a file in a window of this width."""
        size = {"width": width, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.requests.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())

    def run(self, script: str) -> Any:
        """The value of an expression, awaited."""
        found = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def screenshot(self) -> bytes:
        """The whole page as a PNG."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        shot = self.call(
            "Page.captureScreenshot", captureBeyondViewport=True, clip=size | {"scale": 1}
        )
        return base64.b64decode(shot["data"])


@contextmanager
def browser() -> Iterator[Page]:
    """An empty page of a browser of its own."""
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    # The browser reads from descriptor 3 and writes to 4.
    shell = f'exec {COMMAND} "$@" 3<&{theirs_in} 4>&{theirs_out}'
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = ["bash", "-c", shell, COMMAND, *FLAGS, f"--user-data-dir={profile}"]
        process = subprocess.Popen(
            command, pass_fds=(theirs_in, theirs_out), stderr=subprocess.DEVNULL
        )
        os.close(theirs_in)
        os.close(theirs_out)
        with os.fdopen(ours_in, "rb") as read, os.fdopen(ours_out, "wb") as write:
            try:
                yield Page(read, write)
            finally:
                process.kill()
                process.wait()


if __name__ == "__main__":
    with browser() as page:
        page.open(Path(sys.argv[1]), int(sys.argv[2]))
        page.run(READY)
        Path(sys.argv[3]).write_bytes(page.screenshot())
