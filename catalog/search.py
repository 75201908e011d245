"""The language of `q`: words, prefixes, phrases, `field:value` and comparisons, all of which must hold.

    dbnet resn*                 words; a bare one is found inside of words of path, name and experiment as well
    "batch norm"                a phrase
    architecture:dbnet          a field of the entry; `*` at the end stands for anything
    optimizer.lr:0.001          a value of hyper-parameters or config, by the end of its dotted path
    hmean>0.8 size<10MB         metrics and numbers; > >= < <= =
    modified:2025-10-11..2025-10-12    ranges, the last day included
    -last                       not

What is searched besides entries is one line of tokens a checkpoint, see `search_text`.
"""

import functools
import re

from .search_terms import NUMERIC, SearchError, Term, WordTerm, exact_pair, field_term, number_term

__all__ = ["MAX_TERMS", "SearchError", "parse_search"]

MAX_TERMS = 32
MAX_LENGTH = 1_000

_TOKEN = re.compile(r"""-?(?:[^\s"]*"[^"]*"\S*|\S+)""")
_OPERATOR = re.compile(r'(?P<name>[^\s:<>="*]*[^\W\d][^\s:<>="*]*)(?P<operator>>=|<=|[<>=:])(?P<value>.*)\Z', re.DOTALL)


@functools.lru_cache(256)
def parse_search(q: str) -> tuple[Term, ...]:
    """The terms of `q`, all of which must hold; none for a blank one.

    Raises:
        SearchError: names the token that cannot be used, and what may stand there.
    """
    if len(q) > MAX_LENGTH:
        raise SearchError(q[:40] + "…", f"use at most {MAX_LENGTH} characters")
    tokens = _TOKEN.findall(q)
    if len(tokens) > MAX_TERMS:
        raise SearchError(tokens[MAX_TERMS], f"use at most {MAX_TERMS} terms")
    return tuple(_term(token) for token in tokens)


def _term(token: str) -> Term:
    body = token[1:] if token.startswith("-") and len(token) > 1 else token
    term = _positive(body, token)
    return term.negated() if body is not token else term


def _positive(body: str, token: str) -> Term:
    if body.count('"') % 2:
        raise SearchError(token, 'close the quote, e.g. "batch norm"')
    if body.startswith('"'):
        if not body.endswith('"') or body.count('"') != 2 or not body[1:-1].strip():
            raise SearchError(token, 'put words between the quotes and a space behind them, e.g. "batch norm" adam')
        return WordTerm.phrase(body[1:-1])
    operator = _OPERATOR.match(body)
    if operator is None:
        return _word(body, token)
    return _operation(operator["name"], operator["operator"], operator["value"], body, token)


def _operation(name: str, operator: str, value: str, body: str, token: str) -> Term:
    unquoted = value[1:-1] if len(value) > 1 and value.startswith('"') and value.endswith('"') else value
    if '"' in unquoted:
        raise SearchError(token, f'put the whole value between quotes, e.g. {name}:"two words"')
    if operator == ":":
        if not unquoted:
            return _word(body, token) if name not in NUMERIC else number_term(name, ":", "", token)
        known = field_term(name, unquoted, token)
        return known or WordTerm.pair(name, unquoted, body)
    if operator == "=":
        # Names of files and directories are full of them: `epoch=28-step=100.ckpt`, `lr=0.001,batch=32`.
        return exact_pair(name, unquoted, body, token) or _word(body, token)
    return number_term(name, operator, unquoted, token)


def _word(body: str, token: str) -> Term:
    stem = body[:-1] if body.endswith("*") else body
    if "*" in stem or not stem:
        raise SearchError(token, "a * stands at the end of a word, e.g. resn*")
    return WordTerm.prefix(stem) if stem is not body else WordTerm.word(body)
