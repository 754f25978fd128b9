from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.plan.schema import Embedded
from coordinator.embedded import open_embedded
from scripts.benchmark import environment, matrix, rivals
from scripts.benchmark.cells import Cell
from scripts.benchmark.contenders import BenchError
from scripts.benchmark.ground import patient
from scripts.benchmark.referees import ServerReferee
from scripts.benchmark.rivals import RIVALS, Rival, RivalJob, release, rival
from scripts.benchmark.turns import Player, play

CELL = Cell(connections=2, pipeline=3, value_bytes=4, keys=1000)
JOB = RivalJob(CELL, 7777, 3, Path("counted"))


@pytest.mark.parametrize("name", [name for name in RIVALS if name != "Locust"])
def test_every_rival_is_told_port_connections_and_pipeline(name: str) -> None:
    arguments = RIVALS[name].arguments(JOB)
    named = dict(zip(arguments[::2], arguments[1::2], strict=False))
    assert "7777" in arguments
    assert named.get("-c", named.get("--clients")) == "2"
    assert named.get("-P", named.get("--pipeline")) == "3"


def test_those_that_send_one_command_send_it_to_the_keys_of_all() -> None:
    assert RIVALS["redis-benchmark SET"].arguments(JOB)[-3:] == ["SET", "key:1__rand_int__", "xxxx"]
    assert RIVALS["redis-benchmark GET"].arguments(JOB)[-2:] == ["GET", "key:1__rand_int__"]
    assert RIVALS["resp-benchmark SET"].arguments(JOB)[-1] == "SET key:1000000000{rand 1000} xxxx"
    memtier = RIVALS["memtier_benchmark"].arguments(JOB)
    assert memtier[memtier.index("--key-maximum") + 1] == "1000000000999"


def test_locust_has_a_user_for_each_connection_and_its_job_by_the_environment() -> None:
    arguments = RIVALS["Locust"].arguments(JOB)
    assert arguments[arguments.index("--users") + 1] == "2"
    told = json.loads(RIVALS["Locust"].environment(JOB)["STAMPEDE_BENCH"])
    assert (told["port"], told["keys"], told["value_bytes"], told["file"]) == (7777, 1000, 4, "counted")


def test_a_contender_is_one_rival_or_two_halves_or_ours() -> None:
    assert matrix.parts("memtier_benchmark") == ["memtier_benchmark"]
    assert matrix.parts("redis-benchmark") == ["redis-benchmark SET", "redis-benchmark GET"]
    assert matrix.parts("wire") == []
    assert {part for name in matrix.CONTENDERS for part in matrix.parts(name)} == set(RIVALS)


def test_who_is_not_there_is_absent_and_why_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RIVALS, "memtier_benchmark", Rival(lambda: ("", "not on PATH"), lambda _: []))
    assert matrix.absent(["wire", "memtier_benchmark"]) == {"memtier_benchmark": "not on PATH"}


def test_a_rival_says_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RIVALS, "Locust", Rival(lambda: (environment.sys.executable, ""), lambda _: []))
    assert release("Locust") == f"Python {platform.python_version()}"
    monkeypatch.setitem(RIVALS, "Locust", Rival(lambda: ("no-such-program", ""), lambda _: []))
    assert release("Locust") == ""


def test_only_locust_has_no_pipelines() -> None:
    assert {name for name in matrix.CONTENDERS if matrix.unable(name, CELL)} == {"Locust"}
    assert not any(matrix.unable(name, Cell(200, 1, 100, 10)) for name in matrix.CONTENDERS)


@pytest.mark.usefixtures("no_leaks")
def test_a_rival_that_ends_at_once_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RIVALS, "memtier_benchmark", Rival(lambda: ("false", ""), lambda _: []))
    with open_embedded(Embedded.STANDALONE) as server:
        referee = ServerReferee(patient(server.url), server.pids)
        with (
            pytest.raises(BenchError, match="memtier_benchmark ended at once, with code 1"),
            rival("memtier_benchmark", CELL, server.port, 3, None, referee),
        ):
            pass


# What a rival looks like from outside: connections, load, and its own count when it is told to end.
_IMITATION = """
import pathlib, signal, socket, sys
port, count, wrong, file = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), pathlib.Path(sys.argv[4])
class End(Exception): pass
def end(*_): raise End
signal.signal(signal.SIGTERM, end)
sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
done = 0
try:
    while True:
        for one in sockets:
            one.sendall(b"*2\\r\\n$3\\r\\nGET\\r\\n$1\\r\\nk\\r\\n")
        for one in sockets:
            one.recv(100)
            done += 1
except End:
    file.write_text(str(done + wrong))
"""


@pytest.mark.usefixtures("no_leaks")
@pytest.mark.parametrize("wrong", [0, -1000])
def test_a_rival_with_a_count_of_its_own_must_agree_with_the_server(
    wrong: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    locust = RIVALS["Locust"]
    imitation = Rival(
        lambda: (environment.sys.executable, ""),
        lambda job: ["-c", _IMITATION, str(job.port), str(job.cell.connections), str(wrong), str(job.file)],
        locust.ending,
        locust.count,
    )
    monkeypatch.setitem(rivals.RIVALS, "Locust", imitation)
    with open_embedded(Embedded.STANDALONE) as server:
        target = patient(server.url)
        referee = ServerReferee(target, server.pids)
        players: dict[str, Player] = matrix.players("Locust", CELL, target, server.port, None, referee)
        if wrong:
            with pytest.raises(BenchError, match="Locust counted"):
                play(players, rounds=1, turn_s=0.2)
        else:
            [reading] = play(players, rounds=1, turn_s=0.2)["Locust"]
            assert reading.operations > 0


@pytest.fixture(autouse=True)
def nothing_remembered() -> Iterator[None]:
    environment.programs.cache_clear()
    yield
    environment.programs.cache_clear()


def test_an_environment_that_cannot_be_made_leaves_its_rivals_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise subprocess.CalledProcessError(1, "pip", stderr="first\nno such package\n")

    monkeypatch.setattr(environment, "_DIRECTORY", tmp_path / "none")
    monkeypatch.setattr(environment.subprocess, "run", refuse)
    assert environment.programs()[1] == "not installed: no such package"
    assert matrix.absent(["Locust", "resp-benchmark", "bare"]) == dict.fromkeys(
        ["Locust", "resp-benchmark"], "not installed: no such package"
    )


def test_an_environment_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[list[str]] = []

    def record(step: list[str], **_: object) -> None:
        steps.append(step)
        (tmp_path / "bin").mkdir(exist_ok=True)

    monkeypatch.setattr(environment, "_DIRECTORY", tmp_path)
    monkeypatch.setattr(environment.subprocess, "run", record)
    for _ in range(2):
        assert environment.programs() == (tmp_path / "bin", "")
        environment.programs.cache_clear()
    assert len(steps) == 2
