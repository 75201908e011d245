"""Print the README's requests for the daemon that a port file names, once it listens."""

import os
import shutil
import sys
import time
import urllib.error
import urllib.request

DEADLINE_S = 60


def main(port_file: str) -> int:
    """Wait for the port, ask whether a token is needed, print lines that work as they are."""
    port = wait_for_port(port_file)
    if port is None:
        return 1
    url = f"http://127.0.0.1:{port}"
    ckptd = shutil.which("ckptd", path=os.path.dirname(sys.executable)) or "ckptd"
    token = f' -H "Authorization: Bearer $({ckptd} token)"' if needs_token(url) else ""
    print(
        f"""
ckptd listens on {url}; in another terminal:

  curl -s{token} '{url}/checkpoints?page_size=3'
  curl -s{token} '{url}/checkpoints?sort_by=hmean&sort_order=desc&page_size=1'
  curl -sN{token} '{url}/checkpoints/events'
  curl -s{token} '{url}/health/checkpoints'
  {ckptd} ls
  {ckptd} watch
"""
    )
    return 0


def wait_for_port(port_file: str) -> int | None:
    """The port that the daemon wrote, or None after a minute."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        try:
            with open(port_file, encoding="ascii") as file:
                text = file.read().strip()
            if text:
                return int(text)
        except FileNotFoundError:
            pass
        time.sleep(0.1)
    return None


def needs_token(url: str) -> bool:
    """Whether the list is refused to somebody unknown."""
    try:
        with urllib.request.urlopen(f"{url}/checkpoints?page_size=1", timeout=5):
            return False
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
