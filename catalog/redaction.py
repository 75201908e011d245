"""Redaction: what looks like a password, a token or a key in configs and hyper-parameters is not shown to readers.

Applied where a description is made, so that neither state, search, sidecars, API, log nor page ever hold it. By the
name of the key that holds a value, and by the form of the value itself. A guess: a secret under a harmless name and in
no known form stays, so a config is no place to keep one.
"""

import functools
import re
from collections.abc import Callable
from typing import TypeVar

import msgspec

from ckptd.validators.inspection import Inspection, Plain

from .description import FieldChange, RedactionRules
from .metadata import ParsedMetadata
from .run_facts import Run

REDACTED = "[redacted]"
REDACTION_VERSION = 1
"""Raised whenever more, or less, is redacted: everything is then described again, in the background."""


def _words(*lines: str) -> frozenset[str]:
    return frozenset(word for line in lines for word in line.split())


_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_MODIFIERS = frozenset(
    {"value", "val", "str", "string", "hash", "old", "new", "prod", "dev", "default", "base64", "b64"}
)
"""Words that may follow: `api_key_prod`, `password_2`."""
_ALWAYS = _words(
    "password passwords passwd passphrase pwd secret secrets credential credentials apikey authorization",
    "accesskey secretkey privatekey authtoken accesstoken apitoken apisecret clientsecret htpasswd",
)
"""Last words of names whose value is one, and of sections all of whose values are."""
_KEY_OF = _words(
    "api access secret private account auth encryption signing ssh service shared subscription wandb license master",
    "storage app application hmac gpg rsa comet neptune openai anthropic gcp aws azure",
)
"""Words before `key`; a bare `key`, `key_dim` and `monitor_key` are none."""
_TOKEN_OF = _words(
    "auth access api bearer refresh session hf huggingface hub github gitlab git wandb slack bot telegram user",
    "security secret oauth jwt csrf xsrf login service personal private deploy sas aws azure gcp id registry pypi npm",
    "neptune mlflow comet clearml tracking dagshub cloud client",
)
"""Words before `token`. Language models have `pad_token`, `cls_token` and many more, which are none."""
_OTHERS = frozenset({("connection", "string"), ("auth", "header"), ("session", "cookie"), ("client", "secret")})
_SPECIAL = re.compile(r"[<\[|{].{0,60}[>\]|}]\Z")
"""`<s>`, `[PAD]`, `<|endoftext|>`: what language models call tokens."""
_INTERPOLATION = re.compile(r"\$\{[^,${}]*\}\Z")
"""OmegaConf's `${oc.env:WANDB_API_KEY}` says where a secret is, not which; with a default it may say both."""
_LONG = re.compile(r"(?=\S*[0-9])(?=\S*[A-Za-z])[\w.~+/=-]{16,}\Z")

_FORMS = re.compile(
    r"""
      -----BEGIN\ [A-Z\ ]{0,30}PRIVATE\ KEY-----(?:(?!-----END)[\s\S])*(?:-----END\ [A-Z\ ]{0,30}KEY-----)?
    | (?<![A-Za-z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])  # AWS
    | (?<![A-Za-z0-9])(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{20,})  # GitHub, GitLab
    | (?<![A-Za-z0-9])(?:hf_[A-Za-z0-9]{20,}|npm_[A-Za-z0-9]{30,}|pypi-[\w-]{50,}|dckr_pat_[\w-]{20,})
    | (?<![\w-])sk-(?:(?=[\w-]*[0-9])(?=[\w-]*[A-Z])[\w-]{20,}|(?:[a-z]{1,10}-)?[A-Za-z0-9]{20,}[\w-]*)
    | (?<![A-Za-z0-9])xox[abeoprs]-[\w-]{10,} | hooks\.slack\.com/services/[\w/]+  # Slack
    | (?<![A-Za-z0-9])(?:AIza[\w-]{35}|ya29\.[\w-]{20,}|wandb_v1_\w{20,})  # Google, W&B
    | (?<![\w-])eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*  # JWT (RFC 7519)
    | (?<=://)[^\s/@:?\#]{0,200}:[^\s/@]{1,500}(?=@)  # user:password@ of a URL
    | (?<=[?&;])(?i:(?:x-amz-)?(?:signature|security-token|credential)|sig|access_token|api_?key|token|password|secret
        |accountkey)=[^\s&;"']{6,}
    | (?<![A-Za-z])(?i:accountkey|sharedaccesskey|sharedaccesssignature)=[^\s;"']{6,}  # Azure
    | (?<![A-Za-z])(?i:bearer)\ +(?=\S*[0-9])[\w.~+/-]{16,}=*  # Authorization
    | (?<![A-Za-z])(?i:basic)\ +(?=\S*[0-9=])(?=\S*[A-Z])[A-Za-z0-9+/]{16,}=*
    """,
    re.VERBOSE,
)
"""Secrets that are known by their form, wherever they stand. Every repetition is bounded or begins at a literal: a
stranger's megabyte costs one pass."""
_HINT = re.compile(r"PRIVATE KEY|AKIA|ASIA|_|-|xox|hooks\.slack|AIza|ya29|eyJ|://|=|earer |asic |EARER |ASIC ")
_ASSIGNMENT = re.compile(r"(?<![\w.+-])([+\w.-]{1,200})=([^\s,;&]+)")
"""`key=value` of an override or of a command line."""
_ASSIGNED = re.compile(r"[=:]")
_SHORTEST = 15
"""Characters of the shortest secret with a form of its own; in a shorter text only an assignment or a URL can be."""


_Struct = TypeVar("_Struct", bound=msgspec.Struct)


class Redactor:
    """Redacts plain data, and counts what it redacted."""

    def __init__(self, rules: RedactionRules) -> None:
        self.count = 0
        self._names = frozenset(name.casefold() for name in rules.names)

    def plain(self, value: Plain, holder: str = "") -> Plain:
        """The same data with secrets replaced; the same object where there is none.

        Args:
            value: plain data of bounded depth, as `documents` and `plain` make it. It is not modified.
            holder: the name of the key that holds it.
        """
        if isinstance(value, str):
            return self._text(value, holder)
        if isinstance(value, dict):
            return self._mapping(value, holder)
        if isinstance(value, list | tuple):
            return self._items(value, holder)
        is_number = type(value) is int and abs(value) >= 1000
        return self._hidden() if is_number and self._names_all(holder) else value

    def inspection(self, found: Inspection) -> Inspection:
        """What a checkpoint says of itself, without secrets."""
        before = self.count
        hyper_parameters = self.plain(found.hyper_parameters)
        callbacks = tuple(msgspec.structs.replace(c, state=self.plain(c.state)) for c in found.callbacks)
        if self.count == before:
            return found
        return msgspec.structs.replace(found, hyper_parameters=hyper_parameters, callbacks=callbacks)

    def sidecar(self, parsed: ParsedMetadata) -> ParsedMetadata:
        """What a sidecar says, without secrets."""
        return self._struct(parsed)

    def run(self, run: Run) -> Run:
        """What a run's records say, without secrets."""
        return self._struct(run)

    def change(self, change: FieldChange) -> FieldChange:
        """A change of a sidecar as it is shown."""
        holder = change.field[-1] if change.field else ""
        return msgspec.structs.replace(change, old=self.plain(change.old, holder), new=self.plain(change.new, holder))

    def _struct(self, value: _Struct) -> _Struct:
        before = self.count
        redacted = self.plain(msgspec.to_builtins(value))
        return value if self.count == before else msgspec.convert(redacted, type(value))

    def _mapping(self, value: dict[str, Plain], holder: str) -> dict[str, Plain]:
        before = self.count
        inherited = holder if self._names_all(holder) else None
        found = {self._form(str(key)): self.plain(child, inherited or str(key)) for key, child in value.items()}
        return value if self.count == before else found

    def _items(self, value: list[Plain] | tuple[Plain, ...], holder: str) -> Plain:
        before = self.count
        found = []
        flag = ""
        for item in value:
            found.append(self.plain(item, flag or holder))
            # `--password`, `hunter2`: two words of a command line
            flag = item.lstrip("-") if isinstance(item, str) and item.startswith("--") and "=" not in item else ""
        return value if self.count == before else found

    def _text(self, value: str, holder: str) -> str:
        if holder and value and value != REDACTED and self._is_secret(holder, value):
            return self._hidden()
        return self._form(value)

    def _form(self, value: str) -> str:
        if (len(value) < _SHORTEST and not _ASSIGNED.search(value)) or _HINT.search(value) is None:
            return value
        value, count = _FORMS.subn(REDACTED, value)
        self.count += count
        return _ASSIGNMENT.sub(self._assigned, value) if "=" in value else value

    def _assigned(self, match: re.Match[str]) -> str:
        name, value = match[1], match[2]
        bare = value.strip("\"'")
        if REDACTED in value or not self._is_secret(name.lstrip("+-"), bare):
            return match[0]
        return f"{name}={self._hidden()}"

    def _is_secret(self, holder: str, value: str) -> bool:
        if _INTERPOLATION.match(value) or value.lower() in ("none", "null", "true", "false", REDACTED):
            return False
        if self._is_named(holder):
            return True
        judge = _judge(holder)
        return judge is not None and judge(value)

    def _names_all(self, holder: str) -> bool:
        return bool(holder) and (_judge(holder) is _whatever or self._is_named(holder))

    def _is_named(self, holder: str) -> bool:
        return bool(self._names) and not self._names.isdisjoint(
            (holder.casefold(), holder.casefold().rpartition(".")[2])
        )

    def _hidden(self) -> str:
        self.count += 1
        return REDACTED


def redacted_text(text: str) -> str:
    """A message with everything replaced that has the form of a secret."""
    return Redactor(RedactionRules()).plain(text)  # type: ignore[no-any-return]  # of a text comes a text


def _whatever(_: str) -> bool:
    return True


def _no_path(value: str) -> bool:
    return not value.startswith("/")


def _no_special(value: str) -> bool:
    return _SPECIAL.match(value) is None


def _worth_hiding(value: str) -> bool:
    return len(value) >= 6 and _no_special(value)


def _long(value: str) -> bool:
    return _LONG.match(value) is not None


@functools.lru_cache(4_000)
def _judge(name: str) -> Callable[[str], bool] | None:
    """By the name of a key: which of its texts are secrets; None for none of them."""
    words = [word.lower() for word in _WORD.findall(name[:200])]
    if tuple(words[-2:]) in _OTHERS:
        return _whatever
    while words and (words[-1] in _MODIFIERS or words[-1].isdigit()):
        words.pop()
    if not words:
        return None
    before, last = (words[-2] if len(words) > 1 else ""), words[-1]
    if last == "pwd":
        return _no_path  # also the working directory
    if last in _ALWAYS or (last in ("key", "keys") and before in _KEY_OF):
        return _whatever
    if last != "token":
        return None
    if len(words) == 1:
        return _worth_hiding
    return _no_special if before in _TOKEN_OF else _long
