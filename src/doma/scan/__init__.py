"""Storage-side scan: filter and projection pushed to the bytes, Arrow back."""
