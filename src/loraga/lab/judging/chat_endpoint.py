"""One question to a model behind an OpenAI-compatible endpoint: POST .../chat/completions, one answer.

The key comes from the environment variable OPENAI_API_KEY alone; it goes to the one address that was named, and into no
message.
"""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from typing import Any

from ..errors import LabError, SettingsError

KEY = "OPENAI_API_KEY"
PATH = "/chat/completions"
LARGEST = 4 * 2**20  # bytes of an answer
LOCAL = ("localhost", "127.0.0.1", "::1")
HOPELESS = (401, 403, 404, 405)  # whatever is asked
BUSY = (408, 409, 425, 429)  # and all of 500 and above


class EndpointError(LabError):
    """The endpoint gave no answer, or none of use.

    Args:
        reason: what happened.
        again: whether the same question may be answered later.
        hopeless: whether no question will be.
        answered: whether it did answer, only not what it was asked for.
        wait: seconds that the endpoint asks to wait.
    """

    def __init__(
        self, reason: str, again: bool, hopeless: bool = False, answered: bool = False, wait: float = 0
    ) -> None:
        self.again, self.hopeless, self.answered, self.wait = again, hopeless, answered, wait
        super().__init__(reason)


@dataclass(frozen=True)
class Endpoint:
    """Where a model answers.

    Attributes:
        url: such as https://api.openai.com/v1, with or without /chat/completions.
        model: its name there.
        seconds: how long one answer may take.
    """

    url: str
    model: str
    seconds: float = 120

    def check(self) -> None:
        """Refuses an address that cannot be right, or that would give a secret away.

        Raises:
            SettingsError: which says why.
        """
        if reason := wrong_url(self.url):
            raise SettingsError(f"the judge's address {reason}")
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme == "http" and parts.hostname not in LOCAL and os.environ.get(KEY):
            raise SettingsError(
                f"{KEY} would be sent to {parts.hostname} for everybody on the way to read; use https, or unset it"
            )

    def ask(self, system: str, user: str, max_tokens: int) -> str:
        """Asks one question, greedily.

        Args:
            system: the system's message.
            user: the user's.
            max_tokens: of the answer at most.

        Returns:
            What the model says.

        Raises:
            EndpointError: if it says nothing.
        """
        messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        content = {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": max_tokens}
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {key}"
        address = self.url.rstrip("/")
        address += "" if address.endswith(PATH) else PATH
        request = urllib.request.Request(address, json.dumps(content).encode(), headers, method="POST")
        try:
            return _content(_read(request, self.seconds))
        except urllib.error.HTTPError as error:
            raise _refused(error) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)  # urllib wraps what happens before the request is sent
            late = isinstance(reason, TimeoutError)
            what = f"no answer within {self.seconds:g} s" if late else f"no connection ({_short(reason)})"
            raise EndpointError(what, again=True) from None


def wrong_url(url: str) -> str | None:
    """What is wrong with an endpoint's address; None if nothing is."""
    try:
        parts = urllib.parse.urlsplit(url)
        parts.port  # noqa: B018  # raises where it is no number
    except ValueError as cause:
        return f"is no address ({cause})"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return "is to begin with https://, or with http:// for a model on this machine"
    if parts.username or parts.password or parts.query or parts.fragment:
        return f"holds more than an address; a key goes into the environment variable {KEY}"
    return None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected request would carry the key to another address."""

    def redirect_request(self, *args: Any, **keywords: Any) -> None:
        return None


def _read(request: urllib.request.Request, seconds: float) -> bytes:
    """The body of the answer; also one that comes in drops has to be there in time."""
    end = time.monotonic() + seconds
    found = b""
    with urllib.request.build_opener(_NoRedirect).open(request, timeout=seconds) as response:
        while piece := response.read1(2**16):
            found += piece
            if len(found) > LARGEST:
                raise EndpointError(f"an answer of more than {LARGEST} bytes", again=True)
            if time.monotonic() > end:
                raise TimeoutError
    return found


def _content(body: bytes) -> str:
    try:
        message = json.loads(body)["choices"][0]["message"]
        content, refusal = message["content"], message.get("refusal")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise EndpointError("an answer that is no chat completion", again=True) from None
    if refusal or content is None:
        raise EndpointError(f"refused ({_short(refusal or 'no content')})", again=True)
    if not isinstance(content, str):
        raise EndpointError("an answer that is no text", again=True)
    return content


def _refused(error: urllib.error.HTTPError) -> EndpointError:
    with error:
        code = error.code
        try:
            said = json.loads(error.read(2**14))["error"]
            said = said["message"] if isinstance(said, dict) else said
        except (ValueError, LookupError, TypeError, OSError, RecursionError, http.client.HTTPException):
            said = error.reason
    try:
        wait = max(0.0, float(error.headers.get("Retry-After") or 0))
    except ValueError:  # a date
        wait = 0
    again = code in BUSY or code >= 500
    hint = f"; {KEY} is {'not accepted' if os.environ.get(KEY) else 'not set'}" if code == 401 else ""
    return EndpointError(f"HTTP {code} ({_short(said)}){hint}", again, code in HOPELESS or 300 <= code < 400, wait=wait)


def _short(said: object) -> str:
    """What an endpoint said, in one line that a terminal can show, and without the key, which some repeat."""
    text, key = str(said), os.environ.get(KEY)
    text = text.replace(key, "***") if key else text
    return "".join(each if each.isprintable() else "?" for each in " ".join(text[:1000].split()))[:200]
