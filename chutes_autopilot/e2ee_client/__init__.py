"""The client of the encrypted route: what a program needs to trust the gateway's key, seal, open and check."""
