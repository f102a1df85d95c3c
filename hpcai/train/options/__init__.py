"""The options of training: their declarations, their readers, and the checks of options that are incompatible."""
