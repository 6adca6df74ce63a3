"""The caching store: any origin, kept in checked pages on a local disk.

``store.CacheStore`` is a ``doma.store.protocol.Store``; the doors serve it like any other. Below it, from
the pure to the practical: ``freshness`` and ``extents`` decide, ``record``, ``pages`` and ``shelf`` keep,
``origins`` names where bytes come from, ``fetch`` brings them, ``reader`` hands them out.

Source: the cache contract (freshness F1-F18, corruption C1-C16, overload O1-O14, adaptive blocks §9).
"""
