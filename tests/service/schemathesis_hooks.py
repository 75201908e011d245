"""What schemathesis, which loads this, cannot know of the API: ids that exist, and what no schema can say."""

import os
import random
from typing import Any

import schemathesis

from ckptd.catalog.search import SearchError, parse_search

IDS = os.environ["CKPTD_IDS"].split(",")
QUERIES = ("dbnet resn*", '"batch norm" -last', "hmean>0.8 size<10MB", "lr:0.1", "ünïcode", "modified:2025-10-11..")


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: schemathesis.Case, kwargs: dict[str, Any]) -> None:
    """What is to be accepted has terms that the language of `q` knows, ids that exist to compare, and no cursors.

    A cursor belongs to one list alone. What is to be refused is sent as it is.
    """
    if case.meta is None or not case.meta.generation.mode.is_positive or not isinstance(case.query, dict):
        return
    chance = random.Random(repr(case.query))
    case.query.pop("after", None)
    if "q" in case.query and not _is_query(str(case.query["q"])):
        case.query["q"] = chance.choice(QUERIES)
    if case.operation.path == "/checkpoints/compare" and "id" in case.query:
        case.query["id"] = chance.sample(IDS, len(case.query["id"]))


def _is_query(text: str) -> bool:
    try:
        parse_search(text)
    except SearchError:
        return False
    return True
