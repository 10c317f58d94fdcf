"""The rules of routing: eligibility, ranking, the model field, plans, failover, stickiness; pure, no reactor."""
