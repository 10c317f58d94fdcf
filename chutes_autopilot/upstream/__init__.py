"""Connections to Chutes: the pool, one attempt, and the control plane's fetches."""
