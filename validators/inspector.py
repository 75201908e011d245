"""inspect_checkpoint(path, level): format → facts → checks → Inspection; the one door of this package."""
