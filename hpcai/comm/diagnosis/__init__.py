"""Diagnosis of ranks that do not come: what each rank does when asked, and the report that a person reads."""
