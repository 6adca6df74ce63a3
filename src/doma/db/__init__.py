"""Tables: one engine for SQLite and PostgreSQL, migrations, the outbox of events."""
