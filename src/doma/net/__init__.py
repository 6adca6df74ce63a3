"""The listener on one port, the ASGI bridge, byte ranges, the pooled range client."""
