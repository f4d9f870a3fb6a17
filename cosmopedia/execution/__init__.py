"""Where and how the work runs. Nothing in here changes an output, so no stage depends on it."""
