"""What every stage imports: a dep as a whole (`cosmo deps`), so nothing that only some need belongs here."""
