"""All targets."""

from fuzz import arguments, commands, files

TARGETS = [*arguments.TARGETS, *files.TARGETS, *commands.TARGETS]
