"""A server with TGI's HTTP contract for models that a CPU can run: the rehearsal's and the tests'."""
