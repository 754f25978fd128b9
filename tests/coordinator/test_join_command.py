from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from common.protocol.endpoint import Endpoint, parse_endpoint
from common.protocol.token import Credentials, coordinator_credentials
from common.protocol.token_sources import TokenVariables
from coordinator import join_command as invitation_module
from coordinator.join_command import in_container, invitation, join_command, loopback_note, reachable_at

OUTSIDE = Endpoint("10.0.0.5", 5555)
HERE = Endpoint("127.0.0.1", 5555)


@pytest.fixture
def credentials(tmp_path: Path) -> Credentials:
    return coordinator_credentials(tmp_path / "a token", TokenVariables(), {})


def test_a_wildcard_is_shown_as_the_address_of_the_route_to_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def outward(toward: str, *, ipv4_only: bool) -> str:
        asked.append((toward, ipv4_only))
        return "10.0.0.5"

    monkeypatch.setattr(invitation_module, "outward_host", outward)
    for text, url in (("0.0.0.0", "redis://10.0.0.9:6379"), ("[::]:5555", "unix:///run/redis"), ("*", "redis://h")):
        assert reachable_at(parse_endpoint(text), url) == OUTSIDE
    assert asked == [("10.0.0.9", True), ("", False), ("h", False)]
    assert reachable_at(Endpoint("10.1.1.1", 7), "redis://h") == Endpoint("10.1.1.1", 7)


def test_the_command_has_the_flags_that_an_agent_needs(credentials: Credentials) -> None:
    assert join_command(OUTSIDE, None) == "agent join 10.0.0.5:5555 --insecure"
    assert join_command(OUTSIDE, credentials) == "agent join 10.0.0.5:5555 --token-file TOKEN"
    assert join_command(HERE, credentials) == f"agent join 127.0.0.1:5555 --token-file '{credentials.file}'"
    assert join_command(HERE, replace(credentials, is_usual=True)) == "agent join 127.0.0.1:5555"
    assert join_command(OUTSIDE, replace(credentials, file=None)) == "STAMPEDE_TOKEN=... agent join 10.0.0.5:5555"


def test_an_invitation_names_the_token_and_the_published_address_of_a_container(
    credentials: Credentials,
) -> None:
    command = "agents join with: agent join 10.0.0.5:5555 --token-file TOKEN"
    copy = f"TOKEN is a copy of {credentials.file}"
    assert invitation(OUTSIDE, OUTSIDE, credentials, contained=True) == f"{command}; {copy}"
    assert invitation(parse_endpoint("*"), OUTSIDE, credentials, contained=True) == (
        f"{command}; {copy}; outside this container, use its published address"
    )
    assert invitation(HERE, HERE, None, contained=False) == "agents join with: agent join 127.0.0.1:5555 --insecure"


def test_a_coordinator_on_loopback_says_how_other_machines_can_join() -> None:
    assert loopback_note(HERE).endswith("only agents on this machine can join at 127.0.0.1:5555; "
                                        "for other machines, use --bind 0.0.0.0:5555")  # fmt: skip
    assert loopback_note(parse_endpoint("[::1]:5555")).endswith("use --bind '[::]:5555'")
    assert loopback_note(OUTSIDE) == loopback_note(parse_endpoint("*")) == ""


def test_a_container_is_recognized_by_the_files_and_variables_of_its_engine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(invitation_module, "_CONTAINER_FILES", (tmp_path / "engine",))
    assert not in_container({})
    assert in_container({"KUBERNETES_SERVICE_HOST": "10.96.0.1"})
    (tmp_path / "engine").touch()
    assert in_container({})
