"""Sweeps: several arms of one experiment, each a DVC experiment in a git worktree of its own."""
