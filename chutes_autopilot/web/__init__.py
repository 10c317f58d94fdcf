"""The HTTP face of the service: the Klein resource tree and its one set of error answers."""
