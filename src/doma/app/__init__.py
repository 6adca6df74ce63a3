"""The system as a whole: reads the configuration, opens the engines, wires the roles, runs them.

This is the one place that knows every part; nothing else reads the whole configuration.
"""
