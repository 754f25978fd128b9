"""The plan: one typed, frozen document of what to run.

Field names are the keys of the plan file. Where a Python name has a unit, the key has none: `duration_s` is `duration`
in the file, because its value has the unit, as in "30s". Counts are fleet-wide.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from msgspec import Meta, field

from common.plan.schema.base import LOAD, Name, NotNegative, Option, described, setting
from common.plan.schema.base import Section as Section
from common.plan.schema.fleet import Fleet as Fleet
from common.plan.schema.fleet import OnAgentLoss as OnAgentLoss
from common.plan.schema.load import Arrivals as Arrivals
from common.plan.schema.load import Load as Load
from common.plan.schema.load import Ramp as Ramp
from common.plan.schema.load import Stage as Stage
from common.plan.schema.pools import Connections as Connections
from common.plan.schema.pools import Driver as Driver
from common.plan.schema.pools import Pools as Pools
from common.plan.schema.pools import TcpPool as TcpPool
from common.plan.schema.scenario import Scenario as Scenario
from common.plan.schema.short_forms import listed
from common.plan.schema.target import BackoffKind as BackoffKind
from common.plan.schema.target import Cluster as Cluster
from common.plan.schema.target import Embedded as Embedded
from common.plan.schema.target import EndpointType as EndpointType
from common.plan.schema.target import Keepalive as Keepalive
from common.plan.schema.target import Maintenance as Maintenance
from common.plan.schema.target import ReadFrom as ReadFrom
from common.plan.schema.target import Retry as Retry
from common.plan.schema.target import RetryError as RetryError
from common.plan.schema.target import Sentinel as Sentinel
from common.plan.schema.target import Target as Target
from common.plan.schema.target import Tls as Tls
from common.plan.schema.target import Verify as Verify
from common.plan.schema.visibility import StampRole as StampRole
from common.plan.schema.visibility import Stamps as Stamps
from common.plan.schema.visibility import Visibility as Visibility
from common.plan.schema.workload import CleanUp as CleanUp
from common.plan.schema.workload import Command as Command
from common.plan.schema.workload import Distribution as Distribution
from common.plan.schema.workload import Expiry as Expiry
from common.plan.schema.workload import Keys as Keys
from common.plan.schema.workload import Preload as Preload
from common.plan.schema.workload import PubSub as PubSub
from common.plan.schema.workload import Script as Script
from common.plan.schema.workload import SizeWeight as SizeWeight
from common.plan.schema.workload import Then as Then
from common.plan.schema.workload import ValueKind as ValueKind
from common.plan.schema.workload import Values as Values
from common.plan.schema.workload import When as When
from common.plan.schema.workload import Workload as Workload
from common.units import Percentile, PerSecond


class Plan(Section, frozen=True, kw_only=True):
    """The whole plan. Two equal plans on equal fleets draw the same keys: every seed is derived from `seed`.

    A plan without `scenarios` is one scenario, made of the sections at the top. In a loaded plan every scenario is
    complete, and so is every target: defaults from the top have been filled in. `common.plan.scenarios` has each
    scenario as a plan of its own.
    """

    heading: ClassVar[str] = LOAD

    target: Annotated[Target, described("the servers under load, and how clients connect to them")] = Target()
    pools: Annotated[
        tuple[Pools, ...], Meta(min_length=1), described("groups of client instance pools that share the load")
    ] = (Pools(),)
    workload: Annotated[Workload, described("what is issued")] = Workload()
    load: Annotated[Load, described("how much is issued, and when")] = Load()
    targets: Annotated[
        dict[Name, Target],
        described("targets by name, for scenarios; `target` has the defaults of all of them", repeats_top=True),
    ] = field(default_factory=dict)
    scenarios: Annotated[
        tuple[Scenario, ...],
        described("loads that run at the same time; the sections at the top have the defaults of all of them"),
    ] = ()
    probe_per_s: Annotated[
        PerSecond | None,
        setting(
            "--probe",
            help="also send the workload at this low rate through one connection of its own, such as 20/s: the latency "
            "that a client without load of its own sees",
        ),
    ] = field(default=None, name="probe")
    visibility: Annotated[
        Visibility | None, described("also measure how long writes take until another target shows them")
    ] = None
    percentiles: Annotated[
        tuple[Percentile, ...],
        described(
            "percentiles of latency in tables and the live view, and further ones in summary.json",
            Option(
                flag="--percentiles",
                metavar="P,...",
                parse=listed,
                help='percentiles of latency in tables, the live view and summary.json, such as "50,95,99,99.99"',
                default="50,90,99,99.9",
            ),
        ),
    ] = ()
    fleet: Annotated[Fleet, described("which agents run it")] = Fleet()
    seed: Annotated[NotNegative, setting("--seed", help="the same seed draws the same keys")] = 1
