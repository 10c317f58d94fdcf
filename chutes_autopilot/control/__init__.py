"""The control plane: the catalog and utilization refreshes and the snapshot they produce."""
