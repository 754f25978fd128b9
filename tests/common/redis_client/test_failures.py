from __future__ import annotations

import pytest
import redis
import redis.asyncio

from common.redis_client import failure_of

PLAIN = "ERR value is not an integer"


@pytest.mark.parametrize(
    "prefixed",
    [
        f"Command # 3 (INCR key:1) of pipeline caused error: {PLAIN}",
        f"Command # 4 (INCR key:2) of pipeline caused error: {(PLAIN,)}",
        f"Command # 4 (INCR key:2) of pipeline caused error: {(PLAIN + chr(39),)}",
    ],
)
def test_the_text_of_an_error_in_a_pipeline_is_that_of_the_server(prefixed: str) -> None:
    failure = failure_of(redis.ResponseError(prefixed))
    assert failure.text.rstrip("'") == PLAIN
    assert (failure.replied, failure.name) == (True, "ERR")
