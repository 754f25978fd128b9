from __future__ import annotations

import pytest
import redis

from agent.worker.metrics.endpoints import Endpoints
from agent.worker.metrics.outcomes import Outcomes, SampleTexts
from agent.worker.metrics.rows import RowSums
from common.metrics.error_samples import MAX_SAMPLES, SAMPLES_PER_CLASS, ErrorSample
from common.redis_client import Failure, failure_of
from tests.support.rows import Row, rows_of

NAMES = ("SET", "GET")
PASSWORD = "hunter2-is-secret"
CALL = (b"GET", b"key:1")


class Sampled:
    """Outcomes of a mix whose commands have their key first."""

    def __init__(self, *secrets: str, server: str = "web1:6379") -> None:
        self.outcomes = Outcomes((1, 1), secrets, server)

    def number(self, failure: Failure | Exception, row: int = 1, arguments: tuple[bytes, ...] = CALL) -> int:
        found = failure if isinstance(failure, Failure) else failure_of(failure)
        return self.outcomes.kind_number(found, row, arguments)

    def texts(self, failure: Failure | Exception, **place: object) -> SampleTexts:
        texts = self.outcomes.samples[self.number(failure, **place)]  # type: ignore[arg-type]
        assert texts is not None
        return texts


def error_reply(text: str) -> redis.ResponseError:
    return redis.ResponseError(text, status_code=text.partition(" ")[0])


def test_each_kind_of_error_has_a_number_of_its_own() -> None:
    sampled, busy = Sampled(), error_reply("BUSY a script runs")
    first = sampled.number(busy)
    assert sampled.number(error_reply("BUSY a script runs"), arguments=(b"GET", b"key:2")) == first
    others = [
        sampled.number(busy, row=0),
        sampled.number(error_reply("BUSY another script runs")),
        sampled.number(error_reply("OOM no memory")),
    ]
    assert len({first, *others}) == 4
    assert sampled.outcomes.names[first] == sampled.outcomes.names[others[0]] == (True, "BUSY")


def test_a_sample_has_message_key_and_endpoint_of_the_first_error() -> None:
    sampled = Sampled()
    assert sampled.texts(error_reply("WRONGTYPE Operation against a key")) == SampleTexts(
        message="WRONGTYPE Operation against a key",
        key="key:1",
        endpoint="web1:6379",
        exception="ResponseError",
        cause="",
    )
    assert sampled.texts(Failure(False, "CheckoutTimeout", 0, was_sent=False)).endpoint == ""
    sampled = Sampled(server="\x1b]0;" + "x" * 200)
    assert sampled.texts(error_reply("ERR no")).endpoint == r"\x1b]0;" + "x" * 93


def test_a_different_answer_to_every_operation_leaves_memory_and_frames_bounded() -> None:
    sampled = Sampled()
    sums = RowSums(commands=len(NAMES), outcomes=sampled.outcomes)
    answers = [error_reply(f"CODE{chr(65 + number % 7)} {number} {'x' * 1000}") for number in range(1000)]
    for number, answer in enumerate(answers):
        sums.add(rows_of(Row(number, 1 + len(NAMES) * sampled.number(answer))))
    metrics = sums.metrics(NAMES, sampled.outcomes.names)
    described = [each for each in metrics.error_samples if not each.is_rest]
    assert len(described) == min(MAX_SAMPLES, 7 * SAMPLES_PER_CLASS)
    assert len(metrics.error_samples) == len(described) + 7
    assert sum(each.count for each in metrics.error_samples) == metrics.commands["GET"].error_count == 1000
    assert len(sampled.outcomes.names) == 1 + len(described) + 7


def test_a_different_code_in_every_answer_leaves_memory_bounded() -> None:
    sampled = Sampled()
    for number in range(1000):
        sampled.number(error_reply(f"CODE{number} no"))
    assert len(sampled.outcomes.names) <= 1 + 64 + MAX_SAMPLES


def test_samples_have_the_times_of_their_first_and_last_error() -> None:
    sampled = Sampled()
    sums = RowSums(commands=len(NAMES), outcomes=sampled.outcomes)
    kind = 1 + len(NAMES) * sampled.number(error_reply("BUSY no"))
    sums.add(rows_of(Row(1007, kind), Row(1003, kind), Row(1001, 1)))
    sums.add(rows_of(Row(1020, kind), Row(1030, 0)))
    metrics = sums.metrics(NAMES, sampled.outcomes.names, t0_ns=1000)
    assert metrics.commands["GET"].errors == {"BUSY": 3}
    [found] = metrics.error_samples
    assert found == ErrorSample(
        name="BUSY",
        message="BUSY no",
        command="GET",
        key="key:1",
        endpoint="web1:6379",
        exception="ResponseError",
        count=3,
        first_ns=3,
        last_ns=20,
    )


@pytest.mark.parametrize(
    "text",
    [
        f"WRONGPASS {PASSWORD} is wrong",
        f"ERR see redis://app:{PASSWORD}@web1:6379",
        f"ERR unknown command 'AUTH', with args beginning with: '{PASSWORD}' ",
        f"Command # 1 (AUTH {PASSWORD}) of pipeline caused error: ERR no",
    ],
)
def test_samples_show_no_password(text: str) -> None:
    texts = Sampled(PASSWORD).texts(error_reply(text))
    assert PASSWORD not in repr(texts)
    assert texts.message


def test_a_short_password_is_hidden_as_a_word() -> None:
    assert Sampled("pw").texts(error_reply("ERR 'pw' is no pwd")).message == "ERR '***' is no pwd"


def test_control_characters_are_escaped_and_long_texts_are_cut() -> None:
    reply, call = error_reply("ERR \x1b[2J\x07" + "x" * 1000), (b"GET", b"\x1b[31m\xff" + b"k" * 1000)
    texts = Sampled().texts(reply, arguments=call)
    assert texts.message.startswith(r"ERR \x1b[2J\x07xx")
    assert texts.key.startswith(r"\x1b[31m\xffkk")
    assert (len(texts.message), len(texts.key)) == (200, 100)
    assert repr(texts).isprintable()


def test_a_lost_connection_keeps_its_class_and_its_cause() -> None:
    lost = redis.ConnectionError("Error while reading from web1:6379")
    lost.__context__ = ConnectionResetError(104, "Connection reset by peer")
    texts = Sampled().texts(lost)
    assert texts.exception == "ConnectionError"
    assert texts.message == "Error while reading from web1:6379"
    assert texts.cause == "ConnectionResetError: [Errno 104] Connection reset by peer"


def test_operations_without_known_arguments_have_samples_only_if_their_row_is_known() -> None:
    sampled = Outcomes((None,))
    failure = failure_of(error_reply("BUSY no"))
    assert sampled.samples[sampled.kind_number(failure, 0, ())] is not None
    assert sampled.samples[sampled.kind_number(failure, 7, ())] is None


def test_errors_of_one_kind_are_sampled_by_server() -> None:
    sampled, endpoints = Sampled(server=""), Endpoints()
    first, second = endpoints.number("web1", 6379), endpoints.number("web2", 6379)
    sums = RowSums(commands=len(NAMES), outcomes=sampled.outcomes)
    kind = 1 + len(NAMES) * sampled.number(error_reply("BUSY no"))
    sums.add(rows_of(*(Row(1, kind, endpoint=endpoint) for endpoint in (first, second, second)), Row(1, kind)))
    samples = sums.metrics(NAMES, sampled.outcomes.names, endpoints).error_samples
    assert {sample.endpoint: sample.count for sample in samples} == {"web1:6379": 1, "web2:6379": 2, "": 1}
