"""Reading of datasets, from the hub or from files: a dep as a whole (`cosmo deps`)."""
