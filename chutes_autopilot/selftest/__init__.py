"""The service against a misbehaving upstream: which faults clients never notice, and what they get of the others."""
