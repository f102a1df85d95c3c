"""Who waits for whom: what ranks do when one asks them, and what is said when one does not come."""
