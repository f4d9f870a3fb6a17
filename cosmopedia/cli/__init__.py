"""The `cosmo` command."""
