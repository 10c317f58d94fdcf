"""Where state between requests lives, behind the ports of chutes_autopilot.interfaces."""
