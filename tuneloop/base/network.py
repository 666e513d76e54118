"""Whether a server answers, found out in seconds."""

from __future__ import annotations

import ssl
import threading
import urllib.error
import urllib.request

SECONDS = 3.0


def is_reachable(url: str, seconds: float = SECONDS) -> bool:
    """Whether a server answers at `url` within `seconds`, whatever it answers. The proxies of the environment count."""
    answered = threading.Event()

    def ask() -> None:
        try:
            urllib.request.build_opener().open(urllib.request.Request(url, method="HEAD"), timeout=seconds).close()
            answered.set()
        except urllib.error.HTTPError:
            answered.set()
        except urllib.error.URLError as error:
            if isinstance(error.reason, ssl.SSLError):  # it is there; the library may know its certificate
                answered.set()
        except (OSError, ValueError):
            pass

    # In a thread, because a name server that is silent holds the look-up up beyond any time-out of the connection.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(seconds + 0.5)
    return answered.is_set()
