"""Redis commands: the table of known commands, and templates with their one renderer. Knows nothing of plans.

A plan names a command of the table ("SET") or gives a template ("SET __key__ __data__"). Every row of the table could
also be given as a template.
"""

from __future__ import annotations

from common.commands.labels import template_labels as template_labels
from common.commands.lookups import Lookup as Lookup
from common.commands.lookups import looked_up as looked_up
from common.commands.lookups import lookup_of as lookup_of
from common.commands.table import COMMANDS as COMMANDS
from common.commands.table import PUBLISHING as PUBLISHING
from common.commands.table import SUBSCRIBING as SUBSCRIBING
from common.commands.table import CommandSpec as CommandSpec
from common.commands.table import KeyType as KeyType
from common.commands.table import ReplyKind as ReplyKind
from common.commands.table import blocking_timeout_s as blocking_timeout_s
from common.commands.table import find_command as find_command
from common.commands.template import KEY_PLACEHOLDERS as KEY_PLACEHOLDERS
from common.commands.template import PLACEHOLDERS as PLACEHOLDERS
from common.commands.template import Argument as Argument
from common.commands.template import Compound as Compound
from common.commands.template import Piece as Piece
from common.commands.template import Placeholder as Placeholder
from common.commands.template import RandomInteger as RandomInteger
from common.commands.template import Repeated as Repeated
from common.commands.template import ScriptDigest as ScriptDigest
from common.commands.template import Template as Template
from common.commands.template import Variable as Variable
from common.commands.template import original as original
from common.commands.template import parse_template as parse_template
from common.commands.template import pieces_of as pieces_of
from common.commands.template import template_text as template_text
