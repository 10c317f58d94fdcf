"""Requests sealed to the instances of a chute: finding them, their nonces, one attempt, what attests them."""
