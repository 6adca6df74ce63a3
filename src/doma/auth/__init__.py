"""Tokens: verify, issue, discover; and the decision who may do what."""
