"""Commands: the table of those known by name, templates, and all that a plan may issue.

One table of data serves the drivers, the profiles, the checks and the documentation. A command of the plan is either
a name of this table ("SET") or a template of its own ("SET __key__ __data__"), so the table holds nothing that a user
could not write in a plan.
"""

from __future__ import annotations

from common.commands.blocking import Timeout as Timeout
from common.commands.blocking import blocking_timeout_s as blocking_timeout_s
from common.commands.planned import PlannedCommand as PlannedCommand
from common.commands.planned import find_command as find_command
from common.commands.planned import is_cluster as is_cluster
from common.commands.planned import keys_of as keys_of
from common.commands.planned import keys_per_hash_tag as keys_per_hash_tag
from common.commands.planned import plan_templates as plan_templates
from common.commands.planned import planned_commands as planned_commands
from common.commands.planned import script_digest as script_digest
from common.commands.pubsub import PUBLISHING as PUBLISHING
from common.commands.pubsub import SUBSCRIBING as SUBSCRIBING
from common.commands.pubsub import subscribes as subscribes
from common.commands.samples import key_text as key_text
from common.commands.samples import planned_preparations as planned_preparations
from common.commands.samples import preparing_calls as preparing_calls
from common.commands.samples import sample_calls as sample_calls
from common.commands.table import COMMANDS as COMMANDS
from common.commands.table import CommandSpec as CommandSpec
from common.commands.table import Holds as Holds
from common.commands.table import Reply as Reply
from common.commands.template import PLACEHOLDERS as PLACEHOLDERS
from common.commands.template import Mixed as Mixed
from common.commands.template import Part as Part
from common.commands.template import Piece as Piece
from common.commands.template import Placeholder as Placeholder
from common.commands.template import Rand as Rand
from common.commands.template import SameAs as SameAs
from common.commands.template import Sha as Sha
from common.commands.template import Template as Template
from common.commands.template import origin as origin
from common.commands.template import parse_template as parse_template
