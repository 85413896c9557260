"""Commands of the adapter: `multilevel-sde demo`, `sample`, `pilot`, `plan`, `train`, `measure`, `edit`.

Each room has register(subparsers), which adds its commands; what they do is done in the other wings. Add a command as a
room with a `register` and name it in pyproject.toml, entry points "multilevel_sde.commands".

Rooms:
    demo, sample, pilot_and_plan, train_and_measure, edit
"""
