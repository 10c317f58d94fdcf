"""Several processes that serve as one: a parent that owns the sockets and the control plane, workers that relay."""
