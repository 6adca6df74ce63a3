"""Protocols over a store: https (WebDAV and ranged reads); others join it on the same port."""
