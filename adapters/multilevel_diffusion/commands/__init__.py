"""Commands of the adapter: `multilevel-sde demo`, `sample`, `plan`, `pilot`, `measure`, `train`,
`quality`, `edit`.

A room is a command: `register` adds its options, and a function that runs it imports what it needs when it runs, so
that `--help` imports no torch. What a command does is done in the other wings. Add one as a room with a `register` and
put it in its place in `in_order`.

Rooms:
    demo, sample, plan, pilot, measure, train, quality, edit     one command each.
    options                                                      the options that they share, written once.
    in_order                                                     register(): all of them, as --help lists them.
"""
