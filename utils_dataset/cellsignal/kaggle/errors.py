"""What the Kaggle client printed when it did not do its work, as one line and as a kind of error."""

import re

from cellsignal.errors import InputError, StepFailed

MAX_MESSAGE_LENGTH = 200  # characters of the client's own text in a message
HIDDEN = "[hidden]"
_SECRETS = (
    (r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{6,}", r"\1 " + HIDDEN),
    (r"(?i)([\"']?\b\w*(?:token|secret|password|api_?key|kaggle_key|authorization)\w*[\"']?\s*[:=]\s*)(?!\[)[\"']?[^\s\"',;]+[\"']?", r"\1" + HIDDEN),
    (r"(?i)([\"']?\bkey[\"']?\s*[:=]\s*)[\"']?[^\s\"',;]{8,}[\"']?", r"\1" + HIDDEN),
    (r"(https?://)[^/\s@]+@", r"\1" + HIDDEN + "@"),  # a proxy's user and password
    (r"(https?://[^\s?]+)\?\S+", r"\1"),  # the signature of an upload's address
    (r"\beyJ[\w-]+\.[\w-]+\.[\w-]+", HIDDEN),  # a JSON web token
    (r"(?<![\w-])(?=[\w-]*\d)(?=[\w-]*[A-Za-z])(?:\w{24,}|(?=[\w-]*[A-Z])[\w-]{32,})(?![\w-])", HIDDEN),
)  # fmt: skip
_IGNORED_LINES = re.compile(r"%\||B/s\]|^(⚠|Warning|Starting upload|Upload successful|Request failed: .* Will retry|Next page token|.* downloaded to )", re.IGNORECASE)


class Refused(StepFailed):
    """Kaggle, or its client, did not do what was asked; the line says why."""


class Busy(Refused):
    """All sessions of the account are taken: the same call works when one has ended."""


class InvalidSource(Refused):
    """Kaggle dropped a source: `.sources` names them; the version was saved nevertheless and runs without them."""

    def __init__(self, message: str, sources: tuple[str, ...]) -> None:
        super().__init__(message)
        self.sources = sources


class QuotaSpent(Refused):
    """The week's accelerator hours are used up."""


class RateLimited(Refused):
    """Too many calls in a short time: wait before the next."""


class ServerError(Refused):
    """Kaggle itself failed (5xx): the same call may work later."""


class Unreachable(Refused):
    """No answer: no network, a wrong proxy, or the client hung."""


class UploadBroken(Refused):
    """A file did not arrive whole."""


class Missing(Refused):
    """There is no such kernel, dataset or competition, or none that this account may see."""


class Conflict(Refused):
    """The slug is another one's, or the title leads to another slug."""


class LoginFailed(InputError):
    """The client has no credentials, or Kaggle does not accept them."""

    def __init__(self, what: str) -> None:
        cure = "log in with `kaggle auth login`, or save a token as ~/.kaggle/access_token; `kaggle config view` shows who you are"
        super().__init__(what, cure=cure)


class Denied(InputError):
    """Kaggle knows who asks and says no: another owner's slug, or a competition whose rules were not accepted."""


# The first that matches says what it was; the clients differ in words, and 2.2.4 prints an HTTP error's text without its number.
_TEMPORARY_ERRORS: tuple[tuple[str, type[Refused], str], ...] = (
    (r"Maximum batch \w+ session count", Busy, "wait until one of your sessions ends"),
    (r"Upload unsuccessful|Could not submit to competition", UploadBroken, "run the same command again"),
    (r"\bquota\b", QuotaSpent, "`kaggle quota` says when it is refilled"),
    (r"\b429\b|too many requests|rate.?limit", RateLimited, "wait a few minutes, then run the same command again"),
    (r"\b5\d\d (server )?error|\b50[0234]\b|server error|on Kaggle's side|unavailable|bad gateway", ServerError, "Kaggle's own fault: run the same command again later"),
    (r"max retries exceeded|connection ?(error|aborted|refused|reset)|timed out|ProxyError|SSLError|name resolution|NameResolution", Unreachable, "look at the network and its proxy, then run the same command again"),
)  # fmt: skip
_PERMANENT_ERRORS: tuple[tuple[str, type[Refused], str], ...] = (
    (r"\b409\b|conflict|already in use", Conflict, "a slug belongs to one title: choose another name, or delete the old one on kaggle.com"),
    (r"\b404\b|not found|could not find|Cannot access kernel", Missing, "look at the name and its owner"),
)  # fmt: skip
_LOGIN = re.compile(r"Authentication required|\b401\b|unauthori[sz]ed|unauthenticated|invalid credentials", re.IGNORECASE)
_DENIED = re.compile(r"\b403\b|forbidden|denied|don't have access|must accept", re.IGNORECASE)


def redact(text: str, *, longest: int = MAX_MESSAGE_LENGTH) -> str:
    """The client's text as one line of at most `longest` characters, without anything that looks like a token."""
    line = " ".join(text.split())
    for pattern, replacement in _SECRETS:
        line = re.sub(pattern, replacement, line)
    return line if len(line) <= longest else line[: longest - 1] + "…"


def reason(out: str, err: str) -> str:
    """The line of the client's output that says why: an error's first, a traceback's last, else the last one printed."""
    errors, output = _output_lines(err), _output_lines(out)
    if any(line.startswith("Traceback (most recent") for line in errors):
        return errors[-1]
    error_lines = [line for line in output if re.search(r"error|unsuccessful|not valid|required|could not", line, re.IGNORECASE)]
    return next(iter([*errors, *error_lines[:1], *reversed(output)]), "it said nothing")


def _output_lines(text: str) -> list[str]:
    lines = (line.strip() for line in re.split(r"[\r\n]+", text))  # a progress bar ends its states with \r
    return [line for line in lines if line and not _IGNORED_LINES.search(line)]


def refusal(out: str, err: str, *, doing: str, about: str = "", cure: str = "") -> Refused | InputError:
    """The error that the client's output stands for; `doing` begins the line, `about` is the slug or file at hand.

    InputError for a login, a right or a module that is missing, else a Refused of the kind that says what helps.
    """
    output = "\n".join(_output_lines(out) + _output_lines(err))  # without progress bars and files' names, whose digits are no status
    output = output.replace(about, "") if about else output  # nor are those of a slug
    line = f"{doing}: {redact(reason(out, err))}"
    module = re.search(r"No module named '([\w.]+)'", output)
    if module:
        return InputError(f"the Kaggle client lacks the module {module[1]}", cure=f"pip install {module[1]}")
    if _LOGIN.search(output):
        return LoginFailed(f"{doing}: not logged in to Kaggle")
    kind, cure_of_kind = _first_match(_TEMPORARY_ERRORS, output)
    if kind is Refused and _DENIED.search(output) and "Cannot access kernel" not in output:
        return Denied(line, cure=cure or "is it yours, and is your account verified by phone?")
    if kind is Refused:
        kind, cure_of_kind = _first_match(_PERMANENT_ERRORS, output)
    return kind("; ".join(filter(None, [line, cure_of_kind])))


def _first_match(kinds: tuple[tuple[str, type[Refused], str], ...], output: str) -> tuple[type[Refused], str]:
    matches = ((kind, cure) for pattern, kind, cure in kinds if re.search(pattern, output, re.IGNORECASE))
    return next(matches, (Refused, ""))
