"""Wake-ups: who waits for an event hears of it at once; nothing is stored here."""
