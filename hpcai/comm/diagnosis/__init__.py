"""Who waits for whom: how ranks report what they are doing, and the warnings and errors when a rank does not come."""
