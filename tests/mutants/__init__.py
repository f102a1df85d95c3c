"""A mutation tester: it plants one small fault at a time and looks whether the tests notice."""
