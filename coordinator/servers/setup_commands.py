"""Set up the target before the agents prepare: flush its data, load scripts, issue the plan's setup commands.

The coordinator does this once; it is not part of the load. The target's timeouts limit every wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

from common.commands import Placeholder, ScriptDigest, Template, Variable, find_command
from common.errors import TargetError
from common.plan.planned_commands import key_text, keys_per_hash_tag, script_digests
from common.plan.schema import Plan, Target
from common.redis_client import TARGET_ERRORS, address_of, error_reply, failure_of, translate
from common.units import counted, printable, show
from coordinator.servers.queries import PipelineClient, Primaries, open_primaries, query, whole_number

BATCH = 500
REPORT_EVERY_CALLS = 100_000

Call = tuple[str | bytes, ...]
Say = Callable[[str], None]


def flush(target: Target) -> int:
    """Empty the target's database on every primary. Returns how many keys it had. Raises TargetError."""
    keys = 0
    with open_primaries(target) as primaries:
        for server in primaries.each:
            keys += whole_number(query(server, "DBSIZE")) or 0
            # ASYNC, because flushing a large database takes longer than the timeout of a reply.
            server.execute_command("FLUSHDB", "ASYNC")
    return keys


def set_up(plan: Plan, say: Say) -> int:
    """Load the plan's scripts and issue its setup commands. Returns the number of calls.

    Raises TargetError if the target cannot be reached, and for the first error reply. BUSYGROUP is no error here: the
    group exists already.
    """
    workload = plan.workload
    if not workload.scripts and not workload.setup:
        return 0
    calls = 0
    with open_primaries(plan.target) as primaries:
        for script in workload.scripts:
            for server in primaries.each:
                _call_once(plan.target, server, ("SCRIPT", "LOAD", script.lua), f"script {script.name}")
                calls += 1
        for text in workload.setup:
            calls += _issue(plan, text, primaries, say)
    return calls


def _issue(plan: Plan, text: str, primaries: Primaries, say: Say) -> int:
    template = find_command(text)
    made = calls_of(plan, template)
    if not template.count(Placeholder.KEY):
        [(call, _)] = made
        _call_once(plan.target, primaries.client, call, show(text))
        return 1
    done = 0
    while batch := list(islice(made, BATCH)):
        pipeline = primaries.client.pipeline(transaction=False)
        for call, _ in batch:
            pipeline.execute_command(*call)
        for (_, key), reply in zip(batch, pipeline.execute(raise_on_error=False), strict=True):
            _check_reply(plan.target, reply, f"{show(text)}, key {printable(key)}")
        done += len(batch)
        if done % REPORT_EVERY_CALLS == 0:
            say(f"setup: {show(text)}: {counted(done, 'key')} so far")
    return done


def calls_of(plan: Plan, template: Template) -> Iterator[tuple[Call, str]]:
    """Yield (arguments, key) for every call of a setup template: one for each key of the workload's range if the
    template has `__key__`, else one."""
    workload = plan.workload
    digests = script_digests(workload)
    if not template.count(Placeholder.KEY):
        yield _call(template, b"", digests), ""
        return
    per_hash_tag = keys_per_hash_tag(plan.target, workload)
    for number in workload.keys.numbers:
        key = key_text(workload.keys.prefix, number, per_hash_tag)
        yield _call(template, key, digests), key.decode()


def _call(template: Template, key: bytes, digests: dict[str, bytes]) -> Call:
    def resolve(piece: Variable | ScriptDigest) -> bytes:
        if isinstance(piece, ScriptDigest):
            return digests[piece.script]
        assert piece is Placeholder.KEY, f"the rules of the plan allow no {piece} in setup"
        return key

    # As text, because redis-py needs the first words as text to find the node of a command in a cluster.
    return tuple(map(_text, template.render(resolve)))


def _text(argument: bytes) -> str | bytes:
    """Return an argument as text, or as bytes if it is not UTF-8."""
    try:
        return argument.decode()
    except UnicodeDecodeError:
        return argument


def _call_once(target: Target, server: PipelineClient, call: Call, what: str) -> None:
    try:
        reply = server.execute_command(*call)
    except TARGET_ERRORS as error:
        reply = error
    _check_reply(target, reply, what)


def _check_reply(target: Target, reply: object, what: str) -> None:
    if not isinstance(reply, Exception):
        return
    if not failure_of(reply).replied:
        raise translate(reply, target) from reply
    said = error_reply(reply)
    if not said.startswith("BUSYGROUP"):
        raise TargetError(f"target {address_of(target)} refused the setup: {what} was answered with {said}") from reply
