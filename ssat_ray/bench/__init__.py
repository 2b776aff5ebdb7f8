"""`ssat bench`: the project against the bare alternative, in one process tree, in alternation."""
