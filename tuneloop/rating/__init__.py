"""People rate answers blind: who sees what, what they choose, and how far they agree."""
