"""Training without Ray: world, schedule, stopping rule, state files and the loops."""
