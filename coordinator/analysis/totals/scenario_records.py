"""The records of a run as one of its scenarios sees them: the plan, pools, frames and counts of this scenario alone.

So one scenario of several is analysed and reported by the same code as a run with one load. Pure.
"""

from __future__ import annotations

import msgspec

from common.plan.scenarios import ScenarioPlan
from common.protocol.messages import Final, MetricsFrame, ScenarioFinal
from coordinator.journal.records import (
    AgentEnded,
    AgentFacts,
    AnyRecord,
    CountersRead,
    FrameAccepted,
    RunOpened,
    ShareTakenOver,
)


def record_of_scenario(record: AnyRecord, scenario: ScenarioPlan) -> AnyRecord:
    """The part of a record that concerns a scenario; other records stay as they are."""
    match record:
        case RunOpened():
            return _opened(record, scenario)
        case FrameAccepted(agent_id=agent_id, frame=frame):
            return FrameAccepted(agent_id=agent_id, frame=_frame(frame, scenario.legs))
        case AgentEnded(final=Final() as final):
            return msgspec.structs.replace(record, final=_final(final, scenario.number))
        case ShareTakenOver(agent=agent, remaining=remaining):
            own = _facts(agent, scenario.number)
            numbers = {share.number for share in own.pools}
            own_remaining = None if remaining is None else tuple(each for each in remaining if each.number in numbers)
            return msgspec.structs.replace(record, agent=own, remaining=own_remaining or None)
        case CountersRead(targets=targets) if scenario.target:
            return targets.get(scenario.target, record)
        case _:
            return record


def _opened(record: RunOpened, scenario: ScenarioPlan) -> RunOpened:
    return msgspec.structs.replace(
        record,
        plan=scenario.plan,
        target=record.targets.get(scenario.target, record.target),
        targets={},
        agents=tuple(_facts(agent, scenario.number) for agent in record.agents),
        threads_total=record.threads[scenario.number],
        threads=(),
        connection_ceiling=record.connection_ceilings[scenario.number],
        connection_ceilings=(),
    )


def _facts(agent: AgentFacts, number: int) -> AgentFacts:
    """An agent with its pools of the scenario, as pools of a plan with one scenario. What the agent preloaded is known
    only for all scenarios together."""
    own = (msgspec.structs.replace(share, scenario=0) for share in agent.pools if share.scenario == number)
    return msgspec.structs.replace(agent, pools=tuple(own), preloaded=None)


def _frame(frame: MetricsFrame, legs: range) -> MetricsFrame:
    intervals = tuple(
        msgspec.structs.replace(interval, stage=interval.stage - legs.start)
        for interval in frame.intervals
        if interval.stage in legs
    )
    return msgspec.structs.replace(frame, intervals=intervals)


def _final(final: Final, number: int) -> Final:
    if not final.scenarios:
        return final  # of a plan with one scenario, or of an agent without pools
    nothing = ScenarioFinal(scenario=number, drained=True)
    own = next((each for each in final.scenarios if each.scenario == number), nothing)
    return msgspec.structs.replace(
        final,
        issued=own.issued,
        counted=own.counted,
        transactions=own.transactions,
        start_skew_ns=own.start_skew_ns,
        ran_ns=own.ran_ns,
        drained=own.drained,
        processes_lost=own.processes_lost,
        scenarios=(),
    )
